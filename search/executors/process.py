"""Processes that train trials, of this host or of a Ray cluster, and what is said to them and by them."""

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Protocol, cast

from search.processes import start_process


class WorkerProcess(Protocol):
    """A ``python -m search.worker``, wherever it runs."""

    def is_placed(self) -> bool:
        """Whether it runs somewhere; waits until that is known."""

    def tell(self, line: str) -> None:
        """Send a line; to one that has ended nothing is sent."""

    def lines(self) -> Iterator[str]:
        """What it says, line by line, until it has ended."""

    def stop(self) -> None:
        """Ask it to queue its trials again and to end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code, negative for a signal.

        Raises:
            TimeoutError: It has not ended by then.
        """


class LocalProcess:
    """A worker on this host.

    Args:
        environment: Variables besides those that this process has.
        folder: Where it runs; None for where this process does.
    """

    def __init__(self, environment: Mapping[str, str], folder: str | None = None) -> None:
        self._process = start_process("search.worker", environment, folder)

    def is_placed(self) -> bool:
        """It runs already."""
        return True

    def tell(self, line: str) -> None:
        """Send a line; to one that has ended nothing is sent."""
        # Its end is dealt with where its output ends.
        with suppress(BrokenPipeError):
            print(line, file=cast(IO[str], self._process.stdin), flush=True)

    def lines(self) -> Iterator[str]:
        """What it says, line by line, until it has ended."""
        return iter(cast(IO[str], self._process.stdout))

    def stop(self) -> None:
        """Ask it to queue its trials again and to end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code, negative for a signal."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
