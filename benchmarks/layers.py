"""How often the answer to "which layers?" holds the truth, on searches of which the whole grid is known.

``python -m benchmarks.layers`` draws tables of mean scores over a grid of depth, learning rate, loss and flips: how
much depth brings, where that ends, whether the deepest ones lose again, at which rates each depth learns best and where
it diverges. Some tables have no effect of depth. A search draws trials from such a table; each score has the noise of a
seed. The truth is that of the table: the mean over all rates, losses and flips of its grid (with ``tpe``, which draws
good ones more often, over those that were drawn).
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import write_json
from search.config import SamplerConfig
from search.reporting import which_layers
from search.reporting.layers import Layers
from search.scheduling import make_sampler
from search.storage import BLOCKS, DEPTH, IDENTITY

DEPTHS, RATES = 10, np.geomspace(1e-4, 1e-1, 40)
LOSSES = ("cross_entropy", "label_smoothing", "focal")


@dataclass(frozen=True)
class Grid:
    """A table of mean scores.

    Args:
        means: (depths, rates, losses, flips) mean scores, between 0 and 1.
        noise: Deviation of a score with the seed.
    """

    means: NDArray[np.float64]
    noise: float


def draw_grid(seed: int) -> Grid:
    """A table; every fourth has no effect of depth."""
    rng = np.random.default_rng(seed)
    depth = np.arange(DEPTHS)[:, None, None, None]
    rate = np.log10(RATES)[None, :, None, None]
    knee, gain = rng.uniform(1, 7), 0.0 if seed % 4 == 0 else rng.uniform(0.05, 0.4)
    learnt = gain * (1 - np.exp(-3 * depth / knee))
    overfit = rng.choice([0.0, 0.02]) * np.maximum(0, depth - 7) if gain else 0.0 * depth
    # The more blocks are trained, the lower the rate that suits, and the lower that at which training diverges.
    off = rate - (rng.uniform(-2.8, -2.0) - 0.05 * depth * bool(gain))
    diverges = 1 / (1 + np.exp(-8 * (off - 1.2)))
    means = rng.uniform(0.4, 0.55) + learnt - overfit - rng.uniform(0.02, 0.1) * off**2
    means = means + rng.uniform(0, 0.03) * np.arange(3)[None, None, :, None] + rng.choice([0.0, 0.02]) * np.arange(2)
    means = means * (1 - diverges) + 0.1 * diverges
    return Grid(np.clip(means, 0, 1), rng.uniform(0.003, 0.02))


def search(grid: Grid, trials: int, seed: int, sampler: str = "random") -> tuple[optuna.Study, NDArray[np.int64]]:
    """A search of a table, and the places of its trials in the grid, (N, 4)."""
    study, rng = optuna.create_study(direction="maximize"), np.random.default_rng([seed, trials])
    study.set_user_attr(IDENTITY, {"metric": "accuracy"})
    study.set_user_attr(BLOCKS, {"model": DEPTHS - 1})
    places = []
    for number in range(trials):
        study.sampler = make_sampler(SamplerConfig(name=sampler), seed, number)
        trial = study.ask()
        depth = trial.suggest_int("depth", 0, DEPTHS - 1)
        lr = trial.suggest_float("lr", RATES[0], RATES[-1], log=True)
        loss = trial.suggest_categorical("loss", LOSSES)
        flip = trial.suggest_categorical("flip", [False, True])
        # Fields without an effect.
        trial.suggest_float("weight_decay", 0, 0.1)
        trial.suggest_categorical("batch_size", [16, 32, 64])
        trial.set_user_attr(DEPTH, depth)
        places.append((depth, int(np.abs(np.log(RATES / lr)).argmin()), LOSSES.index(loss), int(flip)))
        score = grid.means[places[-1]] + grid.noise * rng.standard_normal()
        study.tell(trial, float(np.clip(score, 0, 1)))
    return study, np.array(places)


def truth(grid: Grid, places: NDArray[np.int64], depths: tuple[int, int], of_drawn: bool) -> float:
    """The true mean score of some depths, as often as each was tried.

    Args:
        grid: The table.
        places: Those of the trials, (N, 4).
        depths: The lowest and the highest depth.
        of_drawn: Whether over the trials' other fields, and not over the whole grid.
    """
    if of_drawn:
        _, rates, losses, flips = places.T
        means = grid.means[:, rates, losses, flips].mean(1)
    else:
        means = grid.means.mean((1, 2, 3))
    tried = places[(places[:, 0] >= depths[0]) & (places[:, 0] <= depths[1]), 0]
    return float(means[tried].mean())


def holds(grid: Grid, places: NDArray[np.int64], answer: Layers, of_drawn: bool = False) -> bool:
    """Whether every interval of an answer holds the true difference."""
    return all(
        told.found.low
        <= truth(grid, places, told.these, of_drawn) - truth(grid, places, told.others, of_drawn)
        <= told.found.high
        for told in answer.told
    )


def has_best(grid: Grid, places: NDArray[np.int64], answer: Layers) -> bool:
    """Whether the truly best of the strategies that were tried is among those that the answer calls a tie."""
    return int(grid.means[tuple(places.T)].argmax()) in answer.tied


def examined(trials: int, sampler: str, studies: int) -> dict[str, Any]:
    """How often the answers of some studies hold the truth, and how much they say."""
    held, best, clear, widths, tied = [], [], [], [], []
    for seed in range(studies):
        grid = draw_grid(seed)
        study, places = search(grid, trials, seed, sampler)
        answer = which_layers(study)
        held.append(holds(grid, places, answer, of_drawn=sampler != "random"))
        best.append(has_best(grid, places, answer))
        clear.append(any(told.found.is_clear for told in answer.told))
        widths += [told.found.high - told.found.low for told in answer.told]
        tied.append(len(answer.tied))
    return {
        "sampler": sampler,
        "trials": trials,
        "studies": studies,
        "held": sum(held),
        "clear": sum(clear),
        "width": float(np.median(widths)) if widths else math.nan,
        "best_is_tied": sum(best),
        "tied": float(np.median(tied)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[24, 40, 100], help="trials of a study")
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"], help="how trials are drawn")
    parser.add_argument("--studies", type=int, default=20, help="studies of each kind")
    parser.add_argument("--quick", action="store_true", help="few studies, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = 2 if options.quick else options.studies
    rows = [examined(trials, sampler, studies) for sampler in options.samplers for trials in options.trials]
    write_json({"found": rows}, options.json)
    table = Table(
        "sampler",
        "trials",
        "all intervals hold the truth",
        "a difference is clear",
        "width of an interval",
        "the best is in the tie",
        "trials in the tie",
        title=f"{studies} studies each",
    )
    for row in rows:
        counts = (f"{row[name]} of {studies}" for name in ("held", "clear"))
        width, tied = f"{row['width']:.3f}", f"{row['tied']:g}"
        table.add_row(row["sampler"], str(row["trials"]), *counts, width, f"{row['best_is_tied']} of {studies}", tied)
    Console().print(table)


if __name__ == "__main__":
    main()
