"""The task regression: one or several numbers an image."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.tasks.resampling import Floats, Scored, mean_error, mean_of_classes, summed
from trainers.tasks.task import NO_DECODER, Answers, Scale, Task

_Order = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


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


def _squares_of_images(outputs: Tensor, targets: Tensor) -> Tensor:
    """By image, the squared errors, the targets, their squares and 1: (N, 3K + 1)."""
    off = outputs.double() - targets.double()
    # Around their mean, so that squares lose no digits.
    centred = targets.double() - targets.double().mean(0)
    return torch.cat([off**2, centred, centred**2, torch.ones(len(targets), 1)], dim=1)


def _rmse_of_sums(sums: Floats) -> Floats:
    found: Floats = np.sqrt(sums[:, : sums.shape[1] // 3] / sums[:, -1:]).mean(1)
    return found


def _r2_of_sums(sums: Floats) -> Floats:
    errors, first, second = np.split(sums[:, :-1], 3, axis=1)
    spread = second - first**2 / sums[:, -1:]
    # As in torchmetrics, a target that is always the same does not count.
    is_equal = spread <= 1e-12 * np.maximum(second, np.finfo(np.float64).tiny)
    found: Floats = np.where(is_equal.all(1), np.nan, np.where(is_equal, 0.0, 1 - errors / spread).mean(1))
    return found


def _spearman_of_draws(outputs: Tensor, targets: Tensor) -> Scored:
    """Spearman's correlation of draws: numbers are sorted once."""
    pairs = [(_order_of(a), _order_of(b)) for a, b in zip(outputs.T.numpy(), targets.T.numpy(), strict=True)]

    def correlation(weights: Floats, first: _Order, second: _Order) -> Floats:
        a, b = (_ranks(weights, order) for order in (first, second))
        both, *squares = ((weights * one * other).sum(1) for one, other in ((a, b), (a, a), (b, b)))
        found: Floats = both / np.sqrt(squares[0] * squares[1])
        return found

    def scored(weights: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return mean_of_classes(np.stack([correlation(weights, *pair) for pair in pairs], axis=1))

    return scored


def _order_of(values: NDArray[np.float32]) -> _Order:
    """The place of each image in the order of its value, places of images with equal values being one."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    return order, np.flatnonzero(np.diff(places[order], prepend=-1)), places


def _ranks(weights: Floats, order: _Order) -> Floats:
    """Ranks (D, N) around their mean, in draws in which images count so often."""
    by_value, starts, places = order
    counts = np.add.reduceat(weights[:, by_value], starts, axis=1)
    ranks = (counts.cumsum(1) - counts / 2)[:, places]
    centred: Floats = ranks - (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    return centred


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
    drawn={
        "rmse": summed(_squares_of_images, _rmse_of_sums),
        "mae": mean_error(lambda outputs, targets: (outputs.double() - targets.double()).abs().mean(1)),
        "r2": summed(_squares_of_images, _r2_of_sums),
        "spearman": _spearman_of_draws,
        "loss": mean_error(lambda outputs, targets: ((outputs.double() - targets.double()) ** 2).mean(1)),
    },
    unusable={
        **NO_DECODER,
        **dict.fromkeys(("class_weights", "sampling", "co_tuning", "distill_weight"), "task regression has no classes"),
    },
)
