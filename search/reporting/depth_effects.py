"""How scores depend on the depth, other fields alike: differences with intervals that hold whatever is compared.

A search draws its trials, so that deep trials may also have, say, lower learning rates than shallow ones. The mean
score of some depths is therefore their partial dependence: the mean over the fields of *all* trials, each trained at
these depths. A random forest predicts it. Its error on the trials of these depths, by trees that have not seen them, is
subtracted. So where depths are drawn at random, the difference of two means is unbiased however poor the forest is, and
the better the forest, the narrower the interval (Wager et al., High-dimensional regression adjustments in randomized
experiments, PNAS 2016).

An interval has three parts: the scatter of the trials of either side about the forest, which is that of seeds and of
all that the forest does not explain, and the scatter of the difference over the trials' fields, since other trials
could have been drawn. The degrees of freedom are Welch's. The scatter of few trials is moderated by that of all (Smyth,
Linear models and empirical Bayes methods, 2004), since few trials may lack the tail of those that diverge.

Which depths are compared is chosen after a look at the scores, so all intervals of a study hold the truth together in
95% of studies: the factor is the 95% quantile of the largest of all comparisons' errors (Hothorn, Bretz and Westfall,
Simultaneous inference in general parametric models, Biometrical Journal 2008).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Groups of neighbouring depths, and the fewest trials in one. More groups would make wider intervals.
_MOST_GROUPS, _LEAST_OF_GROUP = 5, 5
# As many degrees of freedom does the scatter of few trials take from that of all.
_BORROWED = 6.0
_TREES, _LEAST_OF_LEAF, _MOST_OF_TREE, _MOST_FITTED = 100, 3, 1000, 50_000
_LEVEL, _DRAWS = 0.95, 4000


@dataclass(frozen=True, slots=True)
class Comparison:
    """The mean score of some depths less that of others.

    Args:
        difference: The estimate.
        low: Lower end of its 95% interval, which holds together with those of all other comparisons of the study.
        high: Its upper end.
        error: Standard error of the estimate.
    """

    difference: float
    low: float
    high: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference is beyond chance."""
        return self.low > 0 or self.high < 0


class DepthEffects:
    """Scores of a study's trials by groups of neighbouring depths.

    Args:
        scores: (N,) finite scores of trials.
        depths: (N,) the blocks that each trained.
        cuts: (N, S) the trials' other fields, each as the cuts that a tree may make.
    """

    def __init__(self, scores: Floats, depths: NDArray[np.int64], cuts: NDArray[np.bool_]) -> None:
        self._scores = scores
        self._levels, self._level_of, self._counts = np.unique(depths, return_inverse=True, return_counts=True)
        self._cuts = cuts
        #: For each group of depths, its places among the depths that were tried.
        self._groups = _grouped(self._counts)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The lowest and the highest depth of each group that was tried, from shallow to deep."""
        return [(int(self._levels[places[0]]), int(self._levels[places[-1]])) for places in self._groups]

    def compare(self, these: Sequence[int], others: Sequence[int]) -> Comparison:
        """The mean score of some groups less that of others, depths within a group as often as they were tried.

        Args:
            these: Places of neighbouring groups in :attr:`groups`.
            others: Likewise, none of ``these``.
        """
        from scipy.stats import norm, t

        parts, freedoms = self._variances(these, others)
        error = float(np.sqrt(parts.sum()))
        freedom = float(parts.sum() ** 2 / (parts**2 / freedoms).sum()) if error else float(freedoms.sum())
        difference = self._mean(these) - self._mean(others)
        # The quantile of the largest of all errors is of normal ones; each comparison has its degrees of freedom.
        half = float(t.isf(norm.sf(self._factor), freedom)) * error
        return Comparison(difference, difference - half, difference + half, error)

    def noise(self, is_lower_better: bool) -> tuple[float, int]:
        """The deviation of a good trial's score from its strategy's mean, and its degrees of freedom.

        It is the forest's error on the trials that it took for the better half, by trees that have not seen them. What
        the forest does not explain is in it, so it is rather too large.
        """
        predicted = self._predicted[np.arange(len(self._scores)), self._level_of]
        predicted = -predicted if is_lower_better else predicted
        errors = self._residuals[predicted >= np.median(predicted)]
        return float(np.sqrt((errors**2).mean())), len(errors)

    @cached_property
    def _predicted(self) -> Floats:
        """Each trial's score at each depth that was tried, by trees that have not seen the trial: (N, D)."""
        from sklearn.tree import DecisionTreeRegressor

        rng, count = np.random.default_rng(0), len(self._scores)
        inputs = np.column_stack([self._levels[self._level_of], self._cuts]).astype(np.float32)
        total, seen = np.zeros((count, len(self._levels))), np.zeros(count)
        trees = max(20, min(_TREES, _MOST_FITTED // count))
        for seed in range(trees):
            rows = rng.integers(0, count, min(count, _MOST_OF_TREE))
            tree = DecisionTreeRegressor(min_samples_leaf=_LEAST_OF_LEAF, random_state=seed)
            tree.fit(inputs[rows], self._scores[rows])
            out = np.setdiff1d(np.arange(count), rows)
            asked = np.repeat(inputs[out], len(self._levels), axis=0)
            asked[:, 0] = np.tile(self._levels, len(out))
            total[out] += tree.predict(asked).reshape(len(out), -1)
            seen[out] += 1
        # Hardly ever: a trial that all trees have seen.
        found: Floats = np.where(seen[:, None] > 0, total / np.maximum(seen, 1)[:, None], self._scores.mean())
        return found

    @cached_property
    def _residuals(self) -> Floats:
        return self._scores - self._predicted[np.arange(len(self._scores)), self._level_of]

    def _of(self, groups: Sequence[int]) -> tuple[NDArray[np.bool_], Floats]:
        """Which trials have the depths of groups, (N,), and the predictions at these depths for all trials, (N,)."""
        places = np.concatenate([self._groups[group] for group in groups])
        predicted: Floats = self._predicted[:, places] @ (self._counts[places] / self._counts[places].sum())
        return np.isin(self._level_of, places), predicted

    def _mean(self, groups: Sequence[int]) -> float:
        is_in, predicted = self._of(groups)
        return float(predicted.mean() + self._residuals[is_in].mean())

    def _variances(self, these: Sequence[int], others: Sequence[int]) -> tuple[Floats, Floats]:
        """The parts of a difference's variance, and the degrees of freedom of each."""
        (is_in, predicted), (is_other, predicted_other) = self._of(these), self._of(others)
        freedoms = np.array([is_in.sum() - 1.0, is_other.sum() - 1.0, len(is_in) - 1.0])
        own = np.array([self._residuals[side].var(ddof=1) for side in (is_in, is_other)])
        # A few trials may lack the tail that trials have, such as those that diverge.
        own = (freedoms[:2] * own + _BORROWED * self._residuals.var(ddof=1)) / (freedoms[:2] + _BORROWED)
        variances = np.array([*own, (predicted - predicted_other).var(ddof=1)])
        return variances / (freedoms + 1), freedoms

    def _influences(self, these: Sequence[int], others: Sequence[int]) -> Floats:
        """What each trial contributes to the error of a difference, (N,), in units of its standard error."""
        count, found = len(self._scores), np.zeros(len(self._scores))
        for sign, groups in ((1.0, these), (-1.0, others)):
            is_in, predicted = self._of(groups)
            found += sign * (predicted - predicted.mean())
            residuals = self._residuals[is_in]
            found[is_in] += sign * count / len(residuals) * (residuals - residuals.mean())
        size = np.sqrt((found**2).sum())
        return found / size if size else found

    @cached_property
    def _factor(self) -> float:
        """The 95% quantile of the largest error of all comparisons of neighbouring groups, in standard errors."""
        ends = range(len(self._groups) + 1)
        pairs = [
            (range(first, middle), range(begin, end))
            for first, middle in combinations(ends, 2)
            for begin, end in combinations(ends[middle:], 2)
        ]
        influences = np.stack([self._influences(these, others) for these, others in pairs])
        values, vectors = np.linalg.eigh(influences @ influences.T)
        drawn = np.random.default_rng(0).standard_normal((_DRAWS, len(pairs)))
        errors = (drawn * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return float(np.quantile(np.abs(errors).max(1), _LEVEL))


def _grouped(counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Neighbouring depths in groups of about equally many trials, by the trials of each depth alone.

    Scores have no part in it, so that a group is not one of depths that were lucky.
    """
    least = max(_LEAST_OF_GROUP, -(-int(counts.sum()) // _MOST_GROUPS))
    groups: list[list[int]] = [[]]
    for place in range(len(counts)):
        if counts[groups[-1]].sum() >= least:
            groups.append([])
        groups[-1].append(place)
    if len(groups) > 1 and counts[groups[-1]].sum() < _LEAST_OF_GROUP:
        last = groups.pop()
        groups[-1] += last
    return [np.array(group) for group in groups]
