"""A trial is reproduced from what its run says."""

import pytest
from lab import SMALL

from search.rerun import main
from search.study.reproduction import difference


@pytest.fixture(scope="module")
def searched(new_lab):
    lab = new_lab(
        strategy=SMALL["strategy"] | {"epochs": 3, "augment": "light", "layer_decay": {"low": 0.6, "high": 0.9}},
        pruner={"name": "median", "startup_trials": 0, "warmup_epochs": 0},
        probe_sweep=4,
        presets={"probe": {"depth": 0}, "all": {"depth": 1.0}},
    )
    lab.train("budget.trials=4")
    return lab


def again(lab, number: int, *overrides: str) -> int:
    return main([lab.runs()[number].info.run_id, f"tracking.uri={lab.mlflow_uri}", *overrides])


def test_every_trial_of_a_study_is_reproduced(searched, capsys):
    for number in searched.runs():
        assert again(searched, number) == 0
        said = capsys.readouterr().out
        assert "The trial was reproduced" in said
        assert "train_loss" in said
        assert "val_accuracy" in said


def test_a_trial_of_another_seed_is_not_reproduced(searched, capsys):
    assert again(searched, 1, "data.split_seed=5") == 1
    assert "The trial was NOT reproduced" in capsys.readouterr().out


def test_nothing_is_written_to_the_stores(searched):
    def entries() -> tuple[list[str], int]:
        return sorted(run.info.run_id for run in searched.all_runs()), len(searched.trials())

    before = entries()
    assert again(searched, 0) == 0
    assert entries() == before


def test_what_is_no_trial_is_refused(searched, capsys):
    store = f"tracking.uri={searched.mlflow_uri}"
    assert main(["nobody", store]) == 2
    assert "run nobody cannot be read at sqlite:///" in capsys.readouterr().err
    assert main([searched.parent().info.run_id, store]) == 2
    assert "is not that of a trial" in capsys.readouterr().err


def test_differences_are_of_the_larger_value_and_numbers_that_are_none_agree():
    assert difference(2.0, 1.0) == 0.5
    assert difference(0.1, 0.2) == pytest.approx(0.1)
    assert difference(float("nan"), float("nan")) == 0
    assert difference(float("nan"), 1.0) == float("inf")
