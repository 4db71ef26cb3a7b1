"""What MLflow's pages show of a study: names, numbers, data sets, machine, note, pictures, report."""

import json
import re

import pytest
from optuna.trial import TrialState

from search.reporting.mlflow_note import REPORT_FILE, plain
from search.storage import RUN_ID

SPACE = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "epochs": 2,
    "batch_size": 32,
}


@pytest.fixture(scope="module")
def searched(new_lab):
    lab = new_lab(strategy=SPACE, presets={"probe": {"depth": 0, "lr": 3e-3}})
    assert lab.run("budget.trials=3") == 0
    return lab


def files_of(lab, folder: str = "") -> dict[str, int]:
    """Files of the study's run, and their sizes."""
    return {found.path: found.file_size for found in lab.client.list_artifacts(lab.parent().info.run_id, folder)}


def test_runs_are_named_by_what_sets_them_apart(searched):
    for number, run in searched.runs().items():
        assert re.fullmatch(rf"{number} · depth \d+ · adamw \de-\d\d", run.info.run_name)


def test_parameters_that_are_numbers_read_as_numbers(searched):
    for run in searched.runs().values():
        params = run.data.params
        assert float(params["lr"]) > 0
        assert int(params["depth_blocks"]) >= 0
        assert int(params["epochs"]) == 2
        assert 0 <= float(params["depth"]) <= 1


def test_runs_name_the_images_they_used_by_content_and_use(searched):
    fingerprint = searched.parent().data.tags["unfreeze.data_fingerprint"]
    of_trials = {"digits train": "training", "digits val": "validation"}
    expected = [(run, of_trials) for run in searched.runs().values()]
    expected.append((searched.parent(), of_trials | {"digits test": "testing"}))
    for run, contexts in expected:
        used = run.inputs.dataset_inputs
        assert {found.dataset.name: found.tags[0].value for found in used} == contexts
        assert {found.dataset.digest for found in used} == {fingerprint}
        assert json.loads(used[0].dataset.profile) == {"images": 64, "classes": 10, "image_size": 32}
        assert json.loads(used[0].dataset.source) == {"source": "digits"}


def test_runs_say_how_busy_the_machine_was(searched):
    for run in searched.runs().values():
        assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
        assert 0 < run.data.metrics["system/system_memory_usage_percentage"] < 100


def test_the_note_has_the_winner_the_best_and_links_to_their_pages(searched):
    parent = searched.parent()
    note = parent.data.tags["mlflow.note.content"]
    winner = searched.study.user_attrs["winner"]
    assert f"Winner: trial {winner['trial']}, test accuracy {winner['test_score']:.4f}" in note
    assert "Which layers? That cannot be told from 3 trials" in note
    assert note.endswith("Which fields mattered: cannot be told from 3 trials (20 complete ones are needed).")
    experiment = parent.info.experiment_id
    page = f"#/experiments/{experiment}/runs"
    assert f"[Report]({page}/{parent.info.run_id}/artifacts/{REPORT_FILE})" in note
    for trial in searched.trials():
        assert trial.state == TrialState.COMPLETE
        assert f"]({page}/{trial.user_attrs[RUN_ID]}) | {trial.value:.4f} |" in note


def test_a_name_in_the_note_is_no_link():
    assert plain("[x](https://e.org) <b>|`") == r"\[x\](https://e.org) \<b\>\|\`"


def test_pictures_of_the_winner_and_the_report_are_artifacts_of_the_study(searched):
    found = files_of(searched, "winner")
    for name in ("confusion", "reliability", "learning_curves"):
        assert found[f"winner/{name}.png"] > 5_000
    assert files_of(searched)[REPORT_FILE] > 1_000_000
    page = searched.artifact(searched.parent(), REPORT_FILE).read_text(encoding="utf-8")
    assert "Best strategy of 3 trials" in page


def test_the_model_belongs_to_the_winners_run(searched):
    winner = searched.study.user_attrs["winner"]
    run = searched.trials()[winner["trial"]].user_attrs[RUN_ID]
    outputs = searched.client.get_run(run).outputs.model_outputs
    assert [f"models:/{found.model_id}" for found in outputs] == [winner["model_uri"]]
