"""What a worker says of its trials, as JSON lines."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, TextIO

from search.tracking import Event, TrialEnded, as_json
from trainers import Device


class JsonWatcher:
    """A watcher that writes a JSON line for each trial that begins or ends, and for each epoch.

    Args:
        output: Where lines go.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        #: Whose memory is measured, once it is known.
        self.device: Device | None = None

    def send(self, event: str, **facts: Any) -> None:
        """Write one line."""
        # Where nobody reads any more the command has ended; that is noticed elsewhere, and is no fault of the trial.
        with suppress(BrokenPipeError):
            # In one piece: what waits for MLflow is said from another thread.
            self._output.write(json.dumps({"event": event, **facts}) + "\n")
            self._output.flush()

    def say(self, text: str) -> None:
        """Something worth a line; what was said before there was a device, the command has said itself."""
        if self.device is not None:
            self.send("said", text=text)

    def reading(self, what: str, done: int, total: int) -> None:
        """The command has read everything by then."""

    def downloading(self, what: str, done: int, total: int) -> None:
        """The command has downloaded everything by then."""

    def hear(self, event: Event) -> None:
        """What happens to a trial."""
        if isinstance(event, TrialEnded) and self.device is not None:
            event = replace(event, peak_bytes=self.device.peak_bytes)
        facts = as_json(event)
        if facts is not None:
            self.send(**facts)
