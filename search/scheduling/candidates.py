"""Strategies that the learnt policy chooses from: drawn from the space at random, and around the best so far."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from strategies import ConfigError, RandomDraws, Space, Strategy, sample

T = TypeVar("T")

# A neighbour keeps a choice with this probability, and moves a number by this share of its range (standard deviation).
_KEPT, _STEP = 0.8, 0.15


class Draws:
    """Draws a strategy, and notes its parameters as Optuna would.

    Args:
        rng: Draws.
        near: Parameters that the strategy is to be near; empty for any strategy.
        exact: Whether the parameters of ``near`` are taken as they are.
    """

    def __init__(self, rng: np.random.Generator, near: Mapping[str, Any] | None = None, exact: bool = False) -> None:
        self._rng, self._near, self._exact = rng, near or {}, exact
        self._random = RandomDraws(rng)
        #: Parameters drawn so far.
        self.params: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in ``[low, high]``."""
        drawn: float = self._random.suggest_int(name, low, high, step=step, log=log)
        if name in self._near:
            drawn = self._moved(self._near[name], low, high, log)
        drawn = min(max(low + round((drawn - low) / step) * step, low), high)
        self.params[name] = int(drawn)
        return int(drawn)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in ``[low, high]``."""
        drawn = self._random.suggest_float(name, low, high, step=step, log=log)
        if name in self._near:
            drawn = self._moved(self._near[name], low, high, log)
            if step is not None:
                drawn = low + round((drawn - low) / step) * step
        self.params[name] = drawn = min(max(drawn, low), high)
        return drawn

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        """One of ``choices``."""
        drawn = self._random.suggest_categorical(name, choices)
        kept = name in self._near and (self._exact or self._rng.random() < _KEPT)
        if kept and self._near[name] in choices:
            drawn = self._near[name]
        self.params[name] = drawn
        return drawn

    def _moved(self, value: float, low: float, high: float, log: bool) -> float:
        if self._exact:
            return min(max(value, low), high)
        move = self._rng.normal(0, _STEP)
        if log:
            return math.exp(min(max(math.log(value) + move * math.log(high / low), math.log(low)), math.log(high)))
        return min(max(value + move * (high - low), low), high)


def nth_of_best(best: Sequence[T], place: int) -> T | None:
    """The strategy that a candidate is drawn around: one of the best for each third candidate, in turn; else None."""
    return best[place // 3 % len(best)] if best and place % 3 == 0 else None


def draw(space: Space, rng: np.random.Generator, near: Mapping[str, Any], exact: bool) -> tuple[Strategy, Draws] | None:
    """A strategy with its parameters; None where the drawn values do not go together."""
    draws = Draws(rng, near, exact)
    try:
        return sample(space, draws), draws
    except ConfigError:
        return None


def draw_many(
    spaces: Mapping[str, Space],
    count: int,
    best: Sequence[tuple[str, Mapping[str, Any]]],
    given: Sequence[tuple[str, Mapping[str, Any]]],
    rng: np.random.Generator,
) -> list[tuple[str, Strategy, dict[str, Any]]]:
    """Model, strategy and parameters of each candidate.

    Args:
        spaces: Space of each model.
        count: How many are drawn beside those that are given.
        best: Models and parameters of the best so far; a third of the candidates are drawn around them.
        given: Models and parameters of strategies that are candidates as they are, such as presets; parameters that
            are missing are drawn.
        rng: Draws.
    """
    models = sorted(spaces)
    wanted: list[tuple[str, Mapping[str, Any], bool]] = [(model, params, True) for model, params in given]
    for place in range(count):
        model, params = nth_of_best(best, place) or (models[rng.integers(len(models))], {})
        wanted.append((model, params, False))
    found = []
    for model, near, exact in wanted:
        drawn = draw(spaces[model], rng, near, exact)
        if drawn is not None:
            found.append((model, drawn[0], drawn[1].params))
    return found
