"""Worker processes, on this host or on a Ray cluster, and the lines sent to them and read from them."""

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Protocol, cast

from search.processes import start_process


class WorkerProcess(Protocol):
    """A ``python -m search.worker`` on any machine."""

    def is_placed(self) -> bool:
        """Wait until it runs somewhere or cannot; return whether it runs."""

    def tell(self, line: str) -> None:
        """Send a line; nothing is sent if it has ended."""

    def lines(self) -> Iterator[str]:
        """Its output, line by line, until it has ended."""

    def stop(self) -> None:
        """Ask it to queue its trials again and to end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, seconds: float | None = None) -> int:
        """Its exit code, negative for a signal.

        Raises:
            TimeoutError: It has not ended in ``seconds``.
        """


class LocalProcess:
    """A worker on this host.

    Args:
        environment: Variables besides those of this process.
        folder: Its working folder; None for that of this process.
    """

    def __init__(self, environment: Mapping[str, str], folder: str | None = None) -> None:
        self._process = start_process("search.worker", environment, folder)

    def is_placed(self) -> bool:
        """It runs already."""
        return True

    def tell(self, line: str) -> None:
        """Send a line; nothing is sent if it has ended."""
        # The end of its output tells that it has ended.
        with suppress(BrokenPipeError):
            print(line, file=cast(IO[str], self._process.stdin), flush=True)

    def lines(self) -> Iterator[str]:
        """Its output, line by line, until it has ended."""
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
