"""An open study: what all its trials share."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from search.config import StudyConfig
from search.processes import RankGroup, temporary_place
from search.scheduling import AUTO, Planner
from search.storage import MODEL, AttributeWriter, Lock
from search.tracking import Event, Listener, Tracker
from search.trials.materials import Materials
from strategies import Space
from trainers import TASKS, ModelSource


class Watcher(Protocol):
    """Shows what happens."""

    def say(self, text: str) -> None:
        """Show a message."""

    def reading(self, what: str, done: int, total: int) -> None:
        """Show the progress of a preparation that all trials wait for."""

    def downloading(self, what: str, done: int, total: int) -> None:
        """Show the progress of a download, in bytes."""

    def hear(self, event: Event) -> None:
        """Show an event of a trial."""


@dataclass(frozen=True, slots=True)
class OpenStudy:
    """What all trials of a study share; ``spaces`` by the model's name.

    A process holds ``lock`` while it asks for trials or queues them again, since other processes do so too.
    """

    config: StudyConfig
    spaces: Mapping[str, Space]
    materials: Materials
    study: Study
    tracker: Tracker
    attributes: AttributeWriter
    parent_run: str
    run_tags: Mapping[str, str]
    watcher: Watcher
    listeners: Sequence[Listener]
    lock: Lock
    rank_group: RankGroup
    #: Asks the learnt policy; None where another sampler chooses.
    planner: Planner | None = None
    #: When, on ``time.monotonic``, training has to end.
    deadline: float = math.inf

    def announce(self, event: Event) -> None:
        """Send an event of a trial to all listeners."""
        for listener in self.listeners:
            listener(event)

    @property
    def lower_is_better(self) -> bool:
        """Whether the study minimises its metric."""
        return self.config.metric in TASKS[self.config.task].lower_is_better

    @property
    def cut_at(self) -> float:
        """When, on ``time.monotonic``, a running trial has to stop; infinity where it is trained to its end.

        It is trained to its end with ``budget.finish_trials``; and where that is not given, as long as no trial has
        completed, since the search would end without an answer.
        """
        finishes = self.config.budget.finish_trials
        if self.deadline == math.inf or finishes:
            return math.inf
        if finishes is None and not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return math.inf
        return self.deadline

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.deadline

    def is_out_of_time(self, needed: float = 0.0) -> bool:
        """Whether a running trial has to stop within so many seconds."""
        return time.monotonic() + needed >= self.deadline and time.monotonic() + needed >= self.cut_at

    @property
    def paused(self) -> Path:
        """Folder of paused trials' snapshots; its name is unique to this study, since studies may share a cache."""
        return self._folder("paused")

    @property
    def pauses_by_plan(self) -> bool:
        """Whether the learnt policy pauses trials and resumes them."""
        return self.planner is not None and self.config.pruner.name == AUTO

    def can_resume(self, trial: FrozenTrial) -> bool:
        """Whether the learnt policy may resume a paused trial: its snapshot is on disk."""
        return self.pauses_by_plan and self.paused_state(trial.number).exists()

    def paused_state(self, number: int) -> Path:
        """The file of a paused trial's snapshot."""
        return self.paused / f"{number}.pt"

    @property
    def snapshots(self) -> Path:
        """Folder of running trials' snapshots, from which they resume if they are killed."""
        return self._folder("running")

    @property
    def temporary(self) -> Path:
        """Where temporary folders are made."""
        return temporary_place(self.config.data.cache)

    def _folder(self, kind: str) -> Path:
        return Path(self.config.data.cache) / kind / f"{self.config.name}-{self.parent_run[:8]}"

    @property
    def chooses_model(self) -> bool:
        """Whether the model is searched too."""
        return len(self.materials.sources) > 1

    @property
    def first_source(self) -> ModelSource:
        """The source of the first model that the study names."""
        return self.materials.sources[self.config.model.names[0]]

    def source_of(self, trial: FrozenTrial) -> ModelSource:
        """The source of a trial's model."""
        return self.materials.sources[trial.params[MODEL]] if self.chooses_model else self.first_source
