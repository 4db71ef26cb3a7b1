"""Batches of logged values, so that many small writes share a call."""

import time

from search.tracking.background_writer import BackgroundWriter
from search.tracking.writes import Log

# Shorter epochs share a call: each call costs some 5 ms of Python, which would slow down training on the CPU.
BATCH_SECONDS = 0.2


class Batches:
    """Gathers logged values of each run, and hands them to the background writer now and then.

    Args:
        writer: The background writer.
    """

    def __init__(self, writer: BackgroundWriter) -> None:
        self._writer = writer
        # By run, since several trials may be trained at once.
        self._logs: dict[str, Log] = {}
        self._last_sent = 0.0

    def of(self, run: str) -> Log:
        """The batch of a run, to which values can be added."""
        return self._logs.setdefault(run, Log(run=run, metrics=[], params=[], tags=[], datasets=[], files={}))

    def send_if_due(self) -> None:
        """Send the batches if nothing else is being written and the last time is long enough ago."""
        if self._writer.is_idle and time.monotonic() - self._last_sent >= BATCH_SECONDS:
            self.send()

    def send(self) -> None:
        """Hand all batches to the background writer."""
        logs, self._logs = self._logs, {}
        if logs:
            self._last_sent = time.monotonic()
        for log in logs.values():
            self._writer.put(log)

    def hurry(self) -> None:
        """Let the next :meth:`send_if_due` send at once."""
        self._last_sent = 0.0
