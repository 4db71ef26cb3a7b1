"""MLflow's store: URIs that MLflow can open, and retries where the store does not answer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from search.config import sqlite_file, without_password
from search.storage.postgres import with_driver
from search.storage.presence import MLFLOW_TABLE, check_begun
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
