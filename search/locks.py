"""Locks between the processes that work on one study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from sqlalchemy.engine import make_url

from search.config import StudyConfig
from search.postgres import AdvisoryLock, is_postgres, with_driver
from search.proxy import ProxyLock, is_proxy
from search.shared_lock import SharedLock
from search.urls import without_password
from strategies import ConfigError, first_line

# Those who wait ask again so often; claiming a trial takes a few of it.
_POLL_SECONDS = 0.01

#: What one process at a time does: make a study ready, take a trial, crown the winner, search for a night.
Turn = Literal["begin", "claim", "finish", "night"]


Lock = FileLock | SharedLock


class TurnLostError(Exception):
    """A lock was lost while it was held: whatever was decided on what the stores held then is to be decided anew."""


def held_all_along(lock: Lock) -> bool:
    """Whether a lock that is held was not lost since it was taken; if it was, it is held again now."""
    return lock.renew() if isinstance(lock, SharedLock) else True


def lock_of(config: StudyConfig, turn: Turn) -> Lock:
    """The lock for one kind of turn; it is released when its holder ends, by ``kill -9`` too.

    A PostgreSQL store or a proxy keeps it for all hosts. Elsewhere it is a file, for the processes of this host, which
    lies beside a SQLite store and for other stores in ``data.cache``.

    Raises:
        ConfigError: It cannot be made.
    """
    shown = without_password(config.store.url)
    # Tables are made when any study begins.
    name = turn if turn == "begin" else f"{turn} {config.name}"
    try:
        shared: SharedLock | None = None
        if is_postgres(config.store.url):
            shared = AdvisoryLock(with_driver(config.store.url), name)
        elif is_proxy(config.store.url):
            shared = ProxyLock(config.store.url, name)
        if shared is not None:
            # A store that is not there is said before anything begins, and waited for afterwards.
            if turn == "begin":
                shared.connect()
            return shared
    except Exception as error:  # each database driver has errors of its own
        raise ConfigError(f"store.url: {shown!r} cannot be opened: {first_line(error)}") from error
    url = make_url(config.store.url)
    if url.get_backend_name() == "sqlite" and url.database:
        store, wrong = Path(url.database).absolute(), f"store.url: {shown!r} cannot be opened"
    else:
        digest = sha256(f"{shown} {config.name}".encode()).hexdigest()[:16]
        store, wrong = Path(config.data.cache).absolute() / digest, f"data.cache: {config.data.cache!r} cannot be used"
    # One process may search several studies of a store in a night.
    path = store.with_name(f"{store.name}.{f'{turn}-{config.name}' if turn == 'night' else turn}.lock")
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
        if isinstance(lock, SharedLock):
            lock.close()
