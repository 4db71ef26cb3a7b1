"""One study whose processes are killed fifty times in a row, at random moments, and which comes to its end."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

import psutil
import pytest
from lab import SMALL, Lab
from optuna.trial import FrozenTrial, TrialState

from search.storage import ATTEMPT, OUTCOME, OWNER, REASON, RETRY_OF, RUN_ID
from search.tracking import CHECKPOINT_FILE

KILLS, WITH_WORKERS, RETRIES, EPOCHS, KEPT = 50, 8, 2, 6, 3
STUDY = {
    "strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": EPOCHS},
    "metric": "loss",
    "retries": RETRIES,
    "checkpoints": {"keep": KEPT, "every_minutes": 0.001},
    "budget": {"trials": None, "hours": 1.0},
}


def kill(*processes: psutil.Process) -> None:
    """Kill them, as nearly at once as it goes."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def kill_by_itself(lab: Lab, random: Random) -> int:
    """Start the search in one process and kill that at some moment of its start or, more often, of its trials."""
    process = lab.start()
    if random.random() < 0.8:
        wait_for_training(lab, lambda: {process.pid})
    time.sleep(random.uniform(0.0, 1.2))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return 1


def kill_of_several(lab: Lab, random: Random) -> int:
    """Start the search with two workers; kill a worker or two, then the command, alone or with all workers."""
    process = lab.start("executor.trials_per_device=2")
    command = psutil.Process(process.pid)
    kills = random.randint(2, 3)
    for kill_number in range(kills):
        wait_for_training(lab, lambda: {child.pid for child in command.children(recursive=True)})
        time.sleep(random.uniform(0.0, 1.2))
        if kill_number < kills - 1:
            kill(random.choice(command.children(recursive=True)))
        else:
            kill(command, *(command.children(recursive=True) if random.random() < 0.5 else ()))
    assert process.wait() == -signal.SIGKILL
    return kills


def wait_for_training(lab: Lab, pids: Callable[[], set[int]]) -> None:
    """Until one of these processes trains something."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if pids() & {json.loads(trial.user_attrs[OWNER])["pid"] for trial in lab.trials() if is_owned(trial)}:
            return
        time.sleep(0.1)
    raise AssertionError("nothing is trained")


def is_owned(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and OWNER in trial.user_attrs


def told(lab: Lab) -> dict[int, FrozenTrial]:
    return {trial.number: trial for trial in lab.trials() if trial.state.is_finished()}


@pytest.mark.slow
def test_fifty_kills_lose_and_repeat_nothing(new_lab):
    lab, random = new_lab(**STUDY), Random(0)
    # So that there is a study to look at.
    assert lab.run("budget.trials=1") == 0
    before, kills = told(lab), 0
    while kills < KILLS:
        # Workers take long to start.
        kills += (kill_of_several if kills < WITH_WORKERS else kill_by_itself)(lab, random)
        now = told(lab)
        assert {number: now.get(number) for number in before} == before
        before = now
    wait_for_orphans(lab)
    waiting = sum(not trial.state.is_finished() for trial in lab.trials())
    counted = sum(trial.user_attrs.get(OUTCOME) != "killed" for trial in before.values())
    assert lab.run(f"budget.trials={counted + waiting + 2}") == 0
    trials = lab.trials()
    assert {number: trials[number] for number in before} == before
    check_trials(trials)
    check_runs(lab, trials)
    assert not list((lab.folder / "mlruns" / "cache" / "running").rglob("*.pt"))


def wait_for_orphans(lab: Lab) -> None:
    """Until workers whose command was killed have seen that and queued their trials again."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        owners = {json.loads(trial.user_attrs[OWNER])["pid"] for trial in lab.trials() if is_owned(trial)}
        if not any(map(psutil.pid_exists, owners)):
            return
        time.sleep(0.1)


def complete(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def check_trials(trials: list[FrozenTrial]) -> None:
    """Every killed trial was tried again, once, and not too often."""
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    retried = Counter(trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs)
    # Of one that had drawn nothing and was queued with nothing there is nothing to try again; the next one draws that.
    killed = [
        trial.number
        for trial in trials
        if trial.user_attrs.get(OUTCOME) == "killed" and (trial.params or "fixed_params" in trial.system_attrs)
    ]
    assert retried == Counter(killed)
    assert len(killed) >= KILLS / 2
    for trial in trials:
        assert trial.user_attrs.get(ATTEMPT, 0) <= RETRIES
        if trial.user_attrs.get(OUTCOME) == "failed":
            assert trial.user_attrs[REASON] == f"its process ended, at attempt {RETRIES + 1} of {RETRIES + 1}"


def check_runs(lab: Lab, trials: list[FrozenTrial]) -> None:
    """Every trial has its run, with all that was logged; none is left running, the best alone have checkpoints."""
    runs = {run.info.run_id: run for run in lab.all_runs()}
    kept = {trial.number for trial in sorted(complete(trials), key=lambda trial: trial.value)[:KEPT]}
    assert "RUNNING" not in {run.info.status for run in runs.values()}
    for trial in complete(trials):
        run = runs.pop(trial.user_attrs[RUN_ID])
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in lab.client.get_metric_history(run.info.run_id, "train_loss")]
        assert sorted(steps) == list(range(1, EPOCHS + 1))
        assert lab.artifact(run, CHECKPOINT_FILE).exists() == (trial.number in kept)
    del runs[lab.parent().info.run_id]
    assert {run.info.status for run in runs.values()} <= {"KILLED", "FAILED"}
    assert not any(lab.artifact(run, CHECKPOINT_FILE).exists() for run in runs.values())
