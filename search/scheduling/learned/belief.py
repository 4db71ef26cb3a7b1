"""What a study's own trials say of its other strategies: Gaussian processes over what the prior got wrong."""

from dataclasses import dataclass

import numpy as np

from search.scheduling.learned.curves import Floats

# Variances are in squares of the prior's spread: what the study may change in the prior's order, what a model adds to
# all of its strategies, and what similar strategies have in common.
_ORDER, _MODEL, _ALIKE = 0.35**2, 0.45**2, 0.35**2
# Without the prior, models and similar strategies have to explain all.
_MODEL_ALONE, _ALIKE_ALONE = 0.6**2, 0.7**2
# Of the logarithm of seconds: the machine, a model on it, a strategy, an epoch.
_MACHINE, _MODEL_SECONDS, _ALIKE_SECONDS, _EPOCH_SECONDS = 1.0, 0.5**2, 0.3**2, 0.15**2
_NARROWNESS = 3.0
_OF_OTHER_STUDIES = 0.5


@dataclass(frozen=True, slots=True)
class Strategies:
    """Strategies that are compared with each other.

    Args:
        points: (strategies, fields) float, their fields.
        own: (strategies, further) float, fields of the study's own.
        models: (strategies,) int, which model each trains.
        scores: (strategies,) float, final scores that the prior predicts, in spreads.
    """

    points: Floats
    own: Floats
    models: Floats
    scores: Floats

    def alike(self, other: "Strategies") -> Floats:
        """How alike the strategies are, from 0 to 1, (strategies, others)."""
        mine, theirs = np.concatenate([self.points, self.own], 1), np.concatenate([other.points, other.own], 1)
        squares = (mine**2).sum(1)[:, None] + (theirs**2).sum(1)[None] - 2 * mine @ theirs.T
        return np.asarray(np.exp(-0.5 * _NARROWNESS * np.maximum(squares, 0) / mine.shape[1]), np.float64)

    def same_model(self, other: "Strategies") -> Floats:
        """Which strategies train the same model, (strategies, others) 0 or 1."""
        return np.asarray(self.models[:, None] == other.models[None], np.float64)

    def order(self, other: "Strategies") -> Floats:
        """Covariance of a change of the prior's order, (strategies, others)."""
        return np.outer(self.scores, other.scores)


@dataclass(frozen=True, slots=True)
class Posterior:
    """Means and variances of some strategies, each (strategies,)."""

    mean: Floats
    variance: Floats


def _regress(known: Floats, across: Floats, prior_variance: Floats, seen: Floats, noise: Floats) -> Posterior:
    """Regression of a Gaussian process with mean 0.

    Args:
        known: (seen, seen) covariance.
        across: (seen, asked) covariance.
        prior_variance: (asked,) variance.
        seen: (seen,) values.
        noise: (seen,) variance of their noise.
    """
    if not len(seen):
        return Posterior(np.zeros(across.shape[1]), prior_variance)
    factor = np.linalg.cholesky(known + np.diag(noise + 1e-6))
    both = np.linalg.solve(factor, np.concatenate([across, seen[:, None]], 1))
    mean = both[:, :-1].T @ both[:, -1]
    return Posterior(mean, np.maximum(prior_variance - (both[:, :-1] ** 2).sum(0), 1e-4))


def scores_given(
    seen: Strategies, asked: Strategies, residuals: Floats, noise: Floats, *, level: float, spread: float, alone: bool
) -> Posterior:
    """By how much final scores differ from the prior's.

    Args:
        seen: Strategies of the study's trials.
        asked: Other strategies.
        residuals: (seen,) by how much the trials' final scores differ from the prior's.
        noise: (seen,) variances of the trials' final scores, which are predictions themselves.
        level: Variance of the study's level.
        spread: The prior's spread.
        alone: Whether the prior's order of strategies is left out.
    """
    model, alike, order = (_MODEL_ALONE, _ALIKE_ALONE, 0.0) if alone else (_MODEL, _ALIKE, _ORDER)

    def covariance(one: Strategies, other: Strategies) -> Floats:
        shared = model * one.same_model(other) + alike * one.alike(other) + order * one.order(other)
        return level + spread**2 * shared

    variance = level + spread**2 * (model + alike + order * asked.scores**2)
    return _regress(covariance(seen, seen), covariance(seen, asked), variance, residuals, noise)


def seconds_given(seen: Strategies, asked: Strategies, residuals: Floats) -> Floats:
    """By how much logarithms of epochs' seconds differ from the prior's, (asked,).

    Args:
        seen: Strategies of the study's trials.
        asked: Other strategies.
        residuals: (seen,) by how much the trials' differ from the prior's.
    """

    def covariance(one: Strategies, other: Strategies) -> Floats:
        return _MACHINE + _MODEL_SECONDS * one.same_model(other) + _ALIKE_SECONDS * one.alike(other)

    noise = np.full(len(residuals), _EPOCH_SECONDS)
    return _regress(covariance(seen, seen), covariance(seen, asked), np.ones(len(asked.models)), residuals, noise).mean


def _of_other_studies(one: Strategies, other: Strategies) -> Floats:
    return _OF_OTHER_STUDIES * (one.same_model(other) * 0.3 + one.alike(other) + _ORDER * one.order(other))


def weights_of_other_studies(seen: Strategies, nearness: Floats, residuals: Floats, noise: float) -> Floats:
    """How much each trial of the user's earlier studies weighs in :func:`scores_of_other_studies`, (seen,).

    Args:
        seen: Strategies of the earlier studies' trials.
        nearness: (seen,) how alike each trial's data and this study's are, 0 to 1.
        residuals: (seen,) by how much the trials' final scores differ from the prior's, in spreads.
        noise: Variance of a final score, in spreads.
    """
    # Another data set is as a more noisy look at this one.
    noises = noise / np.maximum(nearness, 1e-3)
    return np.asarray(np.linalg.solve(_of_other_studies(seen, seen) + np.diag(noises), residuals), np.float64)


def scores_of_other_studies(seen: Strategies, weights: Floats, asked: Strategies) -> Floats:
    """By how much earlier studies of the user say that the prior is wrong of strategies, (asked,) in spreads.

    Args:
        seen: Strategies of the earlier studies' trials.
        weights: (seen,) from :func:`weights_of_other_studies`.
        asked: Strategies of this study.
    """
    return np.asarray(_of_other_studies(seen, asked).T @ weights, np.float64)
