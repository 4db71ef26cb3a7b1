"""Asynchronous successive halving (ASHA, Li et al., MLSys 2020), in which trials are paused at a rung and resumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.config import PrunerConfig
from search.scheduling.original_order import first_attempts
from search.storage import CONTINUES, PAUSED, RETRY_OF, outcome_of
from trainers import ShortEpochs


@dataclass(frozen=True, slots=True)
class Climber:
    """A strategy on its way up the rungs: the trial that was drawn, and those that resumed it.

    Args:
        first: Number of the strategy's first trial; of its first attempt if that was killed.
        last: Its last trial that was not killed.
        losses: Best score so far after each reported epoch, with its sign changed where more is better.
    """

    first: int
    last: FrozenTrial
    losses: Mapping[int, float]

    @property
    def paused_at(self) -> int | None:
        """The epoch after which the strategy is paused; None if it is not paused."""
        return self.last.user_attrs.get(PAUSED) if self.last.state == TrialState.PRUNED else None


@dataclass(frozen=True, slots=True)
class Rungs:
    """Epochs after which only the best trials are resumed.

    Args:
        first: Epoch of the first rung.
        reduction: Each next rung is ``reduction`` times as far, and one of ``reduction`` trials is resumed.
        reports_per_epoch: Reports of a trial in each epoch.
    """

    first: int
    reduction: int
    reports_per_epoch: int = 1

    @classmethod
    def of(cls, config: PrunerConfig) -> "Rungs":
        """The rungs of a study."""
        return cls(config.first_rung, config.reduction, config.reports_per_epoch)

    def epoch_of(self, step: int) -> int | None:
        """The epoch of a report if a rung is there; else None."""
        epoch, within = divmod(step, self.reports_per_epoch)
        rung = self.first
        while rung < epoch:
            rung *= self.reduction
        return epoch if rung == epoch and within == 0 else None

    def room(self, reached: int) -> int:
        """How many of the trials that have reached a rung may be resumed; at least the best."""
        return max(1, reached // self.reduction)

    def climbers(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[Climber]:
        """All strategies of a study but those that failed.

        Args:
            trials: All trials of the study, by number.
            direction: Direction of the study.
        """
        sign = 1 if direction == StudyDirection.MINIMIZE else -1
        return [
            Climber(first, trial, self._losses(reports, sign))
            for first, (trial, reports) in joined(trials).items()
            if outcome_of(trial) != "failed"
        ]

    def _losses(self, reports: Mapping[int, float], sign: int) -> dict[int, float]:
        found: dict[int, float] = {}
        for step in sorted(reports):
            epoch, within = divmod(step, self.reports_per_epoch)
            if within == 0:
                found[epoch] = min([sign * reports[step], *list(found.values())[-1:]])
        return found

    def standing(self, climbers: Sequence[Climber], epoch: int) -> list[int]:
        """First trials of the strategies that have reached a rung, from best to worst; of equals the earlier first."""
        reached = [climber for climber in climbers if epoch in climber.losses]
        return [climber.first for climber in sorted(reached, key=lambda one: (one.losses[epoch], one.first))]

    def due(
        self, trials: Sequence[FrozenTrial], direction: StudyDirection, is_kept: Callable[[FrozenTrial], bool]
    ) -> FrozenTrial | None:
        """The paused trial that is resumed next: the best of the furthest rung that has one.

        Args:
            trials: All trials of the study, by number.
            direction: Direction of the study.
            is_kept: Whether a paused trial can be resumed.
        """
        climbers = self.climbers(trials, direction)
        found = []
        for epoch, waiting in self._waiting(climbers).items():
            standing = self.standing(climbers, epoch)
            for place, first in enumerate(standing[: self.room(len(standing))]):
                if first in waiting and is_kept(waiting[first]):
                    found.append((-epoch, place, waiting[first]))
        return min(found, key=lambda one: one[:2])[2] if found else None

    def needed(self, trials: Sequence[FrozenTrial], direction: StudyDirection, to_come: int | None) -> set[int]:
        """Numbers of the trials whose snapshots may still be resumed.

        Args:
            trials: All trials of the study, by number.
            direction: Direction of the study.
            to_come: How many trials may still reach a rung; None for as many as have reached it.
        """
        found = being_resumed(trials)
        climbers = self.climbers(trials, direction)
        for epoch, waiting in self._waiting(climbers).items():
            standing = self.standing(climbers, epoch)
            room = self.room(len(standing) + (len(standing) if to_come is None else to_come))
            found |= {waiting[first].number for first in standing[:room] if first in waiting}
        return found

    def _waiting(self, climbers: Sequence[Climber]) -> dict[int, dict[int, FrozenTrial]]:
        """Epoch of each rung to its paused trials, which are keyed by their strategies' first trials."""
        found: dict[int, dict[int, FrozenTrial]] = {}
        for climber in climbers:
            if climber.paused_at is not None:
                found.setdefault(climber.paused_at, {})[climber.first] = climber.last
        return found


def joined(trials: Sequence[FrozenTrial]) -> dict[int, tuple[FrozenTrial, dict[int, float]]]:
    """The trials of each strategy as one: by its first trial, the last that was not killed, and the reports of all.

    Args:
        trials: All trials of the study, by number.
    """
    firsts: dict[int, int] = {}
    found: dict[int, tuple[FrozenTrial, dict[int, float]]] = {}
    for trial, attempt in zip(trials, first_attempts(trials), strict=True):
        if outcome_of(trial) == "killed":
            continue
        first = firsts.get(trial.user_attrs.get(CONTINUES, trial.number), attempt)
        firsts[trial.number] = first
        earlier = found[first][1] if first in found else {}
        found[first] = trial, earlier | trial.intermediate_values
    return found


class RungPruner(BasePruner):
    """Stops a trial at a rung unless it is among the best of all that have reached it so far.

    Args:
        rungs: Where the rungs are.
    """

    def __init__(self, rungs: Rungs) -> None:
        self._rungs = rungs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped after its last report."""
        epoch = self._rungs.epoch_of(trial.last_step) if trial.last_step is not None else None
        if epoch is None:
            return False
        trials = [trial if one.number == trial.number else one for one in study.get_trials(deepcopy=False)]
        climbers = self._rungs.climbers(trials, study.direction)
        standing = self._rungs.standing(climbers, epoch)
        (first,) = [climber.first for climber in climbers if climber.last.number == trial.number]
        return standing.index(first) >= self._rungs.room(len(standing))


def being_resumed(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials that wait or run, and of those whose snapshots they may resume.

    Args:
        trials: All trials of the study, by number.
    """
    found: set[int] = set()
    for trial in trials:
        if not trial.state.is_finished():
            found |= {trial.number, *forerunners(trials, trial.user_attrs)}
    return found


def forerunners(trials: Sequence[FrozenTrial], attrs: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of the trials whose snapshots a trial may resume, the furthest first.

    Args:
        trials: All trials of the study, by number.
        attrs: User attributes of the trial.
    """
    retried = attrs.get(RETRY_OF)
    while retried is not None:
        yield retried
        retried = trials[retried].user_attrs.get(RETRY_OF)
    if CONTINUES in attrs:
        yield attrs[CONTINUES]


RUNGS, AUTO = "rungs", "auto"


def short_epochs(pruner: PrunerConfig, epochs: int) -> ShortEpochs | None:
    """Short epochs of a trial up to its first rung; None where epochs see all images or the trial has no rung."""
    if pruner.low_rung_images == 1 or epochs <= pruner.first_rung:
        return None
    return ShortEpochs(pruner.first_rung, pruner.low_rung_images)
