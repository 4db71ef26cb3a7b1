"""The task regression: one or several numbers an image."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from trainers.tasks.task import NO_DECODER, Answers, Scale, Task


def _metrics() -> ModuleType:
    # Only here: the import takes a second, which studies of other tasks need not wait for.
    from torchmetrics.functional import regression

    return regression


def _mae(outputs: Tensor, targets: Tensor) -> float:
    return float(_metrics().mean_absolute_error(outputs.double(), targets.double()))


def _rmse(outputs: Tensor, targets: Tensor) -> float:
    """Each target's root mean squared error, averaged over targets."""
    of_targets = {"squared": False, "num_outputs": targets.shape[1]}
    return float(_metrics().mean_squared_error(outputs.double(), targets.double(), **of_targets).mean())


def _r2(outputs: Tensor, targets: Tensor) -> float:
    # torchmetrics refuses a single image, and R2 is not defined for targets that are all equal.
    if len(targets) < 2 or (targets == targets[0]).all():
        return float("nan")
    return float(_metrics().r2_score(outputs.double(), targets.double()))


def _spearman(outputs: Tensor, targets: Tensor) -> float:
    if len(targets) < 2:
        return float("nan")
    return float(_metrics().spearman_corrcoef(outputs.double(), targets.double()).mean())


def _loss(outputs: Tensor, targets: Tensor) -> float:
    return float(_metrics().mean_squared_error(outputs.double(), targets.double()))


def _scale(targets: Tensor) -> Scale:
    # In a small set, one of several targets may be the same for all images.
    return Scale(targets.mean(0), targets.std(0, unbiased=False).clamp_min(torch.finfo(torch.float32).tiny))


def _answers(outputs: Tensor, names: Sequence[str]) -> Answers:
    """One column a target, under its name."""
    return {name: outputs[:, k].double().numpy() for k, name in enumerate(names)}


REGRESSION = Task(
    name="regression",
    metrics={"rmse": _rmse, "mae": _mae, "r2": _r2, "spearman": _spearman, "loss": _loss},
    lower_is_better=frozenset({"rmse", "mae", "loss"}),
    scale=_scale,
    answers=_answers,
    intervals={},
    unusable={
        **NO_DECODER,
        **dict.fromkeys(("class_weights", "sampling", "co_tuning", "distill_weight"), "task regression has no classes"),
    },
)
