"""A trial that takes too long is given up, whatever it waits for."""

import queue
import signal
import threading
import time

import pytest
from lab import SMALL, finish

from search.processes import TimeIsOverError, time_limit
from search.processes.timeout import TrialTimeoutError
from search.storage import REASON

LONG = {"strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": 100_000}, "metric": "loss"}


@pytest.mark.parametrize(
    "wait",
    [lambda: time.sleep(60), lambda: queue.Queue().get(), lambda: threading.Event().wait(60)],
    ids=["sleep", "queue", "event"],
)
def test_what_waits_for_ever_is_ended(wait):
    began = time.monotonic()
    with pytest.raises(TrialTimeoutError, match=r"longer than budget\.trial_minutes: 0\.002"), time_limit(0.002):
        wait()
    assert time.monotonic() - began < 30


def test_whichever_comes_first_ends_what_waits():
    with pytest.raises(TimeIsOverError), time_limit(1.0, time.monotonic() + 0.05):
        time.sleep(60)
    with pytest.raises(TrialTimeoutError), time_limit(0.001, time.monotonic() + 60):
        time.sleep(60)


def test_an_error_of_a_library_that_was_interrupted_is_told_as_the_timeout():
    with pytest.raises(TrialTimeoutError), time_limit(0.002):
        try:
            time.sleep(60)
        except TrialTimeoutError as error:
            raise OSError("the commit failed") from error


def test_what_ends_in_time_is_left_alone():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(0.01):
        pass
    with time_limit(None):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_trial_that_takes_too_long_has_failed_and_the_study_goes_on(new_lab):
    lab = new_lab(**LONG)
    assert lab.run("budget.trials=2", "budget.trial_minutes=0.02") == 1
    assert lab.outcomes() == ["failed", "failed"]
    for trial in lab.trials():
        assert trial.user_attrs[REASON] == "it took longer than budget.trial_minutes: 0.02"
    assert lab.statuses() == ["FAILED", "FAILED"]
    # Those that are in time are not hurt by those that were not.
    lab.train("budget.trials=3", "budget.trial_minutes=1", "strategy.epochs=2")
    assert lab.outcomes() == ["failed", "failed", "complete"]


# Its workers are copies of the command, and the first of them hangs in the first trial. Blocked signals stand for a
# library that never returns to Python.
HANGING = """
import signal, sys, time
from pathlib import Path
import search.trials.trial
from search.executors import pool
from search.run import main

pool._GRACE_SECONDS = 1.0
train, hung = search.trials.trial.train, Path("hung")

def hanging(*args):
    if not hung.exists():
        hung.touch()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
        time.sleep(600)
    return train(*args)

search.trials.trial.train = hanging
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_worker_that_hangs_where_no_signal_reaches_is_replaced(new_lab):
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 1.0, "epochs": 2}, metric="loss")
    words = ["budget.trials=3", "budget.trial_minutes=0.1", "executor.trials_per_device=2"]
    code, _, err = finish(lab.start_code(HANGING, f"study={lab.file}", *words))
    assert code == 0, err
    assert (lab.folder / "hung").exists()
    assert sorted(map(str, lab.outcomes())) == ["complete", "complete", "failed"]
    (hung,) = [trial for trial in lab.trials() if trial.user_attrs.get(REASON)]
    assert hung.user_attrs[REASON] == "it took longer than budget.trial_minutes: 0.1"
    assert "RUNNING" not in [run.info.status for run in lab.all_runs()]
