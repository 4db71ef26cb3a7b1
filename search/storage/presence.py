"""Whether a store is there, can be made, or can be written to, told without making anything.

Both libraries make a store that is not there, by opening it: so a mistyped address would be an empty store.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy
from sqlalchemy.engine import make_url

from search.config import sqlite_file, without_password
from search.storage.postgres import with_driver
from search.storage.proxy import is_proxy
from strategies import ConfigError, first_line

#: A table that every store of Optuna's, and of MLflow's, has.
OPTUNA_TABLE, MLFLOW_TABLE = "studies", "experiments"
# Schemes of MLflow's servers, which are no databases.
_SERVERS = ("http://", "https://", "databricks", "uc:")


def check_begun(key: str, url: str, table: str) -> None:
    """Refuse to read a store that is not there.

    Args:
        key: The key that names the store, for the message.
        url: Its URL.
        table: :data:`OPTUNA_TABLE` or :data:`MLFLOW_TABLE`.

    Raises:
        ConfigError: There is no such store, or it cannot be opened.
    """
    shown = without_password(url)
    with _opening(key, url, "opened"):
        is_there = _is_server(url) or table in (_tables_in(url) or ())
    if not is_there:
        raise ConfigError(f"{key}: {shown!r} is not there; no study has begun, or it has another store")


def check_store(key: str, url: str, table: str, verb: str, connect: Callable[[], object]) -> None:
    """Refuse a store that can neither be opened nor made.

    Args:
        key: The key that names the store, for the message.
        url: Its URL.
        table: :data:`OPTUNA_TABLE` or :data:`MLFLOW_TABLE`.
        verb: What a store that is refused cannot be, for the message.
        connect: Opens a store that is there, by the library that is to use it.

    Raises:
        ConfigError: Says why.
    """
    with _opening(key, url, verb):
        folder = _folder_of(url)
        if folder is not None:
            check_writable(folder)
        file = sqlite_file(url)
        if file is not None:
            check_writable(Path(file).absolute().parent)
            # Not opened: closing a file ends the locks of all connections that this process has to it, and the next
            # process to leave the database would remove the log that they write to (sqlite.org/howtocorrupt.html, 2.2).
            if Path(file).exists() and not os.access(file, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        tables = () if _is_server(url) else _tables_in(url) or ()
        if _is_server(url) or table in tables:
            connect()
        elif "alembic_version" in tables:
            raise OSError("it is the database of another program")


def check_folder(key: str, path: str) -> None:
    """Refuse a folder that cannot be written to, nor be made.

    Raises:
        ConfigError: Says why.
    """
    try:
        check_writable(Path(path).absolute())
    except OSError as error:
        raise ConfigError(f"{key}: {path!r} cannot be written to: {error.strerror or error}") from error


def check_writable(folder: Path) -> None:
    """Try to write to a folder, or to the nearest folder above in which it would be made; nothing is left there.

    Raises:
        OSError: It cannot be written to.
    """
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    with tempfile.TemporaryDirectory(prefix=".unfreeze-", dir=there):
        pass


def artifact_folder(uri: str) -> Path | None:
    """The folder of this machine that a ``file:`` URI or a path names; None for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(uri)


def _is_server(url: str) -> bool:
    return is_proxy(url) or url.startswith(_SERVERS)


def _folder_of(url: str) -> Path | None:
    """The folder of MLflow's store in files; None for any other store."""
    return artifact_folder(url) if url.startswith("file:") or ":" not in url else None


def _tables_in(url: str) -> list[str] | None:
    """Names of the tables of a database, or of nothing but the store's own where it is a folder; None without one."""
    folder = _folder_of(url)
    if folder is not None:
        return [MLFLOW_TABLE] if folder.is_dir() else None
    file, place = sqlite_file(url), make_url(with_driver(url))
    is_there = file is None or Path(file).exists()
    # Where there is no file, arguments of the URL that SQLite does not know are found all the same.
    engine = sqlalchemy.create_engine(place if is_there else place.set(database=":memory:"))
    try:
        found = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    return found if is_there else None


@contextmanager
def _opening(key: str, url: str, verb: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each database driver has errors of its own
        shown = without_password(url)
        raise ConfigError(f"{key}: {shown!r} cannot be {verb}: {without_password(first_line(error))}") from error
