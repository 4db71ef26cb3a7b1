"""One study trained by several processes: workers of one command, or several commands."""

import json
import os
import signal
import time

import psutil
import pytest
from copies import Started
from lab import SMALL, Lab, finish, is_counted, owners, train_both
from optuna.trial import TrialState

from search.executors.pool import TAG
from search.processes import Orders
from search.storage import ATTEMPT, OWNER, PRESET, outcome_of

TWO = "executor.trials_per_device=2"
# Epochs that take so long that no machine comes to their end: these trials are killed.
LONG = {"strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": 1000}, "metric": "loss"}

# The command. After its first epoch, each process that trains waits until so many processes have trained an epoch. A
# signal may end the first of them there.
MEETING = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from search.run import main
from search.trials.record import Record

count, number, *arguments = sys.argv[1:]
add, ended = Record.add, Path("ended")

def adding(*args, **kwargs):
    add(*args, **kwargs)
    Path(f"trains-{os.getpid()}").touch()
    if int(number):
        with suppress(FileExistsError):
            ended.touch(exist_ok=False)
            os.kill(os.getpid(), int(number))
    while len(list(Path().glob("trains-*"))) < int(count):
        time.sleep(0.01)

Record.add = adding
sys.exit(main(arguments))
"""


def start_meeting(lab: Lab, count: int, *overrides: str, ended_by: int = 0) -> Started:
    """Start a command whose processes wait for each other; ``ended_by`` is the signal that ends one of them, or 0."""
    return lab.start_code(MEETING, str(count), str(ended_by), f"study={lab.file}", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.name=[test_resnet, test_vit]", "strategy.depth={choices: [0, 2]}", "costs=[seconds]"],
        ["data.columns={label: [a, b]}", "data.manifest={train: a.csv}", "budget={trials: null, hours: 0.5}"],
    ],
)
def test_a_worker_reads_the_configuration_that_the_command_has(lab, overrides):
    config = lab.config(*overrides)
    orders = Orders(config=config, seconds=None, log_level=30)
    assert Orders.model_validate_json(orders.model_dump_json()).config == config


@pytest.mark.slow
def test_two_workers_train_the_budget_and_no_more_and_equal_strategies_get_seeds_of_their_own(new_lab):
    alike = SMALL["strategy"] | {"depth": 1.0, "lr": 1e-3, "epochs": 2}
    lab = new_lab(strategy=alike, metric="loss", checkpoints={"keep": 2})
    code, out, err = finish(start_meeting(lab, 2, "budget.trials=7", TWO))
    assert code == 0, err
    assert lab.outcomes() == ["complete"] * 7
    assert len(set(owners(lab))) == 2
    assert sorted(int(run.data.params["seed"]) for run in lab.runs().values()) == list(range(7))
    assert {run.info.status for run in lab.all_runs()} == {"FINISHED"}
    best = sorted(lab.trials(), key=lambda trial: trial.value)[:2]
    assert lab.checkpoints() == {trial.number for trial in best}
    assert out.count("complete  loss") == 7
    assert "Workers 2 processes train at once, 1 CPU threads each" in out
    assert lab.parent().data.tags[TAG] == "2"
    # The same command has nothing left to do.
    assert lab.run("budget.trials=7", TWO) == 0
    assert len(lab.trials()) == 7


@pytest.mark.slow
def test_a_worker_killed_in_mid_trial_is_replaced_and_its_trial_tried_again(new_lab):
    lab = new_lab(**LONG)
    # The others wait in their first trials until the worker has been replaced.
    process = start_meeting(lab, 3, "budget.trials=3", "strategy.epochs=3", TWO, ended_by=signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, err
    outcomes = lab.outcomes()
    assert sorted(outcomes) == ["complete"] * 3 + ["killed"]
    killed = lab.trials()[outcomes.index("killed")]
    (again,) = [trial for trial in lab.trials() if trial.user_attrs.get("retry_of") == killed.number]
    assert again.params == killed.params
    assert again.user_attrs[ATTEMPT] == 1
    counted = [trial for trial in lab.trials() if is_counted(trial)]
    assert len({trial.params["lr"] for trial in counted}) == 3
    assert sorted(run.info.status for run in lab.all_runs()) == ["FINISHED"] * 4 + ["KILLED"]
    assert "A worker has ended early (SIGKILL)" in out
    assert f"trial {killed.number} had been killed; it is tried again" in out
    assert len(set(owners(lab))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["ctrl-c", "kill -9"])
def test_when_the_command_is_stopped_workers_queue_their_trials_again_and_end(new_lab, number, code):
    lab = new_lab(**LONG)
    process = lab.start("budget.trials=4", TWO)
    lab.wait_until(train_both, process)
    workers = [psutil.Process(pid) for pid in owners(lab)]
    process.send_signal(number)
    assert finish(process)[0] == code
    _, alive = psutil.wait_procs(workers, timeout=0 if number == signal.SIGINT else 60)
    assert not alive
    assert [trial.state.name for trial in lab.trials()] == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert lab.outcomes()[:2] == ["killed", "killed"]
    first, second, *waiting = lab.trials()
    assert {t.system_attrs["fixed_params"]["lr"] for t in waiting} == {first.params["lr"], second.params["lr"]}
    assert [trial.user_attrs[ATTEMPT] for trial in waiting] == [0, 0]
    assert lab.statuses() == ["KILLED", "KILLED"]
    if number == signal.SIGINT:
        assert lab.parent().info.status == "KILLED"


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_study(new_lab):
    lab = new_lab(**LONG)
    process = lab.start("budget.trials=9", "retries=9", TWO)
    killed: set[int] = set()
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        for trial in lab.trials() if killed or "lab" in names(lab) else []:
            if trial.state == TrialState.RUNNING and OWNER in trial.user_attrs:
                pid = json.loads(trial.user_attrs[OWNER])["pid"]
                if pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    code, _, err = finish(process)
    assert code == 1
    assert "workers have ended before any trial ended; the last: SIGKILL" in err
    assert "RUNNING" not in [run.info.status for run in lab.all_runs()]
    assert TrialState.RUNNING not in [trial.state for trial in lab.trials()]


def names(lab) -> list[str]:
    import optuna

    return optuna.get_all_study_names(lab.optuna_url)


@pytest.mark.slow
def test_two_commands_that_begin_a_new_study_at_once_share_its_budget(new_lab):
    presets = {"one": {"depth": 1.0, "lr": 1e-3}, "two": {"depth": 1.0, "lr": 2e-3}}
    lab = new_lab(**LONG, presets=presets, probe_sweep=8)
    (lab.folder / "mlruns" / "mlflow.db").unlink()
    both = [start_meeting(lab, 2, "budget.trials=8", "strategy.epochs=2") for _ in range(2)]
    for process in both:
        code, out, err = finish(process)
        assert code == 0, err
        assert "Winner: trial " in out
    assert lab.outcomes() == ["complete"] * 8
    assert len(set(owners(lab))) == 2
    queued = [trial.user_attrs[PRESET] for trial in lab.trials() if PRESET in trial.user_attrs]
    assert sorted(queued) == ["one", "two"]
    assert len({trial.params["lr"] for trial in lab.trials()}) == 8
    assert {run.info.status for run in lab.all_runs()} == {"FINISHED"}
    assert lab.parent().data.tags["unfreeze.kind"] == "study"


@pytest.mark.slow
def test_auto_measures_and_says_what_it_chose(new_lab):
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 1.0, "epochs": 3}, metric="loss")
    code, out, err = finish(lab.start("budget.trials=10", "executor.trials_per_device=auto", "threads=2"))
    assert code == 0, err
    assert [outcome_of(trial) for trial in lab.trials()] == ["complete"] * 10
    said = [line for line in out.splitlines() if line.startswith("Workers ")]
    assert said[0].endswith("one to begin with")
    assert " with 1 images a second; one takes " in said[1]
    tag = lab.parent().data.tags[TAG]
    assert tag.split(":")[1] in said[-1]
    assert int(tag[0]) in (1, 2, 3)
    assert {run.info.status for run in lab.all_runs()} == {"FINISHED"}
