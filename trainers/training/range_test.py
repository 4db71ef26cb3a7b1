"""Finding a learning rate by raising it until training diverges (learning-rate range test)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies import ConfigError

#: A smoothed loss of this many times the best smoothed loss has diverged.
_DIVERGED = 4.0

#: Weight of the past in the running mean of losses that tells divergence, over about ten updates.
_MEMORY = 0.9

#: The smoothed loss must fall by this many standard errors. Of 2,000 curves of 100 losses of pure Gaussian noise, 3
#: fell further by chance.
_SIGNIFICANT = 9.0

#: A fall smaller than this share of the loss is rounding.
_ROUNDING = 1e-6

#: The search for the steepest slope begins where the loss was last within this share of the fall from its top: before
#: that, a slope by chance may be the steepest.
_BEGUN = 0.2

#: Fewer updates do not make a curve.
_MIN_UPDATES = 20


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The result of a range test.

    Args:
        rates: Learning rates, rising.
        losses: The loss of each rate's update; all finite.
        diverged: Whether the test stopped before the highest rate, at a loss that rose too far or was not finite.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool

    @property
    def suggestion(self) -> float | None:
        """The rate that :func:`suggest_lr` finds."""
        return suggest_lr(self.rates, self.losses)


def range_test(step: Callable[[float], float], low: float, high: float, updates: int) -> RangeTest:
    """Train with exponentially rising learning rates until the loss diverges.

    Smith: Cyclical Learning Rates for Training Neural Networks, WACV 2017. The paper raises the rate linearly and looks
    at accuracy; with exponential rates and the loss, one run covers decades of rates.

    Data that are learned completely within the run, such as a handful of images, lead to too low a rate: the loss
    cannot fall further when the higher rates come.

    The test stops when the loss, as a running mean, exceeds four times its best, or is not finite.

    Args:
        step: Takes a rate, makes one update, and returns the batch's loss before the update. Its model cannot be used
            afterwards.
        low: The first rate, above 0.
        high: The last rate, above ``low``.
        updates: Number of updates, at least 20; about 100 for three or four decades.

    Raises:
        ConfigError: A number is out of its range.
    """
    _check_range(low, high, updates)
    rates: list[float] = []
    losses: list[float] = []
    mean, best = 0.0, math.inf
    for lr in np.geomspace(low, high, updates).tolist():
        loss = step(lr)
        if not math.isfinite(loss):
            return RangeTest(tuple(rates), tuple(losses), diverged=True)
        rates.append(lr)
        losses.append(loss)
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        smoothed = mean / (1 - _MEMORY ** len(losses))
        best = min(best, smoothed)
        # In this form also for a loss below zero, four times which is not above it.
        if smoothed > best + (_DIVERGED - 1) * abs(best):
            return RangeTest(tuple(rates), tuple(losses), diverged=True)
    return RangeTest(tuple(rates), tuple(losses), diverged=False)


def suggest_lr(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate.

    Slopes are of straight lines fitted to an eighth of the curve around each rate; unlike a running mean, they do not
    lag behind. Losses above the beginning of the curve are lowered to it, so that a spike or a divergence is not taken
    for the start of a fall.

    Args:
        rates: Rising by a constant factor, as in :func:`range_test`.
        losses: A finite loss for each rate.

    Returns:
        One of the rates; None if the loss never falls by more than its noise, or if there are fewer than 20 losses.

    Raises:
        ValueError: ``rates`` and ``losses`` differ in length.
    """
    if len(rates) != len(losses):
        raise ValueError(f"rates: {len(rates)} of them for {len(losses)} losses")
    if len(losses) < _MIN_UPDATES:
        return None
    # Only here: the import takes most of a second.
    from scipy.signal import savgol_filter

    window = max(5, len(losses) // 8 | 1)
    curve = np.asarray(losses, dtype=np.float64)
    curve = np.minimum(curve, curve[:window].max())
    smoothed = savgol_filter(curve, window, polyorder=1)
    lowest = int(smoothed.argmin())
    highest = smoothed[: lowest + 1].max()
    fall = highest - smoothed[lowest]
    noise = _noise(curve[: lowest + 1 + window // 2]) / math.sqrt(window)
    if fall <= max(_SIGNIFICANT * noise, _ROUNDING * np.abs(curve).max()):
        return None
    begun = int(np.flatnonzero(smoothed[: lowest + 1] >= highest - _BEGUN * fall)[-1])
    slopes = savgol_filter(curve, window, polyorder=1, deriv=1)
    return float(rates[begun + int(slopes[begun : lowest + 1].argmin())])


def _noise(curve: NDArray[np.float64]) -> float:
    """Standard deviation of the noise, from differences of neighbours, which a slow fall hardly changes."""
    return math.sqrt(np.square(np.diff(curve)).mean() / 2)


def _check_range(low: float, high: float, updates: int) -> None:
    if not 0 < low < math.inf:
        raise ConfigError(f"low: {low!r} is no learning rate above 0")
    if not low < high < math.inf:
        raise ConfigError(f"high: {high!r} is not above low, {low!r}")
    if updates < _MIN_UPDATES:
        raise ConfigError(f"updates: {updates!r} is fewer than {_MIN_UPDATES}")
