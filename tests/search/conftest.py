from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from lab import Lab
from mlflow import MlflowClient
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory) -> Path:
    """An MLflow database that has been through its migrations and holds nothing."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def new_lab(tmp_path_factory, empty_mlflow) -> Iterator[Callable[..., Lab]]:
    """Make labs; arguments replace sections of the study file."""
    before, labs = mlflow.get_tracking_uri(), []

    def make(**changes: Any) -> Lab:
        labs.append(Lab(tmp_path_factory.mktemp("lab"), empty_mlflow, **changes))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()
    mlflow.set_tracking_uri(before)
    # MLflow keeps connections to every database that this process has ever opened.
    for engine in (*TrackingStore._engine_map.values(), *RegistryStore._engine_map.values()):
        engine.dispose()


@pytest.fixture
def lab(new_lab) -> Lab:
    """A lab of the test's own."""
    return new_lab()
