"""The state of a trial on disk, and trials that go on from it: paused ones, and the next attempt at a killed one."""

import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from search.outcome import CONTINUES, RETRY_OF
from search.rungs import forerunners
from trainers import EpochResult, StateError, Trainer, load_state, save_state

if TYPE_CHECKING:
    from search.trial import Asked, Bench, Record, Sampled

# Writing a state may take one part in so many of a trial's time.
_COST = 50


class Snapshots:
    """Writes the state of a running trial now and then, after an epoch.

    How often is ``checkpoints.every_minutes``, or more seldom where that would take more than a fiftieth of the time.
    """

    def __init__(self, bench: "Bench", asked: "Asked", sampled: "Sampled", trainer: Trainer, record: "Record") -> None:
        self._bench, self._asked, self._sampled = bench, asked, sampled
        self._trainer, self._record = trainer, record
        every = bench.config.checkpoints.every_minutes * 60
        self._every = every if every > 0 else float("inf")
        self._due = time.monotonic() + self._every
        self._has_complained = False

    def write_if_due(self) -> None:
        """Write the state after a result; where it cannot be written, which is said once, the trial goes on without."""
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the state now, with the same patience."""
        began = time.monotonic()
        number = self._asked.trial.number
        try:
            write_state(self._sampled, self._trainer, self._record, snapshot_of(self._bench, number))
        except StateError as error:
            if not self._has_complained:
                self._bench.watcher.say(f"trial {number} could not go on from here if it were killed: {error}")
            self._has_complained = True
        self._due = time.monotonic() + max(self._every, _COST * (time.monotonic() - began))


def write_state(sampled: "Sampled", trainer: Trainer, record: "Record", file: Path) -> None:
    """Write what a trial needs to go on.

    Raises:
        StateError: It cannot be written.
    """
    state = {
        "fingerprint": sampled.fingerprint,
        "seed": sampled.seed,
        "trainer": trainer.state_dict(),
        "best": {field.name: getattr(record.best, field.name) for field in fields(record.best)},
        "results": [asdict(result) for result in record.results],
    }
    save_state(state, file)


def go_on(bench: "Bench", asked: "Asked", sampled: "Sampled", trainer: Trainer, record: "Record") -> None:
    """Take up the state of the trial that this one goes on with, or of a killed attempt at it; else nothing.

    Raises:
        PrunedError: An attempt was killed while it was paused, and this is where it is to be.
    """
    number, attrs = asked.trial.number, asked.trial.user_attrs
    if not attrs.keys() & {CONTINUES, RETRY_OF}:
        return
    trials = bench.study.get_trials(deepcopy=False)
    problem = ""
    for before in forerunners(trials, attrs):
        # Where there are both, it was killed after it had been paused.
        is_paused = paused_state_of(bench, before).exists()
        try:
            state = load_state(paused_state_of(bench, before) if is_paused else snapshot_of(bench, before))
        except StateError as error:
            problem = str(error)
            continue
        if (state["fingerprint"], state["seed"]) != (sampled.fingerprint, sampled.seed):
            problem = "the space of strategies has changed"
            continue
        trainer.load_state_dict(state["trainer"])
        record.restore([EpochResult(**result) for result in state["results"]], state["best"])
        bench.tracker.log(asked.run, tags={"unfreeze.continues": before})
        if before != attrs.get(CONTINUES):
            bench.watcher.say(f"trial {number} goes on after epoch {trainer.epoch} of trial {before}, which was killed")
            if is_paused:
                record.prune_if_due()
        return
    if CONTINUES in attrs:
        bench.watcher.say(f"trial {number} starts anew, and does not go on from trial {attrs[CONTINUES]}: {problem}")


def drop_snapshots(bench: "Bench", ended: FrozenTrial) -> None:
    """Remove what a trial that was told, and killed attempts at it, have left."""
    if bench.snapshots.is_dir():
        trials = bench.study.get_trials(deepcopy=False)
        for number in (ended.number, *forerunners(trials, ended.user_attrs)):
            snapshot_of(bench, number).unlink(missing_ok=True)


def drop_old_snapshots(bench: "Bench") -> None:
    """Remove what no trial that runs, or waits to be tried again, would go on from."""
    if not bench.snapshots.is_dir():
        return
    # Listed first: whatever is written later belongs to a trial that the study already has.
    files = [file for file in bench.snapshots.iterdir() if file.stem.isdecimal()]
    trials = bench.study.get_trials(deepcopy=False)
    needed: set[int] = set()
    for trial in trials:
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            needed |= {trial.number, *forerunners(trials, trial.user_attrs)}
    for file in files:
        if int(file.stem) not in needed:
            file.unlink(missing_ok=True)


def snapshot_of(bench: "Bench", number: int) -> Path:
    """Where a running trial keeps its state."""
    return bench.snapshots / f"{number}.pt"


def paused_state_of(bench: "Bench", number: int) -> Path:
    """Where a paused trial has left its state."""
    return bench.paused / f"{number}.pt"
