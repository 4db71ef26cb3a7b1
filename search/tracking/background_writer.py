"""Writes to a store from a background thread, in order, while the training continues; on disk while it is away."""

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from search.storage import is_outage, reason_of
from search.tracking.spool import Spool
from search.tracking.writes import Write
from strategies import TrialError

# How long a flush waits for a slow store before it spools the writes to disk instead.
_RETRY_SECONDS = 10.0
# Pauses between two tries to reach a store that is away; each is twice as long as the one before.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
# The thread ends after so long without a write; the next write starts another.
_LINGER_SECONDS = 5.0


class WriteError(TrialError):
    """A store refused a write, or could not be reached by a caller that cannot continue without it."""


class AwayError(WriteError):
    """A store cannot be reached; the writes that wait for it are on disk."""


class NoRoomError(WriteError):
    """There is no room on the disk for a trial's checkpoint, or for the writes that wait."""


class WriteSink(Protocol):
    """Carries out writes on a store."""

    def __call__(self, write: Write, folder: Path | None, again: bool) -> None:
        """Carry out a write; ``folder`` is the spool's, ``again`` says that the write may have been done before."""


class BackgroundWriter:
    """Hands writes to a sink in the order in which they are put, in one thread.

    When the store cannot be reached, pending and later writes go to a spool on disk. The thread retries, and delivers
    the writes in order once the store is back. A message says when an outage begins and when it is over.

    After the store has refused a write, those behind it are dropped until :meth:`put` or :meth:`flush` has raised the
    failure to the caller, since later writes may depend on the refused one. A refused write that had waited on disk is
    set aside there instead, since its caller has gone on.

    Args:
        store: Name of the store, for messages.
        sink: Carries out the writes.
        say: Gets a line.
    """

    def __init__(self, store: str, sink: WriteSink, say: Callable[[str], None]) -> None:
        self._store, self._sink, self._say = store, sink, say
        #: Where writes wait; without a spool an outage is treated as a refusal.
        self.spool: Spool | None = None
        #: Whether the store was ever away.
        self.was_away = False
        self._changed = threading.Condition()
        self._pending: deque[Write] = deque()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        # Whether all pending writes are on disk too, and each new one goes there.
        self._is_spooling = False
        self._is_away = False
        self._failures = self._delivered = 0
        self._failure: Exception = WriteError(f"{store} was not reached")
        self._is_hurried = self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether a write would not have to wait."""
        return self._is_spooling or not self._pending

    def put(self, write: Write) -> None:
        """Queue a write behind all earlier ones.

        Raises:
            WriteError: An earlier write was refused and this one is dropped, or it cannot be spooled to disk.
        """
        with self._changed:
            self._raise()
            if self._is_spooling:
                self._keep([write])
            self._pending.append(write)
            if self._thread is None:
                # A daemon: at its end Python would wait for any other thread, and so for a store that is away.
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, or spooled to disk.

        Raises:
            WriteError: A write was refused, or cannot be spooled to disk.
        """
        with self._changed:
            self._changed.wait_for(self._is_safe, _RETRY_SECONDS)
            while not self._is_safe():
                if self.spool is None:
                    self._changed.wait()
                else:
                    self._begin_spooling()
            self._raise()
            if self._is_spooling and self.spool is not None:
                if self.spool.is_gone and self._pending:
                    self._keep([])
                self.spool.sync()

    def deliver(self) -> None:
        """Wait until everything is written.

        Raises:
            AwayError: The store cannot be reached.
            WriteError: A write was refused.
        """
        with self._changed:
            failures, self._is_hurried = self._failures, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or not self._pending or self._failures > failures)
            self._is_hurried = False
            self._raise()
            if self._pending:
                raise self.away(self._failure)

    def away(self, error: BaseException, more: int = 0) -> AwayError:
        """The error for a caller that cannot continue without the store; ``more`` writes wait beside this process's."""
        self.was_away = True
        waiting = len(self._pending) + more
        where = f"; {waiting} writes wait in {self.spool.folder.parent}" if self.spool is not None and waiting else ""
        return AwayError(
            f"{self._store} is away ({reason_of(error)}){where}; once it is back, the same command "
            f"{'delivers them and ' if where else ''}finishes the study"
        )

    def close(self) -> int:
        """Write what can be written, leave the rest on disk, and end.

        Returns:
            How many writes are left on disk.
        """
        if self._is_closed:
            return 0
        with suppress(WriteError):
            self.flush()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            if self.spool is not None:
                self.spool.close()
            return len(self._pending)

    def _tell(self, text: str) -> None:
        # Where the output is closed, the training thread will raise that; this thread goes on.
        with suppress(Exception):
            self._say(text)

    def _is_safe(self) -> bool:
        return self._error is not None or not self._pending or self._is_spooling

    def _raise(self) -> None:
        error, self._error = self._error, None
        if isinstance(error, WriteError):
            raise error
        if error is not None:
            raise WriteError(f"{self._store} cannot be written to: {reason_of(error)}") from error

    def _keep(self, writes: list[Write]) -> None:
        """Spool writes to disk, behind all earlier ones if someone has removed the spool's file."""
        assert self.spool is not None, "nothing is spooled without a spool"
        if self._is_spooling and self.spool.is_gone:
            writes = [*self._pending, *writes]
        try:
            self.spool.add(writes)
        except (OSError, ValueError) as error:
            # A full disk is no fault of the trial, which must not be told as failed.
            kind = NoRoomError if isinstance(error, OSError) else WriteError
            place = self.spool.folder.parent
            raise kind(f"{self._store} is away, and its writes cannot wait in {place}: {error}") from error

    def _begin_spooling(self) -> None:
        """Spool all pending writes to disk."""
        try:
            self._keep(list(self._pending))
        except WriteError as error:
            self._pending.clear()
            self._error = error
            return
        self._is_spooling = True

    def _run(self) -> None:
        pause, tried = _FIRST_PAUSE_SECONDS, None
        while (head := self._next()) is not None:
            try:
                folder = self.spool.folder if self.spool is not None else None
                self._sink(head, folder, again=head is tried)
            except Exception as error:
                if self.spool is None or not is_outage(error):
                    self._refused(head, error)
                else:
                    tried = head
                    self._failed(error, pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS
                self._done(head)

    def _next(self) -> Write | None:
        """The next write; None where the thread ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_closed, _LINGER_SECONDS)
            if self._pending and not self._is_closed:
                return self._pending[0]
            self._thread = None
            atexit.unregister(self.close)
            return None

    def _done(self, head: Write) -> None:
        back = ""
        with self._changed:
            if self._take(head):
                self._delivered += self._is_spooling
                if self._is_spooling and not self._pending:
                    assert self.spool is not None, "nothing is spooled without a spool"
                    with suppress(OSError):
                        self.spool.clear()
                    self._is_spooling = False
                    if self._is_away:
                        back = f"{self._store} is back; {self._delivered} writes that waited were delivered"
                    self._is_away, self._delivered = False, 0
                self._changed.notify_all()
        if back:
            self._tell(back)

    def _take(self, head: Write) -> bool:
        """Remove a write that was done or set aside from the pending ones; False if it was dropped or left on disk."""
        if self._is_closed or not self._pending or self._pending[0] is not head:
            return False
        if self._is_spooling and self.spool is not None:
            # Without the note the write is repeated if this process is killed, which changes nothing.
            with suppress(OSError):
                self.spool.delivered()
        self._pending.popleft()
        return True

    def _refused(self, head: Write, error: Exception) -> None:
        with self._changed:
            if not self._is_spooling:
                self._error = error
                self._pending.clear()
                self._changed.notify_all()
                return
            if self.spool is not None and not self._is_closed:
                with suppress(OSError):
                    self.spool.set_aside(head, reason_of(error))
        self._done(head)

    def _failed(self, error: Exception, pause: float) -> None:
        """Spool everything to disk, say so once, and pause before the next try."""
        with self._changed:
            if self._is_closed:
                return
            self._failures += 1
            self._failure = error
            if not self._is_spooling:
                self._begin_spooling()
            begins = self._is_spooling and not self._is_away
            self._is_away = self._is_away or begins
            self.was_away = True
            self._changed.notify_all()
        if begins and self.spool is not None:
            self._tell(
                f"{self._store} is away since {time.strftime('%H:%M')} ({reason_of(error)}); trials go on, and what is "
                f"written waits in {self.spool.folder.parent}"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._is_hurried or self._is_closed, pause)
            # Each call of deliver() gets one try at once.
            self._is_hurried = False
