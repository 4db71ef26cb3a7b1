"""Scores on the scale on which they are predicted, and learning curves as numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Added to the error before its logarithm is taken: differences of errors far below are no differences of strategies.
_FLOOR = 0.03
#: Epochs ahead for which a curve is predicted; the last is its end.
AHEAD = (1, 2, 4, 8, 16, None)


@dataclass(frozen=True, slots=True)
class Scale:
    """Scores as minus the logarithm of the error, which is 0 for a perfect model and 1 for guessing.

    Args:
        lowest: Score of guessing.
        highest: Score of a perfect model.
    """

    lowest: float
    highest: float

    def of(self, scores: Sequence[float] | Floats) -> Floats:
        """Scores on this scale."""
        share = (np.asarray(scores, np.float64) - self.lowest) / (self.highest - self.lowest)
        return -np.log(np.clip(1 - share, 0, None) + _FLOOR)

    def back(self, values: Floats | float) -> Floats:
        """Values on this scale as scores, which are those of guessing at least."""
        share = 1 + _FLOOR - np.exp(-np.asarray(values, np.float64))
        return self.lowest + (self.highest - self.lowest) * np.clip(share, 0, 1)


def ahead(done: int, epochs: int) -> list[int]:
    """Epochs ahead for which a curve is predicted, after ``done`` of ``epochs``; each at most up to the end."""
    left = max(1, epochs - done)
    return [left if step is None else min(step, left) for step in AHEAD]


def curve_numbers(values: Floats, epochs: int) -> list[float]:
    """A curve after its first epoch or later, as ten numbers; NaN where it is too short for one.

    Args:
        values: Scores so far on their :class:`Scale`, at least one.
        epochs: Epochs of the whole trial.
    """
    done, best, last = len(values), float(values.max()), float(values[-1])
    half = float(values[: (done + 1) // 2].max())
    return [
        math.log(done),
        done / epochs,
        last,
        best,
        float(values[0]),
        last - float(values[-2]) if done > 1 else math.nan,
        best - half,
        float(values[-3:].mean()) - best,
        (done - 1 - int(values.argmax())) / done,
        float(np.diff(values[-6:]).std()) if done > 2 else math.nan,
    ]


def horizon_numbers(step: int, done: int, epochs: int) -> list[float]:
    """How far ahead a prediction is, as two numbers."""
    return [math.log(step), (done + step) / epochs]
