"""How often each 95% interval that Unfreeze shows holds the truth, on simulated truths.

``python -m benchmarks.intervals`` draws test images, models, trainings with new seeds and trials, and computes the
intervals with the functions that the search uses. Images are independent, or come in groups of about six that are hard
or easy together. The truth is that of a million images, or of the distribution that is drawn from.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.trial import create_trial
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import write_json
from search.winner import bounds_of, mean_interval
from search.winner.confirmation import confirmed_of
from search.winner.significance import compare_models
from trainers import TASKS, Groups, calibration_error, calibration_interval

IMAGES, GROUP_SIZE, POPULATION = 400, 6, 1_000_000
# How much of an image's difficulty is common to its group; the right class's mean logit, of champion and challenger.
OF_GROUP, STRENGTHS = 0.6, (3.0, 3.3)
CLASSES = (0.5, 0.3, 0.2)
# Of trainings with new seeds: the mean scores, what a seed gives to all strategies, and what it gives to each.
MEANS, OF_SEED, OF_STRATEGY = (0.90, 0.91), 0.01, 0.007
BOUNDS = bounds_of("accuracy", is_lower_better=False)

# Its score has no part in the intervals.
TRIAL = create_trial(value=0.9)

#: Whether an interval held the truth; None where there is no interval.
Held = bool | None
Rng = np.random.Generator


def _images(rng: Rng, count: int, is_grouped: bool) -> tuple[list[Tensor], Tensor, Groups]:
    """Logits of two models, targets, and groups, which differ for all images if they are not grouped."""
    groups = rng.integers(0, max(2, count // GROUP_SIZE), count) if is_grouped else np.arange(count)
    common = rng.standard_normal(groups.max() + 1)[groups]
    difficulty = math.sqrt(OF_GROUP) * common + math.sqrt(1 - OF_GROUP) * rng.standard_normal(count)
    targets = torch.from_numpy(rng.choice(len(CLASSES), count, p=CLASSES))
    right = torch.nn.functional.one_hot(targets, len(CLASSES)).numpy()
    logits = []
    for strength in STRENGTHS:
        drawn = right * (strength - 1.5 * difficulty)[:, None] + rng.standard_normal(right.shape)
        logits.append(torch.from_numpy(drawn).float())
    return logits, targets, groups


@cache
def _population() -> tuple[list[Tensor], Tensor]:
    logits, targets, _ = _images(np.random.default_rng(0), POPULATION, is_grouped=False)
    return logits, targets


@cache
def _true_scores(model: int) -> dict[str, float]:
    logits, targets = _population()
    return TASKS["classification"].scores(logits[model], targets)


@cache
def _true_error() -> float:
    logits, targets = _population()
    return calibration_error("classification", logits[0].double(), targets)


def _holds(low: float, high: float, truth: float) -> Held:
    return None if math.isnan(low) else low <= truth <= high


def score(rng: Rng, is_grouped: bool, metric: str) -> Held:
    """The test score of a model."""
    logits, targets, groups = _images(rng, IMAGES, is_grouped)
    ends = TASKS["classification"].interval(metric, logits[0], targets, groups if is_grouped else None)
    return _holds(*ends, _true_scores(0)[metric])


def difference(rng: Rng, is_grouped: bool, metric: str) -> Held:
    """The difference of challenger and champion."""
    logits, targets, groups = _images(rng, IMAGES, is_grouped)
    task = TASKS["classification"]
    found = compare_models(task, metric, *logits, targets, groups=groups if is_grouped else None)
    return _holds(found.low, found.high, _true_scores(1)[metric] - _true_scores(0)[metric])


def error_of_calibration(rng: Rng, is_grouped: bool) -> Held:
    """The calibration error of a model."""
    logits, targets, groups = _images(rng, IMAGES, is_grouped)
    ends = calibration_interval("classification", logits[0].double(), targets, groups if is_grouped else None)
    return _holds(*ends, _true_error())


def _trainings(rng: Rng, seeds: int) -> tuple[list[float], list[float]]:
    """Scores of two strategies with the same new seeds."""
    of_seed: NDArray[np.float64] = OF_SEED * rng.standard_normal(seeds)
    first, second = (mean + of_seed + OF_STRATEGY * rng.standard_normal(seeds) for mean in MEANS)
    return first.tolist(), second.tolist()


def confirmation(rng: Rng, seeds: int) -> Held:
    """The mean score of a strategy over new seeds."""
    first, _ = _trainings(rng, seeds)
    found = confirmed_of(TRIAL, first, first, BOUNDS)
    return None if found.low is None or found.high is None else _holds(found.low, found.high, MEANS[0])


def pairs(rng: Rng, seeds: int) -> Held:
    """The difference from the search's best, paired by seed."""
    first, second = _trainings(rng, seeds)
    found = confirmed_of(TRIAL, second, first, BOUNDS)
    if found.difference_low is None or found.difference_high is None:
        return None
    return _holds(found.difference_low, found.difference_high, MEANS[1] - MEANS[0])


def depth(rng: Rng, trials: int) -> Held:
    """The mean score of a depth's trials, whose learning rates lie around the best one: scores with a tail below."""
    scores = 0.95 - 0.04 * rng.uniform(-1, 1, trials) ** 2 + 0.005 * rng.standard_normal(trials)
    ends = mean_interval(scores.tolist(), BOUNDS)
    return None if ends is None else _holds(*ends, 0.95 - 0.04 / 3)


#: By name, what is drawn and whether its interval held the truth.
INTERVALS: Mapping[str, Callable[[Rng], Held]] = {
    **{
        f"{name}, {'grouped' if is_grouped else 'independent'} images": lambda rng, f=function, g=is_grouped: f(rng, g)
        for is_grouped in (False, True)
        for name, function in {
            "test accuracy": lambda rng, g: score(rng, g, "accuracy"),
            "test macro F1": lambda rng, g: score(rng, g, "macro_f1"),
            "test loss": lambda rng, g: score(rng, g, "loss"),
            "difference of accuracies": lambda rng, g: difference(rng, g, "accuracy"),
            "difference of macro F1": lambda rng, g: difference(rng, g, "macro_f1"),
            "difference of losses": lambda rng, g: difference(rng, g, "loss"),
            "calibration error": error_of_calibration,
        }.items()
    },
    "mean over 3 new seeds": lambda rng: confirmation(rng, 3),
    "mean over 5 new seeds": lambda rng: confirmation(rng, 5),
    "difference over 3 new seeds, paired": lambda rng: pairs(rng, 3),
    "difference over 5 new seeds, paired": lambda rng: pairs(rng, 5),
    "mean of a depth over 6 trials": lambda rng: depth(rng, 6),
    "mean of a depth over 12 trials": lambda rng: depth(rng, 12),
}

#: Intervals that take no images, so that many can be drawn.
CHEAP = [name for name in INTERVALS if name.startswith(("mean", "difference over"))]


def coverage(name: str, repeats: int) -> float:
    """The share of intervals that hold the truth."""
    # Other draws for each interval, so that their misses are independent.
    place = list(INTERVALS).index(name)
    held = [INTERVALS[name](np.random.default_rng([seed, place])) for seed in range(repeats)]
    return float(np.mean([one for one in held if one is not None]))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500, help="intervals of each kind")
    parser.add_argument("--quick", action="store_true", help="few intervals, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    repeats = 3 if options.quick else options.repeats
    found = {name: coverage(name, repeats * (10 if name in CHEAP else 1)) for name in INTERVALS}
    write_json({"repeats": repeats, "coverage": found}, options.json)
    table = Table(
        "95% interval of", "holds the truth", title=f"{repeats} intervals each, {10 * repeats} over seeds and trials"
    )
    for name, share in found.items():
        table.add_row(name, f"{share:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
