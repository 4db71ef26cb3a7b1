"""Trials whose process has ended: told as killed, and queued again with the same parameters."""

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
    FINGERPRINT,
    OUTCOME,
    OWNER,
    PREDICTED,
    PRESET,
    REASON,
    RETRY_OF,
    live_trial,
    queued_params,
)

# A process writes its name to a trial within milliseconds after it has asked for the trial.
_NAMING_SECONDS = 3.0

#: The reason of a trial that its user or scheduler stopped.
INTERRUPTED = "interrupted"

logger = logging.getLogger(__name__)


def trains_beside(trial: FrozenTrial) -> bool:
    """Whether a running trial belongs to another process of this host that still runs."""
    found = trial.user_attrs.get(OWNER)
    return found is not None and is_here(found) and not is_mine(trial) and not is_gone(found)


def is_mine(trial: FrozenTrial) -> bool:
    """Whether this process asked for a trial."""
    found = trial.user_attrs.get(OWNER)
    return found is not None and is_here(found) and bool(json.loads(found)["pid"] == os.getpid())


def _orphans(study: Study, running: list[FrozenTrial], ended: str | None) -> list[FrozenTrial]:
    """Trials whose process has ended, maybe before it wrote its name."""
    nameless = {trial.number for trial in running if OWNER not in trial.user_attrs}
    if nameless:
        # Waited for, not computed: the clock that wrote a trial's start is maybe another host's, and hours off.
        time.sleep(_NAMING_SECONDS)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def is_orphan(trial: FrozenTrial) -> bool:
        if OWNER not in trial.user_attrs:
            return trial.number in nameless
        return trial.user_attrs[OWNER] == ended or is_gone(trial.user_attrs[OWNER])

    return list(filter(is_orphan, running))


def recover(study: Study, retries: int, ended: str | None = None) -> list[FrozenTrial]:
    """Tell running trials whose process has ended on this host as killed, and queue each again.

    Trials of other hosts are told where their heartbeats have stopped. Trials that were told as killed before and never
    queued are queued too. Where there are other processes, the caller must hold the study's lock.

    Args:
        study: The study.
        retries: How many times a trial may be queued again.
        ended: The owner of trials, on any host, that has ended for certain; None if there is none.

    Returns:
        The trials that this call told or queued.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in _orphans(study, running, ended):
        kill(study, trial, retries, "its process ended")
    # Optuna calls this in Study.optimize, but not for callers of ask and tell.
    fail_stale_trials(study)
    taken = {trial.number for trial in running} | _queue_forgotten(study, retries)
    told = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in told if trial.number in taken]


def _queue_forgotten(study: Study, retries: int) -> set[int]:
    """Queue killed trials whose process ended after it had told them and before it could queue them again."""
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    newest = max((trial.number for trial in trials if trial.state != TrialState.WAITING), default=0)

    def is_forgotten(trial: FrozenTrial) -> bool:
        if trial.state != TrialState.FAIL or trial.number in queued:
            return False
        # Earlier versions drew another trial in the place of one that had drawn nothing.
        if trial.number < newest and not (trial.params or queued_params(trial) or FINGERPRINT in trial.user_attrs):
            return False
        if OUTCOME in trial.user_attrs:
            return bool(trial.user_attrs[OUTCOME] == "killed")
        # Optuna has told it, since its heartbeats had stopped.
        return OWNER in trial.user_attrs and attempt_of(trial) < retries

    forgotten = list(filter(is_forgotten, trials))
    for trial in forgotten:
        attempt = attempt_of(trial) + (trial.user_attrs.get(REASON) != INTERRUPTED)
        queue_again(study, trial, {ATTEMPT: attempt, RETRY_OF: trial.number})
    return {trial.number for trial in forgotten}


def interrupt(study: Study, trial: FrozenTrial) -> None:
    """Tell a running trial as killed because its user or a cluster's scheduler stopped it, and queue it again.

    The trial is not at fault, so this attempt does not count.
    """
    live = live_trial(study, trial)
    try:
        live.set_user_attr(OUTCOME, "killed")
        live.set_user_attr(REASON, INTERRUPTED)
        study.tell(live, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        # Another process has told the trial as killed, and has queued it again.
        return
    requeue(study, trial, attempt_of(trial))


def kill(study: Study, trial: FrozenTrial, retries: int, reason: str) -> bool:
    """Tell a running trial as killed and queue it again, unless another process told it first.

    After the last attempt the trial is told as failed, and not queued.

    Returns:
        Whether this call told the trial.
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
    """A callback that queues a trial again after Optuna has failed it because its heartbeats stopped.

    Args:
        retries: Gives how many times a trial may be queued again.
    """

    def on_stale(study: Study, trial: FrozenTrial) -> None:
        if attempt_of(trial) < retries():
            requeue(study, trial, attempt_of(trial) + 1)

    return on_stale


def requeue(study: Study, trial: FrozenTrial, attempt: int) -> None:
    """Queue a killed trial once more, unless another process did so; under the study's lock."""
    trials = study.get_trials(deepcopy=False)
    if not any(other.user_attrs.get(RETRY_OF) == trial.number for other in trials):
        queue_again(study, trial, {ATTEMPT: attempt, RETRY_OF: trial.number})


def queue_again(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Queue a trial once more, with these attributes, its parameters, preset, prediction, and what it resumes.

    A trial that was killed while it drew parameters draws again: each of its draws depends on those before.
    """
    drawn = trial.params if FINGERPRINT in trial.user_attrs else {}
    kept = {name: trial.user_attrs[name] for name in (PRESET, CONTINUES, PREDICTED) if name in trial.user_attrs}
    study.enqueue_trial({**queued_params(trial), **drawn}, user_attrs={**kept, **attrs})
