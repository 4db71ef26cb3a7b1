"""Snapshots of trials on disk, from which paused trials, and retries of killed trials, resume."""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.scheduling import CONTINUE, Decision, forerunners
from search.storage import CONTINUES, RETRY_OF
from search.trials.open_study import OpenStudy
from search.trials.record import Asked, Record, Sampled
from strategies import first_line
from trainers import PART, EpochResult, StateError, Trainer, is_out_of_memory, load_state, save_state

# Writing snapshots may take at most one part in so many of a trial's time.
_COST = 50


class UnfitSnapshotError(StateError):
    """A snapshot does not fit the trial, which has loaded a part of it."""


class Snapshots:
    """Writes snapshots of a running trial, after an epoch.

    They are ``checkpoints.every_minutes`` apart, or more where writing would take more than a fiftieth of the time.
    """

    def __init__(self, open_study: OpenStudy, asked: Asked, sampled: Sampled, trainer: Trainer, record: Record) -> None:
        self._open_study, self._asked, self._sampled = open_study, asked, sampled
        self._trainer, self._record = trainer, record
        every = open_study.config.checkpoints.every_minutes * 60
        self._every = every if every > 0 else float("inf")
        self._due = time.monotonic() + self._every
        self._has_complained = False

    def write_if_due(self) -> None:
        """Write a snapshot if it is due; if writing fails, that is said once, and the trial continues."""
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write a snapshot now; a failure is treated as in :meth:`write_if_due`."""
        began = time.monotonic()
        number = self._asked.trial.number
        try:
            write_state(self._sampled, self._trainer, self._record, snapshot_of(self._open_study, number))
        except StateError as error:
            if not self._has_complained:
                self._open_study.watcher.say(f"trial {number} could not resume from here if it were killed: {error}")
            self._has_complained = True
        self._due = time.monotonic() + max(self._every, _COST * (time.monotonic() - began))


def write_state(sampled: Sampled, trainer: Trainer, record: Record, file: Path) -> None:
    """Write the snapshot that a trial needs to resume.

    Raises:
        StateError: The file cannot be written.
    """
    state = {
        "fingerprint": sampled.fingerprint,
        "seed": sampled.seed,
        "trainer": trainer.state_dict(),
        "best": {field.name: getattr(record.best, field.name) for field in fields(record.best)},
        "results": [asdict(result) for result in record.results],
    }
    save_state(state, file)


def resume(open_study: OpenStudy, asked: Asked, sampled: Sampled, trainer: Trainer, record: Record) -> Decision:
    """Load the snapshot of the trial that this one resumes, or of a killed attempt at it; without one, do nothing.

    Damaged snapshots are named, and the trial starts from its beginning.

    Returns:
        Whether the trial continues: a trial that was killed at a pause may pause again.

    Raises:
        UnfitSnapshotError: A snapshot did not fit, and was removed; the trainer and the record are to be made anew.
    """
    number, attrs = asked.trial.number, asked.trial.user_attrs
    if not attrs.keys() & {CONTINUES, RETRY_OF}:
        return CONTINUE
    trials = open_study.study.get_trials(deepcopy=False)
    problem, is_damaged = "", False
    for before in forerunners(trials, attrs):
        # With both files, it was killed after it had been paused.
        is_paused = open_study.paused_state(before).exists()
        file = open_study.paused_state(before) if is_paused else snapshot_of(open_study, before)
        try:
            state = load_state(file)
        except StateError as error:
            problem, is_damaged = str(error), is_damaged or file.exists()
            continue
        if (state["fingerprint"], state["seed"]) != (sampled.fingerprint, sampled.seed):
            problem = "the space of strategies has changed"
            continue
        _load(state, file, trainer, record)
        open_study.tracker.log(asked.run, tags={"unfreeze.continues": before})
        if before != attrs.get(CONTINUES):
            open_study.watcher.say(
                f"trial {number} resumes after epoch {trainer.epoch} of trial {before}, which was killed"
            )
            if is_paused:
                return record.decide()
        return CONTINUE
    if CONTINUES in attrs or is_damaged:
        earlier = attrs.get(CONTINUES, attrs.get(RETRY_OF))
        open_study.watcher.say(f"trial {number} starts anew, and does not resume trial {earlier}: {problem}")
    return CONTINUE


def _load(state: Mapping[str, Any], file: Path, trainer: Trainer, record: Record) -> None:
    """Load a snapshot into a trainer and a record.

    Raises:
        UnfitSnapshotError: The snapshot is, for example, of another version of Unfreeze; the file was removed.
    """
    try:
        trainer.load_state_dict(state["trainer"])
        record.restore([EpochResult(**result) for result in state["results"]], state["best"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        file.unlink(missing_ok=True)
        raise UnfitSnapshotError(f"{file} does not fit: {type(error).__name__}: {first_line(error)}") from error


def drop_snapshots(open_study: OpenStudy, ended: FrozenTrial) -> None:
    """Remove the snapshots of an ended trial and of killed attempts at it."""
    if open_study.snapshots.is_dir():
        trials = open_study.study.get_trials(deepcopy=False)
        for number in (ended.number, *forerunners(trials, ended.user_attrs)):
            file = snapshot_of(open_study, number)
            file.unlink(missing_ok=True)
            # Of an attempt that was killed while it wrote a snapshot.
            file.with_suffix(PART).unlink(missing_ok=True)


def drop_old_snapshots(open_study: OpenStudy) -> None:
    """Remove snapshots from which no running or queued trial would resume."""
    if not open_study.snapshots.is_dir():
        return
    # Listed first: whatever is written later belongs to a trial that the study already has.
    files = [file for file in open_study.snapshots.iterdir() if file.stem.isdecimal()]
    trials = open_study.study.get_trials(deepcopy=False)
    needed: set[int] = set()
    for trial in trials:
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            needed |= {trial.number, *forerunners(trials, trial.user_attrs)}
    for file in files:
        if int(file.stem) not in needed:
            file.unlink(missing_ok=True)


def snapshot_of(open_study: OpenStudy, number: int) -> Path:
    """The file of a running trial's snapshot."""
    return open_study.snapshots / f"{number}.pt"
