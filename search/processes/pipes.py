"""Standard streams and CPU cores of a process that another process started."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO


def run_on_cores(cores: Sequence[int]) -> None:
    """Restrict this process, with its present and future threads, to these cores."""
    # Linux restricts threads, not processes; a new thread inherits the cores of the thread that starts it.
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def lines_of(file: int) -> Iterator[str]:
    """Lines of an open file as they come.

    Python's buffered readers are avoided: a thread that waits in one keeps the interpreter from ending.

    Args:
        file: Descriptor of the file.
    """
    rest = b""
    while block := os.read(file, 65536):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode()


def end_with_input() -> None:
    """From now on, kill this process and its group once its standard input ends: with the process that started it.

    The process has to lead a group of its own.
    """
    threading.Thread(target=_end_group_after_input, name="input", daemon=True).start()


def _end_group_after_input() -> None:
    while os.read(0, 65536):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def take_stdout() -> TextIO:
    """Return the standard output; whatever is printed from now on goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output
