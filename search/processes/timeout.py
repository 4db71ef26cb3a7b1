"""Time limits of a trial, which also end a trial that waits for ever: its own, and the end of the search."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from strategies import TrialError

# The first exception may be swallowed, such as in a finalizer.
_AGAIN_SECONDS = 5.0


class TrialTimeoutError(TrialError):
    """A trial took longer than its limit."""


class TimeIsOverError(TrialError):
    """The time of the search is over while a trial is trained."""


@contextmanager
def time_limit(minutes: float | None, deadline: float = math.inf) -> Iterator[None]:
    """Raise in the ``with`` block, wherever it is, once it has taken longer than the limit, or at the deadline.

    The timer's signal interrupts whatever Python waits for: a lock, a pipe, a sleep. It does not interrupt a library's
    own code that never returns to Python; then the process that started this one has to kill it.

    Args:
        minutes: Wall-clock time; None for no limit.
        deadline: When the search has to end, on ``time.monotonic``; infinity for never. What begins after it has a
            reason to, and is not ended by it.

    Raises:
        TrialTimeoutError: The minutes are over.
        TimeIsOverError: The deadline has come.
    """
    limit = math.inf if minutes is None else minutes * 60
    left = deadline - time.monotonic()
    if left <= 0:
        left = math.inf
    if min(limit, left) == math.inf or threading.current_thread() is not threading.main_thread():
        yield
        return

    is_over = False

    def reason() -> TrialError:
        if minutes is not None and limit <= left:
            return TrialTimeoutError(over_the_limit(minutes))
        return TimeIsOverError("the time of the search is over")

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True
        raise reason()

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(limit, left), _AGAIN_SECONDS)
    try:
        yield
    except Exception as error:
        # A library that was interrupted, such as a store in a commit, may tell that by an error of its own.
        if is_over and not isinstance(error, TrialTimeoutError | TimeIsOverError):
            raise reason() from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def over_the_limit(minutes: float) -> str:
    """The reason of a trial that took longer than its limit."""
    return f"it took longer than budget.trial_minutes: {minutes:g}"
