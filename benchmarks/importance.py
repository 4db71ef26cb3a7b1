"""Which fields a search names as those that mattered, where the truth is known.

``python -m benchmarks.importance`` draws trials with five fields. In some studies no field has an effect, in others one
has, and the rest of a score is noise. The table shows how often the field with the effect is named, and how often
another one.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table

from benchmarks.machine import write_json
from search.config import SamplerConfig
from search.reporting import importances
from search.scheduling import make_sampler

#: By name, the field that has an effect, and the effect by the trial's fields; the noise has a deviation of 1.
EFFECTS: Mapping[str, tuple[str | None, Callable[[dict[str, Any]], float]]] = {
    "none": (None, lambda fields: 0.0),
    "depth, a straight line, 90% of the variation": ("depth", lambda fields: 1.0 * fields["depth"]),
    "depth, a straight line, half of the variation": ("depth", lambda fields: 0.35 * fields["depth"]),
    "lr, a peak, 90% of the variation": ("lr", lambda fields: -7.2 * abs(np.log10(fields["lr"]) + 2.8)),
    "flip, on or off, 80% of the variation": ("flip", lambda fields: 4.0 * fields["flip"]),
}


def study_of(effect: str, trials: int, seed: int, sampler: str = "random") -> optuna.Study:
    """A study of five fields, of which the effect's matters alone."""
    study, rng = optuna.create_study(direction="maximize"), np.random.default_rng(seed)
    for number in range(trials):
        study.sampler = make_sampler(SamplerConfig(name=sampler), seed, number)
        trial = study.ask()
        fields = {
            "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
            "depth": trial.suggest_int("depth", 0, 9),
            "weight_decay": trial.suggest_float("weight_decay", 0, 0.1),
            "loss": trial.suggest_categorical("loss", ["cross_entropy", "label_smoothing", "focal"]),
            "flip": trial.suggest_categorical("flip", [True, False]),
        }
        study.tell(trial, EFFECTS[effect][1](fields) + rng.standard_normal())
    return study


def named(effect: str, trials: int, seed: int, sampler: str = "random") -> tuple[bool, bool]:
    """Whether the field that has the effect is named, and whether any other is."""
    found = set(importances(study_of(effect, trials, seed, sampler)).shares)
    return EFFECTS[effect][0] in found, bool(found - {EFFECTS[effect][0]})


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[20, 30, 50], help="trials of a study")
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"], help="how trials are drawn")
    parser.add_argument("--repeats", type=int, default=100, help="studies of each kind")
    parser.add_argument("--quick", action="store_true", help="few studies, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    repeats = 2 if options.quick else options.repeats
    table = Table("effect of", "sampler", "trials", "named", "another named", title=f"{repeats} studies each")
    rows = []
    for effect, (field, _) in EFFECTS.items():
        for sampler in options.samplers:
            for trials in options.trials:
                found = [named(effect, trials, seed, sampler) for seed in range(repeats)]
                right, wrong = (float(np.mean(part)) for part in zip(*found, strict=True))
                rows.append({"effect": effect, "sampler": sampler, "trials": trials, "named": right, "other": wrong})
                table.add_row(effect, sampler, str(trials), f"{right:.0%}" if field else "", f"{wrong:.0%}")
    write_json({"repeats": repeats, "found": rows}, options.json)
    Console().print(table)


if __name__ == "__main__":
    main()
