"""How long a search will take until its end, by the pace of its trials so far."""

import math

from strategies import counted

# Seconds between two lines in a log.
_LINE_SECONDS = 600.0


class TimeLeft:
    """The time until the budget ends; times are of the monotonic clock, in seconds.

    Args:
        began: When the first of the trials began.
        trials: Trials to come; infinity for no limit.
        deadline: When the hours end; infinity for no limit.
    """

    def __init__(self, began: float, trials: float, deadline: float) -> None:
        self._began, self._trials, self._deadline = began, trials, deadline
        self._done = 0
        self._last = self._said = began

    def trial_ended(self, now: float, counts: int = 1) -> str:
        """Count a trial that has ended.

        Args:
            now: When it ended.
            counts: 0 for a trial that counts with an earlier one.

        Returns:
            A line for a log, every ten minutes; else nothing.
        """
        self._done += counts
        self._last = now
        left = self.in_words(now)
        if not left or now - self._said < _LINE_SECONDS:
            return ""
        self._said = now
        return f"{counted(self._done, 'trial')} in {duration(now - self._began)}, {left}"

    def in_words(self, now: float) -> str:
        """``about 12 min left``; empty as long as nothing is known."""
        seconds = self.seconds(now)
        return f"about {duration(seconds)} left" if seconds < math.inf else ""

    def seconds(self, now: float) -> float:
        """Seconds until the end; infinity as long as nothing is known."""
        end = self._deadline
        if self._done and self._trials < math.inf:
            end = min(end, self._began + (self._last - self._began) * self._trials / self._done)
        return max(0.0, end - now)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
