"""Scores of a classifier from its logits, and their 95% intervals."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score
from torch import Tensor
from torch.nn import functional as F


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


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "loss": _loss,
}
LOWER_IS_BETTER = frozenset({"loss"})


def scores(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Every metric of :data:`METRICS`; ``loss`` is the cross entropy whatever loss was trained.

    Args:
        logits: (N, C) float32 on the CPU.
        targets: (N,) int64 on the CPU.
    """
    return {name: metric(logits, targets) for name, metric in METRICS.items()}


def interval(metric: str, logits: Tensor, targets: Tensor, resamples: int = 1000) -> tuple[float, float]:
    """A 95% interval for a score: Wilson's for accuracy, else percentile bootstrap over images with a fixed seed.

    Args:
        metric: A key of :data:`METRICS`.
        logits: (N, C) float32 on the CPU.
        targets: (N,) int64 on the CPU.
        resamples: Bootstrap draws.
    """
    if metric == "accuracy":
        hits = int((logits.argmax(1) == targets).sum())
        found = binomtest(hits, len(targets)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)
    draws = np.random.default_rng(0).integers(0, len(targets), (resamples, len(targets)))
    values = [METRICS[metric](logits[rows], targets[rows]) for rows in torch.from_numpy(draws)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
