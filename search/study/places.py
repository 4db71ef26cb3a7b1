"""Places that a search writes to, checked before it begins, and without making anything."""

from mlflow import MlflowClient

from search.config import StudyConfig
from search.storage import (
    MLFLOW_TABLE,
    OPTUNA_TABLE,
    absolute_sqlite,
    check_folder,
    check_store,
    open_storage,
    reachable,
    retrying_mlflow,
)


def check_places(config: StudyConfig) -> None:
    """Refuse a study that could not write its trials, checkpoints or models.

    A study that is refused here, or before its images are read, leaves nothing on the disk.

    Raises:
        ConfigError: A store cannot be opened or made, or a folder cannot be written to.
    """
    store, uri = config.store.url, config.tracking.uri
    check_folder("data.cache", config.data.cache)
    check_store("store.url", store, OPTUNA_TABLE, "opened", lambda: open_storage(absolute_sqlite(store)))
    check_store("tracking.uri", uri, MLFLOW_TABLE, "used", lambda: _answer_of(uri))
    if not uri.startswith(("http://", "https://")):
        check_folder("tracking.artifacts", config.tracking.artifacts)


def _answer_of(uri: str) -> None:
    """Ask MLflow something."""
    with retrying_mlflow():
        MlflowClient(reachable(uri)).search_experiments(max_results=1)
