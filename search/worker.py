"""A process that trains trials of a study beside others: ``python -m search.worker``, which :mod:`search.crew` starts.

Its standard input is a JSON line, :class:`Orders`, and then words: ``threads N`` is the number of CPU threads from the
next trial on, ``cores 0,1`` are those that it runs on from now on, ``leave`` ends the process after its trial. The end
of the input, which comes when the command that started it is gone, stops it as SIGTERM does. Its standard output is a
JSON line for each thing that happens.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel

from search.config import StudyConfig
from search.imports import importing

logger = logging.getLogger(__name__)


class Orders(BaseModel):
    """What a worker is told at its beginning.

    Args:
        config: The study's, but that its ``threads`` are those of this worker.
        cores: That it runs on; none for any.
        seconds: Until the hours are over; None for no end.
        log_level: Of our own packages.
    """

    config: StudyConfig
    cores: tuple[int, ...] = ()
    seconds: float | None
    log_level: int


@dataclass(slots=True)
class _Wishes:
    """What the words that came so far ask for."""

    threads: int | None = None
    leave: bool = False

    def follow(self, lines: Iterator[str]) -> None:
        """Take words in until they end, which ends the process."""
        for line in lines:
            match line.split():
                case ["threads", count]:
                    self.threads = int(count)
                case ["cores", listed]:
                    _run_on([int(core) for core in listed.split(",")])
                case ["leave"]:
                    self.leave = True
        os.kill(os.getpid(), signal.SIGTERM)


def _run_on(cores: Sequence[int]) -> None:
    """Have this process run on these cores alone, with all threads that it has and will have."""
    # The system knows cores of threads, not of processes; new threads take after those that start them.
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def lines_of(file: int) -> Iterator[str]:
    """Lines of an open file as they come.

    Read without Python's buffers: a thread that waits in one of those keeps the interpreter from ending.
    """
    rest = b""
    while block := os.read(file, 65536):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode()


def take_stdout() -> TextIO:
    """What was the standard output; whatever else is printed from here on goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _work(orders: Orders, deadline: float, lines: Iterator[str], output: TextIO) -> None:
    # Only here: importing torch takes seconds, in which the time that is left goes by.
    with importing():
        import torch

        from search.ledger import Ledger
        from search.nursery import nursery
        from search.preparation import prepare
        from search.recovery import owner
        from search.relay import Relay
        from search.stopping import stopped_by_signals
        from search.working import work
        from strategies import TrialError, UnfreezeError

    wishes = _Wishes()
    relay = Relay(output)

    def go_on() -> bool:
        if wishes.threads is not None:
            torch.set_num_threads(wishes.threads)
        return not wishes.leave

    several = orders.config.executor.gpus_per_trial > 1
    with nursery(is_wanted=several), stopped_by_signals(), ExitStack() as cleanup:
        threading.Thread(target=wishes.follow, args=(lines,), name="orders", daemon=True).start()
        try:
            relay.send("ready", owner=owner())
            # What there is to warn of in configuration, data and weights the command has said.
            logging.disable(logging.WARNING)
            bench = prepare(orders.config, relay, joins=True)
            cleanup.callback(bench.tracker.close)
            logging.disable(logging.NOTSET)
            relay.device = bench.device
            bench = replace(bench, deadline=deadline)
            work(bench, Ledger(bench.study), go_on, lambda text: logger.info("%s", text))
            bench.tracker.flush()
            relay.send("done")
        except UnfreezeError as error:
            relay.send("refused", is_input=not isinstance(error, TrialError), message=str(error))


def _set_up_logging(level: int) -> None:
    # A copy of the command has that one's handlers.
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    for package in ("search", "trainers", "strategies"):
        logging.getLogger(package).setLevel(level)


def main() -> int:
    """Work until the budget ends; the exit code is 0, or 143 after a signal."""
    began = time.monotonic()
    output = take_stdout()
    lines = lines_of(sys.stdin.fileno())
    orders = Orders.model_validate_json(next(lines))
    _set_up_logging(orders.log_level)
    if orders.cores:
        # Before torch is imported, which starts as many threads as it sees cores.
        _run_on(orders.cores)
    deadline = began + (float("inf") if orders.seconds is None else orders.seconds)
    try:
        _work(orders, deadline, lines, output)
    except (KeyboardInterrupt, SystemExit):
        # The running trial is queued again by now.
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main())
