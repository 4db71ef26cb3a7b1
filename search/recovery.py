"""Trials whose process went away: told as killed, and queued again with the same parameters."""

import json
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, cast

import psutil
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, Trial, TrialState

from search.outcome import ATTEMPT, CONTINUES, OUTCOME, OWNER, PRESET, REASON, RETRY_OF, has_drawn
from search.postgres import SteadyStorage, is_postgres, with_driver
from search.proxy import Proxy, is_proxy
from search.sqlite import write_ahead

# A heartbeat a minute and three minutes' grace: shorter ones kill live trials whose process is busy (optuna#5470).
HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 180

# A process names itself in a trial within milliseconds of asking for it.
_NAMING_SECONDS = 3.0

#: The reason of a trial that its user or scheduler stopped.
INTERRUPTED = "interrupted"

logger = logging.getLogger(__name__)


def owner() -> str:
    """The current process, so that another can tell whether it still lives: host, process number and start time."""
    process = psutil.Process()
    return json.dumps({"host": socket.gethostname(), "pid": process.pid, "started": _started(process)})


def _started(process: psutil.Process) -> float:
    """When a process began, in seconds since its host did: the host's clock may be set while the process runs."""
    # In this order: psutil 6 adds the boot time that it read last.
    since = psutil.boot_time()
    return process.create_time() - since


def _is_gone(owner_text: str) -> bool:
    """Whether the owner ran on this host and has ended; of other hosts nothing is known."""
    if not _is_here(owner_text):
        return False
    found = json.loads(owner_text)
    try:
        process = psutil.Process(found["pid"])
        # A recycled process number has another start time; a zombie has ended, its parent only did not ask yet.
        recycled = abs(_started(process) - found["started"]) > 2.0
        return bool(recycled or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def trains_beside(trial: FrozenTrial) -> bool:
    """Whether a running trial belongs to another process of this host, which lives."""
    found = trial.user_attrs.get(OWNER)
    return found is not None and _is_here(found) and not is_mine(trial) and not _is_gone(found)


def is_mine(trial: FrozenTrial) -> bool:
    """Whether it was this process that asked for a trial."""
    found = trial.user_attrs.get(OWNER)
    return found is not None and _is_here(found) and bool(json.loads(found)["pid"] == os.getpid())


def _is_here(owner_text: str) -> bool:
    return bool(json.loads(owner_text)["host"] == socket.gethostname())


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
        return trial.user_attrs[OWNER] == ended or _is_gone(trial.user_attrs[OWNER])

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
    live = Trial(study, trial._trial_id)
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
    live = Trial(study, trial._trial_id)
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
    live = Trial(study, trial._trial_id)
    with suppress(UpdateFinishedTrialError, ValueError):
        live.set_user_attr(OUTCOME, "failed")
        live.set_user_attr(REASON, reason)
        study.tell(live, state=TrialState.FAIL)


def attempt_of(trial: FrozenTrial) -> int:
    """How many earlier attempts of this trial were killed."""
    return int(trial.user_attrs.get(ATTEMPT, 0))


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
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    kept = {name: trial.user_attrs[name] for name in (PRESET, CONTINUES) if name in trial.user_attrs}
    study.enqueue_trial(params, user_attrs={**kept, **attrs})


def open_storage(url: str, retries: Callable[[], int]) -> BaseStorage:
    """Optuna's storage at the URL of a database or a proxy; trials of hosts that are gone are queued again."""

    def on_stale(study: Study, trial: FrozenTrial) -> None:
        if attempt_of(trial) < retries():
            requeue(study, trial, attempt_of(trial) + 1)

    if is_proxy(url):
        return Proxy(url, HEARTBEAT_SECONDS, on_stale)
    write_ahead(url)
    with warnings.catch_warnings():
        # Of heartbeats and what is done when they stop.
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        return (SteadyStorage if is_postgres(url) else RDBStorage)(
            with_driver(url),
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=on_stale,
        )


class Heartbeat:
    """Records that a trial is alive, from a thread, while the ``with`` block runs."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{trial.number}-{os.getpid()}", daemon=True)

    def _beat(self) -> None:
        storage = cast(BaseHeartbeat, self._trial.storage)
        while True:
            try:
                storage.record_heartbeat(self._trial._trial_id)
            except Exception as error:  # each database driver has errors of its own
                # The trial itself meets the store soon enough; until then a beat that was missed is made up for.
                logger.info("trial %d could not record that it is alive: %s", self._trial.number, error)
            if self._stop.wait(HEARTBEAT_SECONDS):
                return

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
