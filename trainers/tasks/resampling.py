"""Scores of images drawn anew: bootstrapped intervals and swap tests, of whole groups where images belong together.

A draw is a row of weights: how often each image counts. So one function of weights serves the bootstrap (images drawn
with replacement), the jackknife (a block of images left out) and the swap test (each image answered by one of two
models). Images of one group, such as a patient, get the same weight: they are drawn, left out and swapped together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]
#: Takes weights (D, N) and gives the score of each draw, (D,); not a number for a draw with nothing to score.
Scored = Callable[[Floats], Floats]
#: Takes outputs and targets of N images and gives the function of their weights.
Prepared = Callable[[Tensor, Tensor], Scored]

_DRAWS = 2000
# Of fewer units, a studentized interval is no shorter than Student's.
_FEW = 8
# Blocks of images (or groups) that are left out in turn, for the acceleration of BCa.
_BLOCKS = 200
# Weights that are held at once.
_MOST_WEIGHTS = 2_000_000
# A test has at least so many draws, and it ends early only after so many draws that are as good as the models.
_LEAST_DRAWS, _LEAST_AS_GOOD = 2000, 10
# Differences of scores below this are rounding.
_ROUNDING = 1e-9


def summed(of_images: Callable[[Tensor, Tensor], Any], score: Callable[[Floats], Floats]) -> Prepared:
    """Scores that depend on sums over images.

    Args:
        of_images: Gives (N, K) of each image from outputs and targets, as a tensor or as a sparse array of scipy.
        score: Gives the scores (D,) from sums (D, K).
    """

    def prepared(outputs: Tensor, targets: Tensor) -> Scored:
        parts = of_images(outputs, targets)
        parts = parts.double().numpy() if isinstance(parts, Tensor) else parts

        def scored(weights: Floats) -> Floats:
            with np.errstate(divide="ignore", invalid="ignore"):
                return score(weights @ parts)

        return scored

    return prepared


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over images of a value of each image.

    Args:
        values: (N,) the values.
        lowest: A value that the mean cannot be below.
    """

    values: Floats
    lowest: float = -np.inf

    def __call__(self, weights: Floats) -> Floats:
        """The means (D,) of draws with such weights (D, N)."""
        found: Floats = weights @ self.values / weights.sum(1)
        return found


def averaged(of_images: Callable[[Tensor, Tensor], Tensor]) -> Prepared:
    """Scores that are shares of images, from whether each counts, (N,)."""

    def prepared(outputs: Tensor, targets: Tensor) -> Scored:
        values = of_images(outputs, targets).double().numpy()
        return lambda weights: weights @ values / weights.sum(1)

    return prepared


def mean_error(of_images: Callable[[Tensor, Tensor], Tensor]) -> Prepared:
    """Scores that are means over images of an error (N,) of each image, at least 0 and without bound."""
    return lambda outputs, targets: Mean(of_images(outputs, targets).double().numpy(), lowest=0.0)


def repeated(metric: Callable[[Tensor, Tensor], float]) -> Prepared:
    """Scores of any metric, computed for each draw anew: right, but slow."""

    def prepared(outputs: Tensor, targets: Tensor) -> Scored:
        def score(weights: Floats) -> float:
            places = np.repeat(np.arange(len(targets)), weights.astype(np.int64))
            return metric(outputs[places], targets[places])

        return lambda weights: np.array([score(row) for row in weights])

    return prepared


def mean_of_classes(values: Floats) -> Floats:
    """The mean over classes (D, C) without those that are not a number; not a number where all are."""
    is_known = ~np.isnan(values)
    found: Floats = np.where(is_known, values, 0.0).sum(-1) / is_known.sum(-1)
    return found


def units_of(count: int, groups: Groups | None) -> Groups:
    """The unit that each of so many images belongs to, numbered from 0: its group, or the image itself."""
    if groups is None:
        return np.arange(count)
    found: Groups = np.unique(groups, return_inverse=True)[1]
    return found


def _drawn(count: int, draws: int, width: int) -> Iterator[Floats]:
    """How often each of so many units is in draws with replacement, (D, U) in parts, the same at each call."""
    rng = np.random.default_rng(0)
    for size in _sizes(draws, max(count, width)):
        places = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def bootstrap(scored: Scored, units: Groups, draws: int = _DRAWS) -> Floats:
    """Scores of draws of units with replacement, (D,); the draws depend on the units alone."""
    count = int(units.max()) + 1
    return np.concatenate([scored(weights[:, units]) for weights in _drawn(count, draws, len(units))])


def score_interval(scored: Scored, units: Groups, alpha: float = 0.05, draws: int = _DRAWS) -> tuple[float, float]:
    """A bootstrapped interval of a score, over images or whole groups: studentized for a mean, else BCa.

    Args:
        scored: Gives scores from weights (D, N).
        units: (N,) the unit of each image; see :func:`units_of`.
        alpha: One minus the coverage.
        draws: Number of draws.

    Returns:
        Both ends; not numbers if there are fewer than two units.
    """
    if isinstance(scored, Mean):
        return studentized_interval(scored, units, alpha, draws)
    return bca_interval(scored, units, alpha, draws)


def studentized_interval(mean: Mean, units: Groups, alpha: float = 0.05, draws: int = _DRAWS) -> tuple[float, float]:
    """The interval of :func:`score_interval` for a mean, studentized (bootstrap-t): of few units BCa's is too short.

    Each draw's distance from the mean is measured in the draw's own standard error, which is large where the mean is,
    as for losses, of which few are very large (Efron and Tibshirani: An Introduction to the Bootstrap, 1993, chapter
    12). A mean that has no lowest value, such as a difference, gets a symmetric interval (Hall: On Symmetric Bootstrap
    Confidence Intervals, JRSS B 1988). The error of a mean over groups of unequal sizes is that of a ratio (Cochran:
    Sampling Techniques, 1977).
    """
    # Only here: the import takes a second, which workers need not wait for.
    from scipy.stats import t

    count = int(units.max()) + 1
    if count < 2:
        return float("nan"), float("nan")
    sums, sizes = np.bincount(units, mean.values), np.bincount(units).astype(np.float64)
    products = np.stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes], axis=1)

    def estimated(weights: Floats) -> Floats:
        """Means and their standard errors, (D, 2)."""
        total, images, *squares = (weights @ products).T
        means = total / images
        spread = squares[0] - 2 * means * squares[1] + means**2 * squares[2]
        return np.stack([means, np.sqrt(np.maximum(spread, 0) * count / (count - 1)) / images], axis=1)

    score, error = estimated(np.ones((1, count)))[0].tolist()
    if error < _ROUNDING:
        return score, score
    means, errors = np.concatenate([estimated(weights) for weights in _drawn(count, draws, len(products.T))]).T
    # In a draw of one unit alone there is no error to measure by.
    is_known = errors > _ROUNDING
    distances = (means[is_known] - score) / errors[is_known]
    if mean.lowest > -np.inf:
        low, high = np.quantile(distances, (alpha / 2, 1 - alpha / 2))
    else:
        # On which side of a difference the long tail is, few units do not tell: both ends are equally far.
        high = np.quantile(np.abs(distances), 1 - alpha)
        low = -high
    if count < _FEW:
        # Few draws differ: the interval is no shorter than Student's.
        reach = float(t.ppf(1 - alpha / 2, count - 1))
        low, high = min(low, -reach), max(high, reach)
    return max(score - float(high) * error, mean.lowest), score - float(low) * error


def bca_interval(scored: Scored, units: Groups, alpha: float = 0.05, draws: int = _DRAWS) -> tuple[float, float]:
    """The interval of :func:`score_interval` corrected for bias and skewness (BCa).

    Efron: Better Bootstrap Confidence Intervals, JASA 1987. The acceleration is from a jackknife of at most 200 blocks
    of units. The quantiles are widened for few units as Student's t is (Hesterberg: What Teachers Should Know About the
    Bootstrap, The American Statistician 2015).
    """
    # Only here: the import takes a second, which workers need not wait for.
    from scipy.special import ndtr, ndtri
    from scipy.stats import t

    count = int(units.max()) + 1
    if count < 2:
        return float("nan"), float("nan")
    score = float(scored(np.ones((1, len(units))))[0])
    found = bootstrap(scored, units, draws)
    found = found[np.isfinite(found)]
    if not len(found) or np.ptp(found) < _ROUNDING:
        return score, score
    below = np.mean(found < score - _ROUNDING) + np.mean(np.abs(found - score) <= _ROUNDING) / 2
    bias = ndtri(np.clip(below, 1 / (len(found) + 1), len(found) / (len(found) + 1)))
    tail = t.ppf(alpha / 2, count - 1) * np.sqrt(count / (count - 1))
    shifted = bias + np.array([tail, -tail])
    levels = ndtr(bias + shifted / (1 - _acceleration(scored, units, count) * shifted))
    low, high = np.quantile(found, np.sort(levels))
    return float(low), float(high)


def _acceleration(scored: Scored, units: Groups, count: int) -> float:
    """BCa's acceleration: the skewness of what blocks of units contribute to the score."""
    blocks = np.random.default_rng(0).permutation(count) % min(count, _BLOCKS)
    of_image = blocks[units]
    every = np.arange(min(count, _BLOCKS))
    step = max(1, _MOST_WEIGHTS // len(units))
    left_out = [scored((of_image != every[k : k + step, None]).astype(np.float64)) for k in range(0, len(every), step)]
    found = np.concatenate(left_out)
    found = found[np.isfinite(found)]
    gaps = found.mean() - found if len(found) else np.zeros(1)
    squares = float((gaps**2).sum())
    return float((gaps**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0


def swap_test(scored: Scored, units: Groups, differs: NDArray[np.bool_], sign: float, alpha: float) -> float:
    """One-sided p-value that a new model is no better than an old one: answers of whole units are swapped at random.

    If both are equally good, it does not matter which of them gave a unit's answers (Good: Permutation, Parametric and
    Bootstrap Tests of Hypotheses, 2005). Any metric can be tested so, as both scores are computed anew for each draw.
    All ways to swap are tried where these are few. Else draws go on until the result is sure: ten draws for each one
    that may be as good by chance, or as soon as p is above ``alpha`` (Besag and Clifford, Biometrika 1991).

    Args:
        scored: Gives scores from weights (D, 2N): the images with the old model's answers, then with the new one's.
        units: (N,) the unit of each image; see :func:`units_of`.
        differs: (U,) whether the models' answers differ for any image of a unit.
        sign: 1 if more is better, -1 if less is.
        alpha: The level that p is held against.
    """
    places = np.flatnonzero(differs)
    most = max(_LEAST_DRAWS, int(np.ceil(_LEAST_AS_GOOD / alpha)))

    def differences(swaps: NDArray[np.bool_]) -> Floats:
        """New minus old, where units (D, U) are swapped."""
        of_image = swaps[:, units]
        old, new = (np.concatenate(pair, axis=1) for pair in ((~of_image, of_image), (of_image, ~of_image)))
        return sign * (scored(new.astype(np.float64)) - scored(old.astype(np.float64)))

    observed = float(differences(np.zeros((1, len(differs)), bool))[0])
    as_good = tried = 0
    is_exact = 2.0 ** len(places) <= most
    for swaps in _every_swap(places, len(differs)) if is_exact else _some_swaps(places, units, len(differs), most):
        found = differences(swaps)
        # A draw with nothing to score speaks for no model.
        as_good += int((~(found < observed - _ROUNDING)).sum())
        tried += len(found)
        if not is_exact and as_good >= max(_LEAST_AS_GOOD, alpha * (most + 1)):
            return as_good / tried
    return as_good / tried if is_exact else (as_good + 1) / (tried + 1)


def _every_swap(places: Groups, count: int) -> Iterator[NDArray[np.bool_]]:
    """All ways to swap the units at some places, (2^P, U)."""
    numbers = np.arange(2 ** len(places))
    swaps = np.zeros((len(numbers), count), bool)
    swaps[:, places] = numbers[:, None] >> np.arange(len(places)) & 1
    yield swaps


def _some_swaps(places: Groups, units: Groups, count: int, draws: int) -> Iterator[NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    for size in _sizes(draws, 2 * len(units)):
        swaps = np.zeros((size, count), bool)
        swaps[:, places] = rng.integers(0, 2, (size, len(places)), dtype=bool)
        yield swaps


def exact_swap_test(gains: Groups) -> float:
    """:func:`swap_test` without draws, for metrics that count images: p from all ways to swap.

    With single images this is McNemar's exact test (Psychometrika 1947), one-sided.

    Args:
        gains: (U,) by how many images of each unit the new model is right more often than the old one.
    """
    # Only here: the import takes a second, which workers need not wait for.
    from scipy.special import gammaln

    sizes, counts = np.unique(np.abs(gains[gains != 0]), return_counts=True)
    # chances[k]: that the summed gains are 2 k above their lowest.
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        of_size = np.zeros(size * count + 1)
        ways = gammaln(count + 1) - gammaln(np.arange(1, count + 2)) - gammaln(np.arange(count + 1, 0, -1))
        of_size[::size] = np.exp(ways - count * np.log(2))
        chances = np.convolve(chances, of_size)
    lowest = -int(np.abs(gains).sum())
    return min(1.0, float(chances[(int(gains.sum()) - lowest) // 2 :].sum()))


def _sizes(draws: int, width: int) -> Iterator[int]:
    """Sizes of the parts in which draws are made; the first parts are small, so that a test may end early."""
    most = max(1, _MOST_WEIGHTS // width)
    size = min(256, most)
    while draws > 0:
        yield min(size, draws)
        draws -= size
        size = min(2 * size, most)
