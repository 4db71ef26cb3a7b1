"""The processes that train one trial together, a GPU each (``executor.gpus_per_trial``), as rank 0 sees them.

Rank 0 is the process that trains trials anyway. It starts the others (:mod:`search.rank`) with the first trial, tells
them by their standard input what it is about to do, and does it at the same time: they meet in each epoch's
collectives (:mod:`trainers.training.ranks`), and nowhere else. What is reported, pruned, logged and kept is decided by
rank 0 between epochs, while the others wait for its next line; so a trial that was stopped there costs them nothing.
Where a trial ends within an epoch, they are somewhere in a collective: they are ended, and started anew with the next
trial.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from search.processes.forkserver import Copy, start_process
from search.processes.signals import stop_if_asked
from strategies import ConfigError, Strategy, TrialError
from trainers import (
    ALONE,
    Device,
    EpochResult,
    Ranks,
    Trainer,
    break_off,
    is_out_of_memory,
    join,
    leave,
    save_state,
)

if TYPE_CHECKING:
    pass

# After so long a rank that waits for another gives up, though none has ended: in a file system that hangs, say.
RANK_TIMEOUT = timedelta(minutes=30)
# How long other ranks may take to say why they failed, once one of them has.
_REASON_SECONDS = 5.0
# How long after a signal to this process a collective may keep it from acting on it.
_SIGNAL_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


class RankLostError(TrialError):
    """Another process of the trial was killed, which is no fault of the trial's."""


@dataclass(slots=True, eq=False)
class _Follower:
    """Another rank, and what is known of its end."""

    rank: int
    process: "subprocess.Popen[str] | Copy"
    said: "queue.SimpleQueue[dict[str, Any] | None]" = field(default_factory=queue.SimpleQueue)
    #: Why it failed, as it said; None if it has not.
    failure: dict[str, Any] | None = None
    has_ended: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Take in what it says, until it ends."""
        assert self.process.stdout is not None, "it was started with one"
        for line in self.process.stdout:
            facts = json.loads(line)
            if facts["event"] == "failed":
                self.failure = facts | {"when": time.monotonic()}
            self.said.put(facts)
        self.process.wait()
        # Where this process waits for it on a GPU, nothing else would tell.
        break_off()
        self.has_ended.set()
        self.said.put(None)

    def kill(self) -> None:
        """End it with all that it has started."""
        # It leads a group of its own, and is a zombie at most until it is waited for, so the number is no other's.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class RankGroup:
    """The ranks of a process's trials; for one GPU a trial it does nothing, and starts nothing.

    Args:
        count: How many ranks there are.
        device: Of rank 0; the others have the GPUs behind it, or on a CPU their shares of its threads.
        threads: CPU threads of all ranks together; None for torch's own number.
        orders: Gives the first line of a rank's input, by its device, its threads, and the file by which ranks meet.
        is_here: Whether all ranks run on this machine, whose GPUs can be counted.

    Raises:
        ConfigError: There are not as many GPUs.
    """

    def __init__(
        self,
        count: int,
        device: Device,
        threads: int | None,
        orders: Callable[[str, int, Path], str],
        is_here: bool = True,
    ) -> None:
        self._device, self._threads, self._orders = device, threads, orders
        self.count = count
        #: Whether the running trial has had a result.
        self.has_result = False
        self._followers: list[_Follower] = []
        self._ranks = ALONE
        self._folder: Path | None = None
        # Ended here, since a signal came that one of them kept this process from acting on.
        self._were_woken = False
        # Within an epoch, where ranks wait for each other.
        self._is_busy = threading.Event()
        if is_here:
            _check(self.count, device)

    @contextmanager
    def training(self, model: str, strategy: Strategy, seed: int, micro_batches: int = 1) -> Iterator[Ranks]:
        """A context in which all other ranks have the trainer of a trial; rank 0 makes its own of what this gives.

        Args:
            model: Its name.
            strategy: What is trained.
            seed: Of the training.
            micro_batches: How many parts a batch is seen in.

        Raises:
            RankLostError: Another rank was killed.
            TrialError: Another rank failed.
            MemoryError: It has no memory left.
        """
        self.has_result = self._were_woken = False
        if self.count == 1:
            yield ALONE
            return
        self._start()
        facts = {"model": model, "strategy": strategy.to_dict(), "seed": seed}
        try:
            with self._woken_by_signals():
                self._tell("train", **facts, micro_batches=micro_batches)
                yield self._ranks
        except BaseException as error:
            # These are raised on all ranks alike; their subclasses are of this process alone.
            if self._is_busy.is_set() and type(error) not in (ConfigError, TrialError):
                reason = self._break_up(waits=isinstance(error, RuntimeError))
                # That they have ended is no reason where a signal to this process was theirs.
                stop_if_asked()
                is_reason = isinstance(error, Exception) and not self._were_woken
                if reason is not None and is_reason and not is_out_of_memory(error):
                    raise reason from error
            raise
        finally:
            self._is_busy.clear()
            if self._followers:
                self._tell("end")

    def epochs(self, trainer: Trainer) -> Iterator[EpochResult]:
        """A trainer's results, while the other ranks train too."""
        if self.count == 1:
            yield from trainer
            return
        while trainer.epoch < trainer.strategy.epochs:
            self._tell("epoch")
            self._is_busy.set()
            result = next(trainer)
            self._is_busy.clear()
            self.has_result = True
            yield result

    def pass_on(self, trainer: Trainer) -> None:
        """Give the other ranks the state that rank 0's trainer has taken up, if it has."""
        state = trainer.state_dict() if self._followers else {}
        if not state.get("epoch") and "begun" not in state:
            return
        assert self._folder is not None, "there are followers"
        # Of each state its own file, since nobody knows when the last one has been read.
        path = self._folder / f"{len(list(self._folder.iterdir()))}.pt"
        save_state(state, path)
        self._tell("state", path=str(path))

    def close(self) -> None:
        """End the other ranks."""
        for follower in self._followers:
            follower.kill()
        for follower in self._followers:
            follower.has_ended.wait(_REASON_SECONDS)
        if self._followers:
            leave()
        self._followers = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        """Start the other ranks, unless they are there."""
        if self._followers and not any(follower.has_ended.is_set() for follower in self._followers):
            return
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix="unfreeze-ranks-"))
        meeting = self._folder / "meeting"
        threads = max(1, (self._threads or torch.get_num_threads()) // self.count)
        if self._device.torch.type == "cpu":
            torch.set_num_threads(threads)
        first = self._device.torch.index or 0
        try:
            for rank in range(1, self.count):
                device = f"cuda:{first + rank}" if self._device.torch.type == "cuda" else self._device.torch.type
                self._followers.append(_started(rank, self.count, self._orders(device, threads, meeting)))
            for follower in self._followers:
                if follower.said.get() is None:
                    raise TrialError(f"executor.gpus_per_trial: {_end_of(follower)}")
            self._ranks = join(meeting, 0, self.count, self._device.torch, RANK_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def _tell(self, order: str, **facts: Any) -> None:
        """Write a line to every other rank.

        Raises:
            RankLostError: One of them was killed while it waited.
            TrialError: One of them has failed meanwhile.
        """
        try:
            for follower in self._followers:
                print(json.dumps({"order": order, **facts}), file=follower.process.stdin, flush=True)
        except BrokenPipeError as error:
            reason = self._break_up(waits=True)
            if order != "end":
                raise reason or RankLostError("another rank has ended") from error

    def _break_up(self, waits: bool) -> Exception | None:
        """End the other ranks, and return what ended one of them before, if anything did.

        Args:
            waits: Whether this process was kept from going on by something, which may be the end of another.
        """
        followers = self._followers
        if waits:
            for follower in followers:
                follower.has_ended.wait(_REASON_SECONDS)
        ended = [follower for follower in followers if follower.has_ended.is_set()]
        self.close()
        # One that could not go on without the one that was killed, or that failed, says so too.
        killed = [follower for follower in ended if follower.failure is None]
        if killed:
            return RankLostError(_end_of(killed[0]))
        short = [follower for follower in ended if follower.failure is not None and follower.failure["short"]]
        if short:
            return MemoryError(_end_of(short[0]))
        ended.sort(key=lambda follower: follower.failure["when"] if follower.failure is not None else 0.0)
        return TrialError(_end_of(ended[0])) if ended else None

    @contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        """A context in which a signal ends the other ranks where one of them keeps this process from acting on it.

        Python acts on a signal once the main thread is back from what it has called, and a collective comes back when
        the other ranks do, or are gone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        is_over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(reader, is_over), name="rank-signals", daemon=True)
        watch.start()
        try:
            yield
        finally:
            is_over.set()
            signal.set_wakeup_fd(before)
            os.close(writer)
            watch.join()
            os.close(reader)

    def _watch(self, reader: int, is_over: threading.Event) -> None:
        while numbers := os.read(reader, 1):
            if numbers[0] in _SIGNALS and not is_over.wait(_SIGNAL_SECONDS):
                self._were_woken = True
                for follower in self._followers:
                    follower.kill()
                break_off()


def _check(count: int, device: Device) -> None:
    if count == 1 or device.torch.type == "cpu":
        return
    if device.torch.type != "cuda":
        raise ConfigError(f"executor.gpus_per_trial: {count} are asked for, and device {device.torch.type} is only one")
    first = device.torch.index or 0
    there = torch.cuda.device_count() - first
    if there < count:
        where = f" from device cuda:{first} on" if first else ""
        raise ConfigError(f"executor.gpus_per_trial: {count} are asked for, and {there} are there{where}")


def _started(rank: int, count: int, orders: str) -> _Follower:
    # It leads a session of its own: it is ended with its group, and a terminal's Ctrl-C is not for it.
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    process = start_process("search.rank", variables)
    follower = _Follower(rank, process)
    threading.Thread(target=follower.read, name=f"rank-{rank}", daemon=True).start()
    print(orders, file=process.stdin, flush=True)
    return follower


def _end_of(follower: _Follower) -> str:
    """How a rank ended, in words."""
    if follower.failure is not None:
        kind, reason = follower.failure["kind"], follower.failure["reason"]
        return f"rank {follower.rank}: {kind}: {reason}"
    code = follower.process.returncode
    return f"rank {follower.rank} ended by {signal.Signals(-code).name if code and code < 0 else f'exit code {code}'}"
