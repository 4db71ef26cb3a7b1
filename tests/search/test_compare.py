"""Trials of studies side by side: a table, CSV and JSON."""

import io
import json

import pandas as pd
import pytest
from lab import SMALL

from search.compare import main
from search.scheduling import ranked
from search.storage import score_of

SPACE = {"depth": {"low": 0.0, "high": 1.0}, "lr": {"choices": [1e-3, 100.0]}, "optimizer": "sgd", "momentum": 0.99}
SPACE |= {"epochs": 2, "batch_size": 8, "loss": "mse"}
PRESETS = {"one": {"lr": 1e-3, "depth": 0.5}, "two": {"lr": 1e-3, "depth": 0}, "broken": {"lr": 100.0, "depth": 1.0}}


@pytest.fixture(scope="module")
def searched(new_lab):
    """A study of which one trial has failed."""
    lab = new_lab(strategy=SPACE, presets=PRESETS, metric="loss", costs=["parameters_trained"])
    assert lab.run("budget.trials=3") == 0
    assert sorted(lab.outcomes()) == ["complete", "complete", "failed"]
    return lab


def records(lab, capsys, *words: str) -> list[dict]:
    assert main([str(lab.file), "--format", "json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_ranks_the_trials_and_shows_in_what_they_differ(searched, capsys):
    assert main([str(searched.file)]) == 0
    title, header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert title == "Trials of lab, the best first"
    # Both have the same rate.
    assert header.split() == ["rank", "trial", "loss", "test_loss", "depth", "seconds"]
    best = ranked(searched.study)
    assert [row.split()[:3] for row in rows] == [
        [str(rank), str(trial.number), f"{score_of(trial):.4f}"] for rank, trial in enumerate(best, start=1)
    ]


def test_json_has_every_field_of_every_strategy_and_numbers_are_numbers(searched, capsys):
    found = records(searched, capsys)
    assert [one["rank"] for one in found] == [1, 2]
    for one, trial in zip(found, ranked(searched.study), strict=True):
        assert one["score"] == pytest.approx(trial.values[0], rel=1e-9)
        assert one["parameters_trained"] == trial.values[1]
        assert one["run"] == searched.runs()[trial.number].info.run_id
        assert (one["lr"], one["epochs"], one["optimizer"]) == (1e-3, 2, "sgd")
        assert one["depth_blocks"] == {0.6: 3, 0.0: 0}[trial.params["depth"]]
        assert one["name"] == searched.runs()[trial.number].info.run_name.partition(" · ")[2]


def test_trials_that_did_not_complete_are_shown_on_request_with_their_reasons(searched, capsys):
    *complete, failed = records(searched, capsys, "--all")
    assert len(complete) == 2
    assert (failed["rank"], failed["score"], failed["outcome"]) == (None, None, "failed")
    assert "training loss became nan in epoch" in failed["reason"]
    assert main([str(searched.file), "--all"]) == 0
    assert "failed" in capsys.readouterr().out


def test_csv_is_what_pandas_reads(searched, capsys):
    assert main([str(searched.file), "--format", "csv", "--top", "1"]) == 0
    (row,) = pd.read_csv(io.StringIO(capsys.readouterr().out)).to_dict("records")
    assert row["rank"] == 1
    assert row["lr"] == 1e-3


def test_a_file_is_written_in_the_form_that_its_name_asks_for(searched, tmp_path, capsys):
    assert main([str(searched.file), "--out", str(tmp_path / "trials.csv")]) == 0
    assert "2 trials written to" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 2
    assert main([str(searched.file), "--out", str(tmp_path / "trials.txt")]) == 2
    assert "ends in neither .csv nor .json" in capsys.readouterr().err
    assert main([str(searched.file), "--out", str(tmp_path / "none" / "trials.csv")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_several_studies_of_a_store_stand_in_one_table(new_lab, capsys):
    lab = new_lab(strategy=SMALL["strategy"])
    lab.train("budget.trials=1")
    lab.train("budget.trials=1", "name=other", "metric=loss")
    capsys.readouterr()
    words = [f"store.url={lab.optuna_url}", f"tracking.uri={lab.mlflow_uri}"]
    for named in (["lab", "other"], []):
        assert main([*named, *words]) == 0
        said = capsys.readouterr().out
        assert "Trials of lab, other, the best first" in said
        assert "accuracy 0." in said
        header = next(line.split() for line in said.splitlines() if "rank" in line)
        assert header[:2] == ["study", "model"]
        assert "test_resnet" in said
        assert "data" not in header
        assert "loss 2." in said


def test_studies_of_other_images_are_told_apart(new_lab, capsys):
    lab = new_lab()
    lab.train("budget.trials=1")
    lab.train("budget.trials=1", "name=fewer", "data.limit_train=48")
    capsys.readouterr()
    assert main(["lab", "fewer", f"store.url={lab.optuna_url}", f"tracking.uri={lab.mlflow_uri}"]) == 0
    said = capsys.readouterr().out
    assert "data" in next(line.split() for line in said.splitlines() if "rank" in line)
    assert "Scores on other images cannot be compared" in said


def test_a_study_that_is_nowhere_is_named_with_the_nearest(searched, tmp_path, capsys, monkeypatch):
    stores = [f"store.url={searched.optuna_url}"]
    assert main(["labb", *stores]) == 2
    assert "study 'labb' is not in sqlite:///" in (said := capsys.readouterr().err)
    assert "did you mean 'lab'?" in said
    assert main(["lab", "budget.trials=3"]) == 2
    assert "budget.trials: where there is no study file, only stores are chosen" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["lab"]) == 2
    assert "store.url: 'sqlite:///mlruns/optuna.db' is not there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
