"""What pruners would have made of a study that was searched with none: the time they save, the good trials they stop.

``python -m benchmarks.pruners STUDY [KEY=VALUE ...]`` reads the study's trials and shows their scores, epoch by epoch,
to each pruner as if it had watched, in many orders. The sampler's part is not in it: what is stopped teaches it little.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from benchmarks.machine import write_json
from search.config import PrunerConfig
from search.scheduling import make_pruner
from search.storage import open_stored
from strategies import ConfigError

# By what a table's row says.
PRUNERS = {
    **{f"median, warmup_epochs {warmup}": PrunerConfig(name="median", warmup_epochs=warmup) for warmup in (1, 2, 3, 4)},
    **{f"halving, warmup_epochs {warmup}": PrunerConfig(name="halving", warmup_epochs=warmup) for warmup in (1, 4)},
    **{f"hyperband, warmup_epochs {warmup}": PrunerConfig(name="hyperband", warmup_epochs=warmup) for warmup in (1, 4)},
    "patient": PrunerConfig(name="patient"),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A trial's scores by report, its final one, and its seconds."""

    scores: Sequence[float]
    value: float
    seconds: float


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study that was searched with pruner.name=none")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="that say where its stores are")
    parser.add_argument("--orders", type=int, default=40, help="orders in which the trials are shown")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        (known,) = open_stored([options.study, *options.keys])
        curves = curves_of(known.study)
    except ConfigError as error:
        parser.error(str(error))
    direction = known.study.direction
    result = {name: replayed(pruner, curves, direction, options.orders) for name, pruner in PRUNERS.items()}
    write_json({"trials": len(curves), "pruners": result}, options.json)
    show(known.name, len(curves), result)


def curves_of(study: optuna.Study) -> list[Curve]:
    """Those of the trials that came to their ends.

    Raises:
        ConfigError: There is nothing to replay.
    """
    if len(study.directions) > 1:
        raise ConfigError(f"study {study.study_name} has costs beside its metric, with which nothing is pruned")
    curves = [curve_of(trial) for trial in study.get_trials(states=[TrialState.COMPLETE])]
    if not curves:
        raise ConfigError(f"study {study.study_name} has no complete trial")
    return curves


def curve_of(trial: FrozenTrial) -> Curve:
    """What is replayed of a trial."""
    assert trial.value is not None, "it is complete"
    assert trial.duration is not None, "it is complete"
    steps = sorted(trial.intermediate_values)
    return Curve([trial.intermediate_values[step] for step in steps], trial.value, trial.duration.total_seconds())


def replayed(pruner: PrunerConfig, curves: Sequence[Curve], direction: StudyDirection, orders: int) -> dict[str, float]:
    """Means over random orders.

    Args:
        pruner: Its settings.
        curves: Of the trials; those whose final score is among the best quarter are the good ones.
        direction: Of the study.
        orders: How many.

    Returns:
        ``time`` that is still needed and ``good_stopped`` of the good trials, as shares of 1; ``good_in_time``, how
        many times as many good trials come to their end in the same time; ``lost``, by how much the best score that is
        left is worse.
    """
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    ranked = sorted(range(len(curves)), key=lambda place: sign * curves[place].value)
    good = set(ranked[: max(1, len(curves) // 4)])
    found = []
    for seed in range(orders):
        order = random.Random(seed).sample(range(len(curves)), len(curves))
        stopped = replay(pruner, curves, order, direction)
        seconds = sum(
            one.seconds * stopped.get(place, len(one.scores)) / len(one.scores) for place, one in enumerate(curves)
        )
        left = min(sign * one.value for place, one in enumerate(curves) if place not in stopped)
        lost = left - sign * curves[ranked[0]].value
        found.append((seconds / sum(one.seconds for one in curves), len(good & stopped.keys()) / len(good), lost))
    time, good_stopped, lost = map(mean, zip(*found, strict=True))
    return {"time": time, "good_stopped": good_stopped, "good_in_time": (1 - good_stopped) / time, "lost": lost}


def replay(
    pruner: PrunerConfig, curves: Sequence[Curve], order: Sequence[int], direction: StudyDirection
) -> dict[int, int]:
    """Show curves to a pruner one after another; by place of those that it stops, after how many reports."""
    study = optuna.create_study(direction=direction, pruner=make_pruner(pruner))
    stopped = {}
    for place in order:
        trial, curve = study.ask(), curves[place]
        for step, score in enumerate(curve.scores, start=1):
            trial.report(score, step)
            if step < len(curve.scores) and trial.should_prune():
                stopped[place] = step
                break
        study.tell(trial, None if place in stopped else curve.value, TrialState.PRUNED if place in stopped else None)
    return stopped


def show(name: str, trials: int, result: dict[str, dict[str, float]]) -> None:
    table = Table(
        title=f"{name}: {trials} trials to their ends", caption="as shares of no pruning; good: the best quarter"
    )
    table.add_column("pruner")
    for column in ("time", "good stopped", "good in the same time", "best score lost"):
        table.add_column(column, justify="right")
    for pruner, of_pruner in result.items():
        shares = (f"{of_pruner[share]:.2f}" for share in ("time", "good_stopped", "good_in_time"))
        table.add_row(pruner, *shares, f"{of_pruner['lost']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
