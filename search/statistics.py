"""Intervals of what was measured several times."""

import math
from collections.abc import Sequence
from statistics import stdev


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95% interval of a mean by Student's t; None where nothing tells how far values lie apart.

    That is of a single one, and of equal ones: two seeds with the same score are no certainty.
    """
    if len(set(values)) < 2:
        return None
    # Only here: it takes a second to import.
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
