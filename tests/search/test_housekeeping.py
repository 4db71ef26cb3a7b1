"""Old checkpoints and caches: what goes, and what never does."""

import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from lab import Lab, finish

from search.config import HousekeepingConfig
from search.housekeeping import main
from search.storage import CHECKPOINT
from search.study.cleanup import Checkpoint, too_many


def checkpoint(days: float, mib: float) -> Checkpoint:
    return Checkpoint("pets", 0, "file:///x", int(mib * 2**20), datetime.now() - timedelta(days=days))


def test_what_is_too_old_goes_and_of_the_rest_the_oldest_until_the_bound_is_kept():
    old, middle, new = checkpoint(30, 512), checkpoint(10, 512), checkpoint(1, 512)
    everyone = [new, old, middle]
    assert too_many(everyone, HousekeepingConfig(days=20)) == [old]
    assert too_many(everyone, HousekeepingConfig(gib=1)) == [old]
    assert too_many(everyone, HousekeepingConfig(gib=0.6)) == [old, middle]
    assert too_many(everyone, HousekeepingConfig(days=5, gib=0.1)) == [old, middle, new]
    assert too_many(everyone, HousekeepingConfig(days=60, gib=2)) == []


def search(new_lab) -> Lab:
    lab = new_lab(checkpoints={"keep": 3}, reuse="on")
    assert lab.run("budget.trials=4") == 0
    assert len(lab.checkpoints()) == 3
    return lab


@pytest.fixture
def searched(new_lab) -> Lab:
    """A finished study of the test's own, of which things are removed."""
    return search(new_lab)


@pytest.fixture(scope="module")
def untouched(new_lab) -> Lab:
    """A finished study of which nothing is removed."""
    return search(new_lab)


def tidy(lab, *options: str) -> int:
    stores = [f"store.url={lab.optuna_url}", f"tracking.uri={lab.mlflow_uri}"]
    return main(["lab", *stores, "--cache", str(lab.folder / "mlruns" / "cache"), *options])


def entries(lab) -> list[Path]:
    cache = lab.folder / "mlruns" / "cache"
    return [*cache.glob("images/*/*"), *cache.glob("activations/*")]


def test_the_winners_checkpoint_and_its_model_stay(searched, capsys):
    winner = searched.study.user_attrs["winner"]
    assert tidy(searched, "--gib", "0", "--dry-run") == 0
    assert capsys.readouterr().out.endswith("2 would be removed\n")
    assert len(searched.checkpoints()) == 3
    assert tidy(searched, "--gib", "0") == 0
    assert searched.checkpoints() == {winner["trial"]}
    assert capsys.readouterr().out.count("checkpoint of trial ") == 2
    searched.train("budget.trials=5")
    assert CHECKPOINT in searched.trials()[winner["trial"]].user_attrs


def test_cached_images_and_activations_go_once_nobody_has_used_them_for_so_long(searched, capsys):
    found = entries(searched)
    assert len(found) >= 2
    assert tidy(searched, "--days", "1") == 0
    assert entries(searched) == found
    for path in found:
        os.utime(path, (0, time.time() - 2 * 86_400))
    assert tidy(searched, "--days", "1") == 0
    assert entries(searched) == []
    said = capsys.readouterr().out
    assert all(str(path) in said for path in found)
    # They are made anew.
    searched.train("budget.trials=5")


def test_what_to_remove_has_to_be_said(untouched, capsys):
    assert tidy(untouched) == 2
    assert "say what is too old or too much: --days N, --gib N" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [(("--days", "-1"), "--days: -1"), (("--gib", "-0.5"), "--gib: -0.5")])
def test_ages_and_sizes_that_cannot_be_are_refused(untouched, capsys, words, said):
    assert tidy(untouched, *words) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_was_deleted_for_good_is_passed_over(searched, capsys):
    gone = next(number for number in searched.checkpoints() if number != searched.study.user_attrs["winner"]["trial"])
    run = searched.runs()[gone].info.run_id
    searched.client.delete_run(run)
    command = (
        f"import os; os.environ['MLFLOW_TRACKING_URI'] = '{searched.mlflow_uri}'; from mlflow.cli import cli; cli()"
    )
    process = searched.start_code(command, "gc", "--backend-store-uri", searched.mlflow_uri, "--run-ids", run)
    assert finish(process)[0] == 0
    capsys.readouterr()
    assert tidy(searched, "--gib", "0") == 0
    assert capsys.readouterr().out.endswith("1 were removed\n")


def test_mlflow_that_cannot_be_read_is_said(untouched, capsys):
    stores = [f"store.url={untouched.optuna_url}", "tracking.uri=http://127.0.0.1:9"]
    assert main(["lab", *stores, "--gib", "0"]) == 2
    assert "study 'lab' cannot be read at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_study_that_is_running_keeps_everything(untouched, capsys):
    untouched.study.ask()
    assert tidy(untouched, "--gib", "0") == 0
    assert len(untouched.checkpoints()) == 3
