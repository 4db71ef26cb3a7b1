"""A search that is killed while its winner is logged leaves nothing twice, and nothing outside its own folders."""

import signal
import tempfile
from pathlib import Path

import pytest

from search.storage import WINNER

# Kills itself once MLflow has the model's files and does not know yet that the model is whole.
KILLED = """
import os, signal, sys, tempfile
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from search.run import main
tempfile.tempdir, *words = sys.argv[1:]
log_files = TrackingServiceClient.log_model_artifacts

def killed(*values):
    log_files(*values)
    os.kill(os.getpid(), signal.SIGKILL)

TrackingServiceClient.log_model_artifacts = killed
main(words)
"""


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_of_one_winner_there_is_one_model_whenever_its_search_was_killed(new_lab, tmp_path, monkeypatch):
    lab = new_lab()
    temporary = lab.folder / "mlruns" / "cache" / "temporary"
    process = lab.start_code(KILLED, str(tmp_path), f"study={lab.file}", "budget.trials=1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, out + err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert len(left_in(temporary)) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert lab.run("budget.trials=1") == 0
    assert left_in(temporary) == left_in(tmp_path) == []
    first = lab.study.user_attrs[WINNER]
    # As after a kill before Optuna knew of the model.
    lab.study.set_user_attr(WINNER, None)
    assert lab.run("budget.trials=1") == 0
    assert lab.study.user_attrs[WINNER] == first
    (model,) = lab.client.search_logged_models([lab.parent().info.experiment_id])
    assert model.status == "READY"
    assert model.model_uri == first["model_uri"]
    folder = Path(model.artifact_location.removeprefix("file://")).parent
    assert left_in(folder.parent) == [model.model_id]
