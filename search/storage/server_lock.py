"""Locks that a server keeps for the processes of many hosts."""

from abc import ABC, abstractmethod
from types import TracebackType

from filelock import Timeout


class SharedLock(ABC):
    """A reentrant lock that a server keeps.

    The lock belongs to a connection: the server releases it when the connection ends, with the process, its host or the
    server itself. So a lock can be lost while it is held; :meth:`renew` tells.
    """

    def __init__(self) -> None:
        self._depth = 0

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for the lock.

        Args:
            timeout: Seconds; None to wait for ever.

        Raises:
            Timeout: Another process held the lock until then.
        """
        if self._depth == 0 and not self._take(timeout):
            raise Timeout(type(self).__name__)
        self._depth += 1

    def release(self) -> None:
        """Release the lock, once this was called as often as :meth:`acquire`."""
        self._depth -= 1
        if self._depth == 0:
            self._give_back()

    def renew(self) -> bool:
        """Take a held lock again if it was lost; return whether it was held all along."""
        if self._is_held():
            return True
        self._take(None)
        return False

    def __enter__(self) -> "SharedLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @abstractmethod
    def connect(self) -> None:
        """Open the connection; without this call it is opened when it is first needed, with retries."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    @abstractmethod
    def _take(self, timeout: float | None) -> bool:
        """Wait for the lock, and return whether it was free in time."""

    @abstractmethod
    def _give_back(self) -> None:
        """Release the lock, also where the server has released it already."""

    @abstractmethod
    def _is_held(self) -> bool:
        """Whether the lock was never lost since it was taken."""
