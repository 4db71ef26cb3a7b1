"""What reuse gains where labels are masks and boxes: the same strategies with it, and with ``reuse=off``.

``python -m benchmarks.dense_speed`` searches the scenes with ``search.run``, each side a command of its own that begins
without stores and caches; the sides take turns. Both train the same strategies in the same epochs. What counts is the
time within trials, computing and storing what they share included; imports, composing the scenes and scoring the
winner, which are the same on both sides, are in the whole command's.
"""

import argparse
import shutil
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from benchmarks.searches import Run, fresh, run

SIDES = {
    "off": ["-m", "search.run", "study={file}", "reuse=off"],
    "auto": ["-m", "search.run", "study={file}"],
}
DECODERS = {"segmentation": ["unet", "fcn"], "detection": ["faster_rcnn", "retinanet"]}
# Blocks trained, in mixed order.
DEPTHS = (2, 0, 4, 1, 3)
FULL = {"limit_train": 480, "limit_val": 160, "limit_test": 80}
QUICK = {"limit_train": 16, "limit_val": 8, "limit_test": 8}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    result: dict[str, Any] = {"machine": machine(), "model": options.model, "epochs": options.epochs, "decoders": {}}
    with tempfile.TemporaryDirectory(prefix="unfreeze-dense-") as name:
        for decoder in options.decoders:
            runs = race(decoder, options, Path(name))
            result["decoders"][decoder] = {
                **{side: [asdict(one) for one in of_side] for side, of_side in runs.items()},
                **{f"seconds_{side}": statistics.median(one.seconds for one in runs[side]) for side in SIDES},
                **{
                    f"trial_seconds_{side}": statistics.median(one.trial_seconds for one in runs[side])
                    for side in SIDES
                },
                "ratio": statistics.median(
                    off.trial_seconds / auto.trial_seconds for off, auto in zip(runs["off"], runs["auto"], strict=True)
                ),
            }
            write_json(result, options.json)
    show(result)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name for names in DECODERS.values() for name in names]
    parser.add_argument("--decoders", nargs="+", choices=every, default=["fcn", "faster_rcnn"], help="of either task")
    parser.add_argument("--model", default="resnet18", help="a timm model")
    parser.add_argument("--weights", default="embedded", help="as in model.weights of a study; none will do")
    parser.add_argument("--epochs", type=int, default=4, help="of each trial")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each decoder and side; the median counts")
    parser.add_argument("--quick", action="store_true", help="few scenes and strategies, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args(arguments)


def race(decoder: str, options: argparse.Namespace, folder: Path) -> dict[str, list[Run]]:
    """The same list of strategies on both sides, each from nothing, as often as the options say."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        for side, command in SIDES.items():
            home = fresh(folder / f"{decoder}-{side}-{repeat}")
            runs[side].append(run(command, study_of(decoder, options, home), home))
            print(
                f"{decoder}, reuse {side}: {runs[side][-1].seconds:.1f} s, best {runs[side][-1].best:.4f}", flush=True
            )
            shutil.rmtree(home)
    return runs


def study_of(decoder: str, options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """A study file's content."""
    (task,) = (task for task, names in DECODERS.items() if decoder in names)
    depths = DEPTHS[:2] if options.quick else DEPTHS
    return {
        "task": task,
        "model": {"name": options.model, "weights": options.weights, "decoder": decoder},
        "data": {
            "source": "scenes",
            "image_size": 64,
            "cache": str(home / "cache"),
            **(QUICK if options.quick else FULL),
        },
        "strategy": {"depth": {"low": 0, "high": max(DEPTHS)}, "lr": 2e-3, "batch_size": 16, "epochs": options.epochs},
        "presets": {f"blocks_{depth}": {"depth": depth} for depth in depths},
        "budget": {"trials": len(depths)},
        "pruner": {"name": "none"},
        "store": {"url": f"sqlite:///{home / 'optuna.db'}"},
        "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}", "artifacts": str(home / "artifacts")},
    }


def show(result: dict[str, Any]) -> None:
    title = f"{result['model']} on scenes, 0 to {max(DEPTHS)} blocks, {result['epochs']} epochs a trial"
    table = Table(
        title=title, caption=f"{result['machine']['cores']} cores; seconds within trials, and of whole commands"
    )
    table.add_column("decoder")
    for name in ("off, s", "reuse, s", "ratio", "command off, s", "command, s", "best val, off", "best val, reuse"):
        table.add_column(name, justify="right")
    for decoder, row in result["decoders"].items():
        times = f"{row['trial_seconds_off']:.1f}", f"{row['trial_seconds_auto']:.1f}", f"{row['ratio']:.2f}"
        times += f"{row['seconds_off']:.1f}", f"{row['seconds_auto']:.1f}"
        table.add_row(decoder, *times, *(f"{max(one['best'] for one in row[side]):.4f}" for side in SIDES))
    Console().print(table)


if __name__ == "__main__":
    main()
