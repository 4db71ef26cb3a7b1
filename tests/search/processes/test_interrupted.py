"""A study whose process is killed or interrupted while it trains: real processes, real signals."""

import signal

import pytest
from lab import SMALL, is_counted, scored

from search.storage import ATTEMPT, OUTCOME, REASON

LONG = 6
# The fourth epoch of the second trial; the first trial has one epoch.
IN_TRAINING = ("search.trials.record", "Record", "add", "after", 5)
SPACE = SMALL["strategy"] | {"epochs": {"choices": [1, LONG]}}
PRESETS = {"short": {"epochs": 1, "lr": 1e-3}, "long": {"epochs": LONG, "lr": 1e-3}}

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(new_lab):
    return new_lab(strategy=SPACE, presets=PRESETS, metric="loss", sampler={"name": "tpe", "startup_trials": 1})


def test_after_kill_9_nothing_is_lost_or_repeated_and_the_end_is_that_of_a_study_never_killed(lab, new_lab):
    lab.start_and_end(IN_TRAINING, signal.SIGKILL, "budget.trials=3").communicate()
    before = lab.trials()
    assert [t.state.name for t in before] == ["COMPLETE", "RUNNING"]

    assert lab.run("budget.trials=3") == 0
    after = lab.trials()
    assert after[0] == before[0]
    assert lab.outcomes() == ["complete", "killed", "complete", "complete"]
    killed, again = after[1], after[2]
    assert again.params == killed.params == {"depth": 1.0, "lr": 1e-3, "epochs": LONG}
    assert (again.user_attrs["retry_of"], again.user_attrs[ATTEMPT]) == (1, 1)
    assert sum(map(is_counted, after)) == 3

    assert lab.statuses() == ["FINISHED", "KILLED", "FINISHED", "FINISHED"]
    assert lab.parent().info.status == "FINISHED"
    run = lab.runs()[1]
    assert run.data.tags["unfreeze.outcome"] == "killed"
    assert lab.checkpoints() == {0, 2, 3}

    whole = new_lab(strategy=SPACE, presets=PRESETS, metric="loss", sampler={"name": "tpe", "startup_trials": 1})
    whole.train("budget.trials=3")
    assert scored(after) == scored(whole.trials())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_signal_queues_the_trial_again_and_leaves_no_run_running(lab, number, code):
    process = lab.start_and_end(IN_TRAINING, number, "budget.trials=3")
    _, said = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in said
    assert "; the same command resumes the study" in said
    assert [t.state.name for t in lab.trials()] == ["COMPLETE", "FAIL", "WAITING"]
    _, interrupted, waiting = lab.trials()
    assert (interrupted.user_attrs[OUTCOME], interrupted.user_attrs[REASON]) == ("killed", "interrupted")
    assert waiting.system_attrs["fixed_params"] == interrupted.params
    # The trial is not to blame, so this was none of its attempts.
    assert waiting.user_attrs[ATTEMPT] == 0
    assert lab.statuses() == ["FINISHED", "KILLED"]
    assert lab.parent().info.status == "KILLED"
    assert {run.data.tags["unfreeze.outcome"] for run in lab.all_runs()} == {"complete", "killed"}
    assert lab.checkpoints() == {0}
