"""A disk that is full in the middle of a study, really: a small file system, filled to the last byte."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from lab import SMALL, Lab
from optuna.trial import FrozenTrial, TrialState

LONG = SMALL["strategy"] | {"depth": 1.0, "epochs": 8}
# A state after every epoch, where that takes no more than a fiftieth of the time.
KEPT = {"keep": 2, "every_minutes": 0.001}


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Path]]:
    """Mounts file systems of 32 MB."""
    mounted: list[Path] = []

    def mount(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return path


def two_told(trials: list[FrozenTrial]) -> bool:
    return sum(trial.state.is_finished() for trial in trials) >= 2


def run_into_full(
    lab: Lab, disk: Path, *keys: str, until: Callable[[list[FrozenTrial]], bool] = two_told
) -> tuple[int, str, str]:
    """Run four trials on a disk that is full once ``until`` holds, and give it room again; what was said."""
    process = lab.start("budget.trials=4", *keys)
    lab.wait_until(until, process)
    filler = fill(disk)
    # What was on its way out when it was filled has left room behind.
    time.sleep(0.2)
    fill(disk)
    out, err = process.communicate(timeout=300)
    filler.unlink()
    return process.returncode, out, err


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
@pytest.mark.parametrize("what", ["everything", "artifacts"])
def test_a_study_whose_stores_are_full_stops_with_one_message_and_goes_on_once_there_is_room(
    what, tmp_path, empty_mlflow, small_disk
):
    folder = tmp_path / "lab"
    folder.mkdir()
    disk = small_disk(folder) if what == "everything" else folder / "mlruns" / "artifacts"
    lab = Lab(folder, empty_mlflow, strategy=LONG, metric="loss", checkpoints=KEPT)
    if what == "artifacts":
        small_disk(disk)
    code, _, err = run_into_full(lab, disk)
    assert code == 1
    assert "Traceback" not in err
    assert len(re.findall(r"^error: .*(?:No space left on device|disk is full)", err, flags=re.MULTILINE)) == 1
    before = told(lab)
    assert len(before) >= 2
    assert lab.run("budget.trials=4") == 0
    check_whole(lab, before)


@pytest.mark.slow
def test_a_full_disk_while_the_winner_is_logged_is_said_in_one_line(tmp_path, empty_mlflow, small_disk):
    folder = tmp_path / "lab"
    folder.mkdir()
    lab = Lab(folder, empty_mlflow, strategy=LONG, metric="loss", checkpoints=KEPT)
    disk = folder / "mlruns" / "artifacts"
    disk.mkdir(parents=True)
    small_disk(disk)
    # Only one process at a time crowns a winner.
    with FileLock(folder / "mlruns" / "optuna.db.finish.lock"):
        process = lab.start("budget.trials=2")
        lab.wait_until(two_told, process)
        filler = fill(disk)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert re.search(r"^error: .*No space left on device.*; make room, then run the same command again$", err, re.M)
    before = told(lab)
    filler.unlink()
    assert lab.run("budget.trials=2") == 0
    assert told(lab) == before
    assert lab.parent().info.status == "FINISHED"


@pytest.mark.slow
def test_a_full_disk_while_the_best_are_confirmed_is_no_strategys_failure(tmp_path, empty_mlflow, small_disk):
    folder = tmp_path / "lab"
    folder.mkdir()
    disk = small_disk(folder)
    lab = Lab(folder, empty_mlflow, strategy=LONG, metric="loss", checkpoints=KEPT)
    keys = ("confirm.seeds=4", "confirm.top=1")

    def scores() -> dict[str, float]:
        confirmed = lab.study.user_attrs.get("confirmations", {})
        return next(iter(confirmed.values()), {})

    code, _, err = run_into_full(lab, disk, *keys, until=lambda _: bool(scores()))
    assert code == 1
    assert "Traceback" not in err
    assert len(re.findall(r"^error: .*(?:No space left on device|disk is full)", err, flags=re.MULTILINE)) == 1
    before, trials = scores(), told(lab)
    assert 1 <= len(before) < 4
    assert lab.run("budget.trials=4", *keys) == 0
    check_whole(lab, trials)
    assert scores().items() >= before.items()
    assert len(scores()) == 4
    assert None not in scores().values()


@pytest.mark.slow
def test_a_trial_whose_checkpoint_has_no_room_is_tried_again_once_there_is(tmp_path, empty_mlflow, small_disk):
    lab = Lab(tmp_path, empty_mlflow, strategy=LONG, metric="loss", checkpoints={"keep": 4, "every_minutes": 0})
    disk = small_disk(tmp_path / "mlruns" / "cache")
    code, _, err = run_into_full(lab, disk)
    assert code == 1
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: a checkpoint cannot be written below .*: .*No space left", error)
    before = told(lab)
    assert lab.run("budget.trials=4") == 0
    check_whole(lab, before, kept=4)


@pytest.mark.slow
def test_trials_train_on_where_their_states_have_no_room(tmp_path, empty_mlflow, small_disk):
    # Long enough for a trial to try, which it does not do more often than its cost allows.
    lab = Lab(tmp_path, empty_mlflow, strategy=LONG | {"epochs": 30}, metric="loss", checkpoints=KEPT)
    (tmp_path / "mlruns" / "cache").mkdir()
    disk = small_disk(tmp_path / "mlruns" / "cache" / "running")
    code, out, err = run_into_full(lab, disk)
    assert code == 0, err
    complaints = re.findall(
        r"trial (\d+) could not resume from here if it were killed: .*: No space left on device", out
    )
    assert complaints
    assert len(set(complaints)) == len(complaints)
    check_whole(lab, {})
    assert not list(disk.rglob("*.part"))
