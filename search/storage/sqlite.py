"""SQLite databases: made whole or not at all, and their many small transactions do not wait for the disk."""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import event
from sqlalchemy.engine import Engine, create_engine, make_url

from trainers import PART, sync

# The index of the write-ahead log is in memory that processes share, which processes of several hosts cannot.
_SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre", "beegfs")

# Writers take turns; SQLAlchemy's five seconds are too few where many processes write to a busy disk.
_WAIT_MILLISECONDS = 60_000

_paths: set[str] = set()


def write_ahead(url: str) -> None:
    """Let this process's connections to a SQLite database use a write-ahead log, and sync only to merge it.

    A commit is then a write to the log (https://www.sqlite.org/wal.html, ``synchronous=NORMAL``): about 1 ms where a
    sync takes 3 to 20 ms. What was committed survives the end of the process, ``kill -9`` included. A power cut can
    undo the last commits, never one without those after it, and leaves the database intact; :func:`sync_log` prevents
    that for all commits before it.

    Other databases and files on network file systems stay as they are.

    Args:
        url: SQLAlchemy URL; the call concerns all later connections, whichever library makes them.
    """
    path = file_of(url)
    if path is not None and not _is_shared(path):
        _paths.add(str(path.resolve()))


def file_of(url: str) -> Path | None:
    """The file of a SQLite database; ``None`` for other databases and for those in memory."""
    path = make_url(url).database if url.startswith("sqlite") else None
    return Path(path) if path and path != ":memory:" else None


def make_whole(path: Path, fill: Callable[[Engine], None]) -> None:
    """Make a database under a temporary name beside its place, and rename it: it is there whole or not at all.

    One process at a time may do this.

    Args:
        path: The place of the database; a database that is there is replaced.
        fill: Makes the tables.
    """
    part = path.with_name(path.name + PART)
    part.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{part}")
    event.listen(engine, "connect", _write_unsynced)
    try:
        fill(engine)
        engine.dispose()
        sync(part)
        # SQLite would take the log of the replaced database for the new one's.
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        part.rename(path)
        sync(path.parent)
    finally:
        engine.dispose()
        part.unlink(missing_ok=True)


def sync_log(url: str) -> None:
    """Wait until all commits to a database of :func:`write_ahead`, by any process, are on the disk itself.

    Other databases sync each commit by themselves.
    """
    path = file_of(url)
    if path is not None:
        # Without the log, every commit has been synced.
        with suppress(FileNotFoundError):
            sync(path.with_name(f"{path.name}-wal"))


def _write_unsynced(connection: sqlite3.Connection, record: Any) -> None:
    """Is called for each connection to a database that nobody needs before it is whole."""
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")


def _is_shared(path: Path) -> bool:
    """Whether the file lies, or would lie, on a network file system."""
    here = path.resolve()
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[str(place)] for place in (here, *here.parents) if str(place) in mounts), "")
    return kind.startswith(_SHARED_FILE_SYSTEMS)


@event.listens_for(Engine, "connect")
def _set_up(connection: Any, record: Any) -> None:
    """Is called for each database connection that SQLAlchemy makes, MLflow's and Optuna's too."""
    if not _paths or not isinstance(connection, sqlite3.Connection):
        return
    (_, _, file), *_ = connection.execute("PRAGMA database_list").fetchall()
    if not file or str(Path(file).resolve()) not in _paths:
        return
    connection.execute(f"PRAGMA busy_timeout={_WAIT_MILLISECONDS}")
    # While another process writes without a write-ahead log, the mode cannot change; the next connection tries again.
    with suppress(sqlite3.OperationalError):
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")
