"""Who trains the trials: what is asked for, what is refused, and workers of this machine."""

import os
import signal
import socket
import sys

import psutil
import pytest
import torch
from lab import SMALL, finish, owners, train_both

from search import compose_study
from search.config import ExecutorConfig, build_config
from search.config.executor import EXECUTOR_KEYS
from search.executors import executor_of
from search.executors.local import LocalExecutor
from strategies import ConfigError

LONG = {"strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": 1000}, "metric": "loss"}


@pytest.mark.parametrize(
    ("executor", "name"),
    [
        ({}, "auto"),
        ({"trials_per_device": 1, "devices": "auto", "address": None, "resources": {}}, "auto"),
        ({"trials_per_device": 2}, "local"),
        ({"devices": [1, 0]}, "local"),
        ({"address": "auto"}, "ray"),
        ({"gpus": 0.5}, "ray"),
        ({"name": "inline"}, "inline"),
    ],
)
def test_an_executor_that_nobody_names_is_the_one_whose_keys_are_used(executor, name):
    assert build_config({"executor": executor}).executor.name == name


def test_an_executor_is_named_by_one_word_on_the_command_line_and_in_a_file(lab):
    assert lab.config().executor.name == "auto"
    assert lab.config("executor=ray").executor.name == "ray"
    both = lab.config("executor=ray", "executor.workers=2", "executor.resources={disk: 1}").executor
    assert both == ExecutorConfig(name="ray", workers=2, resources={"disk": 1})
    file = lab.folder / "named.yaml"
    file.write_text(lab.file.read_text() + "executor: local\n")
    assert compose_study([f"study={file}"]).executor == ExecutorConfig(name="local")
    assert compose_study([f"study={file}", "executor.trials_per_device=2"]).executor.trials_per_device == 2
    with pytest.raises(ConfigError, match=r"executor\.name: 'lokal' is not one of .*; did you mean 'local'\?"):
        lab.config("executor=lokal")


def test_every_key_but_the_name_and_what_all_know_belongs_to_one_executor():
    of_all = {"name", "gpus_per_trial"}
    assert sorted(key for keys in EXECUTOR_KEYS.values() for key in keys) == sorted(
        set(ExecutorConfig.model_fields) - of_all
    )


def test_a_study_trains_by_itself_unless_it_asks_for_more():
    for executor in ({}, {"name": "inline"}):
        with executor_of(build_config({"executor": executor, "device": "cpu"})) as chosen:
            assert chosen is None
    with executor_of(build_config({"executor": {"name": "local"}, "device": "cpu"})) as chosen:
        assert chosen is not None
        assert chosen.devices == 1


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(lab, capsys):
    count = torch.cuda.device_count()
    assert lab.run("device=auto", f"executor.devices=[{count}]") == 2
    assert f"error: executor.devices: there is no GPU {count}; this machine has" in capsys.readouterr().err
    assert not (lab.folder / "mlruns" / "optuna.db").exists()


@pytest.mark.parametrize("gpus", [(), ("3",), ("0", "GPU-5")])
@pytest.mark.parametrize("workers", [1, 2, 3, 64])
def test_workers_share_the_cores_and_threads_of_the_machine(gpus, workers):
    cores = os.sched_getaffinity(0)
    shares = [LocalExecutor(gpus, "cuda", threads=8).share(place, workers) for place in range(workers)]
    assert {share.threads for share in shares} == {max(1, 8 // workers)}
    if workers > len(cores):
        assert all(set(share.cores) == cores for share in shares)
    else:
        assert sorted(core for share in shares for core in share.cores) == sorted(cores)


@pytest.mark.slow
def test_two_workers_run_on_cores_of_their_own(new_lab):
    lab = new_lab(**LONG)
    process = lab.start("budget.trials=2", "executor=local", "executor.trials_per_device=2", "threads=2")
    lab.wait_until(train_both, process)
    first, second = (psutil.Process(pid) for pid in owners(lab))
    mine = os.sched_getaffinity(0)
    seen = [{core for thread in one.threads() for core in os.sched_getaffinity(thread.id)} for one in (first, second)]
    expected = [mine] if len(mine) == 1 else [set(sorted(mine)[: len(mine) // 2]), set(sorted(mine)[len(mine) // 2 :])]
    assert sorted(map(sorted, seen)) == sorted(map(sorted, expected * (2 // len(expected))))
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert lab.outcomes() == ["killed", "killed", None, None]


def test_ray_that_is_not_installed_is_asked_for_in_one_line(lab, monkeypatch, capsys):
    # How Python itself marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "ray", None)
    assert lab.run("executor=ray") == 2
    err = capsys.readouterr().err
    assert err == "error: executor.name: ray needs Ray; pip install -e '.[ray]'\n"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_does_not_answer_is_refused_before_anything_starts(lab, capsys, scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert lab.run(f"executor.address={scheme}127.0.0.1:{port}") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: executor.address: nobody answers at {scheme}127.0.0.1:{port}: ")
    assert err.count("\n") == 1
    assert not (lab.folder / "mlruns" / "optuna.db").exists()


def test_an_address_that_is_none_is_refused(lab, capsys):
    assert lab.run("executor.address=somewhere") == 2
    assert "executor.address: 'somewhere' is neither auto nor HOST:PORT nor ray://HOST:PORT" in capsys.readouterr().err
