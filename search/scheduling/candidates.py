"""Strategies that the learnt policy chooses from: drawn from the space at random, and around the best so far."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from search.scheduling.learned import Candidate
from strategies import ConfigError, RandomDraws, Space, Strategy, sample

T = TypeVar("T")

# A neighbour keeps a choice with this probability, and moves a number by this share of its range (standard deviation).
_KEPT, _STEP = 0.8, 0.15
# Random candidates are drawn in blocks. A choice sees some, and the next choice all of these but the first: to draw a
# candidate and to tell the policy of it takes some 0.3 ms.
_NEW, _BLOCKS = 16, 6
# So many are drawn around the best.
_AROUND = 16


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
        # The space may have changed since.
        value = min(max(value, low), high)
        if self._exact:
            return value
        move = self._rng.normal(0, _STEP)
        if log:
            return math.exp(min(max(math.log(value) + move * math.log(high / low), math.log(low)), math.log(high)))
        return min(max(value + move * (high - low), low), high)


def nth_of_best(best: Sequence[T], place: int) -> T | None:
    """The strategy that a candidate is drawn around: one of the best for each third candidate, in turn; else None."""
    return best[place // 3 % len(best)] if best and place % 3 == 0 else None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A strategy that was drawn: its parameters, its model, and what the policy is told of it."""

    params: Mapping[str, Any]
    model: str
    candidate: Candidate


class CandidatePool:
    """Candidates for one choice after another, of which a part is new each time.

    The same numbers and seed give the same candidates in a process that begins later.

    Args:
        spaces: Space of each model.
        tell: Gives what the policy is told of a strategy on a model.
        seed: Seed of what is drawn.
    """

    def __init__(self, spaces: Mapping[str, Space], tell: Callable[[Strategy, str], Candidate], seed: int) -> None:
        self._spaces, self._models, self._tell, self._seed = spaces, sorted(spaces), tell, seed
        self._blocks: dict[int, list[Drawn]] = {}

    def random(self, begun: int) -> list[Drawn]:
        """Candidates from anywhere in the spaces, of which a sixth is new after each strategy that begins.

        Args:
            begun: How many strategies have begun.
        """
        wanted = range(begun, begun + _BLOCKS)
        self._blocks = {place: self._blocks.get(place) or self._block(place) for place in wanted}
        return [one for place in wanted for one in self._blocks[place]]

    def around(self, begun: int, best: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Drawn]:
        """Candidates that are near the best strategies so far.

        Args:
            begun: How many strategies have begun.
            best: Their models and parameters.
        """
        rng = np.random.default_rng([self._seed, begun, 1])
        return self._drawn([best[place % len(best)] for place in range(_AROUND)] if best else [], rng)

    def given(self, model: str, params: Mapping[str, Any]) -> list[Drawn]:
        """The strategy with these parameters, those that are missing drawn; none where they do not go together."""
        return self._drawn([(model, params)], np.random.default_rng(self._seed), exact=True)

    def _block(self, place: int) -> list[Drawn]:
        rng = np.random.default_rng([self._seed, place])
        return self._drawn([(self._models[rng.integers(len(self._models))], {}) for _ in range(_NEW)], rng)

    def _drawn(
        self, wanted: Sequence[tuple[str, Mapping[str, Any]]], rng: np.random.Generator, exact: bool = False
    ) -> list[Drawn]:
        found = []
        for model, near in wanted:
            draws = Draws(rng, near, exact)
            # Without those whose values do not go together.
            with suppress(ConfigError):
                strategy = sample(self._spaces[model], draws)
                found.append(Drawn(draws.params, model, self._tell(strategy, model)))
        return found
