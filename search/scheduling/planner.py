"""The learnt policy on a study's trials: which strategy begins, which paused trial resumes, when a trial pauses."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.scheduling.candidates import CandidatePool, Drawn
from search.scheduling.learned import Choice, LearnedPolicy, TaskFeatures
from search.scheduling.strands import Strand, Strands, as_seen, pace
from search.scheduling.strategy_features import ModelFacts, Work
from search.storage import MODEL

# Of the best strategies so far, so many have candidates drawn around them.
_BEST = 3
# So many strategies are tried before a search may end early.
_LEAST = 4
# Time to spare for finishing the best trial before the hours are over.
_SPARE = 1.5


@dataclass(frozen=True, slots=True)
class Plan:
    """The next trial: a new strategy, or a paused trial that resumes.

    Args:
        params: Parameters of the new strategy; None where a trial resumes.
        resumes: The paused trial; None where a strategy begins.
        predicted: ``score`` with its 90% interval ``low`` and ``high``, ``seconds`` of training, and the ``reason`` in
            a few words. ``to_the_end`` tells that the trial is not paused again.
        preset: Name of the preset that the new strategy is; empty if it is none.
    """

    params: Mapping[str, Any] | None
    resumes: FrozenTrial | None
    predicted: Mapping[str, Any]
    preset: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What more search is expected to bring.

    Args:
        gain: By how much the best score is expected to rise.
        seconds: Seconds of that search.
    """

    gain: float
    seconds: float

    @property
    def sentence(self) -> str:
        """Such as ``12 more minutes are expected to bring 0.001``."""
        minutes = self.seconds / 60
        count = f"{minutes:.0f}" if minutes >= 2 else f"{minutes:.1f}"
        return f"{count} more minutes are expected to bring {self.gain:.2g}"


@dataclass(frozen=True, slots=True)
class Aims:
    """How far a search goes.

    Args:
        trials: Strategies that may be tried; None for any number.
        min_improvement: Expected gain of twice the time below which the search ends.
        seed: Seed of the candidates.
        reports_per_epoch: Reports of a trial in each epoch.
        amp: Whether trials compute in half precision.
    """

    trials: int | None
    min_improvement: float
    seed: int
    reports_per_epoch: int = 1
    amp: bool = False


class Planner:
    """Asks the learnt policy about a study. The same trials give the same answers.

    Args:
        policy: The policy.
        task: The study's data and metric, of which more is better.
        models: Models by name.
        work: What an epoch goes through.
        presets: Gives models and parameters of strategies that are always among the candidates, by name; asked once,
            before the first choice.
        aims: How far the search goes.
    """

    def __init__(
        self,
        policy: LearnedPolicy,
        task: TaskFeatures,
        models: Mapping[str, ModelFacts],
        work: Work,
        presets: Callable[[], Mapping[str, tuple[str, Mapping[str, Any]]]],
        aims: Aims,
    ) -> None:
        self._policy, self._task, self._models = policy, task, models
        self._presets, self._aims = presets, aims
        self._strands = Strands(models, work, aims.reports_per_epoch, aims.amp)
        spaces = {name: facts.space for name, facts in models.items()}
        self._pool = CandidatePool(spaces, self._strands.candidate, aims.seed)
        self._drawn: tuple[Any, list[Drawn]] = ((), [])

    def next(
        self, trials: Sequence[FrozenTrial], is_kept: Callable[[FrozenTrial], bool], seconds_left: float
    ) -> Plan | None:
        """The next trial; None where the search is over.

        Args:
            trials: All trials of the study, by number; none waits.
            is_kept: Whether a paused trial can be resumed.
            seconds_left: Until the hours are over.
        """
        strands = self._strands.of(trials)
        waiting, done = _waiting(strands, is_kept), _best_completed(strands)
        candidates = self._candidates(strands)
        is_over = self._is_over(strands, waiting, candidates)
        if is_over and not waiting and math.isinf(done):
            # The paused trials' states are gone: the best begins anew, since a search has to have a winner.
            waiting = _waiting(strands, lambda trial: True)
        lead = max(waiting, key=lambda place: (strands[place].best, -place), default=None)
        leads = lead is not None and strands[lead].best > done
        is_late = leads and lead is not None and self._is_late(strands, strands[lead], seconds_left)
        if lead is not None and leads and (is_over or is_late):
            return self._finish(strands, lead)
        if is_over or not (waiting or candidates):
            return None
        choice = self._policy.choose(self._task, as_seen(strands, waiting), [one.candidate for one in candidates])
        predicted = self._predicted(choice, pace(strands))
        if choice.resumed is not None:
            return Plan(None, strands[choice.resumed].last, predicted)
        assert choice.new is not None, "the policy chose neither"
        new = candidates[choice.new]
        model = {MODEL: new.model} if len(self._models) > 1 else {}
        preset = next((name for name, one in self._given.items() if one is new), "")
        return Plan({**model, **new.params}, None, predicted, preset)

    def foreseen(self, model: str, params: Mapping[str, Any], reason: str) -> dict[str, Any]:
        """What is predicted of a strategy before any trial, as in :class:`Plan`; empty where it cannot be drawn.

        Args:
            model: The strategy's model.
            params: Its parameters.
            reason: Why it is tried, in a few words.
        """
        drawn = self._pool.given(model, params)
        if not drawn:
            return {}
        return self._predicted(self._policy.choose(self._task, [], [drawn[0].candidate]), 1.0) | {"reason": reason}

    def goes_on(
        self,
        trials: Sequence[FrozenTrial],
        number: int,
        is_kept: Callable[[FrozenTrial], bool],
        seconds_left: float,
    ) -> bool:
        """Whether a running trial is trained further now; else it pauses.

        Args:
            trials: All trials of the study, by number, with the reports of the running trial.
            number: The running trial.
            is_kept: Whether a paused trial can be resumed.
            seconds_left: Until the hours are over.
        """
        strands = self._strands.of(trials)
        own = next((place for place, strand in enumerate(strands) if strand.last.number == number), None)
        if own is None or not _is_asked(len(strands[own].scores)):
            # Without a place the trial was taken for dead by another process, which queues it again.
            return True
        if strands[own].best > _best_completed(strands) and self._is_late(strands, strands[own], seconds_left):
            return True
        waiting, candidates = _waiting(strands, is_kept), self._candidates(strands)
        if not candidates and not waiting:
            return True
        seen, told = as_seen(strands, {*waiting, own}), [one.candidate for one in candidates]
        return self._policy.choose(self._task, seen, told, current=own).resumed == own

    def expected(self, trials: Sequence[FrozenTrial]) -> Expected | None:
        """What as much search again is expected to bring, in measured seconds; None before any score."""
        strands = self._strands.of(trials)
        if not any(strand.scores for strand in strands):
            return None
        seconds = self._horizon(strands)
        waiting = {place for place, strand in enumerate(strands) if strand.is_paused}
        candidates = [one.candidate for one in self._candidates(strands, is_open=True)]
        gain = self._policy.expected_gain(self._task, as_seen(strands, waiting), candidates, seconds)
        return Expected(max(0.0, gain), seconds * pace(strands))

    def most_promising(self, trials: Sequence[FrozenTrial], most: int) -> set[int]:
        """Numbers of the paused trials whose snapshots are kept: those with the best scores.

        Args:
            trials: All trials of the study, by number.
            most: How many at most.
        """
        paused = [strand for strand in self._strands.of(trials) if strand.is_paused]
        paused.sort(key=lambda strand: (-strand.best, strand.last.number))
        return {strand.last.number for strand in paused[:most]}

    def _is_over(self, strands: list[Strand], waiting: set[int], candidates: Sequence[Drawn]) -> bool:
        """Whether twice the time so far is expected to bring less than is asked for."""
        if len([one for one in strands if one.scores]) < _LEAST and candidates:
            return False
        if not candidates and not waiting:
            return True
        seen, told = as_seen(strands, waiting), [one.candidate for one in candidates]
        gain = self._policy.expected_gain(self._task, seen, told, self._horizon(strands))
        return gain < self._aims.min_improvement

    def _horizon(self, strands: Sequence[Strand]) -> float:
        """Computed seconds that the search has taken, with its beginnings of trials, or of a few trials if more."""
        switch = self._task.switch_seconds
        whole = [one.candidate.epochs * one.epoch_seconds + switch for one in strands]
        spent = sum(len(one.scores) * one.epoch_seconds + switch for one in strands)
        return max(spent, _LEAST * median(whole)) if whole else 0.0

    def _is_late(self, strands: Sequence[Strand], strand: Strand, seconds_left: float) -> bool:
        """Whether a trial that is not continued now may not end before the hours are over."""
        return seconds_left < _SPARE * strand.left * pace(strands)

    def _finish(self, strands: Sequence[Strand], place: int) -> Plan:
        strand = strands[place]
        seconds = strand.left * pace(strands)
        predicted = {"score": strand.best, "seconds": seconds, "reason": "finish the best", "to_the_end": True}
        return Plan(None, strand.last, predicted)

    @staticmethod
    def _predicted(choice: Choice, pace: float) -> dict[str, Any]:
        return {
            "score": choice.score,
            "low": choice.low,
            "high": choice.high,
            "seconds": choice.total_seconds * pace,
            "reason": choice.reason,
        }

    def _candidates(self, strands: Sequence[Strand], is_open: bool = False) -> Sequence[Drawn]:
        """New strategies that no trial has tried; none where the budget has no room for one.

        Args:
            strands: The strategies that have begun.
            is_open: Whether the budget does not count.
        """
        begun = self._strands.begun
        if not is_open and self._aims.trials is not None and begun >= self._aims.trials:
            return []
        ranked = sorted((one for one in strands if one.scores), key=lambda one: (-one.best, one.last.number))[:_BEST]
        key = (begun, tuple(one.last.number for one in ranked))
        if self._drawn[0] != key:
            best = [(self._strands.model_of(one.last), one.last.params) for one in ranked]
            drawn = [*self._given.values(), *self._pool.random(begun), *self._pool.around(begun, best)]
            self._drawn = key, [one for one in drawn if one.candidate not in self._strands.tried]
        return self._drawn[1]

    @cached_property
    def _given(self) -> Mapping[str, Drawn]:
        """The presets by name, without those that the space cannot hold."""
        given = self._presets()
        return {name: one for name, of_preset in given.items() for one in self._pool.given(*of_preset)}


def _is_asked(epochs: int) -> bool:
    """Whether a trial may pause after so many epochs: it is asked about again after half as many as it has had."""
    asked = 1
    while asked < epochs:
        asked += -(-asked // 2)
    return asked == epochs


def _waiting(strands: Sequence[Strand], is_kept: Callable[[FrozenTrial], bool]) -> set[int]:
    """Places of the paused trials that can be resumed."""
    return {place for place, strand in enumerate(strands) if strand.is_paused and is_kept(strand.last)}


def _best_completed(strands: Sequence[Strand]) -> float:
    return max((one.best for one in strands if one.last.state == TrialState.COMPLETE), default=float("-inf"))
