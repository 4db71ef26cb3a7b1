"""Locks that a server keeps for processes of many hosts."""

from abc import ABC, abstractmethod
from types import TracebackType

from filelock import Timeout


class SharedLock(ABC):
    """A lock that a server keeps; its holder may take it again.

    It belongs to a connection: the server releases it when that ends, with its process, its host or the server itself.
    So it can be lost while it is held; :meth:`renew` tells.
    """

    def __init__(self) -> None:
        self._depth = 0

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for the lock.

        Args:
            timeout: Seconds; None to wait for ever.

        Raises:
            Timeout: Somebody else holds it.
        """
        if self._depth == 0 and not self._take(timeout):
            raise Timeout(type(self).__name__)
        self._depth += 1

    def release(self) -> None:
        """Let the next have it, once this was called as often as :meth:`acquire`."""
        self._depth -= 1
        if self._depth == 0:
            self._give_back()

    def renew(self) -> bool:
        """Take a lock that is held again where it was lost; whether it was held all along."""
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
        """Open the connection; else that is done when it is first needed, and retried."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    @abstractmethod
    def _take(self, timeout: float | None) -> bool:
        """Wait for the lock, and return whether it was to be had in time."""

    @abstractmethod
    def _give_back(self) -> None:
        """Release it, also where that has happened already."""

    @abstractmethod
    def _is_held(self) -> bool:
        """Whether it was not lost since it was taken."""
