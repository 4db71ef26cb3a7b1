"""What is logged of runs, gathered so that many small writes share a call."""

import time

from search.tracking.background_writer import BackgroundWriter
from search.tracking.writes import Log

# Epochs that are shorter share a call: each costs some 5 ms of Python, which a training on the CPU would feel.
BATCH_SECONDS = 0.2


class Batches:
    """Gathers what is logged of each run, and hands it to the writer now and then.

    Args:
        writer: Writes it.
    """

    def __init__(self, writer: BackgroundWriter) -> None:
        self._writer = writer
        # By run: several trials may be trained at once.
        self._logs: dict[str, Log] = {}
        self._last_sent = 0.0

    def of(self, run: str) -> Log:
        """What is being gathered of a run, to be added to."""
        return self._logs.setdefault(run, Log(run=run, metrics=[], params=[], tags=[], datasets=[], files={}))

    def send_if_due(self) -> None:
        """Have what was gathered written, if nothing else is being written and the last time is long enough ago."""
        if self._writer.is_idle and time.monotonic() - self._last_sent >= BATCH_SECONDS:
            self.send()

    def send(self) -> None:
        """Have all that was gathered written."""
        logs, self._logs = self._logs, {}
        if logs:
            self._last_sent = time.monotonic()
        for log in logs.values():
            self._writer.put(log)

    def hurry(self) -> None:
        """Send what comes next without waiting: what is logged of a new run."""
        self._last_sent = 0.0
