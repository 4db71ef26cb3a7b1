"""What the races of our search against a plain loop share: how large they are, their spaces, and their studies."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import timm

from strategies import parse_space, sample, split_blocks

SIDES = {"plain": ["-m", "benchmarks.plain_loop", "{file}"], "ours": ["-m", "search.run", "study={file}"]}


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the benchmark is.

    Args:
        model: A timm model.
        weights: As in ``model.weights`` of a study.
        data: The ``data`` section of a study.
        epochs: Of each trial.
        probes: Linear probes in case ``probes``.
        trials: Strategies in each of the other cases.
        shallow: Blocks trained at most in case ``shallow``.
        repeats: Runs of each case and side; the median counts.
        seeds: Of the searches in ``time_to_best``.
        processes: That train at once on either side; they share the cores.
    """

    model: str
    weights: str
    data: dict[str, Any]
    epochs: int
    probes: int
    trials: int
    shallow: int
    repeats: int
    seeds: tuple[int, ...]
    processes: int


FASHION = {
    "source": "torchvision",
    "dataset": "FashionMNIST",
    "root": "/usr/share/datasets/fashion-mnist",
    "image_size": 64,
    "limit_train": 2000,
    "limit_val": 2000,
    # Ours scores its winner on them; the plain loop only reads them.
    "limit_test": 500,
}
DIGITS = {"source": "digits", "image_size": 32, "limit_train": 128, "limit_val": 64, "limit_test": 64}
FULL = Scale(
    model="tf_efficientnet_lite0",
    weights="package:efficientnet-lite0",
    data=FASHION,
    epochs=5,
    probes=64,
    trials=16,
    shallow=4,
    repeats=3,
    seeds=(0, 1, 2, 3, 4),
    processes=2,
)
QUICK = Scale(
    model="resnet18",
    weights="embedded",
    data=DIGITS,
    epochs=1,
    probes=4,
    trials=2,
    shallow=2,
    repeats=1,
    seeds=(0,),
    processes=1,
)


def command_of(side: str, scale: Scale) -> list[str]:
    """The command of a side, which trains in so many processes as the scale says."""
    if side == "plain":
        return [*SIDES[side], "--processes", str(scale.processes)]
    return [*SIDES[side], f"executor.trials_per_device={scale.processes}"]


def space_of(case: str, scale: Scale) -> dict[str, Any]:
    """The ``strategy`` section of a study."""
    deepest = {"probes": 0, "shallow": scale.shallow, "any": num_blocks(scale)}[case]
    space: dict[str, Any] = {
        "depth": {"low": 1 if case == "shallow" else 0, "high": deepest} if deepest else 0,
        "lr": {"low": 3e-4, "high": 1e-2, "log": True},
        "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "loss": {"choices": ["cross_entropy", "label_smoothing"]},
        "batch_size": 64,
        "epochs": scale.epochs,
        "warmup_epochs": 0.5,
    }
    if deepest:
        space["layer_decay"] = {"low": 0.5, "high": 1.0}
        space["batch_norm"] = {"choices": ["train", "frozen_stats"]}
        space["batch_size"] = {"choices": [32, 64]}
    return space


def draw(spec: dict[str, Any], count: int) -> dict[str, dict[str, Any]]:
    """Strategies of a space by name: depths evenly spread and in mixed order, all else at random."""
    space = parse_space(spec)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [{name: getattr(sample(space, study.ask()), name) for name in spec} for _ in range(count)]
    if isinstance(spec["depth"], dict):
        low, high = spec["depth"]["low"], spec["depth"]["high"]
        depths = [low + round(k * (high - low) / max(1, count - 1)) for k in range(count)]
        random.Random(0).shuffle(depths)
        drawn = [{**values, "depth": depth} for values, depth in zip(drawn, depths, strict=True)]
    return {f"s{k:02}": values for k, values in enumerate(drawn)}


def num_blocks(scale: Scale) -> int:
    return len(split_blocks(timm.create_model(scale.model)))


def study_of(
    scale: Scale,
    home: Path,
    space: dict[str, Any],
    presets: dict[str, Any] | None,
    trials: int,
    seed: int,
    pruner: str,
) -> dict[str, Any]:
    """A study file's content; with None for presets, those that a study has by default."""
    study: dict[str, Any] = {
        "seed": seed,
        "model": {"name": scale.model, "weights": scale.weights},
        "data": {**scale.data, "cache": str(home / "cache")},
        "strategy": space,
        "budget": {"trials": trials},
        "pruner": {"name": pruner},
        "store": {"url": f"sqlite:///{home / 'optuna.db'}"},
        "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}", "artifacts": str(home / "artifacts")},
    }
    if presets is not None:
        # The same list on both sides, so nothing that adds to it or fills it in.
        study |= {"presets": presets, "probe_sweep": 0}
    return study
