"""The task classification: one class an image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.tasks.task import NO_DECODER, Answers, Task


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    return (logits.argmax(1) == targets).double().mean().item()


def _balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    """Recall averaged over the classes that occur."""
    counts = _confusion(logits, targets)
    occurring = counts.sum(1)
    return (counts.diagonal() / occurring)[occurring > 0].mean().item()


def _macro_f1(logits: Tensor, targets: Tensor) -> float:
    """F1 averaged over the classes that occur or are predicted."""
    counts = _confusion(logits, targets)
    occurring_and_predicted = counts.sum(1) + counts.sum(0)
    return (2 * counts.diagonal() / occurring_and_predicted)[occurring_and_predicted > 0].mean().item()


def _confusion(logits: Tensor, targets: Tensor) -> Tensor:
    """Images by class and predicted class, (C, C) float64.

    Computed for every probe of a sweep in each epoch, for which scikit-learn's scores take fifty times longer.
    """
    classes = logits.shape[1]
    return torch.bincount(targets * classes + logits.argmax(1), minlength=classes**2).view(classes, classes).double()


def _loss(logits: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(logits, targets).item()


def _wilson(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    # Only here: the import takes a second, which workers need not wait for.
    from scipy.stats import binomtest

    hits = int((logits.argmax(1) == targets).sum())
    found = binomtest(hits, len(targets)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _answers(logits: Tensor, classes: Sequence[str]) -> Answers:
    """Label, its probability, and the probability of every class."""
    probabilities = logits.softmax(1).double().numpy()
    names = np.asarray(classes, dtype=object)
    return {
        "label": names[probabilities.argmax(1)],
        "probability": probabilities.max(1, initial=0.0),
        **{f"probability_{name}": probabilities[:, k] for k, name in enumerate(classes)},
    }


CLASSIFICATION = Task(
    name="classification",
    metrics={
        "accuracy": _accuracy,
        "balanced_accuracy": _balanced_accuracy,
        "macro_f1": _macro_f1,
        "loss": _loss,
    },
    lower_is_better=frozenset({"loss"}),
    scale=lambda targets: None,
    answers=_answers,
    intervals={"accuracy": _wilson},
    unusable=NO_DECODER,
)
