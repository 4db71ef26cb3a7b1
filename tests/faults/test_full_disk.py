"""A disk that is full in the middle of a study, really: a small file system, filled to the last byte."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import full_disk
import pytest
from full_disk import FILLER, fill, full_after
from lab import SMALL, Lab
from optuna.trial import TrialState

from search.processes import owner
from search.study import lifecycle
from search.trials import sampling

EPOCHS = 2
STUDY = {"strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": EPOCHS}, "metric": "loss"}
# A state after the first epoch, and then after each for which that takes no more than a fiftieth of the time.
KEPT = {"keep": 2, "every_minutes": 1e-6}
# How many epochs there are until two trials of four are told, and until their best is confirmed by its first seed.
TWO_TOLD, CONFIRMED_ONCE = 2 * EPOCHS, 5 * EPOCHS


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Path]]:
    """Mounts file systems of 32 MB."""
    mounted: list[Path] = []

    def mount(folder: Path) -> Path:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def run_into_full(lab: Lab, disk: Path, epochs: int, *keys: str) -> int:
    """Run four trials, on a disk that is full after so many epochs, and give it room again.

    Its process ends then, which this one does not: it goes by the name of one that has ended.
    """
    ended = json.dumps(json.loads(owner()) | {"started": 0.0})
    with full_after(epochs, disk), pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "owner", lambda: ended)
        code = lab.run("budget.trials=4", *keys)
    (disk / FILLER).unlink()
    return code


def check_error(err: str) -> None:
    """One line says that there is no room."""
    assert "Traceback" not in err
    assert len(re.findall(r"^error: .*(?:No space left on device|disk is full)", err, flags=re.MULTILINE)) == 1


def check_whole(lab: Lab, told_before: dict[int, float], kept: int = 2) -> None:
    """The study has been brought to its end, with what had been told before as it was."""
    trials = lab.trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 4
    assert {number: trials[number].value for number in told_before} == told_before
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert {run.info.status for run in lab.all_runs()} <= {"FINISHED", "KILLED", "FAILED"}
    assert lab.checkpoints() == {trial.number for trial in sorted(complete, key=lambda trial: trial.value)[:kept]}
    assert lab.parent().info.status == "FINISHED"


def told(lab: Lab) -> dict[int, float]:
    return {trial.number: trial.value for trial in lab.trials() if trial.state == TrialState.COMPLETE}


@pytest.mark.slow
def test_a_study_whose_stores_are_full_stops_with_one_message_and_goes_on_once_there_is_room(
    tmp_path, empty_mlflow, small_disk
):
    folder = small_disk(tmp_path / "lab")
    lab = Lab(folder, empty_mlflow, **STUDY, checkpoints=KEPT)
    # In a process of its own, which ends while the disk is full.
    command = [str(TWO_TOLD), str(folder), f"study={lab.file}", "budget.trials=4"]
    process = lab.start_code(Path(full_disk.__file__).read_text(), *command)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    check_error(err)
    (folder / FILLER).unlink()
    before = told(lab)
    assert len(before) >= 2
    assert lab.run("budget.trials=4") == 0
    check_whole(lab, before)


def test_a_study_whose_artifacts_have_no_room_goes_on_once_there_is(tmp_path, empty_mlflow, small_disk, capsys):
    lab = Lab(tmp_path, empty_mlflow, **STUDY, checkpoints=KEPT)
    disk = small_disk(tmp_path / "mlruns" / "artifacts")
    assert run_into_full(lab, disk, TWO_TOLD) == 1
    check_error(capsys.readouterr().err)
    before = told(lab)
    assert len(before) >= 2
    assert lab.run("budget.trials=4") == 0
    check_whole(lab, before)


def test_a_full_disk_while_the_winner_is_logged_is_said_in_one_line(
    tmp_path, empty_mlflow, small_disk, monkeypatch, capsys
):
    lab = Lab(tmp_path, empty_mlflow, **STUDY, checkpoints=KEPT)
    disk = small_disk(tmp_path / "mlruns" / "artifacts")
    crown = lifecycle.crown

    def crowning(*arguments):
        fill(disk)
        return crown(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "crown", crowning)
        assert lab.run("budget.trials=2") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert re.search(r"^error: .*No space left on device.*; make room, then run the same command again$", err, re.M)
    before = told(lab)
    assert len(before) == 2
    (disk / FILLER).unlink()
    assert lab.run("budget.trials=2") == 0
    assert told(lab) == before
    assert lab.parent().info.status == "FINISHED"


def test_a_full_disk_while_the_best_are_confirmed_is_no_strategys_failure(tmp_path, empty_mlflow, small_disk, capsys):
    folder = small_disk(tmp_path / "lab")
    lab = Lab(folder, empty_mlflow, **STUDY, checkpoints=KEPT)
    keys = ("confirm.seeds=4", "confirm.top=1")

    def scores() -> dict[str, float]:
        confirmed = lab.study.user_attrs.get("confirmations", {})
        return next(iter(confirmed.values()), {})

    assert run_into_full(lab, folder, CONFIRMED_ONCE, *keys) == 1
    check_error(capsys.readouterr().err)
    before, trials = scores(), told(lab)
    assert len(before) == 1
    assert lab.run("budget.trials=4", *keys) == 0
    check_whole(lab, trials)
    assert scores().items() >= before.items()
    assert len(scores()) == 4
    assert None not in scores().values()


def test_a_trial_whose_checkpoint_has_no_room_is_tried_again_once_there_is(tmp_path, empty_mlflow, small_disk, capsys):
    lab = Lab(tmp_path, empty_mlflow, **STUDY, checkpoints={"keep": 4, "every_minutes": 0})
    disk = small_disk(tmp_path / "mlruns" / "cache")
    assert run_into_full(lab, disk, TWO_TOLD) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: a checkpoint cannot be written below .*: .*No space left", error)
    before = told(lab)
    assert lab.run("budget.trials=4") == 0
    check_whole(lab, before, kept=4)


def test_trials_train_on_where_their_states_have_no_room(tmp_path, empty_mlflow, small_disk, capsys):
    lab = Lab(tmp_path, empty_mlflow, **STUDY, checkpoints=KEPT)
    (tmp_path / "mlruns" / "cache").mkdir()
    disk = small_disk(tmp_path / "mlruns" / "cache" / "running")
    assert run_into_full(lab, disk, TWO_TOLD) == 0
    complaints = re.findall(
        r"trial (\d+) could not resume from here if it were killed: .*: No space left on device",
        capsys.readouterr().out,
    )
    assert complaints == ["2", "3"]
    check_whole(lab, {})
    assert not list(disk.rglob("*.part"))
