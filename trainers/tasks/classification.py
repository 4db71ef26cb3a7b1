"""One class an image."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score
from torch import Tensor
from torch.nn import functional as F

from trainers.tasks.task import Answers, Task


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    return (logits.argmax(1) == targets).double().mean().item()


def _balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    # Recall averaged over the classes that occur; scikit-learn's own function warns of predictions that do not.
    present = np.unique(targets.numpy())
    found = recall_score(targets.numpy(), logits.argmax(1).numpy(), labels=present, average="macro", zero_division=0)
    return float(found)


def _macro_f1(logits: Tensor, targets: Tensor) -> float:
    return float(f1_score(targets.numpy(), logits.argmax(1).numpy(), average="macro", zero_division=0))


def _loss(logits: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(logits, targets).item()


def _wilson(logits: Tensor, targets: Tensor) -> tuple[float, float]:
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
)
