"""A worker's messages about its trials, as JSON lines."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, TextIO

from search.tracking import Event, TrialEnded, as_json
from trainers import Device


class JsonWatcher:
    """A watcher that writes a JSON line for each trial that begins or ends, and for each epoch.

    Args:
        output: The stream that gets the lines.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        #: The device whose memory is measured; None until the study is open.
        self.device: Device | None = None

    def send(self, event: str, **facts: Any) -> None:
        """Write one line."""
        # A broken pipe means that the command has ended. The end of the input tells the worker so; no trial fails here.
        with suppress(BrokenPipeError):
            # In one write, since another thread writes messages about MLflow.
            self._output.write(json.dumps({"event": event, **facts}) + "\n")
            self._output.flush()

    def say(self, text: str) -> None:
        """Send a message. Before there is a device nothing is sent: the command prints the same messages itself."""
        if self.device is not None:
            self.send("said", text=text)

    def reading(self, what: str, done: int, total: int) -> None:
        """The command has read everything by then."""

    def downloading(self, what: str, done: int, total: int) -> None:
        """The command has downloaded everything by then."""

    def hear(self, event: Event) -> None:
        """Send an event of a trial."""
        if isinstance(event, TrialEnded) and self.device is not None:
            event = replace(event, peak_bytes=self.device.peak_bytes)
        facts = as_json(event)
        if facts is not None:
            self.send(**facts)
