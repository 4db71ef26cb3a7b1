"""Our search beside a plain loop of Optuna, timm and MLflow: the same strategies, images, weights and epochs.

``python -m benchmarks.search_speed`` runs both as commands of their own, in turn and each from nothing: no store, no
cache, nothing imported. What counts is the time from the start of the command until its last process has ended; for
``time_to_best``, until the first trial is told that is as good as the best of the plain loop's whole search. Needs
Debian's package dataset-fashion-mnist, but for ``--quick``.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import psutil
import timm
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from search.outcome import FINGERPRINT
from strategies import Strategy, parse_space, sample, split_blocks

REPOSITORY = Path(__file__).resolve().parent.parent
SIDES = {"plain": ["-m", "benchmarks.plain_loop"], "ours": ["-m", "search.run"]}
# What each side must have imported before it can begin; reported, and contained in its seconds.
IMPORTS = {"plain": "import benchmarks.plain_loop", "ours": "import search.study, trainers.trainer"}
CASES = ("probes", "shallow", "any", "time_to_best")
# Ours may take so many times the plain loop's trials to find as good a score.
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
        keys: Of the study, set on our command line alone, such as ``executor.trials_per_device=2``.
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
    keys: tuple[str, ...] = ()


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
)
# Starting two commands takes most of the time of such a case.
QUICK_CASES = ("shallow", "time_to_best")


@dataclass(frozen=True, slots=True)
class Run:
    """One search by one side.

    Args:
        seconds: From the start of the command until all its processes had ended.
        best: Best validation accuracy of a trial.
        first_best: Seconds from the start until the first trial was told that is as good as the score looked for, by
            default ``best``; None if there was none.
        strategies: Fingerprints of the strategies that ours trained, sorted; the plain loop notes none.
    """

    seconds: float
    best: float
    first_best: float | None
    strategies: tuple[str, ...]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scale = replace(QUICK if options.quick else FULL, keys=tuple(options.keys))
    if options.repeats is not None:
        scale = replace(scale, repeats=options.repeats)
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
    parser.add_argument("--keys", nargs="+", default=[], metavar="KEY=VALUE", help="set on our command line alone")
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
            runs[side].append(run(side, study, home, scale.keys))
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
        plain = run("plain", study_of(scale, home, space, {}, scale.trials, seed, "median"), home, scale.keys)
        home = fresh(folder / f"ours-{seed}")
        # Without presets of its own here, ours has those that every study has.
        study = study_of(scale, home, space, None, PATIENCE * scale.trials, seed, "median")
        ours = run("ours", study, home, scale.keys, plain.best)
        runs["plain"].append(plain)
        runs["ours"].append(ours)
        print(f"seed {seed}: {plain.best:.4f} after {plain.first_best} s, ours after {ours.first_best} s", flush=True)
    return {side: [asdict(one) for one in of_side] for side, of_side in runs.items()}


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


def run(side: str, study: dict[str, Any], home: Path, keys: tuple[str, ...], until: float | None = None) -> Run:
    """Search with one side's command, until it ends or a trial is told that is as good as ``until``."""
    file = home / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    words = [*SIDES[side], *([f"study={file}", *keys] if side == "ours" else [str(file)])]
    began = datetime.now()
    seconds = seconds_of(words, home, stop=None if until is None else lambda: best_told(home / "optuna.db") >= until)
    trials = optuna.load_study(study_name="study", storage=study["store"]["url"]).trials
    scored = [(t.values[0], t.datetime_complete) for t in trials if t.values and t.datetime_complete]
    best = max(value for value, _ in scored)
    reached = [told for value, told in scored if value >= (best if until is None else until)]
    first_best = (min(reached) - began).total_seconds() if reached else None
    strategies = sorted(t.user_attrs[FINGERPRINT] for t in trials if FINGERPRINT in t.user_attrs)
    return Run(seconds, best, first_best, tuple(strategies))


def seconds_of(words: list[str], home: Path, stop: Any = None) -> float:
    """Seconds from the start of a Python command until the last of its processes has ended.

    Args:
        words: The command without the interpreter.
        home: Where it runs, and leaves its log.
        stop: Looked at now and then; once true, the command is asked to end.

    Raises:
        RuntimeError: It failed; with the end of its log.
    """
    log = home / "log.txt"
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stopped = False
        while process.poll() is None:
            if stop is None:
                process.wait()
            elif not stopped and stop():
                process.send_signal(signal.SIGTERM)
                stopped = True
            else:
                time.sleep(0.2)
        while left_behind(process.pid):
            time.sleep(0.01)
    if process.returncode != 0 and not stopped:
        raise RuntimeError(f"{' '.join(words)} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return time.perf_counter() - began


def left_behind(leader: int) -> list[int]:
    """Processes that the leader of a session has left behind."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def best_told(database: Path) -> float:
    """Best score told so far; read without Optuna, which would make the tables that the search is about to make."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            (best,) = connection.execute("select max(value) from trial_values").fetchone()
    except sqlite3.OperationalError:
        return float("-inf")
    return float("-inf") if best is None else float(best)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
    scale, caption = result["scale"], f"{result['machine']['cores']} cores"
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
