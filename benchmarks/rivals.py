"""Policies that learn nothing from other data sets: random, Optuna's TPE, successive halving and Hyperband.

Each follows a plan that yields a strategy and the epochs that the strategy is to have. A paused strategy goes on where
it stood, for the price of its further epochs only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.replay import Curves, Fit, Start, Step, Task
from search.config import PrunerConfig, SamplerConfig
from search.scheduling import make_pruner
from search.storage import StudyOfTrials

# Of so many at a rung one goes on to the next, which is as many times as far, in ASHA and Hyperband.
REDUCTION = 3


class Planned:
    """A policy that follows a plan.

    Args:
        task: What is searched.
        seed: Of all that is drawn.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.rng = task, np.random.default_rng(seed)
        count = len(task.fields)
        self.best, self.last = np.full(count, -np.inf), np.full(count, -np.inf)
        self.epochs = np.zeros(count, np.int64)
        self.ended = np.zeros(count, bool)
        self._plan = self.plan()
        self._goal: tuple[int, int] | None = None

    def plan(self) -> Iterator[tuple[int, int]]:
        """Strategies, each with the number of epochs that it is to have in all."""
        raise NotImplementedError

    def choose(self) -> int | None:
        """The strategy that the plan names, until it has its epochs or ends before."""
        while self._goal is None or self.ended[self._goal[0]] or self.epochs[self._goal[0]] >= self._goal[1]:
            self._goal = next(self._plan, None)
            if self._goal is None:
                return None
        return self._goal[0]

    def tell(self, step: Step) -> None:
        """Note the scores and epochs of the strategy."""
        self.last[step.strategy] = step.score
        self.best[step.strategy] = max(self.best[step.strategy], step.score)
        self.epochs[step.strategy] = step.epoch
        self.ended[step.strategy] = step.ended

    def unseen(self) -> Iterator[int]:
        """All strategies in a random order."""
        return iter(self.rng.permutation(len(self.epochs)).tolist())

    def paused(self) -> Iterator[tuple[int, int]]:
        """Strategies that were begun and have not ended, the best first, to their ends."""
        for place in np.argsort(-self.best, kind="stable").tolist():
            yield place, self.task.epochs


class Random(Planned):
    """Random strategies, each to its end."""

    def plan(self) -> Iterator[tuple[int, int]]:
        """All strategies in a random order."""
        for place in self.unseen():
            yield place, self.task.epochs


class Asha(Planned):
    """Asynchronous successive halving by one worker, as Li et al. 2020 (A System for Massively Parallel Hyperparameter
    Tuning), algorithm 2: a strategy of the best third at a rung goes on if there is one, else a new one begins.
    """

    def plan(self) -> Iterator[tuple[int, int]]:
        """Promotions from the highest rung down, else a new strategy; at last all that are paused."""
        goals = _rungs(self.task.epochs)
        rungs: list[dict[int, float]] = [{} for _ in goals]
        promoted: list[set[int]] = [set() for _ in rungs]
        unseen = self.unseen()
        while (job := self._promotion(rungs, promoted) or _at_rung(next(unseen, None), 0)) is not None:
            place, rung = job
            yield place, goals[rung]
            rungs[rung][place] = self.best[place]
        yield from self.paused()

    def _promotion(self, rungs: Sequence[dict[int, float]], promoted: Sequence[set[int]]) -> tuple[int, int] | None:
        for rung in range(len(rungs) - 2, -1, -1):
            scores = rungs[rung]
            for place in sorted(scores, key=lambda place: -scores[place])[: len(scores) // REDUCTION]:
                if place not in promoted[rung] and not self.ended[place]:
                    promoted[rung].add(place)
                    return place, rung + 1
        return None


class Hyperband(Planned):
    """Hyperband as Li et al. 2018 (JMLR 18), algorithm 1, one bracket after another, the most aggressive first."""

    def plan(self) -> Iterator[tuple[int, int]]:
        """Brackets of new strategies as long as there are any, at last all that are paused."""
        unseen = self.unseen()
        most = int(math.log(self.task.epochs, REDUCTION) + 1e-9)
        while True:
            for bracket in range(most, -1, -1):
                count = -(-(most + 1) * REDUCTION**bracket // (bracket + 1))
                alive = list(islice(unseen, count))
                if not alive:
                    yield from self.paused()
                    return
                for halvings in range(bracket, -1, -1):
                    for place in alive:
                        yield place, max(1, self.task.epochs // REDUCTION**halvings)
                    alive.sort(key=lambda place: -self.best[place])
                    del alive[max(1, len(alive) // REDUCTION) :]


class Tpe(Planned):
    """Optuna's TPE with the settings of this project's search; the median pruner's too, if ``pruned``.

    The sampler scores all strategies that have not been begun, in place of those that it draws, and takes the best: no
    proposal has to be mapped to a strategy of the table. Numbers are ordered by rank among the task's values.
    """

    pruned = False

    def plan(self) -> Iterator[tuple[int, int]]:
        """The strategies that TPE proposes, to their ends, or until the pruner stops them; then the stopped ones."""
        space, codes = _space(self.task.fields)
        sampler = _AmongCandidates(SamplerConfig().startup_trials, int(self.rng.integers(2**31)))
        pruner = make_pruner(PrunerConfig(name="median" if self.pruned else "none"))
        trials: list[FrozenTrial] = []
        # Trials in a list: a storage would copy each of them many times, which takes longer than TPE's own work.
        study = StudyOfTrials(optuna.create_study(direction="maximize"), trials)
        left = list(self.unseen())
        while left:
            sampler.candidates = dict(zip(space, codes[left].T.astype(float), strict=True))
            params = sampler.sample_relative(study, create_trial(state=TrialState.RUNNING), space)
            # The first are random.
            chosen = (codes[left] == [params[name] for name in space]).all(1).argmax() if params else 0
            place = left.pop(int(chosen))
            of_place = dict(zip(space, codes[place].tolist(), strict=True))
            trial = create_trial(state=TrialState.RUNNING, params=of_place, distributions=space)
            yield from self._trained(trial, place, partial(pruner.prune, study))
            trial.number = len(trials)
            trials.append(trial)
        yield from self.paused()

    def _trained(
        self, trial: FrozenTrial, place: int, is_stopped: Callable[[FrozenTrial], bool]
    ) -> Iterator[tuple[int, int]]:
        """Train a strategy, and note in its trial how it ended."""
        if not self.pruned:
            yield place, self.task.epochs
        stops = False
        while self.pruned and not self.ended[place] and not stops:
            yield place, int(self.epochs[place]) + 1
            trial.intermediate_values[int(self.epochs[place])] = float(self.last[place])
            stops = not self.ended[place] and is_stopped(trial)
        trial.state = TrialState.PRUNED if stops else TrialState.COMPLETE
        trial.value = float(self.last[place] if stops else self.best[place])


class TpeMedian(Tpe):
    """Optuna's TPE with its median pruner."""

    pruned = True


class _AmongCandidates(TPESampler):
    """TPE that chooses among given candidates. Optuna draws candidates from the density of the good trials.

    Args:
        startup: Trials before the sampler learns.
        seed: Of what is drawn.
    """

    def __init__(self, startup: int, seed: int) -> None:
        # Without the liar, which marks what other processes train: there are none.
        super().__init__(n_startup_trials=startup, multivariate=True, constant_liar=False, seed=seed)
        self.candidates: dict[str, NDArray[np.float64]] = {}
        # Private to Optuna 5; there is no public way to give TPE its candidates.
        self._parzen_estimator_cls = self._estimator

    def _estimator(self, *arguments: Any) -> _ParzenEstimator:
        estimator = _ParzenEstimator(*arguments)
        estimator.sample = lambda rng, size: {name: self.candidates[name] for name in arguments[1]}
        return estimator


def _space(fields: pd.DataFrame) -> tuple[dict[str, BaseDistribution], NDArray[np.int64]]:
    """The fields that differ among strategies, as distributions of whole numbers, and each strategy's numbers.

    Returns:
        The distributions by field, and (strategies, fields) whole numbers.
    """
    space: dict[str, BaseDistribution] = {}
    codes = []
    for name in fields.columns:
        values, unique = pd.factorize(fields[name], sort=True, use_na_sentinel=False)
        if len(unique) < 2:
            continue
        is_number = pd.api.types.is_numeric_dtype(fields[name])
        space[name] = IntDistribution(0, len(unique) - 1) if is_number else CategoricalDistribution(range(len(unique)))
        codes.append(values)
    return space, np.array(codes, np.int64).reshape(len(codes), len(fields)).T


def _rungs(last: int) -> list[int]:
    """Epochs of the rungs, the last of which is the end."""
    rungs = [1]
    while rungs[-1] * REDUCTION < last:
        rungs.append(rungs[-1] * REDUCTION)
    return [*rungs, last] if last > 1 else rungs


def _at_rung(place: int | None, rung: int) -> tuple[int, int] | None:
    return None if place is None else (place, rung)


def unlearnt(policy: type[Planned]) -> Fit:
    """A policy that learns nothing from other data sets."""

    def fit(training: Sequence[Curves]) -> Start:
        return policy

    return fit
