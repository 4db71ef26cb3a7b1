"""A worker of the pool, which trains trials of a study: ``python -m search.worker``.

:mod:`search.executors.pool` starts it.

Its standard input is a JSON line, :class:`Orders`, and then words: ``threads N`` sets the number of CPU threads from
the next trial on, ``cores 0,1`` sets the cores from now on, ``leave`` ends the process after its trial. The input ends
when the command that started the worker has ended; that stops the worker as SIGTERM does. Its standard output is a JSON
line for each event.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TextIO

from search.command_line import set_up_logging
from search.processes import Orders, importing, lines_of, run_on_cores, take_stdout

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wishes:
    """The orders that came so far."""

    threads: int | None = None
    leave: bool = False

    def follow(self, lines: Iterator[str]) -> None:
        """Follow words until the input ends; then stop the process."""
        for line in lines:
            match line.split():
                case ["threads", count]:
                    self.threads = int(count)
                case ["cores", listed]:
                    run_on_cores([int(core) for core in listed.split(",")])
                case ["leave"]:
                    self.leave = True
        os.kill(os.getpid(), signal.SIGTERM)


def _work(orders: Orders, deadline: float, lines: Iterator[str], output: TextIO) -> None:
    # Only here: importing torch takes seconds of the time that is left.
    with importing():
        import torch

        from search.executors import JsonWatcher
        from search.processes import owner, stopped_by_signals, warm_forkserver
        from search.scheduling import Ledger
        from search.study import prepare, run_trials
        from strategies import TrialError, UnfreezeError

    wishes = _Wishes()
    watcher = JsonWatcher(output)

    def may_continue() -> bool:
        if wishes.threads is not None:
            torch.set_num_threads(wishes.threads)
        return not wishes.leave

    several = orders.config.executor.gpus_per_trial > 1
    with warm_forkserver(is_wanted=several), stopped_by_signals(), ExitStack() as cleanup:
        threading.Thread(target=wishes.follow, args=(lines,), name="orders", daemon=True).start()
        try:
            watcher.send("ready", owner=owner())
            # The command has logged the warnings about configuration, data and weights.
            logging.disable(logging.WARNING)
            open_study = prepare(orders.config, watcher, joins=True)
            cleanup.callback(open_study.tracker.close)
            logging.disable(logging.NOTSET)
            watcher.device = open_study.materials.device
            open_study = replace(open_study, deadline=deadline)
            run_trials(open_study, Ledger(open_study.study), may_continue, lambda text: logger.info("%s", text))
            open_study.tracker.flush()
            watcher.send("done")
        except UnfreezeError as error:
            watcher.send("refused", is_input=not isinstance(error, TrialError), message=str(error))


def _set_up_logging(level: int) -> None:
    # A process forked from the command has the command's handlers.
    set_up_logging(force=True)
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
        run_on_cores(orders.cores)
    deadline = began + (float("inf") if orders.seconds is None else orders.seconds)
    try:
        _work(orders, deadline, lines, output)
    except (KeyboardInterrupt, SystemExit):
        # The running trial is queued again by now.
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main())
