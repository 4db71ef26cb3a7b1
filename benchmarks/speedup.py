"""By how much a policy is faster than a plain search, over data sets: ratios, regret, their intervals and plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.replay import Curves, Floats, Plain, Trace

# A score counts as reached if it is lower than the plain search's best by no more than this.
TOLERANCES = (0.0, 0.005)
# Shares of the plain search's wall time at which regret is printed, and those at which it is plotted.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
PLOTTED = tuple(float(share) for share in 2.0 ** np.linspace(-6, 0, 25))
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Compared:
    """One policy's searches of one data set against plain searches of one size.

    Args:
        whole: By tolerance, one number a plain search: its wall time / the policy's time until a score as good; 0 where
            the policy missed the score within its bound.
        hindsight: Likewise: the time at which the plain search had found its best / the policy's time.
        regret: A row a plain search, a column a share of ``PLOTTED``: what the best score lacks of the data set's best,
            as a share of the range from the data set's worst strategy to its best.
    """

    whole: Mapping[float, Floats]
    hindsight: Mapping[float, Floats]
    regret: Floats


def compare(curves: Curves, plain: Sequence[Plain], traces: Sequence[Trace], bound: float) -> Compared:
    """Compare plain searches with a policy's.

    Args:
        curves: The data set.
        plain: Its plain searches.
        traces: Of the policy's searches, one for each plain search, or fewer, which are then used in turn.
        bound: A score that is reached later than after so many wall times of the plain search is missed.
    """
    pairs = [(one, traces[place % len(traces)]) for place, one in enumerate(plain)]
    whole, hindsight = {}, {}
    for tolerance in TOLERANCES:
        # Scores are stored with five digits: what is subtracted must not turn equal into worse.
        times = np.array([trace.reached(one.best - tolerance - 1e-9) for one, trace in pairs])
        times[times > bound * np.array([one.whole for one in plain])] = np.inf
        whole[tolerance] = np.array([one.whole for one in plain]) / times
        hindsight[tolerance] = np.array([one.found for one in plain]) / times
    top, worst = curves.best.max(), curves.best.min()
    scores = np.array([[trace.best_at(share * one.whole) for share in PLOTTED] for one, trace in pairs])
    lacking = top - np.maximum(scores, worst)
    return Compared(whole, hindsight, lacking / (top - worst) if top > worst else np.zeros_like(lacking))


def over_sets(values: Floats, statistic: Any) -> tuple[float, float, float]:
    """A statistic of all cases, with its 95% bootstrap interval over data sets.

    Args:
        values: (data sets, cases of a data set).
        statistic: Takes an array and ``axis``.
    """
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    found = statistic(values[drawn].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(statistic(values.reshape(1, -1), axis=1)[0]), float(low), float(high)


def ratios(values: Floats) -> dict[str, Any]:
    """Median with its interval over data sets, quartiles of all cases, share missed, and each data set's median."""
    median, low, high = over_sets(values, np.median)
    quartiles = np.quantile(values, [0.25, 0.75])
    return {
        "median": median,
        "interval": [low, high],
        "quartiles": [float(one) for one in quartiles],
        "missed": float((values == 0).mean()),
        "of_sets": [float(one) for one in np.median(values, axis=1)],
    }


def summary(compared: Sequence[Compared]) -> dict[str, Any]:
    """What a policy came to, over data sets."""
    regret = np.array([one.regret for one in compared])
    return {
        "tolerance": {
            str(tolerance): {
                "whole": ratios(np.array([one.whole[tolerance] for one in compared])),
                "hindsight": ratios(np.array([one.hindsight[tolerance] for one in compared])),
            }
            for tolerance in TOLERANCES
        },
        "regret": {str(share): list(over_sets(regret[:, :, at], np.mean)) for at, share in enumerate(PLOTTED)},
    }


def less_regret(ours: Sequence[Compared], theirs: Sequence[Compared]) -> dict[str, list[float]]:
    """By how much their mean regret is higher than ours, with intervals over data sets, in pairs."""
    difference = np.array([their.regret - our.regret for our, their in zip(ours, theirs, strict=True)])
    return {str(share): list(over_sets(difference[:, :, PLOTTED.index(share)], np.mean)) for share in SHARES}


def ratio_table(plain: int, tolerance: float, found: Mapping[str, dict[str, Any]], bound: float) -> Table:
    """A row a policy: both ratios at a tolerance."""
    table = Table(
        title=f"plain searches of {plain} trials, tolerance {tolerance:g}",
        caption="median [95% interval over data sets], quartiles over all cases;\n"
        f"missed: not within {bound:g} times the plain search's wall time, counted as 0",
    )
    table.add_column("policy")
    for column in ("whole", "quartiles", "hindsight", "quartiles", "missed"):
        table.add_column(column, justify="right")
    for policy, of_policy in found.items():
        both = of_policy["tolerance"][str(tolerance)]
        cells = []
        for ratio in ("whole", "hindsight"):
            low, high = both[ratio]["interval"]
            first, third = both[ratio]["quartiles"]
            cells += [f"{both[ratio]['median']:.2f} \\[{low:.2f}, {high:.2f}]", f"{first:.2f}, {third:.2f}"]
        table.add_row(policy, *cells, f"{both['whole']['missed']:.1%}")
    return table


def regret_table(plain: int, found: Mapping[str, dict[str, Any]]) -> Table:
    """A row a policy, a column a share of the plain search's wall time."""
    table = Table(
        title=f"mean regret at shares of the wall time of {plain} plain trials",
        caption="0: the data set's best strategy, 1: its worst, or none yet; [95% interval over data sets]",
    )
    table.add_column("policy")
    for share in SHARES:
        table.add_column(f"1/{1 / share:.0f}", justify="right")
    for policy, of_policy in found.items():
        cells = (of_policy["regret"][str(share)] for share in SHARES)
        table.add_row(policy, *(f"{mean:.3f} \\[{low:.3f}, {high:.3f}]" for mean, low, high in cells))
    return table


def plot(path: Path, found: Mapping[int, Mapping[str, dict[str, Any]]]) -> None:
    """Mean regret against time, a panel a size of the plain search, with intervals over data sets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(found), 4.5), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for panel, (plain, of_plain) in zip(panels, found.items(), strict=True):
        for policy, of_policy in of_plain.items():
            middle, low, high = np.array([of_policy["regret"][str(share)] for share in PLOTTED]).T
            (line,) = panel.plot(PLOTTED, middle, label=policy)
            panel.fill_between(PLOTTED, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        panel.set(xscale="log", yscale="log", xlabel=f"time / wall time of {plain} plain trials")
        panel.set_xticks(SHARES, [f"1/{1 / share:.0f}" if share < 1 else "1" for share in SHARES], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean regret, 95% interval over data sets")
    panels[0].legend()
    figure.savefig(path)
