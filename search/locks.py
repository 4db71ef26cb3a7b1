"""Locks between the processes that work on one study."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Literal

from filelock import FileLock, Timeout
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError

from search.config import StudyConfig
from search.postgres import is_postgres, patiently, with_driver
from search.tracking import without_password
from strategies import ConfigError

# Those who wait ask again so often; claiming a trial takes a few of it.
_POLL_SECONDS = 0.01

#: What one process at a time does: make a study ready, take a trial, crown the winner.
Turn = Literal["begin", "claim", "finish"]

logger = logging.getLogger(__name__)


class AdvisoryLock:
    """A lock in a PostgreSQL database, for the processes of all hosts that use it; its holder may take it again.

    It belongs to a connection of its own: the server releases it when that ends, with its process, its host or the
    server itself. So it can be lost while it is held; who must know asks :func:`held_all_along`.

    Args:
        url: The database.
        name: What is locked there.
    """

    def __init__(self, url: str, name: str) -> None:
        # Each statement for itself: a transaction that waits for its end would hold up the server's cleaning.
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0)
        self._key = int.from_bytes(sha256(f"unfreeze {name}".encode()).digest()[:8], signed=True)
        self._connection: Connection | None = self._engine.connect()
        self._depth = 0

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for the lock.

        Args:
            timeout: Seconds; None to wait for ever.

        Raises:
            Timeout: Somebody else holds it.
        """
        if self._depth == 0:
            if timeout is None:
                self._take()
            else:
                self._try(timeout)
        self._depth += 1

    def release(self) -> None:
        """Let the next have it, once this was called as often as :meth:`acquire`."""
        self._depth -= 1
        if self._depth == 0 and self._connection is not None:
            try:
                self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
            except DBAPIError:
                # Then the server has released it.
                self._drop()

    def renew(self) -> bool:
        """Take a lock that is held again where it was lost; whether it was held all along."""
        try:
            assert self._connection is not None, "it is held"
            self._connection.execute(text("SELECT 1"))
        except DBAPIError:
            self._drop()
            self._take()
            return False
        return True

    def close(self) -> None:
        """End the connection."""
        self._drop()
        self._engine.dispose()

    def __enter__(self) -> "AdvisoryLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ask("SELECT pg_try_advisory_lock(:key)"):
            if time.monotonic() >= until:
                raise Timeout(str(self._key))
            time.sleep(_POLL_SECONDS)

    def _take(self) -> None:
        self._ask("SELECT pg_advisory_lock(:key)")

    def _ask(self, statement: str) -> bool:
        def ask() -> bool:
            # A new connection after one that failed, which holds nothing: asked again, nothing is locked twice.
            if self._connection is None:
                self._connection = self._engine.connect()
            try:
                return bool(self._connection.scalar(text(statement), {"key": self._key}))
            except DBAPIError:
                self._drop()
                raise

        return patiently(ask)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


Lock = FileLock | AdvisoryLock


class TurnLostError(Exception):
    """A lock was lost while it was held: whatever was decided on what the stores held then is to be decided anew."""


def held_all_along(lock: Lock) -> bool:
    """Whether a lock that is held was not lost since it was taken; if it was, it is held again now."""
    return lock.renew() if isinstance(lock, AdvisoryLock) else True


def lock_of(config: StudyConfig, turn: Turn) -> Lock:
    """The lock for one kind of turn; it is released when its holder ends, by ``kill -9`` too.

    In a PostgreSQL store it is for all hosts. Elsewhere it is a file, for the processes of this host, which lies
    beside a SQLite store and for other stores in ``data.cache``.

    Raises:
        ConfigError: It cannot be made.
    """
    shown = without_password(config.store.url)
    if is_postgres(config.store.url):
        try:
            # Tables are made when any study begins.
            return AdvisoryLock(with_driver(config.store.url), turn if turn == "begin" else f"{turn} {config.name}")
        except ConfigError as error:
            raise ConfigError(f"store.url: {error}") from error
        except Exception as error:  # each database driver has errors of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"store.url: {shown!r} cannot be opened: {reason}") from error
    url = make_url(config.store.url)
    if url.get_backend_name() == "sqlite" and url.database:
        store, wrong = Path(url.database).absolute(), f"store.url: {shown!r} cannot be opened"
    else:
        digest = sha256(f"{shown} {config.name}".encode()).hexdigest()[:16]
        store, wrong = Path(config.data.cache).absolute() / digest, f"data.cache: {config.data.cache!r} cannot be used"
    path = store.with_name(f"{store.name}.{turn}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # FileLock would wait for ever to be allowed to.
        path.touch()
    except OSError as error:
        raise ConfigError(f"{wrong}: {path.name}: {error.strerror}") from error
    return FileLock(path, poll_interval=_POLL_SECONDS)


@contextmanager
def taking_turns(config: StudyConfig, turn: Turn, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that another process may hold for long, which is said then.

    Args:
        config: The study's.
        turn: What is done.
        say: Gets a line.
    """
    lock = lock_of(config, turn)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"Waiting for another process, which is about to {turn} this study")
        lock.acquire()
    try:
        yield
    except ConfigError:
        # A study that is refused leaves nothing behind; who waits for the file finds it gone, and makes it anew.
        if isinstance(lock, FileLock):
            Path(lock.lock_file).unlink(missing_ok=True)
        raise
    finally:
        lock.release()
        if isinstance(lock, AdvisoryLock):
            lock.close()
