"""A search that is killed while its winner is logged leaves nothing twice, and nothing outside its own folders."""

import json
import signal
import tempfile
import time
from pathlib import Path

import pytest
from optuna import Study

from search.storage import WINNER
from search.tracking.sink import Sink
from search.winner import EVIDENCE_FILE, MISTAKES_FOLDER

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


def test_all_of_a_winner_is_in_mlflow_before_the_study_names_it(new_lab, monkeypatch):
    lab, stored = new_lab(), []
    write, set_user_attr = Sink.__call__, Study.set_user_attr

    def slow(*values, **options):
        time.sleep(0.01)
        write(*values, **options)

    def setting(study, key, value):
        if key == WINNER:
            found = lab.client.list_artifacts(lab.parent().info.run_id, MISTAKES_FOLDER)
            stored.extend(file.path for file in found)
        set_user_attr(study, key, value)

    monkeypatch.setattr(Sink, "__call__", slow)
    monkeypatch.setattr(Study, "set_user_attr", setting)
    assert lab.run("budget.trials=1") == 0
    evidence = json.loads(lab.artifact(lab.parent(), EVIDENCE_FILE).read_text(encoding="utf-8"))
    assert len(stored) == len(evidence["mistakes"]) > 0
