"""Trials whose process went away: told as killed, and queued again with the same parameters."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from search.processes import is_gone, is_here
from search.storage import (
    ATTEMPT,
    CONTINUES,
    OUTCOME,
    OWNER,
    PRESET,
    REASON,
    RETRY_OF,
    has_drawn,
    live_trial,
    queued_params,
)

# A process names itself in a trial within milliseconds of asking for it.
_NAMING_SECONDS = 3.0

#: The reason of a trial that its user or scheduler stopped.
INTERRUPTED = "interrupted"

logger = logging.getLogger(__name__)


def trains_beside(trial: FrozenTrial) -> bool:
    """Whether a running trial belongs to another process of this host, which lives."""
    found = trial.user_attrs.get(OWNER)
    return found is not None and is_here(found) and not is_mine(trial) and not is_gone(found)


def is_mine(trial: FrozenTrial) -> bool:
    """Whether it was this process that asked for a trial."""
    found = trial.user_attrs.get(OWNER)
    return found is not None and is_here(found) and bool(json.loads(found)["pid"] == os.getpid())


def _orphans(study: Study, running: list[FrozenTrial], ended: str | None) -> list[FrozenTrial]:
    """Trials whose process is gone, or went before it could say which it was."""
    nameless = {trial.number for trial in running if OWNER not in trial.user_attrs}
    if nameless:
        # By this host's own clock: when a trial began is written by that of another host, which may be hours off.
        time.sleep(_NAMING_SECONDS)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def is_orphan(trial: FrozenTrial) -> bool:
        if OWNER not in trial.user_attrs:
            return trial.number in nameless
        return trial.user_attrs[OWNER] == ended or is_gone(trial.user_attrs[OWNER])

    return list(filter(is_orphan, running))


def recover(study: Study, retries: int, ended: str | None = None) -> list[FrozenTrial]:
    """Tell running trials whose process has ended on this host as killed, and queue each again.

    Of the trials of other hosts, those are taken whose heartbeat has stopped. Those are queued too that were told so
    before and never queued. The study's lock is to be held, where there are other processes.

    Args:
        study: The study to look through.
        retries: How many times one trial may be queued again.
        ended: The :func:`owner` of trials, on whatever host, that is known to have ended.

    Returns:
        The trials that were told, or queued now.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in _orphans(study, running, ended):
        kill(study, trial, retries, "its process ended")
    # Optuna does this within Study.optimize, and not for those who ask and tell.
    fail_stale_trials(study)
    taken = {trial.number for trial in running} | _queue_forgotten(study, retries)
    told = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in told if trial.number in taken]


def _queue_forgotten(study: Study, retries: int) -> set[int]:
    """Queue killed trials again whose process ended after it had told them and before it had queued them."""
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get(RETRY_OF) for trial in trials}

    def is_forgotten(trial: FrozenTrial) -> bool:
        if trial.state != TrialState.FAIL or trial.number in queued or not has_drawn(trial):
            return False
        if OUTCOME in trial.user_attrs:
            return bool(trial.user_attrs[OUTCOME] == "killed")
        # Optuna has told it, since its heart had stopped.
        return OWNER in trial.user_attrs and attempt_of(trial) < retries

    forgotten = list(filter(is_forgotten, trials))
    for trial in forgotten:
        attempt = attempt_of(trial) + (trial.user_attrs.get(REASON) != INTERRUPTED)
        queue_again(study, trial, {ATTEMPT: attempt, RETRY_OF: trial.number})
    return {trial.number for trial in forgotten}


def interrupt(study: Study, trial: FrozenTrial) -> None:
    """Tell one running trial as killed because its user or scheduler said so, and queue it again.

    That is no fault of the trial, so it is not counted among its attempts.
    """
    live = live_trial(study, trial)
    try:
        live.set_user_attr(OUTCOME, "killed")
        live.set_user_attr(REASON, INTERRUPTED)
        study.tell(live, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        # Another process took it for dead, and has queued it again.
        return
    requeue(study, trial, attempt_of(trial))


def kill(study: Study, trial: FrozenTrial, retries: int, reason: str) -> bool:
    """Tell one running trial as killed and queue it again, unless another process did so first.

    Returns:
        Whether it was this call that told it.
    """
    live = live_trial(study, trial)
    try:
        # Attributes come first: a told trial cannot be changed.
        last = attempt_of(trial) >= retries
        live.set_user_attr(OUTCOME, "failed" if last else "killed")
        live.set_user_attr(REASON, f"{reason}, at attempt {attempt_of(trial) + 1} of {retries + 1}" if last else reason)
        study.tell(live, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        return False
    if not last:
        requeue(study, trial, attempt_of(trial) + 1)
    return True


def give_up(study: Study, trial: FrozenTrial, reason: str) -> None:
    """Tell a running trial as failed for good, unless another process told it first."""
    live = live_trial(study, trial)
    with suppress(UpdateFinishedTrialError, ValueError):
        live.set_user_attr(OUTCOME, "failed")
        live.set_user_attr(REASON, reason)
        study.tell(live, state=TrialState.FAIL)


def attempt_of(trial: FrozenTrial) -> int:
    """How many earlier attempts of this trial were killed."""
    return int(trial.user_attrs.get(ATTEMPT, 0))


def requeuing(retries: Callable[[], int]) -> Callable[[Study, FrozenTrial], None]:
    """What queues a trial again that was failed since its heartbeats have stopped, at most so many times.

    Args:
        retries: Gives that number.
    """

    def on_stale(study: Study, trial: FrozenTrial) -> None:
        if attempt_of(trial) < retries():
            requeue(study, trial, attempt_of(trial) + 1)

    return on_stale


def requeue(study: Study, trial: FrozenTrial, attempt: int) -> None:
    """Queue a killed trial's parameters once more, unless another process did so; the study's lock is to be held.

    Of one that had drawn none there is nothing to queue: whoever asks next draws anew.
    """
    known = study.get_trials(deepcopy=False)
    if not has_drawn(trial) or any(other.user_attrs.get(RETRY_OF) == trial.number for other in known):
        return
    queue_again(study, trial, {ATTEMPT: attempt, RETRY_OF: trial.number})


def queue_again(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Queue a trial's parameters once more, with what else is known of it and these attributes."""
    params = {**queued_params(trial), **trial.params}
    kept = {name: trial.user_attrs[name] for name in (PRESET, CONTINUES) if name in trial.user_attrs}
    study.enqueue_trial(params, user_attrs={**kept, **attrs})
