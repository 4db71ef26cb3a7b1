"""How soon our search is as good as a plain loop's whole search, on several data sets and with several seeds.

The plain loop searches 16 trials to its end. ``whole`` is its wall time / the time until another side has told a trial
as good as its best; ``hindsight`` is the time at which the plain loop had found its best / the same. Both are 0 where
that score was never reached. The other sides: a second plain loop (``null``), a plain loop that begins with our presets
(``presets``), one full fine-tuning by AutoMM's recipe (``recipe``) and our search, both of which end after the plain
loop's wall time at the latest.
"""

import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.collected_sets import composed
from benchmarks.races import Scale, command_of, num_blocks, space_of, study_of
from benchmarks.recipe import RECIPE
from benchmarks.searches import fresh, run
from search.config import DEFAULT_PRESETS
from strategies import Strategy, parse_space, project

SIDES = ("plain", "null", "presets", "recipe", "ours")
#: Data sets beside the scale's own, which is called ``clothes``. Each class of ``photographs`` is a part of one of
#: scikit-learn's photographs, with few images to learn from, for which shallow strategies are meant.
COMPOSED: dict[str, dict[str, Any]] = {
    "photographs": {"image_size": 64, "limit_train": 480},
    "digits_on_photographs": {"image_size": 64, "limit_train": 1600},
}
_COUNTS = {"train": 1600, "val": 1000, "test": 1000}
# Ours may begin so many times the plain loop's strategies within the plain loop's time.
_MORE = 4
# The second plain loop has another seed than all first ones.
_NULL = 1000


def race_to_best(
    scale: Scale,
    sets: Sequence[str],
    sampler: str,
    folder: Path,
    known: Sequence[dict[str, Any]],
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Run all sides on all data sets with all seeds.

    Args:
        scale: How large the benchmark is.
        sets: ``clothes`` for the scale's own data, or names of :data:`COMPOSED`.
        sampler: ``sampler.name`` of our search.
        folder: An empty folder.
        known: Runs of an earlier call, which are not run again.
        keep: Called with all runs so far after each run.
    """
    runs = list(known)
    for name, seed, side in _jobs(sets, scale.seeds):
        found = {(one["set"], one["seed"], one["side"]): one for one in runs}
        if (name, seed, side) not in found:
            home = fresh(folder / f"{name}-{seed}-{side}")
            data = _data_of(name, scale, folder)
            plain = found.get((name, seed, "plain"))
            command, study = _side(side, scale, data, home, seed, plain, sampler)
            one = run(command, study, home, sought=plain["best"] if plain is not None else None)
            runs.append({"set": name, "seed": seed, "side": side, **asdict(one)})
            keep(runs)
            told = "never" if one.first_best is None else f"{one.first_best:.0f} s"
            print(f"{name}, seed {seed}, {side}: best {one.best:.4f}, as good as plain: {told}", flush=True)
            shutil.rmtree(home)
    return runs


def _jobs(sets: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    """Data set, seed and side of each run: every beginning has all sets, and a plain loop comes before its rivals."""
    yield from ((name, seed, side) for seed in seeds for name in sets for side in SIDES)


def _data_of(name: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """The ``data`` section of a set; a composed one is written once."""
    if name not in COMPOSED:
        # Four times the other cases' test images: test scores are compared here.
        return {**scale.data, "limit_test": 4 * scale.data["limit_test"]}
    return {"source": "folder", "root": str(composed(name, folder / "sets" / name, _COUNTS)), **COMPOSED[name]}


def _side(
    side: str,
    scale: Scale,
    data: dict[str, Any],
    home: Path,
    seed: int,
    plain: dict[str, Any] | None,
    sampler: str,
) -> tuple[list[str], dict[str, Any]]:
    """The command and the study of a side; of all but the first plain loop, ``plain`` is that loop's run."""
    space = space_of("any", scale)

    def study(values: dict[str, Any], presets: dict[str, Any] | None, trials: int, number: int, pruner: str) -> Any:
        return study_of(scale, home, values, presets, trials, number, pruner) | {
            "data": {**data, "cache": str(home / "cache")}
        }

    if side in ("plain", "null", "presets"):
        presets = _presets(scale, space) if side == "presets" else {}
        number = seed + _NULL * (side != "plain")
        return [*command_of("plain", scale), "--test"], study(space, presets, scale.trials, number, "median")
    assert plain is not None, "the plain loop comes first"
    if side == "recipe":
        command = ["-m", "benchmarks.recipe", "{file}", "--seconds", str(plain["seconds"])]
        return command, study(RECIPE, {}, 1, seed, "none")
    # Without presets of its own here, ours has those that every study has.
    ours = study(space, None, _MORE * scale.trials, seed, "auto")
    ours["budget"]["hours"] = plain["seconds"] / 3600
    return command_of("ours", scale), ours | {"sampler": {"name": sampler}}


def _presets(scale: Scale, space: dict[str, Any]) -> dict[str, Any]:
    """Our presets, moved into the space."""
    blocks, parsed = num_blocks(scale), parse_space(space)
    return {name: project(Strategy.from_dict(preset), parsed, blocks) for name, preset in DEFAULT_PRESETS.items()}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By side, over all data sets and over each: medians of both ratios, how often they missed, and test scores."""
    sets = list(dict.fromkeys(one["set"] for one in runs))
    return {name: _of_sides([one for one in runs if name in ("all", one["set"])]) for name in ("all", *sets)}


def _of_sides(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    plain = {(one["set"], one["seed"]): one for one in runs if one["side"] == "plain"}
    found = {}
    for side in SIDES:
        pairs = [(one, plain[one["set"], one["seed"]]) for one in runs if one["side"] == side]
        if not pairs:
            continue
        times = [(one["first_best"], first) for one, first in pairs]
        found[side] = {
            "runs": len(pairs),
            "whole": statistics.median(first["seconds"] / took if took else 0.0 for took, first in times),
            "hindsight": statistics.median(first["first_best"] / took if took else 0.0 for took, first in times),
            "missed": sum(took is None for took, _ in times) / len(times),
            "seconds": statistics.median(one["seconds"] for one, _ in pairs),
            "best": statistics.mean(one["best"] for one, _ in pairs),
            "test": statistics.mean(one["test"] for one, _ in pairs),
            "test_above_plain": statistics.mean(one["test"] - first["test"] for one, first in pairs),
        }
    return found


def show(found: dict[str, Any]) -> None:
    """Print a table for all data sets and for each."""
    for name, sides in found.items():
        table = Table(title=f"time to the plain loop's best: {name}", caption="medians; means of scores")
        table.add_column("side")
        for column in ("runs", "whole", "hindsight", "missed", "seconds", "best val", "test", "test - plain's"):
            table.add_column(column, justify="right")
        for side, row in sides.items():
            ratios = f"{row['whole']:.1f}", f"{row['hindsight']:.1f}", f"{row['missed']:.0%}", f"{row['seconds']:.0f}"
            scores = f"{row['best']:.4f}", f"{row['test']:.4f}", f"{row['test_above_plain']:+.4f}"
            table.add_row(side, str(row["runs"]), *ratios, *scores)
        Console().print(table)
