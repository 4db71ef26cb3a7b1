"""The task classification: one class an image."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.tasks.resampling import Floats, averaged, mean_error, mean_of_classes, summed, wilson_interval
from trainers.tasks.task import NO_DECODER, Answers, Task


def _is_right(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.argmax(1) == targets


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    return _is_right(logits, targets).double().mean().item()


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


def _counts_of_images(logits: Tensor, targets: Tensor) -> Any:
    """By image, whether each class is the true one, is predicted, and is both: (N, 3C) sparse."""
    # Only here: workers need not wait for the import.
    from scipy.sparse import csr_array

    count, classes = logits.shape
    predicted, true = logits.argmax(1).numpy(), targets.numpy()
    rows, right = np.arange(count), np.flatnonzero(predicted == true)
    places = np.concatenate([true, classes + predicted, 2 * classes + true[right]])
    ones = np.ones(len(places))
    return csr_array((ones, (np.concatenate([rows, rows, right]), places)), shape=(count, 3 * classes))


def _recall_of_sums(sums: Floats) -> Floats:
    true, _, hits = np.split(sums, 3, axis=1)
    return mean_of_classes(hits / true)


def _f1_of_sums(sums: Floats) -> Floats:
    true, predicted, hits = np.split(sums, 3, axis=1)
    return mean_of_classes(2 * hits / (true + predicted))


def _wilson(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    return wilson_interval(int(_is_right(logits, targets).sum()), len(targets))


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
    drawn={
        "accuracy": averaged(_is_right),
        "balanced_accuracy": summed(_counts_of_images, _recall_of_sums),
        "macro_f1": summed(_counts_of_images, _f1_of_sums),
        "loss": mean_error(partial(F.cross_entropy, reduction="none")),
    },
    shares=frozenset({"accuracy", "balanced_accuracy", "macro_f1"}),
    counted={"accuracy": _is_right},
    unusable=NO_DECODER,
)
