import json
import re
import sqlite3
import subprocess
import threading
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from search.config import without_password
from search.storage import DEPTH, FINGERPRINT, REASON, RUN_ID, STRATEGY, fetch_uri, make_folder_of
from search.tracking import CHECKPOINT_FILE, PARENT_TAG, Tracker, WriteError, git_commit
from search.tracking.sink import Sink
from strategies import CHOICES, ConfigError, Strategy, UnfreezeError, WeightsError
from trainers import DamagedFileError

EPOCH_METRICS = {
    *("train_loss", "lr", "epoch_seconds"),
    *("val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss"),
}
TEST_METRICS = {"test_accuracy", "test_balanced_accuracy", "test_macro_f1", "test_loss"}


@pytest.fixture(scope="module")
def done(new_lab):
    """A study that has ended: two trials of two epochs."""
    lab = new_lab(metric="loss", presets={"half": {"depth": 0.5, "lr": 2e-3}})
    assert lab.run("strategy.epochs=2", "seed=3") == 0
    return lab


def test_one_experiment_a_study_one_parent_run_and_a_child_run_a_trial(done):
    (experiment,) = [e for e in done.client.search_experiments() if e.name != "Default"]
    assert experiment.name == "lab"
    assert experiment.artifact_location == (done.folder / "mlruns" / "artifacts" / "lab").as_uri()
    parent = done.parent()
    assert parent.info.run_name == "lab"
    assert PARENT_TAG not in parent.data.tags
    assert {run.data.tags[PARENT_TAG] for run in done.runs().values()} == {parent.info.run_id}
    assert {number: run.info.run_id for number, run in done.runs().items()} == {
        trial.number: trial.user_attrs[RUN_ID] for trial in done.trials()
    }
    assert {run.info.status for run in done.all_runs()} == {"FINISHED"}
    assert {run.data.tags["unfreeze.outcome"] for run in done.all_runs()} == {"complete"}


def test_a_child_run_carries_the_whole_strategy_and_the_seed(done):
    for trial in done.trials():
        params = done.runs()[trial.number].data.params
        strategy = Strategy.from_dict(trial.user_attrs[STRATEGY])
        assert set(params) == {*CHOICES, DEPTH, "model", "seed"}
        assert {name: params[name] for name in CHOICES} == {k: str(v) for k, v in strategy.to_dict().items()}
        assert (params["model"], params["seed"]) == ("test_resnet", "3")
    assert done.runs()[0].data.params[DEPTH] == "3"


def manifest_of(lab, run):
    return json.loads(lab.artifact(run, "manifest.json").read_text())


def test_metrics_are_there_for_each_epoch_by_step(done):
    for trial in done.trials():
        run = done.runs()[trial.number]
        for name in EPOCH_METRICS:
            assert [m.step for m in done.client.get_metric_history(run.info.run_id, name)] == [1, 2], name
        losses = done.client.get_metric_history(run.info.run_id, "val_loss")
        assert {m.step: m.value for m in losses} == trial.intermediate_values
        assert run.data.metrics["score"] == trial.value
        assert trial.intermediate_values[run.data.metrics["best_epoch"]] == trial.value
        took = [done.client.get_metric_history(run.info.run_id, name) for name in ("epoch_seconds", "training_seconds")]
        assert run.data.metrics["training_seconds"] == took[1][-1].value == sum(m.value for m in took[0]) > 0
        trained = {entry["name"] for entry in manifest_of(done, run) if entry["from_epoch"] is not None}
        state = load_file(done.artifact(run, CHECKPOINT_FILE))
        assert run.data.metrics["parameters_trained"] == sum(state[name].numel() for name in trained)


def test_every_run_says_on_what_it_ran(done):
    for run in done.all_runs():
        tags = run.data.tags
        assert tags["unfreeze.study"] == "lab"
        assert tags["unfreeze.model"] == "test_resnet"
        assert (tags["unfreeze.weights"], tags["unfreeze.weights_digest"]) == ("none", "random")
        assert tags["unfreeze.device"] == "cpu (1 threads), fp32"
        assert re.fullmatch(r"[0-9a-f]{16}", tags["unfreeze.data_fingerprint"])
        assert tags["mlflow.source.git.commit"] == git_commit()
    assert len({run.data.tags["unfreeze.data_fingerprint"] for run in done.all_runs()}) == 1


def test_a_child_run_names_its_strategy_and_preset(done):
    for trial in done.trials():
        tags = done.runs()[trial.number].data.tags
        assert tags["unfreeze.fingerprint"] == trial.user_attrs[FINGERPRINT]
        assert tags["unfreeze.attempt"] == "0"
        assert tags["mlflow.runName"].startswith(f"{trial.number} · depth {trial.user_attrs[DEPTH]} · adamw")
    assert [run.data.tags["unfreeze.preset"] for _, run in sorted(done.runs().items())] == ["half", ""]


def test_a_child_run_holds_what_was_planned_for_each_parameter(done):
    run = done.runs()[0]
    by_name = {entry["name"]: entry for entry in manifest_of(done, run)}
    state = load_file(done.artifact(run, CHECKPOINT_FILE))
    assert set(by_name) == {name for name in state if "running_" not in name and "num_batches" not in name}
    assert by_name["fc.weight"]["from_epoch"] == 0
    assert by_name["conv1.0.weight"]["from_epoch"] is None
    strategy = Strategy.from_yaml(done.artifact(run, "strategy.yaml").read_text())
    assert strategy.to_dict() == done.trials()[0].user_attrs[STRATEGY]


def test_the_checkpoint_is_safetensors_that_fit_the_model(done):
    state = load_file(done.artifact(done.runs()[0], CHECKPOINT_FILE))
    assert state["fc.weight"].shape[0] == 10
    assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())


def test_all_that_is_stored_has_the_rights_of_any_new_file(done, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    usual = {path.is_dir(): path.stat().st_mode for path in tmp_path.iterdir()}
    stored = [path for path in (done.folder / "mlruns").rglob("*") if not path.is_symlink()]
    assert [path.name for path in stored if path.stat().st_mode != usual[path.is_dir()]] == []


def test_the_parent_run_holds_the_configuration_and_the_winner(done):
    parent = done.parent()
    assert json.loads(done.artifact(parent, "study.json").read_text())["seed"] == 3
    best = min(done.trials(), key=lambda trial: trial.value)
    assert parent.data.tags["unfreeze.winner"] == str(best.number)
    assert parent.data.tags["unfreeze.model_uri"].startswith("models:/")
    assert parent.data.metrics["best_score"] == best.value


def test_test_metrics_are_on_the_winner_and_the_parent_only(done):
    best = min(done.trials(), key=lambda trial: trial.value)
    for number, run in done.runs().items():
        assert TEST_METRICS & set(run.data.metrics) == (TEST_METRICS if number == best.number else set())
    winner, parent = done.runs()[best.number].data.metrics, done.parent().data.metrics
    assert {name: winner[name] for name in TEST_METRICS} == {name: parent[name] for name in TEST_METRICS}


def test_trials_follow_each_other_in_time(done):
    runs = [run for _, run in sorted(done.runs().items())]
    assert all(run.info.end_time >= run.info.start_time for run in runs)
    assert all(later.info.start_time >= earlier.info.end_time for earlier, later in pairwise(runs))


@pytest.fixture
def tracker(lab) -> Tracker:
    return Tracker(lab.mlflow_uri, str(lab.folder / "mlruns" / "artifacts"), "lab", lab.spools)


def test_a_tracker_that_wrote_nothing_leaves_no_experiment(lab, tracker):
    assert [e.name for e in lab.client.search_experiments()] == ["Default"]
    tracker.open_parent(None, "lab", {})
    assert {e.name for e in lab.client.search_experiments()} == {"Default", "lab"}


def test_a_parent_run_that_is_gone_is_begun_anew(lab, tracker, caplog):
    run_id = tracker.open_parent("0" * 32, "lab", {"unfreeze.kind": "study"})
    assert lab.parent().info.run_id == run_id != "0" * 32
    assert "is gone; a new one begins" in caplog.text


def test_a_checkpoint_comes_back_as_it_was_and_can_be_deleted_twice(lab, tracker, tmp_path):
    run_id = tracker.reader.id_of(tracker.start_trial(tracker.open_parent(None, "lab", {}), "t", {"unfreeze.trial": 0}))
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    state = {"a": base.to(memory_format=torch.channels_last), "b": base[:, :1], "c": base}
    tracker.checkpoints.save(run_id, state)
    found = load_file(tracker.reader.fetch_checkpoint(run_id, tmp_path))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    tracker.checkpoints.delete(run_id)
    tracker.checkpoints.delete(run_id)
    tracker.flush()
    with pytest.raises(UnfreezeError, match=f"the checkpoint of run {run_id} cannot be read"):
        tracker.reader.fetch_checkpoint(run_id, tmp_path)


def test_a_deleted_experiment_is_refused_by_name(lab, tracker):
    tracker.open_parent(None, "lab", {})
    lab.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ConfigError, match="name: the MLflow experiment 'lab' was deleted"):
        Tracker(lab.mlflow_uri, "", "lab", lab.spools)


def test_running_finds_every_run_that_has_not_ended(lab, tracker):
    parent = tracker.open_parent(None, "lab", {"unfreeze.kind": "study"})
    child, ended = (tracker.reader.id_of(tracker.start_trial(parent, "t", {"unfreeze.trial": k})) for k in (0, 1))
    tracker.finish(ended, "failed", "x" * 9000)
    assert {id_: tags.get("unfreeze.trial") for id_, tags in tracker.reader.running().items()} == {
        parent: None,
        child: "0",
    }
    run = lab.client.get_run(ended)
    assert (run.info.status, run.data.tags["unfreeze.reason"]) == ("FAILED", "x" * 500)


def test_relative_paths_of_the_stores_are_those_of_the_working_folder(lab, monkeypatch):
    monkeypatch.chdir(lab.folder)
    tracker = Tracker("sqlite:///mlruns/mlflow.db", "mlruns/artifacts", "lab", lab.spools)
    assert tracker.uri == lab.mlflow_uri
    run_id = tracker.open_parent(None, "lab", {})
    monkeypatch.chdir("/")
    tracker.log_text(run_id, "a.txt", "a")
    tracker.flush()
    assert (lab.folder / "mlruns" / "artifacts" / "lab" / run_id / "artifacts" / "a.txt").read_text() == "a"


def test_the_folder_of_a_database_is_made(tmp_path):
    make_folder_of(f"sqlite:///{tmp_path}/here/and/there.db")
    assert (tmp_path / "here" / "and").is_dir()


def test_weights_that_mlflow_does_not_have_are_no_weights(lab):
    with pytest.raises(WeightsError, match="absent"):
        fetch_uri("models:/absent@champion", lab.mlflow_uri)


def test_the_commit_is_marked_when_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() == ""
    (tmp_path / "file").write_text("one")
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for arguments in (["init", "-q"], ["add", "file"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], check=True)
    commit = git_commit()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    (tmp_path / "file").write_text("two")
    assert git_commit() == f"{commit}+"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql+psycopg://ann:s3cret@db.example:5432/studies",
            "postgresql+psycopg://ann:***@db.example:5432/studies",
        ),
        ("https://ann:s3cret@mlflow.example", "https://ann:***@mlflow.example"),
        ("postgresql://ann:s3/c@r:et@db.example/studies", "postgresql://ann:***@db.example/studies"),
        (
            "postgresql:///studies?host=/run&user=ann&password=s3cret",
            "postgresql:///studies?host=/run&user=ann&password=***",
        ),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:///mlruns/optuna.db", "sqlite:///mlruns/optuna.db"),
    ],
)
def test_a_password_in_a_url_is_not_shown(url, shown):
    assert without_password(url) == shown


def refuse(lab, table: str, condition: str) -> None:
    """Have the MLflow database refuse rows, as a server or a disk may."""
    with sqlite3.connect(lab.folder / "mlruns" / "mlflow.db") as database:
        database.execute(
            f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'no room left'); END"
        )


def test_what_exceeds_mlflows_limits_is_written_in_as_many_calls_as_it_takes(lab, tracker, monkeypatch):
    run_id = tracker.open_parent(None, "lab", {})
    release, deliver = threading.Event(), Sink.__call__
    monkeypatch.setattr(Sink, "__call__", lambda *write, **how: release.wait() and deliver(*write, **how))
    for step in range(130):
        tracker.log(run_id, step=step, metrics={f"m{k}": step + k for k in range(10)})
    tracker.log(run_id, params={f"p{k}": k for k in range(250)}, tags={f"t{k}": k for k in range(150)})
    tracker.log_text(run_id, "a.txt", "a")
    tracker.log_json(run_id, "b.json", {"b": 1})
    assert lab.client.get_run(run_id).data.params == {}
    release.set()
    tracker.flush()
    data = lab.client.get_run(run_id).data
    assert data.params == {f"p{k}": str(k) for k in range(250)}
    assert {f"t{k}": str(k) for k in range(150)}.items() <= data.tags.items()
    for k in range(10):
        history = lab.client.get_metric_history(run_id, f"m{k}")
        assert [(m.step, m.value) for m in history] == [(step, step + k) for step in range(130)]
    assert {file.path for file in lab.client.list_artifacts(run_id)} == {"a.txt", "b.json"}


def test_runs_are_written_in_the_order_in_which_they_were_begun_and_ended(lab, tracker):
    parent = tracker.open_parent(None, "lab", {})
    runs = []
    for number in range(5):
        run = tracker.start_trial(parent, "t", {"unfreeze.trial": number})
        tracker.log(run, metrics={"score": number})
        tracker.finish(run, "complete")
        runs.append(run)
    tracker.flush()
    found = [lab.client.get_run(tracker.reader.id_of(run)) for run in runs]
    assert [run.data.metrics["score"] for run in found] == [0, 1, 2, 3, 4]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert all(later.info.start_time >= earlier.info.end_time for earlier, later in pairwise(found))


def test_a_refused_write_names_the_store_and_the_reason_and_leaves_the_tracker_usable(lab, tracker):
    run_id = tracker.open_parent(None, "lab", {})
    refuse(lab, "metrics", "NEW.key = 'bad'")
    tracker.log(run_id, metrics={"bad": 1.0})
    with pytest.raises(WriteError, match=rf"^MLflow at {lab.mlflow_uri} cannot be written to: .*no room left"):
        tracker.flush()
    tracker.log(run_id, metrics={"good": 1.0})
    tracker.flush()
    assert lab.client.get_run(run_id).data.metrics == {"good": 1.0}


def test_the_checkpoint_of_a_run_that_is_gone_needs_no_deleting(lab, tracker):
    tracker.checkpoints.delete("0" * 32)
    tracker.flush()


def test_a_trial_whose_run_cannot_be_written_fails_with_the_reason_and_the_study_goes_on(lab):
    is_first = "NEW.run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'unfreeze.trial' AND value = '0')"
    refuse(lab, "metrics", f"NEW.key = 'score' AND {is_first}")
    assert lab.run() == 0
    assert lab.outcomes() == ["failed", "complete"]
    assert lab.statuses() == ["FAILED", "FINISHED"]
    assert "no room left" in lab.trials()[0].user_attrs[REASON]
    assert "no room left" in lab.runs()[0].data.tags["unfreeze.reason"]
    assert lab.checkpoints() == {1}


def test_a_study_whose_runs_cannot_be_begun_ends_with_1_and_the_reason_and_tells_no_trial(lab, capsys):
    refuse(lab, "tags", "NEW.key = 'unfreeze.trial' AND NEW.value = '1'")
    assert lab.run() == 1
    assert "cannot be written to" in (said := capsys.readouterr().err)
    assert "no room left" in said
    assert lab.outcomes() == ["complete", None]
    assert lab.statuses() == ["FINISHED"]
    assert lab.parent().info.status == "FAILED"


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"?"])
def test_a_damaged_checkpoint_is_one_error_that_names_the_artifact(lab, tracker, tmp_path, damage):
    run = tracker.start_trial(tracker.open_parent(None, "lab", {}), "t", {"unfreeze.trial": 0})
    tracker.checkpoints.save(run, {"a": torch.zeros(3)})
    run_id = tracker.reader.id_of(run)
    file = lab.artifact(lab.client.get_run(run_id), CHECKPOINT_FILE)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamagedFileError, match=f"the checkpoint of run {run_id} is damaged: .*{file}"):
        tracker.reader.fetch_checkpoint(run, tmp_path)
