"""Time limit of a trial, which also ends a trial that waits for ever."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from strategies import TrialError

# The first exception may be swallowed, such as in a finalizer.
_AGAIN_SECONDS = 5.0


class TrialTimeoutError(TrialError):
    """A trial took longer than its limit."""


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Raise in the ``with`` block, wherever it is, once it has taken longer than the limit.

    The timer's signal interrupts whatever Python waits for: a lock, a pipe, a sleep. It does not interrupt a library's
    own code that never returns to Python; then the process that started this one has to kill it.

    Args:
        minutes: Wall-clock time; None for no limit.

    Raises:
        TrialTimeoutError: The time is over.
    """
    if minutes is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    is_over = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True
        raise TrialTimeoutError(over_the_limit(minutes))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60, _AGAIN_SECONDS)
    try:
        yield
    except Exception as error:
        # A library that was interrupted, such as a store in a commit, may tell that by an error of its own.
        if is_over and not isinstance(error, TrialTimeoutError):
            raise TrialTimeoutError(over_the_limit(minutes)) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def over_the_limit(minutes: float) -> str:
    """The reason of a trial that took longer than its limit."""
    return f"it took longer than budget.trial_minutes: {minutes:g}"
