"""Trials that may win and whose run or checkpoint MLflow has lost: they are tried again."""

from optuna.trial import FrozenTrial

from search.processes import is_gone
from search.scheduling import Ledger, attempt_of, is_mine, requeue
from search.storage import OWNER, RUN_ID
from search.tracking import AwayError
from search.trials.open_study import OpenStudy


def queue_lost(open_study: OpenStudy, of_everyone: bool = False) -> set[int]:
    """Compare Optuna's best trials with MLflow, and queue those again that MLflow has lost, with a message for each.

    MLflow may lose a run in a power cut, or with writes that waited for it in the cache's folder. The best trials are
    compared down to the first that MLflow has with its checkpoint, and the runs of the Pareto front.

    Args:
        open_study: What the study's trials share.
        of_everyone: Whether trials are queued too whose process, here or on another host, may still deliver them.

    Returns:
        Numbers of the lost trials; none where MLflow cannot be reached.
    """
    reader, ledger = open_study.tracker.reader, Ledger(open_study.study)
    lost: dict[int, str] = {}
    try:
        for trial in ledger.ranked[: open_study.config.checkpoints.keep]:
            lacking = reader.lacks(trial.user_attrs[RUN_ID])
            if lacking is None:
                break
            lost[trial.number] = lacking
        for trial in ledger.front:
            if trial.number not in lost and reader.lacks(trial.user_attrs[RUN_ID]) == "run":
                lost[trial.number] = "run"
    except AwayError:
        return set()
    for trial in ledger.ranked:
        if trial.number in lost:
            _queue(open_study, trial, lost[trial.number], of_everyone)
    return set(lost)


def is_whole(open_study: OpenStudy, trial: FrozenTrial) -> bool:
    """Whether MLflow has a trial's run and checkpoint.

    Raises:
        AwayError: MLflow cannot be reached.
    """
    return open_study.tracker.reader.lacks(trial.user_attrs[RUN_ID]) is None


def _queue(open_study: OpenStudy, trial: FrozenTrial, lacking: str, of_everyone: bool) -> None:
    owner = trial.user_attrs.get(OWNER)
    if not (of_everyone or owner is None or is_mine(trial) or is_gone(owner)):
        open_study.watcher.say(f"trial {trial.number} is left out: its process has not given MLflow its {lacking} yet")
        return
    try_again(open_study, trial, f"MLflow has lost its {lacking}")


def try_again(open_study: OpenStudy, trial: FrozenTrial, reason: str) -> None:
    """Queue a told trial again, with a message; from now on it counts as killed."""
    with open_study.lock:
        requeue(open_study.study, trial, attempt_of(trial))
    open_study.watcher.say(f"trial {trial.number} is tried again: {reason}")
