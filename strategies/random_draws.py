"""Suggestions drawn at random, for sampling a strategy from a space without Optuna."""

import math
from typing import Any

import numpy as np


class RandomDraws:
    """Draws suggestions uniformly on each range's scale; gives :func:`strategies.sample` what it asks a trial for.

    Args:
        rng: Draws.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in ``[low, high]``."""
        if log:
            drawn = math.exp(self._rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(drawn), low), high)
        return int(self._rng.integers(low, high, endpoint=True) - low) // step * step + low

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in ``[low, high]``."""
        if step is not None:
            return low + step * int(self._rng.integers(0, round((high - low) / step), endpoint=True))
        return float(np.exp(self._rng.uniform(np.log(low), np.log(high))) if log else self._rng.uniform(low, high))

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        """One of ``choices``."""
        return choices[self._rng.integers(len(choices))]
