"""Locks between the processes of this host that work on one study."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from sqlalchemy.engine import make_url

from search.config import StudyConfig
from search.tracking import without_password
from strategies import ConfigError

# Those who wait ask again so often; claiming a trial takes a few of it.
_POLL_SECONDS = 0.01

#: What one process at a time does: make a study ready, take a trial, crown the winner.
Turn = Literal["begin", "claim", "finish"]


def lock_of(config: StudyConfig, turn: Turn) -> FileLock:
    """The lock for one kind of turn; the system releases it when its holder ends, by ``kill -9`` too.

    It lies beside a SQLite store, and for other stores, which other hosts share without it, in ``data.cache``.

    Raises:
        ConfigError: Its folder cannot be made.
    """
    url = make_url(config.store.url)
    if url.get_backend_name() == "sqlite" and url.database:
        store = Path(url.database).absolute()
        key = "store.url"
    else:
        digest = sha256(f"{without_password(config.store.url)} {config.name}".encode()).hexdigest()[:16]
        store = Path(config.data.cache).absolute() / f"study-{digest}"
        key = "data.cache"
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(store.with_name(f"{store.name}.{turn}.lock"), poll_interval=_POLL_SECONDS)
    except OSError as error:
        raise ConfigError(f"{key}: {str(store)!r} cannot be used: {error.strerror}") from error


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
    finally:
        lock.release()
