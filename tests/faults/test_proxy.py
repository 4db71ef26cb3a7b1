"""A study behind Optuna's gRPC proxy: turns, hearts, and a proxy that is started anew."""

import json

import optuna
import psutil
import pytest
import sqlalchemy
from filelock import Timeout
from lab import open_to_others
from optuna.storages import get_storage
from optuna.trial import TrialState

from search.processes import owner
from search.scheduling import Heartbeat, attempt_of, recover, requeuing
from search.storage import OWNER, held_all_along, open_storage, serve
from search.storage.proxy import ProxyLock


@pytest.fixture
def file(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


@pytest.fixture
def proxies(file):
    """Start a proxy at a port, 0 for a new one, and return it and the port."""
    started = []

    def start(port: int = 0):
        server, port = serve(get_storage(open_storage(file)), "127.0.0.1", port)
        started.append(server)
        return server, port

    yield start
    for server in started:
        server.stop(None)


@pytest.fixture
def url(proxies) -> str:
    return f"grpc://127.0.0.1:{proxies()[1]}"


def test_a_lock_is_one_for_all_who_ask_and_goes_with_its_holders(proxies):
    server, port = proxies()
    url = f"grpc://127.0.0.1:{port}"
    ours, theirs, other = ProxyLock(url, "a"), ProxyLock(url, "a"), ProxyLock(url, "b")
    with ours, ours, other:
        with pytest.raises(Timeout):
            theirs.acquire(timeout=0.1)
        assert held_all_along(ours)
        server.stop(None).wait()
        proxies(port)
        theirs.acquire()
        theirs.release()
        assert not held_all_along(ours)
        with pytest.raises(Timeout):
            theirs.acquire(timeout=0.1)
    theirs.acquire()
    ours.close()
    theirs.close()
    # Whose connection ends has held it until then.
    other.acquire()
    last = ProxyLock(url, "a")
    last.acquire()
    last.close()
    other.close()


def test_a_study_goes_on_when_the_proxy_is_started_anew(proxies):
    server, port = proxies()
    url = f"grpc://127.0.0.1:{port}"
    study = optuna.create_study(study_name="s", storage=open_storage(url, requeuing(lambda: 1)), direction="maximize")
    assert open_to_others([psutil.Process()]) == {}
    first = study.ask()
    first.suggest_float("x", 0, 1)
    server.stop(None).wait()
    proxies(port)
    first.report(0.4, 1)
    study.tell(first, 0.5)
    study.enqueue_trial({"x": 0.25})
    assert study.ask().suggest_float("x", 0, 1) == 0.25
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_a_trial_of_another_host_is_killed_once_its_heart_has_stopped(url, file):
    study = optuna.create_study(study_name="s", storage=open_storage(url, requeuing(lambda: 1)))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(OWNER, json.dumps(json.loads(owner()) | {"host": "elsewhere"}))
    with Heartbeat(trial):
        assert recover(study, retries=1) == []
    engine = sqlalchemy.create_engine(file)
    with engine.begin() as connection:
        stopped = sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-10 minutes')")
        assert connection.execute(stopped).rowcount == 1
    engine.dispose()
    assert [told.number for told in recover(study, retries=1)] == [trial.number]
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    assert attempt_of(study.get_trials()[1]) == 1
