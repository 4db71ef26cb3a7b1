"""Loading a logged model."""

import logging
import warnings
from typing import Any

from search.processes import importing
from strategies import ConfigError, first_line

logger = logging.getLogger(__name__)


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
        raise ConfigError(f"{uri}: this model cannot be loaded: {first_line(error)}") from error
    for warning in caught:
        logger.info("%s", warning.message)
    return model
