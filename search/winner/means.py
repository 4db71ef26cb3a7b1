"""Means of scores, with intervals that name how sure few scores make of them."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

Bounds = tuple[float, float]

# Metrics of which more is better end at 1. These can be below 0.
_LOWEST = {"r2": -math.inf, "spearman": -1.0}


def bounds_of(metric: str, is_lower_better: bool) -> Bounds:
    """The lowest and the highest score that a metric can give."""
    return _LOWEST.get(metric, 0.0), math.inf if is_lower_better else 1.0


def mean_interval(scores: Sequence[float], bounds: Bounds) -> Bounds | None:
    """The 95% interval of the mean by Student's t, as far as scores reach; None of one score, or of equal scores.

    Two seeds with the same score do not make the score certain.

    Args:
        scores: Scores of trainings that are independent of each other, or differences of such pairs.
        bounds: The lowest and the highest possible score.
    """
    if len(set(scores)) < 2:
        return None
    # Only here: it takes a second to import.
    from scipy.stats import t

    middle, half = mean(scores), float(t.ppf(0.975, len(scores) - 1)) * stdev(scores) / math.sqrt(len(scores))
    return max(middle - half, bounds[0]), min(middle + half, bounds[1])
