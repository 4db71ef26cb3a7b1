"""Stores that version 0.1.0 wrote before its modules were moved into rooms: they are read, and resumed, as they are.

``earlier_version.tar.xz`` holds the study ``begun``, stopped by a signal in its third trial, and the model of the study
``ended`` with what it answers. So that the archive is small, the large tensors of the checkpoint are zero and the
model's weights are rounded to sixteenths.
"""

import json
import sqlite3
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest

from search.run import main
from search.storage import RETRY_OF, outcome_of
from search.winner import load

ARCHIVE = Path(__file__).with_name("earlier_version.tar.xz")
# Where the stores were when they were written.
WRITTEN_IN = "file:///before"
PLACES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """The folder of the stores, which are in ``mlruns`` there."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
        for table, column in PLACES.items():
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (WRITTEN_IN, tmp_path.as_uri()))
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    yield tmp_path
    mlflow.set_tracking_uri(before)


def test_a_study_that_an_earlier_version_began_is_resumed_to_its_end(stores, capsys):
    url = "sqlite:///mlruns/optuna.db"
    told = optuna.load_study(study_name="begun", storage=url).trials[:3]
    assert main(["study=begun.yaml", "budget.trials=3"]) == 0
    trials = optuna.load_study(study_name="begun", storage=url).trials
    assert trials[:3] == told
    assert [outcome_of(trial) for trial in trials] == ["complete", "complete", "killed", "complete"]
    assert trials[3].params == trials[2].params
    assert trials[3].user_attrs[RETRY_OF] == 2
    assert "Winner: trial" in capsys.readouterr().out


def test_a_model_that_an_earlier_version_logged_answers_as_before(stores):
    with sqlite3.connect(stores / "mlruns" / "mlflow.db") as database:
        ((model,),) = database.execute("SELECT model_id FROM logged_models").fetchall()
    images = [np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8) for k in range(3)]
    answers = load(f"models:/{model}", "sqlite:///mlruns/mlflow.db").predict(images).to_dict("list")
    expected = json.loads((stores / "answers.json").read_text())
    assert answers.pop("label") == expected.pop("label")
    assert answers.keys() == expected.keys()
    for name, values in expected.items():
        assert answers[name] == pytest.approx(values, abs=1e-6)
