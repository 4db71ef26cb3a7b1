"""Standard streams and CPU cores of a process that another process started."""

import os
import sys
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


def take_stdout() -> TextIO:
    """Return the standard output; whatever is printed from now on goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output
