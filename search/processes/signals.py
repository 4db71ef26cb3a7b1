"""Ctrl-C and SIGTERM end a search where they arrive, or at the next check if the exception was swallowed there."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Global, since signals are sent to the process.
_came: list[int] = []


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While the ``with`` block runs, raise KeyboardInterrupt at Ctrl-C and SystemExit (143) at SIGTERM."""
    _came.clear()
    # Ignored signals stay ignored: a shell ignores them for commands in its background.
    taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked() -> None:
    """Raise a signal's exception again; Python drops exceptions that are raised in finalizers and weakref callbacks.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM came.
    """
    if _came:
        _raise(_came[-1])


def _stop(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
