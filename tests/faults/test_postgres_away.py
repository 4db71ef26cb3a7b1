"""Studies on a PostgreSQL server whose connections end and which is restarted meanwhile."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
import sqlalchemy
from filelock import Timeout
from lab import SMALL, Lab
from optuna.trial import FrozenTrial, TrialState

from search.storage import OWNER, RETRY_OF, WINNER, held_all_along, open_storage, outcome_of, retrying
from search.storage.postgres import AdvisoryLock, SteadyStorage, with_driver
from search.trials.record import Record
from search.winner import crowning

COMMAND = "import sys; from search.run import main; sys.exit(main(sys.argv[1:]))"
# What makes a process believe that it is an hour later, and that it is in Japan.
AHEAD = """
import datetime, os, sys, time
os.environ["PGTZ"] = "Asia/Tokyo"
real, clock = datetime.datetime, time.time
class Kind(type):
    def __instancecheck__(cls, one):
        return isinstance(one, real)
class Ahead(real, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(hours=1)
time.time = lambda: clock() + 3600
for module in list(sys.modules.values()):
    for name, value in list(getattr(module, "__dict__", {}).items()):
        if value is real and module.__name__ != "__main__":
            setattr(module, name, Ahead)
"""
# Epochs enough for something to happen in between.
LONG, SHORT = (
    {"strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": epochs}, "metric": "loss"} for epochs in (6, 2)
)


def start(lab: Lab, *overrides: str, first: str = ""):
    """Run the study in a process of its own, after other code."""
    # Its tables are made here, since who watches the trials meanwhile would make them too.
    open_storage(lab.optuna_url)
    return lab.start_code(f"{first}\n{COMMAND}", f"study={lab.file}", *overrides)


def watch(lab: Lab, process, condition: Callable[[list[FrozenTrial]], bool]) -> None:
    """Wait until the condition holds of the trials, whatever becomes of connections."""
    storage = open_storage(lab.optuna_url)
    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if "lab" in [study.study_name for study in storage.get_all_studies()]:
            study_id = storage.get_study_id_from_name("lab")
            if condition(storage.get_all_trials(study_id)):
                return
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def check_whole(lab: Lab, count: int) -> None:
    """So many trials that count, told once each, and nothing that was left over but what was given back."""
    # A process that loses the lock gives its trial back; where another has taken the last one of the budget meanwhile,
    # the trial stays queued for a larger budget.
    waiting = [trial for trial in lab.trials() if trial.state == TrialState.WAITING]
    assert all(RETRY_OF in trial.user_attrs for trial in waiting), waiting
    trials = [trial for trial in lab.trials() if trial not in waiting]
    assert {outcome_of(trial) for trial in trials} <= {"complete", "killed"}, lab.outcomes()
    told = [trial for trial in trials if outcome_of(trial) == "complete"]
    assert len({trial.params["lr"] for trial in told}) == len(told) == count, lab.outcomes()
    assert all(trial.intermediate_values for trial in told)
    runs = lab.runs()
    assert [runs[trial.number].info.status for trial in told] == ["FINISHED"] * count


class Restarting(logging.Handler):
    """Starts the server once it was missed."""

    def __init__(self, server) -> None:
        super().__init__()
        self._server = server
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not self.messages:
            self._server.start()
        self.messages.append(record.getMessage())


@contextmanager
def crashing(server, place: Any, name: str, count: int) -> Iterator[None]:
    """Have the server crash before so manyth call of a function, and come back once it is missed."""
    missed, call, calls = Restarting(server), getattr(place, name), 0

    def crashed(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            server.crash()
        return call(*arguments, **options)

    retrying.logger.addHandler(missed)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(place, name, crashed)
            yield
    finally:
        retrying.logger.removeHandler(missed)
    assert calls >= count
    assert missed.messages[-1] == "the study's store answers again"


def test_a_study_goes_on_by_itself_when_the_server_crashes_and_comes_back(shared_lab, server, capfd):
    lab = shared_lab(**SHORT)
    # In the middle of its second trial.
    with crashing(server, Record, "add", 3):
        assert lab.run("budget.trials=3") == 0
    assert capfd.readouterr().out.count("Winner: trial ") == 1
    check_whole(lab, 3)


def test_a_server_that_crashes_while_the_winner_is_logged_gets_the_winner_once(shared_lab, server, capfd):
    lab = shared_lab()
    with crashing(server, crowning, "log_model", 1):
        assert lab.run("budget.trials=1") == 0
    assert capfd.readouterr().out.count("Winner: trial 0") == 1
    assert lab.study.user_attrs[WINNER]["trial"] == 0
    assert lab.parent().data.tags["unfreeze.winner"] == "0"
    assert len(lab.client.search_logged_models([lab.parent().info.experiment_id])) == 1
    check_whole(lab, 1)


def start_both(lab: Lab, server, database: str, first: tuple[str, str]) -> list:
    """Two processes, as on two hosts: with caches, and so files to lock, of their own. One waits for the other."""
    both = [start(lab, "budget.trials=6", f"data.cache={lab.folder}/{k}", first=one) for k, one in enumerate(first)]
    watch(lab, both[0], bool)
    lock = AdvisoryLock(with_driver(database), "claim lab")
    with lock:
        # One is about to take its next trial, the other to look after those of dead processes.
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted GROUP BY objid"
        while (2,) not in server.sql(waiting, database_name(database)):
            assert all(process.poll() is None for process in both), [process.communicate() for process in both]
            time.sleep(0.1)
    lock.close()
    return both


@pytest.mark.slow
def test_two_processes_share_a_budget_while_their_connections_are_ended_again_and_again(shared_lab, server, database):
    lab = shared_lab(**LONG)
    both = start_both(lab, server, database, ("", ""))
    ended = seen = 0
    while any(process.poll() is None for process in both):
        # After each epoch that was reported, so that on a machine of any speed something is done in between.
        ((reports,),) = server.sql("SELECT count(*) FROM trial_intermediate_values", database_name(database))
        if reports > seen:
            seen, ended = reports, ended + server.end_connections()
        time.sleep(0.02)
    for process in both:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    assert ended > 10
    check_whole(lab, 6)


@pytest.mark.slow
def test_hosts_whose_clocks_are_hours_apart_share_a_budget_and_train_no_trial_twice(shared_lab, server, database):
    lab = shared_lab(**LONG)
    both = start_both(lab, server, database, ("", AHEAD))
    for process in both:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert "Winner: trial " in out
    check_whole(lab, 6)
    assert lab.outcomes() == ["complete"] * 6
    assert len({json.loads(trial.user_attrs[OWNER])["pid"] for trial in lab.trials()}) == 2
    began = sorted(trial.datetime_start for trial in lab.trials())
    assert (began[-1] - began[0]).total_seconds() > 3000, "their clocks are apart"


def test_a_lock_is_one_for_all_connections_and_goes_with_its_holders(server, database):
    url = with_driver(database)
    ours, theirs, other = AdvisoryLock(url, "a"), AdvisoryLock(url, "a"), AdvisoryLock(url, "b")
    with ours, ours, other:
        with pytest.raises(Timeout):
            theirs.acquire(timeout=0.1)
        assert held_all_along(ours)
        # The connections end, and whoever is first has the lock.
        assert server.end_connections() >= 3
        theirs.acquire()
        theirs.release()
        assert not held_all_along(ours)
        with pytest.raises(Timeout):
            theirs.acquire(timeout=0.1)
    theirs.acquire(timeout=0.1)
    theirs.release()
    for lock in (ours, theirs, other):
        lock.close()


def test_no_heart_counts_as_stopped_before_the_server_has_been_there_for_the_grace_period(server, database):
    long, short = (SteadyStorage(with_driver(database), heartbeat_interval=1, grace_period=s) for s in (3600, 1))
    study = optuna.create_study(storage=long)
    trial = study.ask()
    long.record_heartbeat(trial._trial_id)
    server.sql("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '2 hours'", database_name(database))
    assert long._get_stale_trial_ids(study._study_id) == []
    time.sleep(1.5)
    assert short._get_stale_trial_ids(study._study_id) == [trial._trial_id]


def database_name(url: str) -> str:
    return str(sqlalchemy.make_url(url).database)
