"""A study of equal trials, trained by one worker, by two of this machine and by two on Ray, each with one thread.

``python -m benchmarks.executors`` runs each as a command of its own, in turn and each from nothing: no store, no cache,
nothing imported. Told apart are the seconds from the first trial's begin to the last one's end, and those of the whole
command, which has imports, workers that start up, Ray, and the winner's scores in it.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import optuna
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from benchmarks.searches import fresh, seconds_of

SIDES = {
    "one worker": ["executor=local"],
    "two local": ["executor=local", "executor.trials_per_device=2"],
    "two on Ray": ["executor=ray", "executor.workers=2"],
}
ALONE = next(iter(SIDES))
# In the sides' order: what two workers are to take of one's time on two cores.
AIMS = {"two local": 0.6, "two on Ray": 0.65}

FULL = {"model": "resnet18", "images": 400, "epochs": 3, "trials": 12, "repeats": 3}
QUICK = {"model": "test_resnet", "images": 64, "epochs": 2, "trials": 4, "repeats": 1}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="runs of each side; the median counts")
    parser.add_argument("--trials", type=int, help="of the study")
    parser.add_argument("--quick", action="store_true", help="a tiny model on a few digits, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scale: dict[str, Any] = dict(QUICK if options.quick else FULL)
    scale["repeats"] = options.repeats or scale["repeats"]
    scale["trials"] = options.trials or scale["trials"]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="unfreeze-executors-") as name:
        for repeat in range(scale["repeats"]):
            for place, side in enumerate(SIDES):
                runs[side].append(run(side, scale, fresh(Path(name) / f"{repeat}-{place}")))
    result = {"machine": machine(), "scale": scale, "runs": runs, "ratios": ratios(runs)}
    write_json(result, options.json)
    show(result)


def run(side: str, scale: dict[str, Any], home: Path) -> dict[str, float]:
    """Run the study once, and return the seconds of its trials and of the whole command."""
    store = f"sqlite:///{home}/optuna.db"
    study = {
        "model": {"name": scale["model"], "weights": "none"},
        "data": {"image_size": 32, "limit_train": scale["images"], "limit_val": 64, "limit_test": 64}
        | {"cache": str(home / "cache")},
        # Nothing varies, and nothing is shared: each trial is the same work.
        "strategy": {"depth": 1.0, "lr": 1e-3, "epochs": scale["epochs"], "batch_size": 32},
        "presets": {},
        "probe_sweep": 0,
        "reuse": "off",
        "pruner": {"name": "none"},
        "budget": {"trials": scale["trials"]},
        "device": "cpu",
        "threads": 1,
        "store": {"url": store},
        "tracking": {"uri": f"sqlite:///{home}/mlflow.db", "artifacts": str(home / "artifacts")},
    }
    (home / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    whole = seconds_of(["-m", "search.run", f"study={home / 'study.yaml'}", *SIDES[side]], home)
    trials = optuna.load_study(study_name="study", storage=store).trials
    if [trial.state.name for trial in trials] != ["COMPLETE"] * scale["trials"]:
        raise RuntimeError(f"{side}: the trials are {[trial.state.name for trial in trials]}")
    begun = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return {"trials": (max(ended) - min(begun)).total_seconds(), "whole": whole}


def ratios(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median over repeats of each side's seconds by those of one worker in the same turn."""
    return {
        side: {
            what: statistics.median(one[what] / alone[what] for one, alone in zip(runs[side], runs[ALONE], strict=True))
            for what in ("trials", "whole")
        }
        for side in runs
    }


def show(result: dict[str, Any]) -> None:
    scale = result["scale"]
    table = Table(
        title=f"{scale['trials']} equal trials of {scale['model']}, one thread a worker",
        caption=f"{result['machine']['cores']} cores; ratios to one worker, medians of {scale['repeats']}",
    )
    table.add_column("executor")
    for name in ("trials s", "ratio", "aim", "whole command s", "ratio"):
        table.add_column(name, justify="right")
    for side, runs in result["runs"].items():
        seconds = {what: statistics.median(one[what] for one in runs) for what in ("trials", "whole")}
        ratio, aim = result["ratios"][side], f"≤ {AIMS[side]}" if side in AIMS else ""
        trials = f"{seconds['trials']:.1f}", f"{ratio['trials']:.2f}", aim
        table.add_row(side, *trials, f"{seconds['whole']:.1f}", f"{ratio['whole']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
