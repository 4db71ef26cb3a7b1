"""How many trials one device trains at once, from measurements with fewer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from search.config import MOST_WORKERS

# The share of free memory, before the first worker begins, that all workers may take together.
_SHARE = 0.8
# One more worker has to raise the images a second of all workers by this factor.
_GAIN = 1.1
# A number of workers is judged by so many trials for each worker, and at least so many. Trials train different
# strategies, so fewer trials would measure the strategies rather than the number of workers.
_TRIALS_EACH, _TRIALS_LEAST = 2, 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What all workers share: free bytes of the device's memory; and the most workers for other reasons."""

    bytes: int
    most: int

    def workers(self, peak_bytes: int) -> int:
        """How many workers with this peak fit; at least one, which trains whether it fits or not."""
        return max(1, min(self.most, MOST_WORKERS, int(self.bytes * _SHARE) // max(1, peak_bytes)))


@dataclass(slots=True)
class Level:
    """The throughput of a number of workers, each with a trial of its own.

    Args:
        workers: Number of workers.
        trials: Trials that ended.
        images: Images that these trained on, over all epochs.
        seconds: Sum of these trials' seconds.
    """

    workers: int
    trials: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Images a second of all workers together."""
        return self.workers * self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def is_measured(self) -> bool:
        """Whether enough trials have ended."""
        return self.trials >= max(_TRIALS_LEAST, _TRIALS_EACH * self.workers)


@dataclass(frozen=True, slots=True)
class Decision:
    """The new number of workers, whether it is final, and why."""

    workers: int
    is_final: bool
    reason: str


def decide(levels: Sequence[Level], peak_bytes: int, limits: Limits) -> Decision:
    """One worker more while each raised the throughput by a tenth or more, and memory allows it.

    Args:
        levels: Measurements with 1, 2, ... workers; at least one.
        peak_bytes: The most memory that one worker has taken so far.
        limits: What the workers share.
    """
    last = levels[-1]
    room = limits.workers(peak_bytes)
    rates = ", ".join(f"{level.images_per_second:,.0f} with {level.workers}" for level in levels)
    measured = f"{rates} images a second; one takes {peak_bytes / 2**20:,.0f} MiB of {limits.bytes / 2**20:,.0f}"
    if last.workers > room:
        return Decision(room, True, measured)
    if len(levels) > 1 and last.images_per_second < _GAIN * levels[-2].images_per_second:
        return Decision(levels[-2].workers, True, measured)
    return Decision(min(last.workers + 1, room), last.workers >= room, measured)


@dataclass(slots=True)
class Packer:
    """Counts workers up from one while that pays, and down when memory runs out.

    Args:
        limits: What the workers share.
    """

    limits: Limits
    workers: int = 1
    is_final: bool = False
    peak_bytes: int = 0
    levels: list[Level] = field(default_factory=lambda: [Level(1)])

    def trial_ended(self, images: int, seconds: float, peak_bytes: int) -> Decision | None:
        """Count a trial that began when all workers had a trial.

        Args:
            images: Images that it trained on, over all epochs.
            seconds: Seconds that it took.
            peak_bytes: The most memory that its worker has taken so far.

        Returns:
            The decision; None while more trials are needed, or after a final decision.
        """
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        if self.is_final:
            return None
        level = self.levels[-1]
        level.trials, level.images, level.seconds = level.trials + 1, level.images + images, level.seconds + seconds
        if not level.is_measured:
            return None
        decision = decide(self.levels, self.peak_bytes, self.limits)
        self._follow(decision)
        if not decision.is_final:
            self.levels.append(Level(decision.workers))
        return decision

    def ran_out(self) -> Decision | None:
        """One worker less for good, since memory ran out; None where there is only one."""
        if self.workers == 1:
            return None
        decision = Decision(self.workers - 1, True, f"memory ran out with {self.workers}")
        self._follow(decision)
        return decision

    def _follow(self, decision: Decision) -> None:
        self.workers, self.is_final = decision.workers, decision.is_final
