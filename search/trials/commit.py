"""Committing a trial: Optuna is told, and from then on the trial counts."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from search.scheduling import Ledger, attempt_of, interrupt, requeue
from search.storage import CHECKPOINT, ENDINGS, OUTCOME, REASON, RUN_ID, score_of, sync_log
from search.tracking import TrialEnded
from search.trials.open_study import OpenStudy
from search.trials.record import Asked, Ended, note_run
from search.trials.snapshots import drop_snapshots


def commit(
    open_study: OpenStudy, ledger: Ledger, asked: Asked, ended: Ended, alongside: Collection[int] = ()
) -> FrozenTrial:
    """Tell Optuna how a trial ended, after all its logs are written, and announce its end.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger, which takes the trial in.
        asked: The trial.
        ended: How the trial ended.
        alongside: Numbers of other trials that this process has asked for and not told yet.

    Returns:
        The trial as Optuna has it now.
    """
    if ended.is_next_time:
        return _put_back(open_study, ledger, asked)
    # Before a trial counts, its logs are in MLflow, or in the spool on disk while MLflow cannot be reached.
    open_study.tracker.flush()
    # A power cut must not take them from MLflow and leave Optuna a trial that may win. Each sync takes some 2 ms.
    sync_log(open_study.tracker.uri)
    try:
        told = _tell(open_study, asked, ended)
    except (UpdateFinishedTrialError, ValueError):
        told = open_study.study.get_trials(deepcopy=False)[asked.trial.number]
        if not told.state.is_finished():
            raise
        _leave_to_others(open_study, ledger, asked, told)
        return told
    will_retry = ended.outcome == "killed"
    if not will_retry:
        drop_snapshots(open_study, told)
    with _dropping_beaten(open_study, ledger):
        ledger.take(told, alongside)
    if will_retry:
        with open_study.lock:
            requeue(open_study.study, told, attempt_of(told) + 1)
        open_study.watcher.say(f"trial {told.number} is tried again: {ended.reason}")
    open_study.announce(TrialEnded.of(told, asked.run, _best_score(ledger), will_retry))
    return told


def _tell(open_study: OpenStudy, asked: Asked, ended: Ended) -> FrozenTrial:
    """Write the remaining attributes and tell Optuna: from then on the trial counts, even if this process ends."""
    trial = asked.trial
    note_run(open_study, asked)
    if ended.reason:
        open_study.attributes.put(trial, {OUTCOME: ended.outcome, REASON: ended.reason})
    open_study.attributes.flush(trial)
    told = open_study.study.tell(trial, ended.values, state=ENDINGS[ended.outcome].state)
    sync_log(open_study.config.store.url)
    return told


def kill_asked(open_study: OpenStudy, asked: Asked) -> None:
    """Tell Optuna that a trial was killed, and queue it again, since a user or scheduler stopped this process."""
    # First, since attributes cannot be written any more once the trial is told.
    open_study.tracker.try_to_finish(asked.run, "killed")
    # The trial is queued again even if an attribute cannot be written.
    with suppress(Exception):
        open_study.attributes.flush(asked.trial)
    with open_study.lock:
        trials = open_study.study.get_trials(deepcopy=False)
        interrupt(open_study.study, next(trial for trial in trials if trial.number == asked.trial.number))


def _put_back(open_study: OpenStudy, ledger: Ledger, asked: Asked) -> FrozenTrial:
    """Tell Optuna that a trial was killed, and queue it again, since the time is over; its snapshot is on disk."""
    kill_asked(open_study, asked)
    refresh(open_study, ledger)
    told = open_study.study.get_trials(deepcopy=False)[asked.trial.number]
    open_study.announce(TrialEnded.of(told, asked.run, _best_score(ledger), will_retry=True))
    open_study.watcher.say(f"The time is over: trial {told.number} resumes in the next run")
    return told


def _leave_to_others(open_study: OpenStudy, ledger: Ledger, asked: Asked, told: FrozenTrial) -> None:
    """End the run of a trial that another process queued again, taking this one for dead: its result does not count."""
    open_study.watcher.say(f"trial {told.number} was taken for dead by another process, and is tried again")
    open_study.tracker.checkpoints.delete(asked.run)
    open_study.tracker.log_outcome(asked.run, "killed")
    refresh(open_study, ledger)
    open_study.announce(TrialEnded.of(told, asked.run, will_retry=True))


def _best_score(ledger: Ledger) -> float | None:
    return score_of(ledger.ranked[0]) if ledger.ranked else None


def refresh(open_study: OpenStudy, ledger: Ledger) -> None:
    """Update the ledger with the trials of other processes, and remove checkpoints that were beaten."""
    with _dropping_beaten(open_study, ledger):
        ledger.refresh()


@contextmanager
def _dropping_beaten(open_study: OpenStudy, ledger: Ledger) -> Iterator[None]:
    """Remove the checkpoints that are beaten by trials that the ledger takes in while the ``with`` block runs.

    Of several processes, the first that learns that a checkpoint is beaten removes it, at the latest when it asks for
    its next trial.
    """
    keep = open_study.config.checkpoints.keep
    kept_before, told_before = ledger.kept(keep), len(ledger.told)
    yield
    still_kept = {trial.number for trial in ledger.kept(keep)}
    for trial in (*kept_before, *ledger.told[told_before:]):
        if trial.number not in still_kept and CHECKPOINT in trial.user_attrs:
            open_study.tracker.checkpoints.delete(trial.user_attrs[RUN_ID])
