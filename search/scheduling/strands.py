"""A study's trials as the learnt policy is told of them: one record a strategy, whatever trials trained it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from search.scheduling.candidates import Draws
from search.scheduling.learned import Candidate, Seen, State
from search.scheduling.rungs import joined
from search.scheduling.strategy_features import ModelFacts, Work, candidate_of, own_fields
from search.storage import CONTINUES, FINGERPRINT, LOSSES, MODEL, PAUSED, STRATEGY, outcome_of
from strategies import ConfigError, Strategy, sample


@dataclass(frozen=True, slots=True)
class Strand:
    """A strategy with all its trials: the one that was drawn, retries, and those that resumed it.

    Args:
        last: The last trial that was not killed.
        candidate: The strategy as the policy is told of it.
        scores: Score after each epoch.
    """

    last: FrozenTrial
    candidate: Candidate
    scores: tuple[float, ...]

    @property
    def best(self) -> float:
        """The best score so far."""
        return max(self.scores, default=float("-inf"))

    @property
    def epoch_seconds(self) -> float:
        """Computed seconds of an epoch."""
        return self.candidate.epoch_seconds or 0.0

    @property
    def left(self) -> float:
        """Computed seconds to the end."""
        return (self.candidate.epochs - len(self.scores)) * self.epoch_seconds

    @property
    def is_paused(self) -> bool:
        """Whether its last trial was paused."""
        return self.last.state == TrialState.PRUNED and PAUSED in self.last.user_attrs


class Strands:
    """Gathers a study's trials by their strategies.

    Args:
        models: Models by name.
        work: What an epoch goes through.
        reports_per_epoch: Reports of a trial in each epoch.
        amp: Whether trials compute in half precision.
    """

    def __init__(
        self, models: Mapping[str, ModelFacts], work: Work, reports_per_epoch: int = 1, amp: bool = False
    ) -> None:
        self._models, self._work, self._reports_per_epoch, self._amp = models, work, reports_per_epoch, amp
        self._spaces = {name: facts.space for name, facts in models.items()}
        self._told: dict[int, Candidate] = {}
        #: What the policy is told of the strategies that have begun.
        self.tried: set[Candidate] = set()
        #: How many had begun or were queued at the last call of :meth:`of`, with those that could not be drawn.
        self.begun = 0

    def of(self, trials: Sequence[FrozenTrial]) -> list[Strand]:
        """All strategies that have begun and could be drawn, in the order in which they began.

        Args:
            trials: All trials of the study, by number.
        """
        found = []
        all_of_them = joined(trials)
        self.begun = len(all_of_them)
        for first, (last, reports) in sorted(all_of_them.items()):
            # A paused strategy that is queued to resume counts as running.
            if last.state == TrialState.WAITING and not reports:
                continue
            candidate = self._told.get(first) or self._of_trial(first, last)
            if candidate is None:
                continue
            whole = sorted(step for step in reports if step % self._reports_per_epoch == 0)
            found.append(Strand(last, candidate, tuple(reports[step] for step in whole)))
        return found

    def candidate(self, strategy: Strategy, model: str) -> Candidate:
        """A strategy as the policy is told of it."""
        own = own_fields(strategy, list(self._spaces.values()))
        return candidate_of(strategy, self._models[model], self._work, own, self._amp)

    def model_of(self, trial: FrozenTrial) -> str:
        """Name of a trial's model; the first model's where the trial's is none of the study's."""
        first = next(iter(self._models))
        name = trial.params.get(MODEL, first)
        return name if name in self._models else first

    def _of_trial(self, first: int, trial: FrozenTrial) -> Candidate | None:
        """What the policy is told of a trial's strategy; None where that is not drawn yet, or could not be drawn."""
        strategy = self._strategy_of(trial)
        if strategy is None:
            return None
        told = self.candidate(strategy, self.model_of(trial))
        self.tried.add(told)
        if STRATEGY in trial.user_attrs:
            self._told[first] = told
        return told

    def _strategy_of(self, trial: FrozenTrial) -> Strategy | None:
        try:
            if STRATEGY in trial.user_attrs:
                return Strategy.from_dict(trial.user_attrs[STRATEGY])
            # The attribute may be on its way to the store.
            draws = Draws(np.random.default_rng(0), trial.params, exact=True)
            return sample(self._spaces[self.model_of(trial)], draws) if FINGERPRINT in trial.user_attrs else None
        except ConfigError:
            return None


def as_seen(strands: Sequence[Strand], waiting: Collection[int] = ()) -> list[Seen]:
    """What the policy is told of strategies.

    Args:
        strands: The strategies.
        waiting: Places of those that can be resumed.
    """
    found = []
    for place, strand in enumerate(strands):
        state = State.FINISHED if strand.last.state.is_finished() else State.RUNNING
        if place in waiting:
            state = State.PAUSED
        elif outcome_of(strand.last) == "failed":
            state = State.FAILED
        seconds = (strand.epoch_seconds,) * len(strand.scores)
        losses = tuple(strand.last.user_attrs.get(LOSSES, ()))
        known = losses if len(losses) == len(seconds) else ()
        found.append(Seen(strand.candidate, strand.scores, seconds, state, known))
    return found


def pace(strands: Sequence[Strand]) -> float:
    """Measured seconds for each computed second; 1 where nothing was measured."""
    # A trial that resumes another has the scores of both.
    ended = [one for one in strands if one.last.duration is not None and CONTINUES not in one.last.user_attrs]
    measured = sum(one.last.duration.total_seconds() for one in ended if one.last.duration is not None)
    computed = sum(len(one.scores) * one.epoch_seconds for one in ended)
    return measured / computed if computed > 0 else 1.0
