"""The processes that train one trial together, a GPU each (``executor.gpus_per_trial``), as rank 0 sees them.

Rank 0 is the process that trains the trials. It starts the other ranks (:mod:`search.rank`) with the first trial,
writes each order to their standard input, and carries out the order at the same time. Ranks meet in each epoch's
collectives (:mod:`trainers.training.ranks`), and nowhere else. Rank 0 decides between epochs what is reported, pruned,
logged and kept, while the others wait for its next line; a trial that is stopped there costs them nothing. Where a
trial ends within an epoch, the others may be in a collective: they are killed, and started anew with the next trial.
"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from search.processes.forkserver import Copy, start_process
from search.processes.signals import stop_if_asked
from search.processes.temporary import temporary_folder
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

# How long a rank waits for another that has not ended, such as one on a file system that hangs.
RANK_TIMEOUT = timedelta(minutes=30)
# How long other ranks may take to give their reasons, once one of them has failed.
_REASON_SECONDS = 5.0
# How long a collective may keep this process from acting on a signal.
_SIGNAL_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


class RankLostError(TrialError):
    """Another process of the trial was killed; the trial itself is not at fault."""


@dataclass(slots=True, eq=False)
class _Follower:
    """Another rank, and how it ended."""

    rank: int
    process: "subprocess.Popen[str] | Copy"
    said: "queue.SimpleQueue[dict[str, Any] | None]" = field(default_factory=queue.SimpleQueue)
    #: The rank's own message of its failure; None if it sent none.
    failure: dict[str, Any] | None = None
    has_ended: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Read the rank's messages until it ends."""
        assert self.process.stdout is not None, "the rank was started with a pipe"
        for line in self.process.stdout:
            facts = json.loads(line)
            if facts["event"] == "failed":
                self.failure = facts | {"when": time.monotonic()}
            self.said.put(facts)
        self.process.wait()
        # Before this process wakes: what it then computes, with results that never came, is no result of the trial.
        self.has_ended.set()
        # Nothing else would wake this process where it waits for the rank on a GPU.
        break_off()
        self.said.put(None)

    def kill(self) -> None:
        """Kill the rank with all that it has started."""
        # It leads a process group, whose number no other gets before the rank was waited for.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class RankGroup:
    """The ranks of a process's trials; with one GPU a trial it starts nothing.

    Args:
        count: How many ranks there are.
        device: Device of rank 0; the others take the GPUs behind it, or on a CPU their shares of its threads.
        threads: CPU threads of all ranks together; None for torch's own number.
        orders: Gives the first line of a rank's input, from its device, its threads, and the file by which ranks meet.
        is_here: Whether all ranks run on this machine, whose GPUs can be counted.

    Raises:
        ConfigError: There are fewer GPUs than ranks.
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
        self._cleanup = ExitStack()
        self.count = count
        self._followers: list[_Follower] = []
        self._ranks = ALONE
        self._folder: Path | None = None
        # Whether the other ranks were killed because one of them kept this process from acting on a signal.
        self._were_woken = False
        # Set within an epoch, where ranks wait for each other.
        self._is_busy = threading.Event()
        if is_here:
            _check(self.count, device)

    @contextmanager
    def training(self, model: str, strategy: Strategy, seed: int) -> Iterator[Ranks]:
        """A context in which all other ranks have the trainer of a trial; rank 0 makes its own from the given ranks.

        Args:
            model: Name of the model.
            strategy: What is trained.
            seed: Seed of the training.

        Raises:
            RankLostError: Another rank was killed.
            TrialError: Another rank failed.
            MemoryError: Another rank ran out of memory.
        """
        self._were_woken = False
        if self.count == 1:
            yield ALONE
            return
        self._start()
        facts = {"model": model, "strategy": strategy.to_dict(), "seed": seed}
        try:
            with self._woken_by_signals():
                self._tell("train", **facts)
                yield self._ranks
        except BaseException as error:
            # All ranks raise these alike; this process alone raises their subclasses. Once a rank is gone, NCCL may
            # leave any numbers, from which the same errors come.
            is_of_all = type(error) in (ConfigError, TrialError)
            is_one_gone = any(follower.has_ended.is_set() for follower in self._followers)
            if self._is_busy.is_set() and (is_one_gone or not is_of_all):
                # A ValueError says that the group of processes has been broken off.
                reason = self._break_up(waits=isinstance(error, RuntimeError | ValueError))
                # The end of the others is not the reason where they were killed because of a signal.
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
        """Results of rank 0's trainer, while the other ranks train too."""
        if self.count == 1:
            yield from trainer
            return
        while trainer.epoch < trainer.strategy.epochs:
            self._tell("epoch")
            self._is_busy.set()
            result = next(trainer)
            self._is_busy.clear()
            yield result

    def pass_on(self, trainer: Trainer) -> None:
        """Give the other ranks the snapshot from which rank 0's trainer was resumed, if it was."""
        state = trainer.state_dict() if self._followers else {}
        if not state.get("epoch") and "begun" not in state:
            return
        assert self._folder is not None, "there are followers"
        # Each snapshot has a file of its own, since rank 0 does not learn when the last was read.
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
        self._folder = None
        self._cleanup.close()

    def _start(self) -> None:
        """Start the other ranks, unless they run already."""
        if self._followers and not any(follower.has_ended.is_set() for follower in self._followers):
            return
        self.close()
        self._folder = self._cleanup.enter_context(temporary_folder())
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
            RankLostError: A rank was killed while it waited.
            TrialError: A rank has failed meanwhile.
        """
        try:
            for follower in self._followers:
                print(json.dumps({"order": order, **facts}), file=follower.process.stdin, flush=True)
        except BrokenPipeError as error:
            reason = self._break_up(waits=True)
            if order != "end":
                raise reason or RankLostError("another rank has ended") from error

    def _break_up(self, waits: bool) -> Exception | None:
        """End the other ranks, and return the error that ended a rank before this call, if there is one.

        Args:
            waits: Whether to give ranks some seconds to end: this process could not continue, maybe because of one.
        """
        followers = self._followers
        if waits:
            for follower in followers:
                follower.has_ended.wait(_REASON_SECONDS)
        ended = [follower for follower in followers if follower.has_ended.is_set()]
        self.close()
        # A rank also fails because another was killed or failed before it, so those come first.
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
        """A context in which a signal kills the other ranks where they keep this process from acting on the signal.

        Python acts on a signal once the main thread returns from native code, and a collective returns once all ranks
        have come to it, or are gone.
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
    # A rank leads a session of its own: it is killed with its process group, and a terminal's Ctrl-C does not reach it.
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
