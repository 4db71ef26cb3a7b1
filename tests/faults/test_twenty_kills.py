"""One study whose processes are killed twenty times in a row, from its start on, and which comes to its end."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random

import psutil
import pytest
from lab import SMALL, Lab
from optuna.trial import FrozenTrial, TrialState

from search.storage import ATTEMPT, OUTCOME, OWNER, REASON, RETRY_OF, RUN_ID
from search.tracking import CHECKPOINT_FILE

WITH_WORKERS, RETRIES, EPOCHS, KEPT = 5, 2, 6, 3
# Seconds after the start of a process, and after the start of a trial: every tenth of a second of about two trials.
AFTER_START, IN_TRAINING = (0.0, 0.5, 1.0), [k / 10 for k in range(12)]
KILLS = WITH_WORKERS + len(AFTER_START) + len(IN_TRAINING)
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


def kill_by_itself(lab: Lab, seconds: float, is_training: bool) -> None:
    """Start the search in one process and kill that so many seconds after its start or after it trains."""
    process = lab.start()
    if is_training:
        wait_for_training(lab, lambda: {process.pid})
    time.sleep(seconds)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def kill_of_several(lab: Lab, random: Random, kills: int, ends_workers: bool) -> None:
    """Start the search with two workers; kill a worker each time but the last, then the command, perhaps with all."""
    process = lab.start("executor.trials_per_device=2")
    command = psutil.Process(process.pid)
    for kill_number in range(kills):
        wait_for_training(lab, lambda: {child.pid for child in command.children(recursive=True)})
        time.sleep(random.uniform(0.0, 1.2))
        if kill_number < kills - 1:
            kill(random.choice(command.children(recursive=True)))
        else:
            kill(command, *(command.children(recursive=True) if ends_workers else ()))
    assert process.wait() == -signal.SIGKILL


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


def all_kills(lab: Lab, random: Random) -> Iterator[None]:
    """Kill, and stop after each process that was started for that."""
    # The command alone, then the command with its workers. Workers take long to start.
    for kills, ends_workers in ((2, False), (3, True)):
        yield kill_of_several(lab, random, kills, ends_workers)
    for seconds in AFTER_START:
        yield kill_by_itself(lab, seconds, is_training=False)
    for seconds in IN_TRAINING:
        yield kill_by_itself(lab, seconds, is_training=True)


@pytest.mark.slow
def test_twenty_kills_lose_and_repeat_nothing(new_lab):
    lab, random = new_lab(**STUDY), Random(0)
    # So that there is a study to look at.
    assert lab.run("budget.trials=1") == 0
    before = told(lab)
    for _ in all_kills(lab, random):
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
