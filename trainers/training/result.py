"""The result of an epoch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The result of one epoch, or of one of the parts into which an epoch is divided.

    Args:
        step: Parts of epochs done so far, from 1; a whole epoch is one part unless it is divided.
        metrics: ``train_loss`` (of the epoch so far), ``lr`` (before any factor, at the part's end), and the
            task's metrics with ``val_`` before their names.
        seconds: Wall-clock seconds of training and validating since the result before.
        parts: Number of parts that an epoch is divided into.
    """

    step: int
    metrics: dict[str, float]
    seconds: float
    parts: int = 1

    @property
    def epoch(self) -> float:
        """Epochs done so far; a fraction within an epoch."""
        return self.step / self.parts

    @property
    def ends_epoch(self) -> bool:
        """Whether a whole number of epochs is done."""
        return self.step % self.parts == 0
