"""A process that trains trials together with others, its rank group: ``python -m search.rank``.

:mod:`search.processes.rank_group` starts it.

Its environment has ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``, as torchrun sets them. Its standard input is a JSON
line, :class:`RankOrders`, and then a line for each order: ``train`` makes a trainer, ``state`` loads a snapshot,
``epoch`` trains until its next result, ``end`` drops it. The input ends when the process that started this one has
ended; then this process ends at once, with all processes that it has started. Its standard output is a JSON line once
it is ready, and a line with the reason if it fails, after which it ends: no rank trains without the others.

An error that is raised on all ranks, such as for a loss that is not finite, is reported by rank 0; this process then
waits for the next trial.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.config import StudyConfig
from search.processes import RankOrders, importing, lines_of, take_stdout

if TYPE_CHECKING:
    from search.trials import Materials
    from trainers import Ranks, Trainer


def _follow(lines: Iterator[str], orders: "queue.SimpleQueue[str]") -> None:
    """Queue orders until the input ends; then end the process, whatever it waits for."""
    for line in lines:
        orders.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _train(first: RankOrders, orders: "queue.SimpleQueue[str]", say: Any) -> None:
    # Only here: importing torch takes seconds, in which the process that started this one may end.
    with importing():
        from search.executors import JsonWatcher
        from search.study import gather, open_models
        from trainers import free_memory, join

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    watcher = JsonWatcher(sys.stderr)
    found = gather(open_models(first.config, watcher), watcher)
    say(event="ready")
    ranks = join(first.meeting, rank, count, found.device.torch, timedelta(seconds=first.seconds))
    beside = _Beside(first.config, found, ranks)
    while True:
        order = json.loads(orders.get())
        beside.do(order.pop("order"), order)
        if beside.trainer is None:
            free_memory()


@dataclass(slots=True)
class _Beside:
    """Trains one trial after another, together with rank 0."""

    config: StudyConfig
    found: "Materials"
    ranks: "Ranks"
    trainer: "Trainer | None" = None

    def do(self, order: str, facts: dict[str, Any]) -> None:
        """Carry out an order, as rank 0 does too."""
        from search.trials import make_trainer
        from strategies import ConfigError, Strategy, TrialError
        from trainers import load_state

        try:
            match order:
                case "train":
                    facts["strategy"] = Strategy.from_dict(facts["strategy"])
                    source = self.found.sources[facts.pop("model")]
                    self.trainer = make_trainer(self.found, self.config.pruner, source, **facts, ranks=self.ranks)
                case "state" if self.trainer is not None:
                    self.trainer.load_state_dict(load_state(Path(facts["path"])))
                case "epoch" if self.trainer is not None:
                    next(self.trainer)
                case "end":
                    self.trainer = None
        except (ConfigError, TrialError):
            # Raised on all ranks alike.
            self.trainer = None


def main() -> None:
    """Train until the input ends."""
    # A terminal's Ctrl-C or a scheduler's SIGTERM may reach every process; the one that started this one ends it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    output = take_stdout()
    lines = lines_of(sys.stdin.fileno())
    first = RankOrders.model_validate_json(next(lines))
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_follow, args=(lines, orders), name="orders", daemon=True).start()
    # Rank 0 logs the same warnings.
    logging.disable(logging.WARNING)

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=output, flush=True)

    try:
        _train(first, orders, say)
    except BaseException as error:  # rank 0 reports any error as the trial's reason
        from trainers import is_out_of_memory

        reason = (str(error).splitlines() or [""])[0]
        say(event="failed", kind=type(error).__name__, reason=reason, short=is_out_of_memory(error))
    finally:
        # Killed, since libraries would wait for other ranks or for data loaders at exit.
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
