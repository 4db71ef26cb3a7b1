"""Weights of the user's own runs and registered models, as the study that searches further with them takes them."""

import mlflow
import pytest
from mlflow import MlflowClient

from search.storage import RUN_ID, WINNER
from search.tracking import CHECKPOINT_FILE
from trainers.models.weights import digest, read_state_dict


@pytest.fixture(scope="module")
def searched(new_lab):
    """A study that has ended, its winner registered as version 1 of ``pets`` with the alias ``champion``."""
    lab = new_lab()
    assert lab.run("budget.trials=1") == 0
    mlflow.set_tracking_uri(lab.mlflow_uri)
    version = mlflow.register_model(lab.study.user_attrs[WINNER]["model_uri"], "pets").version
    MlflowClient(lab.mlflow_uri).set_registered_model_alias("pets", "champion", version)
    return lab


@pytest.mark.parametrize(
    "uri", ["{model}", "models:/pets/1", "models:/pets@champion", f"runs:/{{run}}/{CHECKPOINT_FILE}"]
)
def test_a_study_starts_from_a_run_or_a_registered_model_of_another(searched, capsys, uri):
    run_id = searched.trials()[0].user_attrs[RUN_ID]
    uri = uri.format(model=searched.study.user_attrs[WINNER]["model_uri"], run=run_id)
    capsys.readouterr()
    searched.train("budget.trials=1", "name=further", f"model.weights={uri}")
    saved = digest(read_state_dict(searched.artifact(searched.client.get_run(run_id), CHECKPOINT_FILE)))
    assert f"weights {uri} ({saved})" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("key", "uri"), [("model.weights", "models:/pets@champion"), ("teacher", "{model}")])
def test_a_process_of_its_own_finds_them_too(searched, key, uri):
    uri = uri.format(model=searched.study.user_attrs[WINNER]["model_uri"])
    # Here MLflow's global store is that of the fixture; there nobody has set it yet.
    process = searched.start("budget.trials=1", f"name=alone-{key}", f"{key}={uri}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("models:/pets@challenger", "none available for test_resnet: {uri}: "),
        ("models:/pets/2", "none available for test_resnet: {uri}: "),
        ("runs:/{run}/none.safetensors", "none available for test_resnet: {uri}: "),
        ("runs:/{run}/manifest.json", "{uri}: truncated, corrupt or no PyTorch checkpoint"),
    ],
)
def test_what_mlflow_does_not_have_or_is_no_checkpoint_is_named_by_its_uri(searched, capsys, uri, reason):
    uri = uri.format(run=searched.trials()[0].user_attrs[RUN_ID])
    assert searched.run("budget.trials=1", "name=refused", f"model.weights={uri}") == 2
    assert capsys.readouterr().err.startswith(f"error: model.weights: {reason.format(uri=uri)}")
