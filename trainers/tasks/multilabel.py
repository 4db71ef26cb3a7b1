"""The task multilabel: any number of classes an image, including none."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainers.tasks.resampling import Floats, Scored, averaged, mean_error, mean_of_classes, summed
from trainers.tasks.task import NO_DECODER, Answers, Task

SEPARATOR = ";"
_THRESHOLD = 0.5


def _metrics() -> ModuleType:
    # Only here: the import takes a second, which studies of other tasks need not wait for.
    from torchmetrics.functional import classification

    return classification


def _mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """Averaged over the classes that occur: average precision is not defined for other classes."""
    shown = targets.bool().any(0)
    if not shown.any():
        return float("nan")
    preds, truth = logits[:, shown].sigmoid(), targets[:, shown].long()
    return float(_metrics().multilabel_average_precision(preds, truth, int(shown.sum()), validate_args=False))


def _macro_f1(logits: Tensor, targets: Tensor) -> float:
    return float(_metrics().multilabel_f1_score(logits.sigmoid(), targets.long(), targets.shape[1], average="macro"))


def _micro_f1(logits: Tensor, targets: Tensor) -> float:
    return float(_metrics().multilabel_f1_score(logits.sigmoid(), targets.long(), targets.shape[1], average="micro"))


def _exact_match(logits: Tensor, targets: Tensor) -> float:
    return float(_metrics().multilabel_exact_match(logits.sigmoid(), targets.long(), targets.shape[1]))


def _loss(logits: Tensor, targets: Tensor) -> float:
    return F.binary_cross_entropy_with_logits(logits, targets).item()


def _is_right(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits.sigmoid() > _THRESHOLD) == targets.bool()).all(1)


def _counts_of_images(logits: Tensor, targets: Tensor) -> Tensor:
    """By image, whether each class is shown, is predicted, and is both: (N, 3C)."""
    predicted, shown = logits.sigmoid() > _THRESHOLD, targets.bool()
    return torch.cat([shown, predicted, shown & predicted], dim=1)


def _macro_f1_of_sums(sums: Floats) -> Floats:
    shown, predicted, hits = np.split(sums, 3, axis=1)
    # torchmetrics leaves out classes that are neither shown nor predicted.
    return np.nan_to_num(mean_of_classes(2 * hits / (shown + predicted)))


def _micro_f1_of_sums(sums: Floats) -> Floats:
    shown, predicted, hits = (part.sum(1) for part in np.split(sums, 3, axis=1))
    found: Floats = np.nan_to_num(2 * hits / (shown + predicted))
    return found


def _precisions_of_draws(logits: Tensor, targets: Tensor) -> Scored:
    """Mean average precision of draws: images are sorted once for each class."""
    classes = []
    for of_class, shown in zip(logits.sigmoid().T.numpy(), targets.T.numpy(), strict=True):
        order = np.argsort(-of_class, kind="stable")
        # Equal probabilities are one step of the curve.
        starts = np.flatnonzero(np.diff(of_class[order], prepend=np.inf))
        classes.append((order, starts, shown[order]))

    def precision(weights: Floats, order: NDArray[np.int64], starts: NDArray[np.int64], shown: Floats) -> Floats:
        drawn = weights[:, order]
        hits, found = (np.add.reduceat(part, starts, axis=1) for part in (drawn * shown, drawn))
        # Before the first image that was drawn, precision is 0 / 0, and counts for nothing.
        steps = np.nan_to_num(hits.cumsum(1) / found.cumsum(1)) * hits
        precisions: Floats = steps.sum(1) / hits.sum(1)
        return precisions

    def scored(weights: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return mean_of_classes(np.stack([precision(weights, *of_class) for of_class in classes], axis=1))

    return scored


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def _answers(logits: Tensor, classes: Sequence[str]) -> Answers:
    """The classes with a probability of at least a half, and the probability of every class."""
    probabilities = logits.sigmoid().double().numpy()
    names = np.asarray(classes, dtype=object)
    rows = [SEPARATOR.join(names[row >= _THRESHOLD]) for row in probabilities]
    return {
        "labels": np.asarray(rows, dtype=object),
        **{f"probability_{name}": probabilities[:, k] for k, name in enumerate(classes)},
    }


MULTILABEL = Task(
    name="multilabel",
    metrics={
        "mean_average_precision": _mean_average_precision,
        "macro_f1": _macro_f1,
        "micro_f1": _micro_f1,
        "exact_match": _exact_match,
        "loss": _loss,
    },
    lower_is_better=frozenset({"loss"}),
    shares=frozenset({"mean_average_precision", "macro_f1", "micro_f1", "exact_match"}),
    scale=lambda targets: None,
    answers=_answers,
    intervals={},
    drawn={
        "mean_average_precision": _precisions_of_draws,
        "macro_f1": summed(_counts_of_images, _macro_f1_of_sums),
        "micro_f1": summed(_counts_of_images, _micro_f1_of_sums),
        "exact_match": averaged(_is_right),
        "loss": mean_error(_losses),
    },
    counted={"exact_match": _is_right},
    unusable={**NO_DECODER, **dict.fromkeys(("co_tuning", "distill_weight"), "task multilabel has no single class")},
)
