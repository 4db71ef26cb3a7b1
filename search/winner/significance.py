"""Whether one model is better than another beyond chance, by their answers for the same images."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers import Groups, Mean, Task, exact_swap_test, score_interval, swap_test, units_of


@dataclass(frozen=True, slots=True)
class Difference:
    """How a new model compares with an old one.

    Args:
        metric: What is compared.
        images: Number of images.
        old: The old model's score.
        new: The new model's score.
        low: Lower end of the 95% interval of new minus old, by paired bootstrap over images or whole groups.
        high: Its upper end.
        p_value: One-sided: how often the new model looks as good if both models' answers are swapped at random.
        is_better: Whether the new model is better beyond chance: the p-value is at most ``alpha``.
        alpha: The level that the p-value is held against.
        groups: Number of groups of images; None if images are independent.
    """

    metric: str
    images: int
    old: float
    new: float
    low: float
    high: float
    p_value: float | None
    is_better: bool
    alpha: float = 0.05
    groups: int | None = None


def compare_models(
    task: Task,
    metric: str,
    old: Tensor,
    new: Tensor,
    targets: Tensor,
    alpha: float = 0.05,
    groups: Groups | None = None,
) -> Difference:
    """Compare two models by their outputs for the same images.

    The p-value is that of a swap test: if both models are equally good, it does not matter which of them gave the
    answers for an image, or for a group of images. Of accuracy it is exact. See :func:`trainers.swap_test`.

    Args:
        task: The task of both models.
        metric: One of its metrics.
        old: (N, ...) outputs of the old model, as ``Task.scores`` takes them.
        new: (N, ...) outputs of the new model.
        targets: (N, ...) targets.
        alpha: Significance level: how often, at most, an equal model may pass for better.
        groups: (N,) group of each image, such as its patient; None if all images are independent.
    """
    count, units = len(targets), units_of(len(targets), groups)
    before, after = (task.scores(outputs, targets)[metric] for outputs in (old, new))
    scored = task.scored(metric, torch.cat([old, new]), torch.cat([targets, targets]))

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        none = np.zeros_like(weights)
        return scored(np.concatenate([none, weights], 1)) - scored(np.concatenate([weights, none], 1))

    # The difference of two means is the mean of the differences.
    compared = Mean(scored.values[count:] - scored.values[:count]) if isinstance(scored, Mean) else difference
    low, high = score_interval(compared, units, draws=task.draws)
    p_value = p_value_of(task, metric, old, new, targets, alpha, groups)
    number = None if groups is None else int(units.max()) + 1
    return Difference(metric, count, before, after, low, high, p_value, p_value <= alpha, alpha, number)


def p_value_of(
    task: Task, metric: str, old: Tensor, new: Tensor, targets: Tensor, alpha: float, groups: Groups | None = None
) -> float:
    """The p-value of :func:`compare_models`, which takes the same arguments."""
    count, units = len(targets), units_of(len(targets), groups)
    if metric in task.counted:
        gains = task.counted[metric](new, targets).long() - task.counted[metric](old, targets).long()
        return exact_swap_test(np.bincount(units, gains.numpy()).round().astype(np.int64))
    scored = task.scored(metric, torch.cat([old, new]), torch.cat([targets, targets]))
    differs = np.bincount(units, (old != new).reshape(count, -1).any(1).numpy()) > 0
    return swap_test(scored, units, differs, -1.0 if metric in task.lower_is_better else 1.0, alpha)
