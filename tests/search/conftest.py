import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from lab import Lab
from migrations import read_once
from mlflow import MlflowClient
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

read_once()


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
def inbox() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a server that takes JSON, and what it has received."""
    received: list[dict[str, Any]] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Inbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", received
        server.shutdown()


@pytest.fixture
def lab(new_lab) -> Lab:
    """A lab of the test's own."""
    return new_lab()
