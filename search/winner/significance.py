"""Whether one model is better than another beyond chance, by what both say of the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainers import Task, percentiles


@dataclass(frozen=True, slots=True)
class Difference:
    """How a new model compares with an old one.

    Args:
        metric: What is compared.
        images: On how many images.
        old: The old one's score.
        new: The new one's score.
        low: Where the 95% interval of new minus old begins, by paired bootstrap over images.
        high: Where it ends.
        p_value: Of McNemar's exact test that both are wrong equally often, where the metric is accuracy; else None.
        is_better: Whether the new one is better beyond chance.
    """

    metric: str
    images: int
    old: float
    new: float
    low: float
    high: float
    p_value: float | None
    is_better: bool


def compare(task: Task, metric: str, old: Tensor, new: Tensor, targets: Tensor, alpha: float = 0.05) -> Difference:
    """Compare two models by what they say of the same images.

    Accuracies by McNemar's exact test (McNemar, Psychometrika 1947; exact by the binomial of the images of which one
    model alone is right), all other metrics by whether the interval of their difference, bootstrapped over images that
    are drawn for both alike, leaves out zero.

    Args:
        task: Of both.
        metric: One of its metrics.
        old: (N, ...) what the old model gives, as for ``Task.scores``.
        new: (N, ...) what the new one gives.
        targets: (N, ...) of both.
        alpha: How often, at most, an equal one may pass for better or worse.
    """
    before, after = (task.scores(outputs, targets)[metric] for outputs in (old, new))
    draws: NDArray[np.float64] = task.draws(metric, new, targets) - task.draws(metric, old, targets)
    low, high = percentiles(draws, alpha)
    sign = -1.0 if metric in task.lower_is_better else 1.0
    p_value = None
    if metric == "accuracy":
        p_value = mcnemar(old.argmax(1) == targets, new.argmax(1) == targets)
        is_better = after > before and p_value < alpha
    else:
        is_better = min(sign * low, sign * high) > 0
    return Difference(metric, len(targets), before, after, low, high, p_value, bool(is_better))


def mcnemar(old: Tensor, new: Tensor) -> float:
    """The exact two-sided p-value that two models are right equally often, of (N,) bool of whether each is."""
    # Only here: it takes a second to import.
    from scipy.stats import binomtest

    only_old, only_new = int((old & ~new).sum()), int((new & ~old).sum())
    if only_old + only_new == 0:
        return 1.0
    return float(binomtest(only_new, only_old + only_new).pvalue)


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95% interval of a mean by Student's t; None where nothing tells how far values lie apart.

    That is of a single one, and of equal ones: two seeds with the same score are no certainty.
    """
    if len(set(values)) < 2:
        return None
    # Only here: it takes a second to import.
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
