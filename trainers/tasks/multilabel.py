"""The task multilabel: any number of classes an image, including none."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor
from torch.nn import functional as F

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
    scale=lambda targets: None,
    answers=_answers,
    intervals={},
    unusable={**NO_DECODER, **dict.fromkeys(("co_tuning", "distill_weight"), "task multilabel has no single class")},
)
