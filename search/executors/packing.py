"""How many trials one device takes at once, from what was measured with fewer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from search.config import MOST_WORKERS

# Of the memory that is free before the first worker begins, what workers may take together.
_SHARE = 0.8
# What one more worker has to bring, in images a second of all.
_GAIN = 1.1
# Trials that a number of workers is judged by, for each of them and at least. They train different strategies, so fewer
# would say more about these than about the number.
_TRIALS_EACH, _TRIALS_LEAST = 2, 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What workers have to share: free bytes of the device's memory, and how many there can be for other reasons."""

    bytes: int
    most: int

    def workers(self, peak_bytes: int) -> int:
        """How many of a peak fit; at least one, which trains whether it fits or not."""
        return max(1, min(self.most, MOST_WORKERS, int(self.bytes * _SHARE) // max(1, peak_bytes)))


@dataclass(slots=True)
class Level:
    """What a number of workers did, each with a trial of its own.

    Args:
        workers: How many.
        trials: That ended.
        images: That these trained on, over all epochs.
        seconds: That these took, from begin to end, together.
    """

    workers: int
    trials: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Of all workers together."""
        return self.workers * self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def is_measured(self) -> bool:
        """Whether enough trials ended."""
        return self.trials >= max(_TRIALS_LEAST, _TRIALS_EACH * self.workers)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there are to be, whether that stays, and why."""

    workers: int
    is_final: bool
    reason: str


def decide(levels: Sequence[Level], peak_bytes: int, limits: Limits) -> Decision:
    """One worker more as long as each brought a tenth or more, and memory allows it.

    Args:
        levels: What was measured with 1, 2, ... workers; at least one.
        peak_bytes: The most that one worker has taken so far.
        limits: What they share.
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
        limits: What they share.
    """

    limits: Limits
    workers: int = 1
    is_final: bool = False
    peak_bytes: int = 0
    levels: list[Level] = field(default_factory=lambda: [Level(1)])

    def trial_ended(self, images: int, seconds: float, peak_bytes: int) -> Decision | None:
        """Count a trial that began when all workers had a trial.

        Args:
            images: That it trained on, over all epochs.
            seconds: It took.
            peak_bytes: The most that its worker has taken so far.

        Returns:
            What follows, when something does.
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
        """One worker less for good, since memory ran out; None where there is one only."""
        if self.workers == 1:
            return None
        decision = Decision(self.workers - 1, True, f"memory ran out with {self.workers}")
        self._follow(decision)
        return decision

    def _follow(self, decision: Decision) -> None:
        self.workers, self.is_final = decision.workers, decision.is_final
