"""A limit on the time of a trial that also ends one which waits for something for ever."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from strategies import TrialError

# Something may swallow the first, such as a finalizer that Python happened to be in.
_AGAIN_SECONDS = 5.0


class TrialTimeoutError(TrialError):
    """A trial took longer than it may."""


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Raise in the ``with`` block when it takes longer, wherever it is then; without minutes nothing is done.

    By a timer's signal, which reaches whatever Python waits for: a lock, a pipe, a sleep. A library's own code that
    never returns to Python is out of its reach; whoever started this process has to end it then.

    Args:
        minutes: Of wall-clock time.

    Raises:
        TrialTimeoutError: The time is over.
    """
    if minutes is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TrialTimeoutError(over_the_limit(minutes))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def over_the_limit(minutes: float) -> str:
    """The reason of a trial that took longer."""
    return f"it took longer than budget.trial_minutes: {minutes:g}"
