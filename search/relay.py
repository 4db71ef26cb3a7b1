"""What a worker says of its trials, as JSON lines."""

import json
from contextlib import suppress
from typing import Any, TextIO

from optuna.trial import FrozenTrial

from strategies import Strategy
from trainers import Device, EpochResult


class Relay:
    """A watcher that writes a line for each trial that begins or ends, and each epoch.

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

    def trial_started(self, number: int, strategy: Strategy, label: str) -> None:
        """A trial was sampled and begins to train."""
        self.send("started", number=number, strategy=strategy.to_dict(), label=label)

    def epoch_ended(self, result: EpochResult, score: float) -> None:
        """An epoch of the running trial ended."""
        self.send("epoch", step=result.step, parts=result.parts, seconds=result.seconds, score=score)

    def trial_ended(self, trial: FrozenTrial, best: float | None) -> None:
        """The trial was told."""
        peak = self.device.peak_bytes if self.device is not None else 0
        self.send("ended", number=trial.number, best=best, peak_bytes=peak)
