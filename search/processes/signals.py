"""Ctrl-C and SIGTERM end a search where they arrive, or at the next chance where something swallowed that."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Signals are the process's, so what came of them is too.
_came: list[int] = []


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While the ``with`` block runs, raise KeyboardInterrupt at Ctrl-C and SystemExit (143) at SIGTERM."""
    _came.clear()
    # One that is ignored stays so: a shell does that for commands in its background.
    taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked() -> None:
    """Raise again what a signal has raised; Python drops exceptions from within weak references and finalizers.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: The process was told to end.
    """
    if _came:
        _raise(_came[-1])


def _stop(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
