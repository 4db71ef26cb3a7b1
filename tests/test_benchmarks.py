"""The benchmarks run, and both sides of a comparison train the same thing."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from copies import Started, copies
from mlflow import MlflowClient
from optuna.study import StudyDirection
from optuna.trial import TrialState

from benchmarks import (
    cache,
    dense_speed,
    executors,
    families,
    plain_loop,
    pruners,
    search_speed,
    searches,
    sharing,
    time_to_best,
    trainer_speed,
)
from search import StudyConfig, compose_study
from search.config import PrunerConfig
from search.run import main as search_main
from strategies import ConfigError, Strategy
from trainers import Trainer, choose_device, find_weights, open_data
from trainers.models import ModelSource

ROOT = Path(__file__).parent.parent
PARTLY: dict[str, Any] = {"depth": 2, "lr": 1e-3, "layer_decay": 0.7, "weight_decay": 0.1, "loss": "label_smoothing"}
PARTLY |= {"batch_norm": "frozen_stats", "batch_size": 32, "epochs": 2, "warmup_epochs": 0.5}
PROBE: dict[str, Any] = PARTLY | {"depth": 0}
WHOLLY: dict[str, Any] = {"depth": 1.0, "lr": 1e-2, "optimizer": "sgd", "batch_size": 32, "epochs": 2}

# A command of a benchmark, in a copy of a process that has imported everything. Arguments: its log, and the command.
COMMAND = """
import importlib, os, sys
os.setsid()
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
sys.argv = sys.argv[4:]
sys.exit(importlib.import_module(sys.argv[0]).main())
"""
SCRIPT = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that has been through its migrations and holds nothing."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch, empty_mlflow: Path) -> None:
    """Commands need not import anything, nor make MLflow's tables; one test has them start from nothing."""

    def start(words: list[str], *, cwd: Path, env: dict[str, str], stdout: Any, **_: Any) -> Started:
        return copies().start(COMMAND, [stdout.name, *words], cwd, env)

    def fresh(folder: Path) -> Path:
        folder.mkdir()
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        return folder

    monkeypatch.setattr(searches, "subprocess", SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT))
    for benchmark in (dense_speed, executors, search_speed, time_to_best):
        monkeypatch.setattr(benchmark, "fresh", fresh)


def run_script(name: str, *words: str) -> str:
    """What a benchmark's file prints, run as ``python benchmarks/NAME.py``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = copies().start(SCRIPT, [str(ROOT / "benchmarks" / f"{name}.py"), *words], ROOT, environment)
    out, error = process.communicate()
    assert process.returncode == 0, error
    return out


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    """A study of the quick benchmark's model and data."""
    study = search_speed.study_of(search_speed.QUICK, tmp_path, {}, {}, trials=1, seed=3, pruner="none")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"device": "cpu"}))
    return compose_study([f"study={tmp_path / 'study.yaml'}"])


@pytest.mark.parametrize("values", [PROBE, PARTLY, WHOLLY], ids=["probe", "partly", "wholly"])
def test_the_plain_loop_trains_as_our_trainer_does(config: StudyConfig, values: dict[str, Any]):
    strategy = plain_loop.strategy_of(values)
    data = open_data(task="classification", in_chans=3, **config.data.model_dump())
    weights = find_weights(config.model.names[0], config.model.weights)
    source = ModelSource(config.model.names[0], weights, len(data.classes), config.data.image_size)
    ours = [result.metrics for result in Trainer(source, data, strategy, config.seed, choose_device("cpu"))]

    lesson = plain_loop.prepare(config)
    plain = [(loss, accuracy) for _, loss, accuracy in plain_loop.fine_tune(lesson, strategy, config.seed)]

    assert [loss for loss, _ in plain] == pytest.approx([metrics["train_loss"] for metrics in ours], rel=1e-3)
    # Rounding may carry an image over the border between two classes.
    one_image = 1.01 / len(data.val)
    assert [score for _, score in plain] == pytest.approx([metrics["val_accuracy"] for metrics in ours], abs=one_image)
    # Only a linear probe has features, which later probes read.
    assert [len(images.pixels) for images in lesson.features] == ([128, 64] if values is PROBE else [])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_both_sides_train_in_as_many_processes(tmp_path: Path):
    scale = replace(search_speed.QUICK, model="test_resnet", weights="none", processes=2)
    plain = search_speed.command_of("plain", scale)
    assert plain[-2:] == ["--processes", "2"]
    assert "executor.trials_per_device=2" in search_speed.command_of("ours", scale)
    space = {"depth": {"low": 0, "high": 2}, "lr": {"low": 1e-3, "high": 1e-2, "log": True}, "epochs": 1}
    study = search_speed.study_of(scale, home := search_speed.fresh(tmp_path / "home"), space, {}, 3, 0, "none")
    assert 0 < searches.run(plain, study, home).best <= 1
    trials = optuna.load_study(study_name="study", storage=study["store"]["url"]).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    # Two samplers of one seed would draw the same.
    assert len({trial.params["lr"] for trial in trials}) == 3


def test_the_plain_loop_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match=r"strategy\.mixup: the plain loop knows only depth, "):
        plain_loop.strategy_of({"mixup": 0.2})
    with pytest.raises(ConfigError, match=r"strategy\.loss: 'focal'"):
        plain_loop.strategy_of({"loss": "focal"})


@pytest.mark.parametrize(("case", "depths"), [("probes", [0] * 4), ("shallow", [1, 1, 2, 2]), ("any", [0, 3, 6, 9])])
def test_the_strategies_of_a_case_differ_and_spread_over_its_depths(case: str, depths: list[int]):
    drawn = [Strategy.from_dict(values) for values in search_speed.draw(space_of(case), 4).values()]
    assert sorted(strategy.depth for strategy in drawn) == depths
    assert len({strategy.fingerprint(9) for strategy in drawn}) == 4


def space_of(case: str) -> dict[str, Any]:
    return search_speed.space_of(case, search_speed.QUICK)


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_search_speed_runs_both_sides_on_one_list_of_strategies_and_until_ours_is_as_good(tmp_path: Path):
    search_speed.main(["--quick", "--json", str(tmp_path / "result.json")])
    cases = json.loads((tmp_path / "result.json").read_text())["cases"]
    race = cases.pop("time_to_best")
    assert list(cases) == ["shallow"]
    assert cases["shallow"]["plain_best"] == pytest.approx(cases["shallow"]["ours_best"], abs=0.04)
    for case in cases.values():
        assert all(run["seconds"] > 0 for side in search_speed.SIDES for run in case[side])
    runs = {run["side"]: run for run in race["runs"]}
    assert list(runs) == list(time_to_best.SIDES)
    assert all(0 < run["test"] <= 1 and run["best"] > 0 for run in runs.values())
    assert runs["plain"]["first_best"] is not None
    found = race["summary"]["clothes"]
    assert found["plain"]["hindsight"] == 1
    assert found["ours"]["missed"] == (runs["ours"]["first_best"] is None)
    assert (found["ours"]["whole"] > 0) == (runs["ours"]["first_best"] is not None)
    # Nothing is run twice, and other searches are not mixed in.
    quick = ["--quick", "--cases", "time_to_best", "--json", str(tmp_path / "result.json")]
    search_speed.main(quick)
    assert json.loads((tmp_path / "result.json").read_text())["cases"]["time_to_best"] == race
    with pytest.raises(SystemExit, match="another size or sampler"):
        search_speed.main([*quick, "--sampler", "tpe"])


def test_pruners_that_look_early_stop_those_that_start_slowly():
    fast = pruners.Curve([0.5, 0.6, 0.7], 0.7, 1.0)
    slow = pruners.Curve([0.1, 0.2, 0.9], 0.9, 3.0)
    # The first five are never stopped; only a slow one behind them is.
    curves = [fast] * 9 + [slow] * 3
    early, late = (
        pruners.replayed(PrunerConfig(warmup_epochs=warmup), curves, StudyDirection.MAXIMIZE, orders=20)
        for warmup in (1, 3)
    )
    assert late == {"time": 1.0, "good_stopped": 0.0, "good_in_time": 1.0, "lost": 0.0}
    assert 0 < early["good_stopped"] < 1
    assert 1 - early["time"] == pytest.approx(early["good_stopped"] * 9 / 18 * 2 / 3)
    stopped = pruners.replay(PrunerConfig(warmup_epochs=1), curves, range(12), StudyDirection.MAXIMIZE)
    assert stopped == {9: 1, 10: 1, 11: 1}


def test_the_benchmark_of_pruners_reads_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study = search_speed.study_of(search_speed.QUICK, tmp_path, {"lr": 1e-3, "epochs": 2}, {}, 2, seed=0, pruner="none")
    study |= {"model": {"name": "test_resnet", "weights": "none"}, "device": "cpu", "name": "unpruned"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(SystemExit, match="2"):
        pruners.main([str(tmp_path / "study.yaml")])
    assert "no study has begun" in capsys.readouterr().err
    assert search_main([f"study={tmp_path / 'study.yaml'}"]) == 0
    pruners.main([str(tmp_path / "study.yaml"), "--orders", "2", "--json", str(tmp_path / "result.json")])
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["trials"] == 2
    assert found["pruners"]["median, warmup_epochs 1"]["time"] == 1.0
    assert "unpruned: 2 trials" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_sharing_counts_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Each side starts a Python that imports torch anew.
    monkeypatch.setattr(sharing, "SIDES", {"as Unfreeze waits": sharing.SIDES["as Unfreeze waits"]})
    sharing.main(
        ["--models", "test_resnet", "--image-size", "32", "--seconds", "0.1", "--json", str(tmp_path / "r.json")]
    )
    found = json.loads((tmp_path / "r.json").read_text())["models"]["test_resnet"]
    assert list(found) == list(sharing.SIDES)
    assert all(steps > 0 for side in found.values() for steps in side.values())


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_dense_speed_trains_the_same_with_and_without_reuse(tmp_path: Path):
    words = [
        "--quick",
        "--model",
        "test_resnet",
        "--weights",
        "none",
        "--decoders",
        "fcn",
        "--epochs",
        "1",
        "--json",
        str(tmp_path / "result.json"),
    ]
    dense_speed.main(words)
    found = json.loads((tmp_path / "result.json").read_text())["decoders"]["fcn"]
    (off,), (auto,) = found["off"], found["auto"]
    assert off["strategies"] == auto["strategies"]
    assert len(set(off["strategies"])) == 2
    assert off["best"] == pytest.approx(auto["best"], abs=1e-4)
    assert found["ratio"] == off["trial_seconds"] / auto["trial_seconds"]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_the_benchmark_of_executors_tells_trials_from_the_whole_command(tmp_path: Path):
    run = executors.run("two local", executors.QUICK, executors.fresh(tmp_path / "home"))
    assert 0 < run["trials"] < run["whole"]
    sides = {"one worker": {"trials": 8.0, "whole": 20.0}, "two local": {"trials": 4.0, "whole": 15.0}}
    runs = {side: [seconds] for side, seconds in sides.items()}
    assert executors.ratios(runs)["two local"] == {"trials": 0.5, "whole": 0.75}
    executors.show({"machine": {"cores": 2}, "scale": executors.QUICK, "runs": runs, "ratios": executors.ratios(runs)})


def test_trainer_speed_measures_every_loop_that_is_installed(tmp_path: Path):
    trainer_speed.main(["--quick", "--device", "cpu", "--json", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    found = [*result["loops"], *result["left_out"]]
    assert sorted(found) == sorted([*trainer_speed.LOOPS, "bare loop, our gradients"])
    assert result["left_out"].keys() <= {"fastai Learner"}
    assert all(loop["images_per_second"] > 0 for loop in result["loops"].values())


def test_a_depthwise_convolution_counts_as_what_it_computes(tmp_path: Path):
    data = trainer_speed.open_random(tmp_path, images=64, image_size=64)
    source = ModelSource("tf_efficientnet_lite0", find_weights("tf_efficientnet_lite0", ["none"]), 10, 64)
    setting = trainer_speed.Setting(source, data, 8, 1, 1, choose_device("cpu"))
    # 0.4 thousand million multiplications and additions at 224 px (timm's table), two operations each.
    assert trainer_speed.image_flops(setting) == pytest.approx(3 * 2 * 0.4e9 * (64 / 224) ** 2, rel=0.1)


def test_the_benchmark_of_the_cache_measures_every_cut_of_the_model(tmp_path: Path):
    cache.main(["--quick", "--device", "cpu", "--folder", str(tmp_path), "--json", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [cut["depth"] for cut in result["cuts"]] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert result["left_out"] == {}
    for cut in result["cuts"]:
        assert cut["bytes"] >= cut["bytes_an_image"] * result["images"]
        assert all(value > 0 for name, value in cut.items() if name.startswith("seconds"))
        assert ("seconds_from_nearest" in cut) == (cut["depth"] < 8)
        assert cut["recompute_over_read"] == cut["seconds_from_images"] / cut["seconds_to_read_again"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.slow
def test_the_benchmark_of_bookkeeping_runs_in_its_short_mode(tmp_path: Path):
    short = ["--trials", "3", "6", "--blocks", "1", "--block", "2", "--epoch-ms", "0"]
    assert "unfreeze beyond plain calls" in run_script("bookkeeping", *short, "--json", str(tmp_path / "out.json"))
    sizes = json.loads((tmp_path / "out.json").read_text())["ms_a_trial"]
    assert list(sizes) == ["3", "6"]
    for ways in sizes.values():
        assert len(ways) == 3
        assert all(way["all"] > 0 for way in ways.values())


@pytest.mark.slow
def test_the_benchmark_of_stores_finds_every_trial_once_behind_the_proxy(tmp_path: Path):
    short = ["--quick", "--trials", "4", "--stores", "proxy", "--json", str(tmp_path / "out.json")]
    assert "every trial was trained once, told once and has one run" in run_script("stores", *short)
    found = json.loads((tmp_path / "out.json").read_text())["found"]["proxy"]
    assert found["trials"] == 4
    assert found["ms_a_trial"] > 0


def test_the_benchmark_of_families_tells_exact_cuts_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["--families", "resnet", "--json", str(tmp_path / "out.json")]
    families.main(words)
    (found,) = json.loads((tmp_path / "out.json").read_text())["families"]
    assert (found["model"], found["side"], found["blocks"]) == ("test_resnet", 64, 5)
    assert (found["cuts"], found["exact"], found["reason"]) == (4, 4, "")
    # Cuts that freeze a block too many.
    cut_at = families.cut_at
    monkeypatch.setattr(families, "cut_at", lambda graph, model, k: cut_at(graph, model, min(k + 1, graph.num_blocks)))
    families.main(words)
    (found,) = json.loads((tmp_path / "out.json").read_text())["families"]
    assert (found["cuts"], found["exact"]) == (4, 1)
    assert "at depth 1 another gradient of layer4" in found["reason"]
