"""MLflow's store: which URIs can be reached, and patience where one does not answer."""

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

from search.config import without_password
from search.storage.postgres import with_driver
from strategies import ConfigError, WeightsError, first_line


def without_login(uri: str) -> str:
    """The URI of an MLflow server without user and password, which are put where MLflow's client looks for them.

    So they are in no message and no file of MLflow's; processes that are started inherit them.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# MLflow itself would ask a server that is away for four minutes, and could begin a run twice whose answer was lost. The
# writer tries again by itself.
HTTP_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


HTTP_RETRIES_ARE_SET = HTTP_RETRIES in os.environ


def fetch_uri(uri: str, tracking_uri: str) -> Path:
    """Download what a ``models:/`` or ``runs:/`` URI names in an MLflow store, and return where it lies.

    Raises:
        WeightsError: MLflow does not have it.
    """
    # What download_artifacts is told holds for runs alone (MLflow 3.17): models are looked up in the global store.
    mlflow.set_tracking_uri(reachable(tracking_uri))
    try:
        with retrying_mlflow():
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
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
    """Ask a server that does not answer again for some seconds, where nothing else tries again."""
    if HTTP_RETRIES_ARE_SET:
        yield
        return
    os.environ[HTTP_RETRIES] = "2"
    try:
        yield
    finally:
        os.environ[HTTP_RETRIES] = "0"


def reachable(uri: str) -> str:
    """A tracking URI as MLflow is given it: with an absolute path, a driver that is installed, and no password.

    Raises:
        ConfigError: No driver is installed.
    """
    return without_login(with_driver(absolute_sqlite(uri)))


def absolute_sqlite(uri: str) -> str:
    """A ``sqlite:///`` URI with an absolute path, its folder made; other URIs as they are."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return uri
    path = Path(uri.removeprefix(prefix)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{prefix}{path}"


@contextmanager
def reading_mlflow(uri: str, what: str) -> Iterator[MlflowClient]:
    """While the ``with`` block runs, read from MLflow, and ask again for some seconds where it does not answer.

    Args:
        uri: Of the store.
        what: Is read, as the message names it.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with retrying_mlflow():
            yield MlflowClient(reachable(uri))
    except (MlflowException, OSError) as error:
        raise ConfigError(f"{what} cannot be read at {without_password(uri)}: {first_line(error)}") from error
