"""Finding and loading a logged model."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.config import TrackingConfig, tracking_uri, without_password
from search.processes import importing
from strategies import ConfigError, first_line

logger = logging.getLogger(__name__)


def find_model(word: str, overrides: Sequence[str], uri: str | None) -> tuple[str, str]:
    """The address of a model, and the MLflow store that it is in.

    Args:
        word: A study, whose champion is meant, else its winner; or the model's address, or its folder.
        overrides: Keys that say where the study's stores are.
        uri: MLflow's store; None for the study's, or the store by default.

    Raises:
        ConfigError: There is no such study, or it has neither champion nor winner.
    """
    keys = [*overrides, *([] if uri is None else [f"tracking.uri={uri}"])]
    if ":/" in word or Path(word, "MLmodel").is_file():
        named = [key.partition("=")[2] for key in keys if key.startswith("tracking.uri=")]
        return word, tracking_uri(named[-1] if named else TrackingConfig().uri)
    with importing():
        from search.storage import WINNER, config_of, open_stored
        from search.winner.champion import CHAMPION, name_of

    (stored,) = open_stored([word, *keys])
    name = name_of(config_of(stored))
    with stored.reading_runs() as client:
        models = client.search_registered_models(f"name = '{name}'")
    if models and CHAMPION in models[0].aliases:
        return f"models:/{name}@{CHAMPION}", stored.tracking_uri
    winner = stored.study.user_attrs.get(WINNER)
    if winner is None:
        raise ConfigError(f"study {stored.name!r} has no winner yet; a search has a winner when it has ended")
    return str(winner["model_uri"]), stored.tracking_uri


def load(uri: str, tracking_uri: str) -> Any:
    """Load a logged model with MLflow.

    Args:
        uri: The model's address, such as ``models:/m-...``.
        tracking_uri: MLflow's store.

    Raises:
        ConfigError: The model does not exist or cannot be loaded.
    """
    with importing():
        import mlflow
        from mlflow.exceptions import MlflowException

        from search.storage import MLFLOW_TABLE, check_begun, reachable, retrying_mlflow

    # A model in a folder needs no store.
    if uri.startswith(("models:/", "runs:/")):
        check_begun("tracking.uri", tracking_uri, MLFLOW_TABLE)
    mlflow.set_tracking_uri(reachable(tracking_uri))
    try:
        # MLflow has no type hint for paths, bytes and arrays, and warns of that past any filter.
        with retrying_mlflow(), warnings.catch_warnings(record=True) as caught:
            model = mlflow.pyfunc.load_model(uri)
    except (MlflowException, OSError) as error:
        where = f" from {without_password(tracking_uri)}" if uri.startswith(("models:/", "runs:/")) else ""
        raise ConfigError(f"{uri}: this model cannot be loaded{where}: {first_line(error)}") from error
    for warning in caught:
        logger.info("%s", warning.message)
    return model
