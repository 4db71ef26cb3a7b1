"""One trial trained by several processes: the study's side of it."""

import os
import signal
import time

import optuna
import psutil
import pytest
from lab import SMALL, family_of, open_to_others
from optuna.trial import TrialState

from search.storage import ATTEMPT, REASON

TWO = "executor.gpus_per_trial=2"
PLAIN = SMALL["strategy"] | {"depth": 1.0, "lr": 1e-2, "optimizer": "sgd", "batch_norm": "frozen_stats"}

# The command, whose rank 1 ends by SIGKILL before its third epoch, once.
KILLED = """
import os, signal, sys
from pathlib import Path
from search import rank
from search.run import main

do, epochs = rank._Beside.do, 0

def doing(self, order, facts):
    global epochs
    epochs += order == "epoch"
    if epochs == 3 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    do(self, order, facts)

rank._Beside.do = doing
sys.exit(main(sys.argv[1:]))
"""
# The command, which waits for a collective after a signal for one second instead of five.
IMPATIENT = """
import sys
from search.processes import rank_group
from search.run import main
rank_group._SIGNAL_SECONDS = 1.0
sys.exit(main())
"""


def others_of(process) -> list[psutil.Process]:
    """The other ranks that a command has started."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == "search.rank"]


@pytest.mark.slow
def test_trials_of_two_processes_score_as_those_of_one_and_a_killed_rank_costs_one_attempt(new_lab):
    lab = new_lab(strategy=PLAIN | {"epochs": 4}, metric="loss", pruner={"name": "none"})
    process = lab.start_code(KILLED, f"study={lab.file}", "budget.trials=2", TWO)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert sorted(lab.outcomes()) == ["complete", "complete", "killed"]
    killed = lab.trials()[lab.outcomes().index("killed")]
    assert killed.user_attrs[REASON] == "rank 1 ended by SIGKILL"
    (again,) = [trial for trial in lab.trials() if trial.user_attrs.get("retry_of") == killed.number]
    assert again.user_attrs[ATTEMPT] == 1
    assert f"trial {killed.number} is tried again: rank 1 ended by SIGKILL" in out
    assert {run.info.status for run in lab.all_runs()} == {"FINISHED", "KILLED"}
    alone = new_lab(strategy=PLAIN | {"epochs": 4}, metric="loss", pruner={"name": "none"})
    alone.train("budget.trials=1")
    found = next(trial for trial in lab.trials() if trial.state == TrialState.COMPLETE)
    (expected,) = alone.trials()
    assert found.intermediate_values == pytest.approx(expected.intermediate_values, rel=1e-3)


@pytest.mark.slow
def test_when_the_command_is_stopped_no_rank_is_left(new_lab):
    lab = new_lab(strategy=PLAIN | {"epochs": 1000}, metric="loss")
    optuna.storages.RDBStorage(lab.optuna_url)
    process = lab.start_code(IMPATIENT, f"study={lab.file}", "budget.trials=2", TWO)
    lab.wait_until(lambda trials: any(len(trial.intermediate_values) >= 2 for trial in trials), process)
    others = others_of(process)
    assert open_to_others(family_of(process.pid)) == {}
    # It keeps rank 0 in a collective, where no signal is acted on.
    others[0].send_signal(signal.SIGSTOP)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143
    assert not any(other.is_running() for other in others)
    assert [trial.state.name for trial in lab.trials()] == ["FAIL", "WAITING"]
    assert lab.outcomes()[0] == "killed"
    assert lab.trials()[1].user_attrs[ATTEMPT] == 0


def test_more_gpus_than_there_are_and_trials_beside_each_other_are_refused(lab, capsys):
    assert lab.run(TWO, "executor.trials_per_device=2") == 2
    assert "2 GPUs a trial and executor.trials_per_device: 2 trials a GPU do not go together" in capsys.readouterr().err
    assert lab.run("executor.gpus_per_trial=0") == 2
    assert "executor.gpus_per_trial" in capsys.readouterr().err
