"""A trial's data from ask to end: its run, its strategy, and its epochs' results."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import Trial
from torch import Tensor

from search.config import Cost
from search.processes import stop_if_asked
from search.scheduling import AUTO, CONTINUE, RUNGS, Decision, decide, paused
from search.storage import PREDICTED, RUN_ID, Outcome
from search.tracking import EpochEnded
from search.trials.open_study import OpenStudy
from strategies import Strategy, TrialError
from trainers import EpochResult, ModelSource


@dataclass(slots=True, eq=False)
class Asked:
    """A trial that was asked for.

    Args:
        trial: The trial.
        run: The key of its MLflow run.
        noted_run: What Optuna's store says of the run: its key, and its id once that is known.
    """

    trial: Trial
    run: str
    noted_run: str = ""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a trial trains.

    Args:
        source: Builds the model.
        strategy: The sampled strategy.
        seed: Seed of the training.
        fingerprint: Fingerprint of the strategy on this model.
    """

    source: ModelSource
    strategy: Strategy
    seed: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended.

    Args:
        outcome: The outcome.
        values: Score and costs of a complete trial.
        reason: Why it ended before its last epoch; empty where there is nothing to say.
        is_next_time: Whether the trial was queued again for the next run of the study.
    """

    outcome: Outcome
    values: list[float] | None = None
    reason: str = ""
    is_next_time: bool = False


@dataclass(slots=True)
class _Best:
    """The best epoch so far of a trial; ``shown`` holds the predictions for the images that are shown, if any."""

    score: float
    epoch: int
    state: dict[str, Tensor]
    shown: Tensor | None = None


def note_run(open_study: OpenStudy, asked: Asked) -> None:
    """Have a trial's attribute name its MLflow run: by its id, or by its key while MLflow has not begun the run.

    Not before the first result, when MLflow has begun the run as a rule: each write takes SQLite some 5 ms.
    """
    run = open_study.tracker.id_or_key(asked.run)
    if run != asked.noted_run:
        asked.noted_run = run
        open_study.attributes.put(asked.trial, {RUN_ID: run})


class Record:
    """The results of a trial's epochs; each result is announced and reported when it is added.

    Args:
        open_study: What the study's trials share.
        asked: The trial.
        epochs: Number of epochs.
        parameters_trained: Number of parameters that are trained in some epoch.
    """

    def __init__(self, open_study: OpenStudy, asked: Asked, epochs: int, parameters_trained: int) -> None:
        self._open_study = open_study
        self._asked = asked
        self._costs: dict[Cost, float] = {"seconds": 0.0, "parameters_trained": parameters_trained}
        self._best: _Best | None = None
        self.epochs = epochs
        #: Seconds that cached features save in an epoch (estimated).
        self.spared = 0.0
        self.results: list[EpochResult] = []

    def add(
        self,
        result: EpochResult,
        weights: Callable[[], dict[str, Tensor]],
        look: Callable[[], Tensor | None] = lambda: None,
        compiled: str = "",
        micro_batches: int = 1,
    ) -> None:
        """Add a result; if it is the best epoch so far, also its weights and predictions to show.

        Raises:
            TrialError: The score is not a number.
            KeyboardInterrupt, SystemExit: A signal asked for it.
        """
        stop_if_asked()
        score = self._score(result)
        if math.isnan(score):
            raise TrialError(
                f"validation {self._open_study.config.metric} is not a number after epoch {result.epoch:g}"
            )
        best = self._best
        # Results within an epoch are for the pruner alone: the best of more results would be better by chance.
        if result.ends_epoch and (
            best is None or (score < best.score if self._open_study.lower_is_better else score > best.score)
        ):
            self._best = _Best(score, int(result.epoch), weights(), look())
        self._report(result, compiled, micro_batches)

    def restore(self, results: Sequence[EpochResult], best: Mapping[str, Any]) -> None:
        """Restore the results of the trial that this one resumes, and its :attr:`best` as a mapping.

        Each result is announced and reported as if it were new.
        """
        self._best = _Best(**best)
        for result in results:
            self._report(result)
            if self._open_study.config.pruner.name not in (RUNGS, AUTO):
                # Optuna's successive halving notes in the store, when it is asked, which rungs a trial has passed.
                self.decide()

    def _score(self, result: EpochResult) -> float:
        return result.metrics[f"val_{self._open_study.config.metric}"]

    def _report(self, result: EpochResult, compiled: str = "", micro_batches: int = 1) -> None:
        self.results.append(result)
        self._costs["seconds"] += result.seconds
        trial, score = self._asked.trial, self._score(result)
        seconds = self._costs["seconds"]
        self._open_study.announce(
            EpochEnded(trial.number, self._asked.run, result, score, seconds, compiled, micro_batches)
        )
        note_run(self._open_study, self._asked)
        # Optuna 5.0 takes reports for one objective only.
        if not self._open_study.config.costs:
            trial.report(score, result.step)

    def decide(self) -> Decision:
        """Decide, after the last result, whether the trial continues, pauses or stops."""
        config = self._open_study.config
        # Optuna prunes by one objective only.
        if config.costs:
            return CONTINUE
        if self._open_study.pauses_by_plan:
            return self._decide_by_plan()
        return decide(self._asked.trial, config.pruner, self.results[-1].epoch, self.epochs)

    def _decide_by_plan(self) -> Decision:
        """Ask the learnt policy, after whole epochs, whether the trial is trained further now."""
        newest, trial = self.results[-1], self._asked.trial
        planner, to_the_end = self._open_study.planner, trial.user_attrs.get(PREDICTED, {}).get("to_the_end")
        if planner is None or self.is_over or to_the_end or not newest.ends_epoch:
            return CONTINUE
        trials = self._open_study.study.get_trials(deepcopy=False)
        left = self._open_study.deadline - time.monotonic()
        is_going_on = planner.goes_on(trials, trial.number, self._open_study.can_resume, left)
        return CONTINUE if is_going_on else paused(newest.epoch)

    @property
    def losses(self) -> list[float]:
        """Training loss of each whole epoch."""
        return [result.metrics["train_loss"] for result in self.results if result.ends_epoch]

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done."""
        return bool(self.results) and self.results[-1].epoch >= self.epochs

    @property
    def best(self) -> _Best:
        """The best epoch."""
        assert self._best is not None, "a strategy has at least one epoch"
        return self._best

    @property
    def seconds_spared(self) -> float:
        """Seconds that cached features saved in the epochs so far (estimated)."""
        return self.spared * self.results[-1].epoch if self.results else 0.0

    @property
    def values(self) -> list[float]:
        """The trial's values for Optuna: its best score, and its costs."""
        return [self.best.score, *(self._costs[cost] for cost in self._open_study.config.costs)]


@dataclass(frozen=True, slots=True)
class Trained:
    """The results of a training, and the decision that ended it: CONTINUE where it reached its end."""

    record: Record
    decision: Decision = CONTINUE
