"""The worker pool: processes that train trials of one study, started and replaced by the command."""

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from search.executors.executor import Executor, Share
from search.executors.packing import Decision, Limits, Packer
from search.executors.process import WorkerProcess
from search.processes import Orders, over_the_limit
from search.scheduling import Ledger, give_up
from search.storage import OUT_OF_MEMORY, RUN_ID
from search.tracking import EpochEnded, Event, TrialEnded, TrialStarted, from_json
from search.trials import OpenStudy, reconcile_runs, recover_trials
from strategies import TrialError, UnfreezeError

#: Tag of the study's run: how many trials are trained at once, and why where that was measured.
TAG = "unfreeze.trials_per_device"
# So many workers may end in a row before any trial ends; after more, the cause is no trial.
_MOST_DEATHS = 3
# The time that a worker has, after it was asked to stop, to queue its trial again and to log that.
_STOP_SECONDS = 120.0
# The time for reading the last lines of a worker that has ended.
_LISTEN_SECONDS = 5.0
# The time after a trial's time limit in which its worker may give the trial up by itself.
_GRACE_SECONDS = 20.0

logger = logging.getLogger(__name__)


class PoolWatcher(Protocol):
    """Shows what workers do."""

    def say(self, text: str) -> None:
        """Show a message."""

    def hear(self, event: Event) -> None:
        """Show an event of a worker's trial."""

    def worker_ended(self, worker: int) -> None:
        """Remove a worker that has ended."""


class PoolError(TrialError):
    """Workers keep ending before any trial ends."""


@dataclass(slots=True)
class _Running:
    """A trial that a worker trains."""

    began: float
    epochs: float = 0.0
    # Whether it measures the number of workers; not if, for example, it began before all workers had started.
    counts: bool = True


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process, the trials that it trains (several linear probes at once), and how it ends."""

    place: int
    process: WorkerProcess
    #: Its name as owner of trials; None until it runs.
    owner: str | None = None
    running: dict[int, _Running] = field(default_factory=dict)
    has_begun: bool = False
    leaves: bool = False
    is_done: bool = False
    # Whether the pool killed it, since its trial hung.
    was_ended: bool = False


def run_pool(open_study: OpenStudy, executor: Executor, watcher: PoolWatcher, ledger: Ledger) -> None:
    """Have worker processes train trials until the budget ends.

    A worker that dies is replaced, and its trial queued again.

    Args:
        open_study: The study; this process trains none of its trials.
        executor: Starts workers.
        watcher: Shows what workers do.
        ledger: The study's.

    Raises:
        UnfreezeError: A worker was refused.
        PoolError: Workers keep ending before any trial ends.
    """
    pool = _Pool(open_study, executor, watcher, ledger)
    try:
        pool.run()
    finally:
        pool.stop()


class _Pool:
    """Workers and their messages; see :func:`run_pool`."""

    def __init__(self, open_study: OpenStudy, executor: Executor, watcher: PoolWatcher, ledger: Ledger) -> None:
        self._open_study, self._executor, self._watcher = open_study, executor, watcher
        self._ledger = ledger
        self._workers: list[_Worker] = []
        self._listeners: list[threading.Thread] = []
        self._said: queue.SimpleQueue[tuple[_Worker, str]] = queue.SimpleQueue()
        self._deaths = 0
        self._texts: set[str] = set()
        asked = open_study.config.executor.trials_per_device
        self._packer = None
        if asked == "auto":
            self._packer = Packer(Limits(open_study.materials.device.free_bytes, max(1, _cores() // executor.devices)))
        self._wanted = executor.devices * (1 if asked == "auto" else asked)

    def run(self) -> None:
        """Start workers and follow their messages until the last has ended."""
        most = self._open_study.config.budget.trials
        is_full = most is not None and self._ledger.counted >= most
        # Of a full study the best trial may be paused, and is then trained to its end.
        if time.monotonic() >= self._open_study.deadline or (is_full and not self._open_study.pauses_by_plan):
            return
        # Where other processes train the last of the budget, one worker waits in case they end early.
        first = max(1, min(self._wanted, self._room()))
        where = self._executor.description
        if self._packer is None:
            threads = self._executor.share(0, first).threads
            each = max(1, first // self._executor.devices)
            self._note(f"{each}", f"{first} processes train at once{where}, {threads} CPU threads each")
        else:
            self._note("1, measured", f"as many processes train at once{where} as measuring says, one to begin with")
        for _ in range(first):
            self._start(first)
        while self._workers:
            try:
                worker, line = self._said.get(timeout=self._until_overdue())
            except queue.Empty:
                self._end_overdue()
                continue
            if line:
                self._follow(worker, json.loads(line))
            else:
                self._ended(worker)

    def stop(self) -> None:
        """Ask all workers to stop, which queues their trials again, and wait for them."""
        for worker in self._workers:
            worker.process.stop()
        until = time.monotonic() + _STOP_SECONDS
        lost = []
        for worker in self._workers:
            try:
                code = worker.process.wait(max(0.0, until - time.monotonic()))
            except TimeoutError:
                worker.process.kill()
                code = worker.process.wait()
            if code not in (0, 128 + signal.SIGTERM):
                lost.append(worker.owner)
        self._workers.clear()
        for listener in self._listeners:
            # Their workers have ended. A cluster may be left only when no thread asks it for anything.
            listener.join(_LISTEN_SECONDS)
        for owner in lost:
            recover_trials(self._open_study, owner)
        if lost:
            reconcile_runs(self._open_study)

    def _until_overdue(self) -> float | None:
        """Seconds until a trial is overdue that its worker has not given up; None without a limit or a trial."""
        minutes = self._open_study.config.budget.trial_minutes
        began = [running.began for worker in self._workers for running in worker.running.values()]
        if minutes is None or not began:
            # A message that a trial begins ends the wait.
            return None
        return max(0.0, min(began) + minutes * 60 + _GRACE_SECONDS - time.monotonic())

    def _end_overdue(self) -> None:
        """Give up trials that hang where no signal reaches them, and kill their workers, which are replaced."""
        minutes = self._open_study.config.budget.trial_minutes
        assert minutes is not None, "nothing is overdue without a limit"
        late = time.monotonic() - minutes * 60 - _GRACE_SECONDS
        trials = self._open_study.study.get_trials(deepcopy=False)
        overdue = []
        for worker in self._workers:
            numbers = [number for number, running in worker.running.items() if running.began <= late]
            if numbers:
                # Before the kill, since another worker would queue the trial of an ended worker again.
                for number in numbers:
                    give_up(self._open_study.study, trials[number], over_the_limit(minutes))
                worker.process.kill()
                worker.process.wait()
                overdue += numbers
                worker.running.clear()
                worker.was_ended = True
        trials = self._open_study.study.get_trials(deepcopy=False)
        for number in overdue:
            self._watcher.hear(TrialEnded.of(trials[number], trials[number].user_attrs.get(RUN_ID, "")))

    def _room(self) -> int:
        """How many trials may still begin; ``sys.maxsize`` where the budget has no number."""
        most = self._open_study.config.budget.trials
        if time.monotonic() >= self._open_study.deadline:
            return 0
        if most is None:
            return sys.maxsize
        self._ledger.refresh()
        return most - self._ledger.counted - len(self._ledger.running)

    def _start(self, beside: int) -> None:
        """Start a worker, which is to be one of ``beside`` workers."""
        taken = {worker.place for worker in self._workers}
        place = min(set(range(len(taken) + 1)) - taken)
        share = self._executor.share(place, beside)
        worker = _Worker(place, self._executor.start(place, share))
        self._workers.append(worker)
        listener = threading.Thread(target=self._listen, args=(worker, share), name=f"worker-{place}", daemon=True)
        self._listeners.append(listener)
        listener.start()

    def _listen(self, worker: _Worker, share: Share) -> None:
        """Send a worker its orders; queue its lines, and an empty line when it has ended."""
        if worker.process.is_placed():
            left = self._open_study.deadline - time.monotonic()
            config = self._executor.config_for_worker(self._open_study.config)
            orders = Orders(
                config=config.model_copy(update={"threads": share.threads}),
                cores=share.cores,
                seconds=left if left < float("inf") else None,
                log_level=logging.getLogger("search").level,
            )
            worker.process.tell(orders.model_dump_json())
            for line in worker.process.lines():
                self._said.put((worker, line))
        self._said.put((worker, ""))

    def _follow(self, worker: _Worker, facts: dict[str, Any]) -> None:
        match facts["event"]:
            case "ready":
                worker.owner = facts["owner"]
            case "said":
                # Printed once, since several workers may say the same, such as that the search ends.
                if facts["text"] not in self._texts:
                    self._texts.add(facts["text"])
                    self._watcher.say(facts["text"])
            case "done":
                worker.is_done = True
                if not worker.leaves:
                    self._dismiss_unplaced()
            case "refused":
                raise (UnfreezeError if facts["is_input"] else TrialError)(facts["message"])
            case _:
                event = from_json(facts)
                if event is not None:
                    self._hear(worker, event)

    def _hear(self, worker: _Worker, event: Event) -> None:
        """Show an event of a worker's trial, and count it."""
        match event:
            case TrialStarted():
                self._watcher.hear(replace(event, worker=worker.place))
                self._trial_started(worker, event.number)
            case EpochEnded():
                self._watcher.hear(replace(event, worker=worker.place))
                for running in worker.running.values():
                    running.epochs = event.result.epoch
            case TrialEnded():
                self._watcher.hear(event)
                self._trial_ended(worker, event)

    def _dismiss_unplaced(self) -> None:
        """Stop waiting for workers that do not run yet, for example for lack of a free node: the search has ended."""
        for worker in self._workers:
            if worker.owner is None:
                worker.is_done = True
                worker.process.kill()

    def _trial_started(self, worker: _Worker, number: int) -> None:
        worker.has_begun = True
        # Linear probes that are trained together would count as many fast trials.
        is_alone = not worker.running
        for other in worker.running.values():
            other.counts = False
        is_whole = len(self._workers) == self._wanted and all(one.has_begun for one in self._workers)
        worker.running[number] = _Running(time.monotonic(), counts=is_alone and is_whole)

    def _trial_ended(self, worker: _Worker, event: TrialEnded) -> None:
        self._deaths = 0
        # A trial whose strategy could not be sampled has never begun.
        running = worker.running.pop(event.number, None)
        if self._packer is None or running is None:
            return
        decision = None
        if event.reason.startswith(OUT_OF_MEMORY):
            decision = self._packer.ran_out()
        elif running.counts and event.continues is None and not event.is_retry:
            # A trial that resumes another has not trained all of its epochs itself.
            images = round(running.epochs * len(self._open_study.materials.data.train))
            decision = self._packer.trial_ended(images, time.monotonic() - running.began, event.peak_bytes)
        if decision is not None:
            self._repack(decision)

    def _repack(self, decision: Decision) -> None:
        """Change the number of workers."""
        self._wanted = decision.workers * self._executor.devices
        for running in (running for worker in self._workers for running in worker.running.values()):
            running.counts = False
        until = "" if decision.is_final else ", to measure"
        what = f"{decision.workers} at once{until}: {decision.reason}"
        self._note(what, what)
        # Sorted by place, which says the device.
        staying = sorted((one for one in self._workers if not one.leaves), key=lambda worker: worker.place)
        for worker in staying[self._wanted :]:
            worker.leaves = True
            worker.process.tell("leave")
        for worker in staying[: self._wanted]:
            share = self._executor.share(worker.place, self._wanted)
            worker.process.tell(f"threads {share.threads}")
            if share.cores:
                worker.process.tell(f"cores {','.join(map(str, share.cores))}")
        for _ in range(self._wanted - len(staying)):
            if self._room() > 0:
                self._start(self._wanted)

    def _ended(self, worker: _Worker) -> None:
        """Replace a worker that has ended, unless it was done."""
        code = worker.process.wait()
        self._workers.remove(worker)
        self._watcher.worker_ended(worker.place)
        if worker.is_done:
            return
        self._deaths += not worker.was_ended
        self._watcher.say(f"A worker has ended early ({_in_words(code)})")
        # Other processes would notice the end of a worker on another host only by missing heartbeats.
        recover_trials(self._open_study, worker.owner)
        reconcile_runs(self._open_study)
        if (
            self._packer is not None
            and code == -signal.SIGKILL
            and not worker.was_ended
            and (decision := self._packer.ran_out()) is not None
        ):
            # A system without free memory kills processes so.
            self._repack(decision)
        room = self._room()
        if room > 0 and self._deaths <= _MOST_DEATHS and len(self._workers) < self._wanted:
            self._start(self._wanted)
        elif room > 0 and not self._workers:
            raise PoolError(f"{self._deaths} workers have ended before any trial ended; the last: {_in_words(code)}")

    def _note(self, tag: str, line: str) -> None:
        self._open_study.tracker.log(self._open_study.parent_run, tags={TAG: tag})
        self._watcher.say(f"Workers {line}")


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
