"""Locks between the processes that work on one study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from sqlalchemy.engine import make_url

from search.config import without_password
from search.storage.postgres import AdvisoryLock, is_postgres, with_driver
from search.storage.proxy import ProxyLock, is_proxy
from search.storage.server_lock import SharedLock
from strategies import ConfigError, first_line

# Between two tries to take a lock; claiming a trial takes a few times as long.
_POLL_SECONDS = 0.01

#: What one process at a time may do: make a study ready, take a trial, crown the winner, search for a night.
Turn = Literal["begin", "claim", "finish", "night"]


Lock = FileLock | SharedLock


@dataclass(frozen=True, slots=True)
class LockPlace:
    """Where the locks of a study are.

    Args:
        store: URL of Optuna's store.
        study: Name of the study.
        cache: Folder of the study's caches.
    """

    store: str
    study: str
    cache: str


class TurnLostError(Exception):
    """A lock was lost while it was held: decisions made under it must be made anew, from what the stores hold now."""


def held_all_along(lock: Lock) -> bool:
    """Whether a held lock was never lost since it was taken; a lost lock is taken again first."""
    return lock.renew() if isinstance(lock, SharedLock) else True


def lock_of(place: LockPlace, turn: Turn) -> Lock:
    """The lock for one kind of turn; it is released when its holder ends, by ``kill -9`` too.

    A PostgreSQL store or a proxy keeps the lock for all hosts. For other stores it is a file, for the processes of this
    host: beside a SQLite store, else in the cache.

    Raises:
        ConfigError: The lock cannot be made.
    """
    shown = without_password(place.store)
    # Any study that begins may make the tables, so this lock is not one study's.
    name = turn if turn == "begin" else f"{turn} {place.study}"
    try:
        shared: SharedLock | None = None
        if is_postgres(place.store):
            shared = AdvisoryLock(with_driver(place.store), name)
        elif is_proxy(place.store):
            shared = ProxyLock(place.store, name)
        if shared is not None:
            # Before anything begins, a store that does not answer is an error; later it is waited for.
            if turn == "begin":
                shared.connect()
            return shared
    except Exception as error:  # each database driver has errors of its own
        raise ConfigError(f"store.url: {shown!r} cannot be opened: {first_line(error)}") from error
    url = make_url(place.store)
    if url.get_backend_name() == "sqlite" and url.database:
        store, wrong = Path(url.database).absolute(), f"store.url: {shown!r} cannot be opened"
    else:
        digest = sha256(f"{shown} {place.study}".encode()).hexdigest()[:16]
        store, wrong = Path(place.cache).absolute() / digest, f"data.cache: {place.cache!r} cannot be used"
    # One process may search several studies of a store in a night.
    path = store.with_name(f"{store.name}.{f'{turn}-{place.study}' if turn == 'night' else turn}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without permission FileLock would wait for ever.
        path.touch()
    except OSError as error:
        raise ConfigError(f"{wrong}: {path.name}: {error.strerror}") from error
    return FileLock(path, poll_interval=_POLL_SECONDS)


def forget(lock: Lock) -> None:
    """Remove the file of a held lock, and its folder if nothing else is there: a refused study leaves nothing behind.

    A process that waits for the file finds it gone, and makes it anew.
    """
    if isinstance(lock, FileLock):
        file = Path(lock.lock_file)
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()


@contextmanager
def taking_turns(place: LockPlace, turn: Turn, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock while the ``with`` block runs.

    Args:
        place: Where the study's locks are.
        turn: What is done under the lock.
        say: Gets a line when another process holds the lock for longer than a second.
    """
    lock = lock_of(place, turn)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"Waiting for another process, which is about to {turn} this study")
        lock.acquire()
    try:
        yield
    except ConfigError:
        forget(lock)
        raise
    finally:
        lock.release()
        if isinstance(lock, SharedLock):
            lock.close()
