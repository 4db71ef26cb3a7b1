"""What a new user types or has lying about, and once stumbled over."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lab import SMALL
from PIL import Image

from search import compose_study
from search.config import DEFAULT_PRESETS, compose_jobs, configure
from search.scheduling import queue_again
from search.storage import IDENTITY, OWN_VALUES, PRESET, RETRY_OF, STRATEGY, SWEEP, open_stored
from search.study.image_size import fitting_size
from strategies import ConfigError, check_optimizer_names, parse_space
from trainers import TASKS

ROOT = Path(__file__).resolve().parents[2]


def test_a_key_that_is_given_more_than_once_is_refused_and_a_pattern_is_to_be_quoted():
    shards = [f"data.shards=train-{k}.tar" for k in range(3)]
    for ask in (compose_study, lambda words: configure("resnet_cls", words[1:], {})):
        with pytest.raises(ConfigError) as caught:
            ask(["study=resnet_cls", *shards])
        assert str(caught.value).startswith("data.shards is given 3 times; ")
        assert "\"data.shards='...'\"" in str(caught.value)
    with pytest.raises(ConfigError, match="study is given 2 times"):
        compose_jobs(["study=resnet_cls", "study=vit_cls"])
    # Mappings that are added are merged: none is lost.
    both = compose_study(["study=resnet_cls", "+presets={a: {depth: 0}}", "+presets={b: {depth: 1}}"])
    assert {"a", "b", "full"} <= both.presets.keys()
    with pytest.raises(ConfigError, match="a store is given twice"):
        open_stored(["no_file", "store.url=sqlite:///a.db", "store.url=sqlite:///b.db"])


@pytest.mark.parametrize("name", ["strategies", "trainers"])
def test_a_file_with_the_name_of_one_of_our_packages_is_named(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words, code in ((["-m", "search.run", "--list"], 2), (["-c", "import search"], 1)):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert f"{tmp_path / name}.py hides Unfreeze's own package '{name}'" in done.stderr


def test_without_the_current_folder_files_there_are_not_taken_for_our_packages(tmp_path):
    for name in ("search", "strategies", "studies", "trainers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not the package')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "search.run", "--list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "resnet_cls" in done.stdout
    assert "`python -P -m search.run`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "losses"),
    [
        (["study=resnet_cls", "task=multilabel", "data.manifest=a.csv"], "bce"),
        (["study=vit_cls", "task=regression", "data.manifest=a.csv"], "mse"),
        (
            ["study=resnet_cls", "strategy=full", "task=multilabel", "data.manifest=a.csv"],
            {"choices": ["focal", "bce"]},
        ),
        (["study=unet_seg", "task=classification", "data.root=a"], "cross_entropy"),
        (["study=frcnn_det", "task=segmentation"], "cross_entropy"),
    ],
)
def test_losses_metric_and_decoder_of_a_study_follow_another_task(words, losses):
    config = compose_study(words)
    assert config.strategy.get("loss", "cross_entropy") == losses


def test_a_loss_that_is_asked_for_beside_another_task_is_still_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy\.loss: 'focal' cannot train task regression"):
        compose_study(["study=resnet_cls", "task=regression", "strategy.loss=focal", "data.manifest=a.csv"])
    own = tmp_path / "own.yaml"
    own.write_text("task: regression\nstrategy: {loss: focal}\ndata: {manifest: a.csv}\n")
    with pytest.raises(ConfigError, match=r"strategy\.loss: 'focal' cannot train task regression"):
        compose_study([f"study={own}"])


def test_a_condition_that_can_never_hold_is_refused():
    space = {"optimizer": {"choices": ["sgd", "adamw"]}, "batch_size": {"low": 8, "high": 64}}
    with pytest.raises(ConfigError, match=r"strategy\.momentum\.when\.optimizer: 'sgdd' is none of .*'sgd'\?"):
        parse_space({**space, "momentum": {"value": 0.9, "when": {"optimizer": ["sgdd"]}}})
    with pytest.raises(ConfigError, match=r"strategy\.momentum\.when\.batch_size: 128 to inf is not in its range"):
        parse_space({**space, "momentum": {"value": 0.9, "when": {"batch_size": {"low": 128}}}})
    # Beside a name that can be drawn, a wrong one is found by timm's list; a fixed optimizer may meet no condition.
    with pytest.raises(ConfigError, match=r"strategy\.momentum\.when\.optimizer: 'sgdd' is no optimizer of timm"):
        check_optimizer_names(
            parse_space({**space, "momentum": {"value": 0.9, "when": {"optimizer": ["sgd", "sgdd"]}}})
        )
    assert parse_space({"optimizer": "adamw", "momentum": {"value": 0.9, "when": {"optimizer": ["sgd"]}}})


def test_paths_may_begin_with_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["study=resnet_cls", "data.manifest={train: '~/a.csv'}", "data.root=~/b", "model.weights=~/c.pth"]
    config = compose_study([*words, "data.cache=~/d", "tracking.artifacts=~/e"])
    assert config.data.manifest == {"train": "/home/me/a.csv"}
    assert (config.data.root, config.data.cache) == ("/home/me/b", "/home/me/d")
    assert (config.model.weights, config.tracking.artifacts) == (("/home/me/c.pth",), "/home/me/e")


@pytest.mark.parametrize(
    ("own", "side", "size"),
    [(224, None, 224), (224, 500, 224), (224, 180, 160), (224, 28, 64), (96, 500, 96), (32, 8, 32)],
)
def test_a_size_is_that_of_the_weights_unless_images_are_smaller(own, side, size):
    assert fitting_size(own, side) == size


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of eight images of 110 pixels."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for k in range(8):
            Image.fromarray(rng.integers(0, 256, (110, 130, 3), dtype=np.uint8)).save(root / name / f"{k}.png")
    return root


def test_a_size_that_is_not_given_follows_from_images_and_model_and_stays(new_lab, photographs, capsys):
    lab = new_lab(data={"root": str(photographs)})
    lab.train("budget.trials=1")
    said = capsys.readouterr().out
    assert "Size    data.image_size=96: the weights were trained at 160 px, " in said
    assert "the images' median short side is 110 px" in said
    assert "Updates 1 in 1 epoch of " in said
    assert lab.study.user_attrs[IDENTITY]["data.image_size"] == 96
    # A study that began with another size keeps it: that of earlier versions was 64.
    lab.train("budget.trials=1", "name=earlier", "data.image_size=64")
    lab.train("budget.trials=2", "name=earlier")
    assert lab.open("earlier").user_attrs[IDENTITY]["data.image_size"] == 64
    capsys.readouterr()
    lab.train("budget.trials=1", "name=tiny", "data.image_size=32")
    assert "data.image_size=32 is small: " in capsys.readouterr().out


def test_presets_outside_of_the_space_are_refused_by_name_before_anything_is_made(new_lab, capsys):
    lab = new_lab(presets={"mine": {"depth": 0, "lr": 1.0}})
    assert lab.run() == 2
    said = capsys.readouterr().err
    assert "presets.mine.lr: 1.0 is outside of strategy.lr (0.0001 to 0.01)" in said
    assert "~presets.mine" in said
    assert not (lab.folder / "mlruns" / "optuna.db").exists()
    # A study that has begun goes on as it was.
    lab.train("presets={}", "budget.trials=1")
    lab.train("budget.trials=2")
    assert lab.trials()[1].params["lr"] == 1e-2


def test_default_presets_are_moved_with_a_word_and_those_of_another_depth_are_left_out(new_lab, capsys):
    lab = new_lab(presets=DEFAULT_PRESETS)
    lab.train("strategy.depth=1.0", "strategy.lr.high=1e-3", "budget.trials=1")
    said = capsys.readouterr().out
    assert "Preset  linear_probe, last_block: left out, as strategy.depth is 1.0" in said
    assert "Preset  full: lr 0.002 -> 0.001, the nearest in strategy.lr" in said
    assert "(preset full)" in said
    lab.train("strategy.depth=1.0", "strategy.lr.high=1e-3", "budget.trials=1")
    # Not counting the preset that is queued.
    assert "lab: 1 trial so far" in capsys.readouterr().out


def test_the_best_probe_of_a_sweep_keeps_its_own_values_also_when_it_is_tried_again(new_lab):
    space = {**SMALL["strategy"], "lr": {"low": 1e-5, "high": 5e-5, "log": True}}
    lab = new_lab(strategy=space, presets={"deep": {"depth": 1.0}}, probe_sweep=2)
    lab.train("budget.trials=1")
    probe = lab.trials()[0]
    lr = lab.study.user_attrs[SWEEP]["values"]["lr"]
    assert lr > 5e-5
    assert (probe.user_attrs[PRESET], probe.user_attrs[STRATEGY]["lr"], probe.params["lr"]) == (SWEEP, lr, 5e-5)
    queue_again(lab.study, probe, {RETRY_OF: probe.number})
    assert lab.trials()[-1].user_attrs[OWN_VALUES] == probe.user_attrs[OWN_VALUES]


def test_an_interval_of_images_that_are_all_right_is_no_point():
    outputs, targets = torch.eye(2).repeat(18, 1), torch.tensor([0, 1] * 18)
    low, high = TASKS["classification"].interval("balanced_accuracy", outputs, targets)
    assert (low, high) == pytest.approx((0.9036, 1.0), abs=1e-4)
    assert TASKS["classification"].interval("accuracy", outputs, targets) == (low, high)


def test_mlflow_and_terminal_tell_the_same_seconds(new_lab):
    lab = new_lab()
    lab.train("budget.trials=1")
    metrics, trial = lab.runs()[0].data.metrics, lab.trials()[0]
    assert metrics["training_seconds"] < metrics["seconds"] <= trial.duration.total_seconds()
