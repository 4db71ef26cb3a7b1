"""Whether one model is better than another beyond chance, by their answers for the same images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainers import Task, percentiles


@dataclass(frozen=True, slots=True)
class Difference:
    """How a new model compares with an old one.

    Args:
        metric: What is compared.
        images: Number of images.
        old: The old model's score.
        new: The new model's score.
        low: Lower end of the 95% interval of new minus old, by paired bootstrap over images.
        high: Its upper end.
        p_value: Of McNemar's exact test that both are wrong equally often, where the metric is accuracy; else None.
        is_better: Whether the new model is better beyond chance.
    """

    metric: str
    images: int
    old: float
    new: float
    low: float
    high: float
    p_value: float | None
    is_better: bool


def compare_models(
    task: Task, metric: str, old: Tensor, new: Tensor, targets: Tensor, alpha: float = 0.05
) -> Difference:
    """Compare two models by their outputs for the same images.

    Accuracies are compared by McNemar's exact test (McNemar, Psychometrika 1947; exact by the binomial distribution of
    the images on which only one model is right). For all other metrics the new model is better where the bootstrap
    interval of the difference leaves out zero; each draw takes the same images for both models.

    Args:
        task: The task of both models.
        metric: One of its metrics.
        old: (N, ...) outputs of the old model, as ``Task.scores`` takes them.
        new: (N, ...) outputs of the new model.
        targets: (N, ...) targets.
        alpha: Significance level: how often, at most, an equal model may pass for better or worse.
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
    """The exact two-sided p-value that two models are right equally often.

    Args:
        old: (N,) bool, whether the old model is right.
        new: (N,) bool, whether the new model is right.
    """
    # Only here: it takes a second to import.
    from scipy.stats import binomtest

    only_old, only_new = int((old & ~new).sum()), int((new & ~old).sum())
    if only_old + only_new == 0:
        return 1.0
    return float(binomtest(only_new, only_old + only_new).pvalue)
