"""Which searched fields mattered, as far as the trials can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.trial import TrialState

from search.storage import score_of
from strategies import counted

#: From so many trials on, a field that decides the score is named in most cases: see benchmarks/importance.py.
LEAST_TRIALS = 20
_TREES, _LEVELS, _LEAST_OF_LEAF, _MOST_CUTS, _MOST_OF_TREE = 16, 3, 3, 15, 1000
# A field is named if its share is above that of the luckiest field in all but one of so many shuffles: p <= 0.02.
_SHUFFLES = 99

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Drawn = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Importances:
    """The fields that stand out from chance.

    Args:
        trials: Number of completed trials.
        shares: By field, the share of the trials' order by score that it explains; those that stand out alone, the
            largest first.
        by_chance: What the share of the luckiest field reaches in one of 50 cases if no field matters; None if it
            cannot be told whether any does.
        reason: Why that cannot be told; empty if it can.
    """

    trials: int
    shares: Mapping[str, float]
    by_chance: float | None
    reason: str

    @property
    def headline(self) -> str:
        """What can be said, without the shares."""
        start = "Which fields mattered"
        if self.by_chance is None:
            return f"{start}: cannot be told from {counted(self.trials, 'trial')} ({self.reason})."
        if not self.shares:
            return f"{start}: none stands out from chance in {self.trials} trials."
        return (
            f"{start} (share of the order of {counted(self.trials, 'trial')} by score that a field explains; "
            f"chance reaches {self.by_chance:.0%})"
        )

    @property
    def sentence(self) -> str:
        """What can be said, with the shares, in one line."""
        found = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in self.shares.items())
        return f"{self.headline}: {found}" if found else self.headline


def importances(study: Study) -> Importances:
    """The fields that mattered, by a random forest on all completed trials (as in Hutter et al., ICML 2014).

    The forest predicts a trial's rank by score from its fields. A field's share is the variation of ranks that splits
    on the field explain, less what they explain of shuffled ranks, as in the adjusted R². The same forest on 99
    shuffles of the ranks gives the largest share that any field reaches by chance; a field is named if its share is
    above that (Altmann et al., Permutation importance, Bioinformatics 2010; the largest of all fields as in Westfall
    and Young, Resampling-Based Multiple Testing, 1993). Ranks are predicted and not scores, since a few diverged trials
    would be most of the scores' variation.

    A trial that did not draw a field takes the value of a random trial that did, anew in each tree. So a field that
    depends on another one explains nothing by being there.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    scored = [(score, tuple(trial.params.items())) for trial in complete if (score := score_of(trial)) is not None]
    return _importances(tuple(score for score, _ in scored), tuple(params for _, params in scored))


# The end of a study asks for them in several places.
@lru_cache(maxsize=8)
def _importances(scores: Sequence[float], drawn: Sequence[Drawn]) -> Importances:
    count = len(scores)
    if count < LEAST_TRIALS:
        return Importances(count, {}, None, f"{LEAST_TRIALS} complete ones are needed")
    if len(set(scores)) == 1:
        return Importances(count, {}, None, "all have the same score")
    trials = [dict(params) for params in drawn]
    names = dict.fromkeys(name for trial in trials for name in trial)
    fields = {name: [trial.get(name, Absent) for trial in trials] for name in names}
    below = {name: cuts for name, values in fields.items() if (cuts := cuts_of(values)).size}
    if not below:
        return Importances(count, {}, None, "they do not differ in any field")
    is_drawn = {name: np.array([value is not Absent for value in fields[name]]) for name in below}
    shares = _shares(_ranks(scores), list(below.values()), list(is_drawn.values()))
    by_chance = float(np.sort(shares[1:].max(1))[-2])
    named = {name: float(share) for name, share in zip(below, shares[0], strict=True) if share > by_chance}
    return Importances(count, dict(sorted(named.items(), key=lambda item: -item[1])), max(0.0, by_chance), "")


class Absent:
    """Stands for a field that a trial did not draw."""


def _ranks(scores: Sequence[float]) -> Floats:
    """Ranks with mean 0 and variance 1, equal for equal scores."""
    _, places, counts = np.unique(np.array(scores, float), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[places]
    found: Floats = (ranks - ranks.mean()) / ranks.std()
    return found


def cuts_of(values: Sequence[Any]) -> Bools:
    """All ways to cut the trials in two by a field, (N, S): a number is low, anything else is one of the choices."""
    present = [value for value in values if value is not Absent]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        limits = np.unique(np.array(present, float))[:-1]
        if len(limits) > _MOST_CUTS:
            levels = np.arange(1, _MOST_CUTS + 1) / (_MOST_CUTS + 1)
            limits = np.unique(np.quantile(np.array(present, float), levels, method="lower"))
        numbers = np.array([np.nan if value is Absent else value for value in values], float)
        return numbers[:, None] <= limits
    choices = sorted(set(present), key=repr)
    # Of two choices, the second is where the first is not.
    choices = choices[: len(choices) - (len(choices) <= 2)]
    return np.array([[value == choice for choice in choices] for value in values]).reshape(len(values), -1)


def _shares(ranks: Floats, below: Sequence[Bools], is_drawn: Sequence[Bools]) -> Floats:
    """Shares of the fields (1 + shuffles, F), of the ranks and of their shuffles.

    Args:
        ranks: (N,) the trials' ranks.
        below: By field, its cuts (N, S).
        is_drawn: By field, whether a trial drew it (N,).
    """
    rng, count = np.random.default_rng(0), len(ranks)
    orders = np.stack([ranks, *(rng.permutation(ranks) for _ in range(_SHUFFLES))])
    of_field = np.repeat(np.arange(len(below)), [cuts.shape[1] for cuts in below])
    every = np.arange(count)
    explained = np.zeros((len(orders), len(below)))
    for _ in range(_TREES):
        rows = rng.integers(0, count, min(count, _MOST_OF_TREE))
        donors = [np.where(drew, every, rng.choice(np.flatnonzero(drew), count)) for drew in is_drawn]
        filled = np.concatenate([cuts[donor[rows]] for cuts, donor in zip(below, donors, strict=True)], 1)
        explained += _explained(orders[:, rows], filled, of_field) / _TREES
    by_chance = explained[1:].mean(0)
    unexplained = (1 - explained.sum(1, keepdims=True)) / (1 - by_chance.sum())
    shares: Floats = explained - unexplained * by_chance
    return shares


def _explained(orders: Floats, below: Bools, of_field: NDArray[np.int64]) -> Floats:
    """The share of variation that the splits on each field explain, (M, F), in one regression tree for each order.

    All trees grow at once, level by level; each node is split by the cut that explains most (CART; Breiman et al.,
    Classification and Regression Trees, 1984).

    Args:
        orders: (M, N) what each tree predicts.
        below: (N, S) whether a trial is below a cut.
        of_field: (S,) the field of each cut.
    """
    trees, cuts = np.arange(len(orders))[:, None], below.astype(float)
    deviations = orders - orders.mean(1, keepdims=True)
    explained = np.zeros((len(orders), of_field[-1] + 1))
    node = np.zeros(orders.shape, np.int64)
    for level in range(_LEVELS):
        inside = (node[:, None] == np.arange(2**level)[:, None]).astype(float)
        sums = inside * deviations[:, None]
        count, total = inside.sum(-1, keepdims=True), sums.sum(-1, keepdims=True)
        count_below, total_below = inside @ cuts, sums @ cuts
        is_allowed = np.minimum(count_below, count - count_below) >= _LEAST_OF_LEAF
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = total_below**2 / count_below + (total - total_below) ** 2 / (count - count_below) - total**2 / count
        gain = np.where(is_allowed, gain, 0.0)
        best = gain.argmax(-1)
        np.add.at(explained, (trees, of_field[best]), np.take_along_axis(gain, best[..., None], -1)[..., 0])
        node = 2 * node + below[np.arange(len(below)), np.take_along_axis(best, node, 1)]
    found: Floats = explained / np.maximum((deviations**2).sum(1, keepdims=True), np.finfo(float).tiny)
    return found
