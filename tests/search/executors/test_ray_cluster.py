"""Studies that workers on a Ray cluster train, on one machine."""

import json
import os
import re
import signal
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from copies import Started
from lab import SMALL, Lab, family_of, finish, open_to_others, owners
from optuna.trial import FrozenTrial, TrialState
from ray.cluster_utils import Cluster

from search.config import build_config
from search.executors.ray_cluster import Fit, connected, fit, refuse_files, short_place
from search.storage import ATTEMPT, OWNER, REASON
from strategies import ConfigError

LONG = {"strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": 1000}, "metric": "loss"}
HEAD, SMALL_NODE, LARGE_NODE = {"CPU": 0}, {"CPU": 4, "disk": 1.0}, {"CPU": 16, "GPU": 4}


def study(**executor):
    keys = {key: executor.pop(key) for key in ("device", "threads") if key in executor}
    return build_config({"executor": {"name": "ray", **executor}, **keys})


@pytest.mark.parametrize(
    ("asked", "nodes", "expected"),
    [
        # A GPU and its share of the CPUs, or where there is none a node.
        ({}, [HEAD, LARGE_NODE, LARGE_NODE], Fit(8, 4, 1.0)),
        ({}, [HEAD, SMALL_NODE, {"CPU": 8}], Fit(2, 4, 0.0)),
        ({"device": "cpu"}, [LARGE_NODE], Fit(1, 16, 0.0)),
        ({"gpus": 0.5}, [HEAD, LARGE_NODE], Fit(8, 2, 0.5)),
        ({"threads": 1}, [{"CPU": 2}], Fit(2, 1, 0.0)),
        ({"threads": 8}, [LARGE_NODE], Fit(2, 8, 1.0)),
        ({"workers": 2}, [{"CPU": 2}], Fit(2, 1, 0.0)),
        ({"workers": 2}, [HEAD, SMALL_NODE, LARGE_NODE], Fit(2, 8, 1.0)),
        ({"resources": {"disk": 0.5}, "gpus": 0}, [SMALL_NODE, LARGE_NODE], Fit(2, 2, 0.0)),
        # Those that are to come when they are needed.
        ({"workers": 3}, [HEAD], Fit(3, 1, 0.0)),
    ],
)
def test_a_worker_has_its_share_of_a_cluster(asked, nodes, expected):
    assert fit(study(**asked), nodes) == expected


def test_a_cluster_that_has_no_room_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"none of the cluster's 2 nodes has room .* needs CPU 1, disk 3; on a cluster that adds nodes on demand",
    ):
        fit(study(resources={"disk": 3.0}), [HEAD, SMALL_NODE])


def test_files_of_one_host_are_refused_as_stores_of_several():
    config = study()
    refuse_files(config, [socket.gethostname()])
    with pytest.raises(ConfigError, match=r"store\.url: sqlite:///.* is a file of this host, .* share with elsewhere;"):
        refuse_files(config, [socket.gethostname(), "elsewhere"])
    server = config.model_copy(update={"store": config.store.model_copy(update={"url": "postgresql://db/optuna"})})
    with pytest.raises(ConfigError, match=r"tracking\.uri: sqlite:///"):
        refuse_files(server, ["elsewhere"])


@pytest.fixture(scope="module")
def cluster():
    """A head that trains nothing and two nodes for one worker each."""
    # By default Ray asks a node that does not answer five times, in 15 s.
    settings = {"num_cpus": 0, "include_dashboard": False, "_system_config": {"health_check_period_ms": 500}}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_rays_sockets_go_where_their_paths_are_short_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", "/scratch")
    assert short_place() == Path("/scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "of-a-job"))
    assert short_place() == Path("/tmp")


def trained(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """A trial that is being trained, some epochs on."""
    running = (trial for trial in trials if trial.state == TrialState.RUNNING and OWNER in trial.user_attrs)
    return next((trial for trial in running if len(trial.intermediate_values) >= 2), None)


def lose_a_node(lab: Lab, process: Started, cluster: Cluster) -> int:
    """Lose a node with its worker in the middle of a trial, and return the trial's number.

    No machine is so fast that this comes too late: a worker that has just ended its trial is one that was killed, and
    the next is waited for.
    """
    while True:
        lab.wait_until(lambda trials: trained(trials) is not None, process)
        trial = trained(lab.trials())
        if trial is None:
            continue
        worker = psutil.Process(json.loads(trial.user_attrs[OWNER])["pid"])
        host, *above = worker.parents()
        # What is lost says nothing more, nor does the actor that would tell that the worker has ended.
        host.suspend()
        worker.kill()
        while worker.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        if lab.trials()[trial.number].state == TrialState.RUNNING:
            break
        host.resume()
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    (node,) = [raylets[process.pid] for process in above if process.pid in raylets]
    cluster.remove_node(node, allow_graceful=False)
    with suppress(psutil.NoSuchProcess):
        host.kill()
    return trial.number


@pytest.mark.slow
def test_a_study_on_ray_that_loses_a_worker_ctrl_c_and_a_node_goes_on_to_its_end(new_lab, request):
    lab = new_lab(**LONG)
    # A file of the user's that has the name of our package, which workers are not to take for it.
    (lab.folder / "search.py").write_text("raise SystemExit('not the package')")
    process = lab.start("budget.trials=1", "executor=ray", "executor.workers=1", leads=True)
    lab.wait_until(lambda trials: trained(trials) is not None, process)
    command, *everyone = family_of(process.pid)
    assert open_to_others([command, *everyone]) == {}
    (raylet,) = [process for process in everyone if process.name() == "raylet"]
    files = next(Path(found[1]) for word in raylet.cmdline() if (found := re.search(r"(/.*/unfreeze-tmp-\w+)/", word)))
    assert (files / ".owner").exists()
    os.kill(owners(lab)[0], signal.SIGKILL)
    lab.wait_until(lambda trials: trained(trials[1:]) is not None, process)
    # As a terminal does, to all that were not put into a group of their own.
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, err
    assert "Workers 1 processes train at once on Ray, " in out
    assert not psutil.wait_procs(everyone, timeout=60)[1]
    assert not files.exists()
    assert lab.outcomes() == ["killed", "killed", None]
    assert [trial.user_attrs[REASON] for trial in lab.trials()[:2]] == ["its process ended", "interrupted"]
    # Ctrl-C costs no attempt.
    assert [trial.user_attrs[ATTEMPT] for trial in lab.trials()[1:]] == [1, 1]
    assert lab.statuses()[1] == "KILLED"

    # On another cluster, which loses a node.
    cluster = request.getfixturevalue("cluster")
    process = lab.start("budget.trials=2", "strategy.epochs=40", f"executor.address={cluster.address}")
    number = lose_a_node(lab, process, cluster)
    code, out, err = finish(process)
    assert code == 0, err
    assert sorted(lab.outcomes()) == ["complete", "complete", "killed", "killed", "killed"]
    lost = lab.trials()[number]
    assert lost.user_attrs[REASON] == "its process ended"
    (again,) = [trial for trial in lab.trials() if trial.user_attrs.get("retry_of") == number]
    assert again.user_attrs[ATTEMPT] == lost.user_attrs.get(ATTEMPT, 0) + 1
    assert again.params == lost.params
    assert out.count(f"trial {number} had been killed; it is tried again") == 1
    assert "Workers 2 processes train at once on Ray, 1 CPU threads each" in out
    assert out.count("complete  loss") == 2
    assert "Winner: trial " in out
    assert sorted(run.info.status for run in lab.all_runs()) == ["FINISHED"] * 3 + ["KILLED"] * 3


@pytest.mark.slow
def test_a_cluster_that_is_joined_leaves_signals_to_the_search(cluster):
    before = signal.getsignal(signal.SIGTERM)
    with connected(study(address=cluster.address, threads=1)) as executor:
        # A node that another test has lost may count until Ray has noticed.
        assert executor.devices >= len(cluster.worker_nodes)
        assert signal.getsignal(signal.SIGTERM) is before
