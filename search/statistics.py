"""Intervals of what was measured several times."""

import math
from collections.abc import Sequence
from statistics import stdev


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95% interval of a mean by Student's t; None of a single value."""
    if len(values) < 2:
        return None
    # Only here: it takes a second to import.
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
