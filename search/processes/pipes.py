"""Standard input and output of a process that another one started."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO


def run_on_cores(cores: Sequence[int]) -> None:
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
