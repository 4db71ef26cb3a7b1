"""Our search beside a plain loop of Optuna, timm and MLflow: the same strategies, images, weights and epochs.

``python -m benchmarks.search_speed`` runs both as commands of their own, in turn and each from nothing: no store, no
cache, nothing imported. Both have the same cores and the same number of processes. What counts is the time from the
start of the command until its last process has ended; for ``time_to_best`` see ``benchmarks/time_to_best.py``. Needs
Debian's package dataset-fashion-mnist, but for ``--quick``.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.table import Table

from benchmarks import time_to_best
from benchmarks.machine import machine, write_json
from benchmarks.races import FULL, QUICK, SIDES, Scale, command_of, draw, num_blocks, space_of, study_of
from benchmarks.searches import Run, fresh, run, seconds_of
from strategies import Strategy

# What each side must have imported before it can begin; reported, and contained in its seconds.
IMPORTS = {
    "plain": "import benchmarks.plain_loop",
    "ours": "from search.processes import importing\nwith importing(): import search.study, trainers.training",
}
CASES = ("probes", "shallow", "any", "time_to_best")
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
    result: dict[str, Any] = {"machine": machine(), "scale": asdict(scale), "cases": {}}
    before = earlier_runs(options, scale)
    with tempfile.TemporaryDirectory(prefix="unfreeze-search-") as name:
        folder = Path(name)
        if not options.quick:
            result["imports_seconds"] = {side: seconds_of(["-c", code], folder) for side, code in IMPORTS.items()}

        def keep(runs: list[dict[str, Any]]) -> None:
            # A case may take hours; what is known is written at once.
            found = {"sampler": options.sampler, "summary": time_to_best.summary(runs), "runs": runs}
            result["cases"]["time_to_best"] = found
            write_json(result, options.json)

        keep(before)
        for case in options.cases or (QUICK_CASES if options.quick else CASES):
            if case == "time_to_best":
                sets = ["clothes"] if options.quick else options.sets
                keep(time_to_best.race_to_best(scale, sets, options.sampler, folder, before, keep))
            else:
                races = race(case, scale, folder)
                result["cases"][case] = races | summary(races)
                write_json(result, options.json)
    show(result)


def earlier_runs(options: argparse.Namespace, scale: Scale) -> list[dict[str, Any]]:
    """The runs of ``time_to_best`` that the result's file holds from an earlier call.

    Raises:
        SystemExit: They are of another size, or of another sampler.
    """
    if options.json is None or not options.json.exists():
        return []
    before = json.loads(options.json.read_text(encoding="utf-8"))
    found = before["cases"].get("time_to_best", {"sampler": options.sampler, "runs": []})
    was, now = (json.loads(json.dumps(one)) | {"seeds": None} for one in (before["scale"], asdict(scale)))
    if found["runs"] and (was != now or found["sampler"] != options.sampler):
        raise SystemExit(f"{options.json} holds searches of another size or sampler; name another file")
    return list(found["runs"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="by default all, or with --quick two")
    parser.add_argument("--repeats", type=int, help="runs of each case and side; the median counts")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the searches in time_to_best, 0 to 4 by default")
    sets = ("clothes", *time_to_best.COMPOSED)
    parser.add_argument("--sets", nargs="+", choices=sets, default=sets, help="of time_to_best, all by default")
    parser.add_argument("--sampler", default="learned", help="of our search in time_to_best: sampler.name")
    parser.add_argument("--processes", type=int, help="that train at once on either side; 2, or with --quick 1")
    parser.add_argument("--quick", action="store_true", help="a tiny model on a few digits, to see that it works")
    parser.add_argument(
        "--json", type=Path, help="where to write the result; time_to_best goes on where this file ends"
    )
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


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Medians of seconds, of their ratio in each pair, and of the best scores."""
    seconds = {side: [one["seconds"] for one in runs[side]] for side in SIDES}
    pairs = zip(seconds["plain"], seconds["ours"], strict=True)
    return {
        "plain_seconds": statistics.median(seconds["plain"]),
        "ours_seconds": statistics.median(seconds["ours"]),
        "ratio": statistics.median(plain / ours for plain, ours in pairs),
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
    cases = dict(result["cases"])
    to_best = cases.pop("time_to_best", None)
    for case, row in cases.items():
        times = f"{row['plain_seconds']:.1f}", f"{row['ours_seconds']:.1f}", f"{row['ratio']:.1f}"
        table.add_row(case, *times, f"{row['plain_best']:.4f}", f"{row['ours_best']:.4f}")
    if cases:
        Console().print(table)
    if to_best is not None and to_best["runs"]:
        time_to_best.show(to_best["summary"])


if __name__ == "__main__":
    main()
