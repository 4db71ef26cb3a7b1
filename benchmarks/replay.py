"""Replays of learning curves that are stored with their seconds: what a search would have trained, and when.

A table has one row a fine-tuning: its data set, its fields, its score after each epoch, and the seconds of each epoch.
A :class:`Policy` is asked which strategy trains its next epoch, and is told the score of that epoch. The clock goes on
by the seconds that the table has for the epoch. The time that a policy takes to decide is not on the clock.

A policy is made in two steps. A :data:`Fit` learns from the tables of other data sets, once. The :data:`Start` that it
returns begins one search on a data set that the policy has not seen::

    start = fit([curves for curves in tables if curves is not target])
    trace = replay(target, start(task_of(target, epochs=50), seed), limit)
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from strategies import ConfigError

# The columns that every table has; all columns besides these that hold no lists are fields of the strategy.
OF_DATA, OF_CURVE = ("data_set", "images", "classes"), ("accuracy", "seconds")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """The fine-tunings of one data set.

    Args:
        data_set: Name.
        images: How many the data set has.
        classes: How many it has.
        fields: A row a strategy, a column a field; the index counts from 0.
        scores: Of each strategy, after each of its epochs, higher is better.
        seconds: Of each strategy, what each of its epochs took.
    """

    data_set: str
    images: int
    classes: int
    fields: pd.DataFrame
    scores: Sequence[Floats]
    seconds: Sequence[Floats]

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def best(self) -> Floats:
        """Of each strategy, its best score."""
        return np.array([scores.max() for scores in self.scores])

    @cached_property
    def epochs(self) -> NDArray[np.int64]:
        """Of each strategy, after how many epochs it ends."""
        return np.array([len(scores) for scores in self.scores])

    def only(self, places: Sequence[int]) -> "Curves":
        """Some of the fine-tunings."""
        return replace(
            self,
            fields=self.fields.iloc[list(places)].reset_index(drop=True),
            scores=[self.scores[place] for place in places],
            seconds=[self.seconds[place] for place in places],
        )


@dataclass(frozen=True, slots=True)
class Task:
    """What a policy may know of a data set before any strategy has been trained on it.

    Args:
        images: How many the data set has.
        classes: How many it has.
        fields: A row a strategy that can be trained; the index counts from 0.
        epochs: How many a strategy trains at most; some end sooner, which a policy sees when it comes.
    """

    images: int
    classes: int
    fields: pd.DataFrame
    epochs: int


@dataclass(frozen=True, slots=True)
class Step:
    """One epoch of one strategy.

    Args:
        strategy: Row of the strategy in the task's fields.
        epoch: Which of the strategy's epochs it was, from 1.
        score: After this epoch, higher is better.
        seconds: The epoch's.
        ended: Whether it was the strategy's last epoch.
    """

    strategy: int
    epoch: int
    score: float
    seconds: float
    ended: bool


class Policy(Protocol):
    """One search: chooses what trains next, and is told the result. Asked and told in turn."""

    def choose(self) -> int | None:
        """The row of the strategy that trains its next epoch: a new one, or any that was begun and has not ended.

        None ends the search.
        """

    def tell(self, step: Step) -> None:
        """What the epoch that was chosen last came to."""


#: Begins a search: the task, and the seed of everything that the search draws.
Start = Callable[[Task, int], Policy]
#: Learns from the curves of other data sets.
Fit = Callable[[Sequence[Curves]], Start]


@dataclass(frozen=True, slots=True)
class Trace:
    """The best score of a search over time.

    Args:
        seconds: When the best score improved, on the table's clock.
        scores: The best score from then on.
        end: When the search ended.
        steps: How many epochs it trained.
        begun: How many strategies it began.
        deciding: Mean seconds that a step's choice took on this machine, with being told its result.
    """

    seconds: Floats
    scores: Floats
    end: float
    steps: int
    begun: int
    deciding: float

    def reached(self, score: float) -> float:
        """When the search was as good as a score; infinity if never."""
        place = int(np.searchsorted(self.scores, score))
        return float(self.seconds[place]) if place < len(self.scores) else math.inf

    def best_at(self, seconds: float) -> float:
        """The best score at a time; minus infinity before the first epoch has ended."""
        place = int(np.searchsorted(self.seconds, seconds, side="right"))
        return float(self.scores[place - 1]) if place else -math.inf


@dataclass(frozen=True, slots=True)
class Limit:
    """When a replay ends.

    Args:
        seconds: It ends in any case once the clock has passed this.
        until: It goes on to this time even if ``score`` has been reached.
        score: The score that is waited for.
    """

    seconds: float = math.inf
    until: float = math.inf
    score: float = math.inf


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain search: random strategies, each trained to its end.

    Args:
        best: Its best score.
        found: When that score was reached.
        whole: When the search ended.
    """

    best: float
    found: float
    whole: float


def read_tables(paths: Sequence[Path]) -> list[Curves]:
    """The fine-tunings of tables, by data set, in the order of the data sets' names.

    A score that is not a number counts as the worst of its data set: the training has failed.

    Raises:
        ConfigError: A table cannot be read, or lacks a column.
    """
    tables = []
    for path in paths:
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a Parquet table: {error}") from error
        if missing := [name for name in (*OF_DATA, *OF_CURVE) if name not in table.columns]:
            raise ConfigError(f"{path} lacks the columns {', '.join(missing)}")
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    fields = [
        name
        for name in whole.columns
        if name not in (*OF_DATA, *OF_CURVE, "strategy") and not whole[name].map(_is_list).any()
    ]
    return [_curves_of(str(name), rows, fields) for name, rows in whole.groupby("data_set", sort=True)]


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _curves_of(name: str, rows: pd.DataFrame, fields: Sequence[str]) -> Curves:
    rows = rows[rows["accuracy"].map(len) > 0]
    scores = [np.asarray(curve, np.float64) for curve in rows["accuracy"]]
    worst = min(float(np.nanmin(curve)) for curve in scores if not np.isnan(curve).all())
    return Curves(
        data_set=name,
        images=int(rows["images"].iloc[0]),
        classes=int(rows["classes"].iloc[0]),
        fields=rows[list(fields)].reset_index(drop=True),
        scores=[np.nan_to_num(curve, nan=worst) for curve in scores],
        seconds=[np.asarray(seconds, np.float64) for seconds in rows["seconds"]],
    )


def task_of(curves: Curves, epochs: int) -> Task:
    """What a policy is shown of a data set: nothing of its curves."""
    return Task(curves.images, curves.classes, curves.fields.copy(), epochs)


def replay(curves: Curves, policy: Policy, limit: Limit = Limit()) -> Trace:
    """Let a policy search a data set.

    Returns:
        Its best score over time. The replay ends at the limit, when the policy ends it, or when no strategy is left.

    Raises:
        ValueError: The policy chose a strategy that has ended, or that does not exist.
    """
    done = np.zeros(len(curves), np.int64)
    clock, best, steps, left, deciding = 0.0, -math.inf, 0, len(curves), 0.0
    times, scores = [], []
    while left and clock < limit.seconds and (clock < limit.until or best < limit.score):
        begun = time.perf_counter()
        place = policy.choose()
        deciding += time.perf_counter() - begun
        if place is None:
            break
        if not 0 <= place < len(curves) or done[place] == curves.epochs[place]:
            raise ValueError(f"{type(policy).__name__} chose strategy {place} of {len(curves)}, which cannot go on")
        epoch = int(done[place])
        done[place] += 1
        steps += 1
        ended = bool(done[place] == curves.epochs[place])
        left -= ended
        score, seconds = float(curves.scores[place][epoch]), float(curves.seconds[place][epoch])
        clock += seconds
        if score > best:
            best = score
            times.append(clock)
            scores.append(score)
        begun = time.perf_counter()
        policy.tell(Step(place, epoch + 1, score, seconds, ended))
        deciding += time.perf_counter() - begun
    return Trace(np.array(times), np.array(scores), clock, steps, int(np.count_nonzero(done)), deciding / max(1, steps))


def plain_search(curves: Curves, trials: int, seed: int) -> Plain:
    """A plain search of some random strategies of a data set, or of all if it has fewer."""
    order = np.random.default_rng([seed, trials]).permutation(len(curves))[:trials]
    scores = np.concatenate([curves.scores[place] for place in order])
    clock = np.cumsum(np.concatenate([curves.seconds[place] for place in order]))
    first = int(scores.argmax())
    return Plain(float(scores[first]), float(clock[first]), float(clock[-1]))
