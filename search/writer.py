"""Writes to a store that another thread does, one after another, while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from strategies import TrialError

T = TypeVar("T")


class WriteError(TrialError):
    """A store refused a write or could not be reached."""


class Writer:
    """Does what it is given in the order in which it is given, in one thread.

    After a write has failed, those behind it are dropped until the failure was raised to the one who writes, by
    :meth:`put` or :meth:`flush`: what follows may rest on what failed. Python waits for all writes before it exits.

    Args:
        store: What is written to, for the message of a failure.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._last: Future[object] | None = None
        self._error: Exception | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything given so far is done."""
        return self._last is None or self._last.done()

    def put(self, write: Callable[[], T]) -> "Future[T]":
        """Have ``write`` called after all that was put before.

        Raises:
            WriteError: An earlier write failed; ``write`` is not called then.
        """
        self._raise()
        future = self._pool.submit(self._do, write)
        self._last = future  # type: ignore[assignment]
        return future

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            WriteError: A write failed.
        """
        self._wait()
        self._raise()

    def _do(self, write: Callable[[], T]) -> T:
        if self._error is not None:
            raise self._error
        try:
            return write()
        except Exception as error:
            self._error = error
            raise

    def _wait(self) -> None:
        # One thread works in order, so that when this is done all before it is.
        self._pool.submit(lambda: None).result()

    def _raise(self) -> None:
        if self._error is None:
            return
        # What waits behind the failure is dropped before anything new is taken.
        self._wait()
        error, self._error = self._error, None
        raise WriteError(f"{self._store} cannot be written to: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of what began it: stores wrap the driver's or the network's word in several of their own."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error).splitlines() or [type(error).__name__])[0]
