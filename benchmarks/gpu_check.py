"""Whether Unfreeze computes rightly, and near its limit, on a device: ``python -m benchmarks.gpu_check``.

It needs the packages of ``trainers`` and ``strategies`` alone: torch, timm, torchvision and their like, and neither
Optuna nor MLflow. Each step has an expected value with a tolerance. A step that fails does not keep the next from
running; ``--json`` has all results so far after each step, and the table comes last. The exit code is 0 where every
expectation held, else 1.

On one H200 it is meant to end within eight minutes; after ``--minutes`` the steps that are left are left out. With
``--small`` it takes the smallest models and a few images, to see that it runs: on a CPU half a minute.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_check_speed, gpu_check_steps
from benchmarks.gpu_check_setup import Row, Setup
from benchmarks.machine import machine, write_json

Step = Callable[[Setup], Iterator[Row]]

#: By name, in their order: the first must begin before CUDA does.
STEPS: dict[str, Step] = {**gpu_check_steps.STEPS, **gpu_check_speed.STEPS}


class Report:
    """The rows so far, written to a file after each step.

    Args:
        path: Where to write; None to write nothing.
        about: What was checked, and on which machine.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self._path, self._about = path, about
        self.rows: list[tuple[str, Row]] = []
        self.seconds: dict[str, float] = {}

    def run(self, name: str, step: Step, setup: Setup) -> None:
        """Run a step; an error is one more row."""
        began = time.perf_counter()
        try:
            for row in step(setup):
                self.rows.append((name, row))
                print(f"{name}: {_line(row)}", flush=True)
        except Exception as error:  # the next steps run whatever happens in this one
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            self.rows.append((name, Row("runs", f"{type(error).__name__}: {lines[0]}", "no error", False)))
        self.seconds[name] = time.perf_counter() - began
        self.write()

    def write(self) -> None:
        """Write all that is known."""
        rows = [{"step": name, **asdict(row)} for name, row in self.rows]
        write_json({**self._about, "seconds": self.seconds, "rows": rows}, self._path)

    def show(self) -> None:
        """Print the table, and what failed once more below it."""
        print("\n| step | what | found | expected | |\n| --- | --- | --- | --- | --- |")
        for name, row in self.rows:
            print(f"| {name} | {row.what} | {row.found} | {row.expected} | {_MARKS[row.ok]} |")
        took = sum(self.seconds.values())
        failed = self.failed
        print(f"\n{len(self.rows)} rows in {took:.0f} s, {len(failed)} not as expected")
        for name, row in failed:
            print(f"  {name}: {_line(row)}")

    @property
    def failed(self) -> list[tuple[str, Row]]:
        """The rows that are not as expected."""
        return [(name, row) for name, row in self.rows if row.ok is False]


_MARKS = {True: "ok", False: "**no**", None: ""}


def _line(row: Row) -> str:
    expected = f" (expected: {row.expected})" if row.expected else ""
    return f"{row.what}: {row.found}{expected} {_MARKS[row.ok]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="tiny models and a few images, to see that it runs")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further step begins")
    parser.add_argument("--json", type=Path, help="where to write the results after each step")
    options = parser.parse_args(arguments)
    report = Report(options.json, {"machine": machine(), "device": options.device, "small": options.small})
    # A step that hangs in the driver cannot be interrupted: the process ends, with what is known.
    giving_up = threading.Timer(60 * (options.minutes + 2), _give_up, [report])
    giving_up.daemon = True
    giving_up.start()
    until = time.monotonic() + 60 * options.minutes
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        with tempfile.TemporaryDirectory(prefix="unfreeze-gpu-") as folder:
            setup = Setup(options.device, options.small, Path(folder))
            for name in options.steps:
                if time.monotonic() < until:
                    report.run(name, STEPS[name], setup)
                else:
                    report.rows.append((name, Row("time", f"over after {options.minutes:g} min", "", None)))
    finally:
        giving_up.cancel()
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags
        torch.use_deterministic_algorithms(False)
    report.write()
    report.show()
    return 1 if report.failed else 0


def _give_up(report: Report) -> None:
    report.write()
    report.show()
    print("gave up: a step hangs", flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
