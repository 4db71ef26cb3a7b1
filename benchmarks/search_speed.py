"""Our search beside a plain loop of Optuna, timm and MLflow: the same strategies, images, weights and epochs.

``python -m benchmarks.search_speed`` runs both as commands of their own, in turn and each from nothing: no store, no
cache, nothing imported. Both have the same cores and the same number of processes. What counts is the time from the
start of the command until its last process has ended; for ``time_to_best``, until the first trial is told that is as
good as the best of the plain loop's whole search. Needs Debian's package dataset-fashion-mnist, but for ``--quick``.
"""

import argparse
import random
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import timm
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from benchmarks.searches import Run, fresh, run, seconds_of
from strategies import Strategy, parse_space, sample, split_blocks

SIDES = {"plain": ["-m", "benchmarks.plain_loop", "{file}"], "ours": ["-m", "search.run", "study={file}"]}
# What each side must have imported before it can begin; reported, and contained in its seconds.
IMPORTS = {
    "plain": "import benchmarks.plain_loop",
    "ours": "from search.processes import importing\nwith importing(): import search.study, trainers.training",
}
CASES = ("probes", "shallow", "any", "time_to_best")
# Ours may take so many times the plain loop's trials to find as good a score, though no longer than its whole search.
PATIENCE = 4


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
    seeds=(0, 1, 2),
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
# Starting two commands takes most of the time of such a case.
QUICK_CASES = ("shallow", "time_to_best")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scale = QUICK if options.quick else FULL
    if options.processes is not None:
        scale = replace(scale, processes=options.processes)
    if options.repeats is not None:
        scale = replace(scale, repeats=options.repeats)
    if options.seeds is not None:
        scale = replace(scale, seeds=tuple(options.seeds))
    result: dict[str, Any] = {"machine": machine(), "scale": asdict(scale)}
    with tempfile.TemporaryDirectory(prefix="unfreeze-search-") as name:
        folder = Path(name)
        if not options.quick:
            result["imports_seconds"] = {side: seconds_of(["-c", code], folder) for side, code in IMPORTS.items()}
        result["cases"] = {}
        for case in options.cases or (QUICK_CASES if options.quick else CASES):
            races = race_to_best(scale, folder) if case == "time_to_best" else race(case, scale, folder)
            result["cases"][case] = races | summary(races, "first_best" if case == "time_to_best" else "seconds")
            # A case may take an hour; what is known is written at once.
            write_json(result, options.json)
    show(result)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="by default all, or with --quick two")
    parser.add_argument("--repeats", type=int, help="runs of each case and side; the median counts")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the searches in time_to_best, 0 1 2 by default")
    parser.add_argument("--processes", type=int, help="that train at once on either side; 2, or with --quick 1")
    parser.add_argument("--quick", action="store_true", help="a tiny model on a few digits, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args(arguments)


def race(case: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """The same list of strategies on both sides, each from nothing, as often as the scale says."""
    space = space_of(case, scale)
    presets = draw(space, scale.probes if case == "probes" else scale.trials)
    blocks = num_blocks(scale)
    given = tuple(sorted(Strategy.from_dict(preset).fingerprint(blocks) for preset in presets.values()))
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for repeat in range(scale.repeats):
        for side in SIDES:
            home = fresh(folder / f"{case}-{side}-{repeat}")
            study = study_of(scale, home, space, presets, len(presets), seed=0, pruner="none")
            runs[side].append(run(command_of(side, scale), study, home))
            print(f"{case}, {side}: {runs[side][-1].seconds:.1f} s, best {runs[side][-1].best:.4f}", flush=True)
            if side == "ours" and runs[side][-1].strategies != given:
                raise RuntimeError(f"{case}: the search trained other strategies than it was given")
            shutil.rmtree(home)
    return {side: [asdict(one) for one in of_side] for side, of_side in runs.items()}


def race_to_best(scale: Scale, folder: Path) -> dict[str, Any]:
    """A whole search of the plain loop, and ours until it is as good, for each seed."""
    space = space_of("any", scale)
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for seed in scale.seeds:
        home = fresh(folder / f"plain-{seed}")
        plain = run(command_of("plain", scale), study_of(scale, home, space, {}, scale.trials, seed, "median"), home)
        home = fresh(folder / f"ours-{seed}")
        # Without presets of its own here, ours has those that every study has.
        study = study_of(scale, home, space, None, PATIENCE * scale.trials, seed, "auto")
        ours = run(command_of("ours", scale), study, home, plain.best, plain.seconds)
        runs["plain"].append(plain)
        runs["ours"].append(ours)
        print(f"seed {seed}: {plain.best:.4f} after {plain.first_best} s, ours after {ours.first_best} s", flush=True)
    return {side: [asdict(one) for one in of_side] for side, of_side in runs.items()}


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


def summary(runs: dict[str, Any], key: str) -> dict[str, Any]:
    """Medians of seconds, of their ratio in each pair, and of the best scores.

    Where ours never found what it looked for, all its time counts as if it just had; ``ratio_is`` then says "at most".
    """
    seconds = {side: [one["seconds"] if one[key] is None else one[key] for one in runs[side]] for side in SIDES}
    pairs = zip(seconds["plain"], seconds["ours"], strict=True)
    return {
        "plain_seconds": statistics.median(seconds["plain"]),
        "ours_seconds": statistics.median(seconds["ours"]),
        "ratio": statistics.median(plain / ours for plain, ours in pairs),
        "ratio_is": "at most" if any(one[key] is None for one in runs["ours"]) else "exact",
        "plain_best": statistics.median(one["best"] for one in runs["plain"]),
        "ours_best": statistics.median(one["best"] for one in runs["ours"]),
    }


def show(result: dict[str, Any]) -> None:
    scale = result["scale"]
    caption = f"{result['machine']['cores']} cores, {scale['processes']} processes on either side"
    if "imports_seconds" in result:
        imports = " and ".join(f"{took:.1f} s" for took in result["imports_seconds"].values())
        caption += f"; all seconds contain imports of {imports}"
    title = f"{scale['model']}, {scale['data']['image_size']} px, {scale['epochs']} epochs a trial"
    table = Table(title=title, caption=caption)
    table.add_column("case")
    for name in ("plain s", "ours s", "ratio", "best val, plain", "best val, ours"):
        table.add_column(name, justify="right")
    for case, row in result["cases"].items():
        bound = "≤ " if row["ratio_is"] == "at most" else ""
        times = f"{row['plain_seconds']:.1f}", f"{row['ours_seconds']:.1f}", f"{bound}{row['ratio']:.1f}"
        table.add_row(case, *times, f"{row['plain_best']:.4f}", f"{row['ours_best']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
