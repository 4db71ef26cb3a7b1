"""MLflow's store: URIs that MLflow can open, and retries where the store does not answer."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from search.config import sqlite_file, without_password
from search.storage.postgres import with_driver
from search.storage.presence import MLFLOW_TABLE, check_begun
from search.storage.private_apis import fill_mlflow, mlflow_revision
from search.storage.sqlite import file_of, make_whole
from strategies import ConfigError, WeightsError, first_line


def without_login(uri: str) -> str:
    """The URI of an MLflow server without user and password, which go to the variables that MLflow's client reads.

    So no message and no file of MLflow's holds them; processes that are started inherit them.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# MLflow itself would retry for four minutes where a server is away, and could begin a run twice where an answer was
# lost. The background writer retries instead.
HTTP_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


HTTP_RETRIES_ARE_SET = HTTP_RETRIES in os.environ


def fetch_uri(uri: str, tracking_uri: str) -> Path:
    """Download the artifact of a ``models:/`` or ``runs:/`` URI from an MLflow store, and return its path.

    Raises:
        WeightsError: MLflow does not have the artifact.
    """
    # download_artifacts looks up models in the global store, whatever its tracking_uri says (MLflow 3.17).
    mlflow.set_tracking_uri(reachable(tracking_uri))
    try:
        check_begun("tracking.uri", tracking_uri, MLFLOW_TABLE)
        with retrying_mlflow():
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, ConfigError, OSError) as error:
        raise WeightsError(first_line(error)) from error


# Tables in which MLflow's migrations leave rows, and which rows are a user's.
_ROWS_OF_USERS = {"alembic_version": "false", "workspaces": "name <> 'default'", "experiments": "name <> 'Default'"}


def make_store(uri: str, say: Callable[[str], None]) -> None:
    """Make the database of an embedded store, whole or not at all; a database of another kind stays as it is.

    MLflow commits its migrations one by one: a process that is killed between two would leave a database that MLflow
    neither opens nor mends. Such a database is made anew if it holds nothing.

    Args:
        uri: URI of the store, as :func:`reachable` gives it.
        say: Gets a line where a database is made anew.

    Raises:
        OSError, sqlite3.Error: The file cannot be read or written.
    """
    path = file_of(uri)
    if path is None or not _is_to_make(path):
        return
    lock = path.with_name(f"{path.name}.begin.lock")
    # Without permission FileLock would wait for ever.
    lock.touch()
    with FileLock(lock):
        if _is_to_make(path):
            if path.exists() and path.stat().st_size:
                say(f"{path} was left in the middle of MLflow's migrations and holds no run: it is made anew")
            make_whole(path, fill_mlflow)
        # A process that waits for the file finds the database whole.
        lock.unlink(missing_ok=True)


def _is_to_make(path: Path) -> bool:
    """Whether a database is missing, or holds nothing and has not been through all of MLflow's migrations."""
    if not path.exists():
        return True
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        # Where a study has begun, the first question answers.
        tables = sorted((name for (name,) in found), key=lambda name: name != "runs")
        for table in tables:
            rows = f'SELECT 1 FROM "{table}" WHERE {_ROWS_OF_USERS.get(table, "true")} LIMIT 1'
            if connection.execute(rows).fetchone():
                return False
        if "alembic_version" not in tables:
            return True
        return connection.execute("SELECT version_num FROM alembic_version").fetchall() != [(mlflow_revision(),)]


def check_database(uri: str) -> None:
    """Fail at once on a database that cannot be opened, where MLflow would try for two minutes."""
    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        engine = sqlalchemy.create_engine(uri)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()


@contextmanager
def retrying_mlflow() -> Iterator[None]:
    """While the ``with`` block runs, let MLflow retry for some seconds; for calls that nothing else retries."""
    if HTTP_RETRIES_ARE_SET:
        yield
        return
    os.environ[HTTP_RETRIES] = "2"
    try:
        yield
    finally:
        os.environ[HTTP_RETRIES] = "0"


def reachable(uri: str) -> str:
    """A tracking URI that MLflow can open: with an absolute path, an installed driver, and no password.

    Raises:
        ConfigError: No driver is installed.
    """
    return without_login(with_driver(absolute_sqlite(uri)))


def absolute_sqlite(uri: str) -> str:
    """A ``sqlite:///`` URI with an absolute path; other URIs unchanged."""
    prefix = "sqlite:///"
    return f"{prefix}{Path(uri.removeprefix(prefix)).absolute()}" if uri.startswith(prefix) else uri


def make_folder_of(uri: str) -> None:
    """Make the folder of a SQLite database, which is about to be made."""
    file = sqlite_file(uri)
    if file:
        Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def reading_mlflow(uri: str, what: str) -> Iterator[MlflowClient]:
    """While the ``with`` block runs, read from MLflow, which retries for some seconds.

    Args:
        uri: URI of the store.
        what: Name of what is read, for the message.

    Raises:
        ConfigError: The store is not there, or cannot be read.
    """
    check_begun("tracking.uri", uri, MLFLOW_TABLE)
    try:
        with retrying_mlflow():
            yield MlflowClient(reachable(uri))
    except (MlflowException, OSError) as error:
        raise ConfigError(f"{what} cannot be read at {without_password(uri)}: {first_line(error)}") from error
