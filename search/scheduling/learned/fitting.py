"""Fit the prior to tables of learning curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from search.scheduling.learned.curves import Floats, Scale, ahead, curve_numbers, horizon_numbers
from search.scheduling.learned.encoding import NAMES, encode
from search.scheduling.learned.prior import Prior
from search.scheduling.learned.study_model import EarlierStudy
from search.scheduling.learned.tables import Curves
from search.scheduling.learned.trees import Trees

# Epochs after which curves are cut to learn how they go on.
_CUTS = (1, 2, 3, 5, 8, 13, 20, 30, 42)
_TREES: dict[str, Any] = {"max_depth": 6, "l2_regularization": 5.0, "max_features": 0.4, "early_stopping": False}
_OF_NEW = {"max_iter": 150, "learning_rate": 0.06, "max_leaf_nodes": 16, "min_samples_leaf": 40}
_OF_GAIN = {"max_iter": 150, "learning_rate": 0.08, "max_leaf_nodes": 24, "min_samples_leaf": 60}
_OF_ERROR = {"max_iter": 60, "learning_rate": 0.08, "max_leaf_nodes": 12, "min_samples_leaf": 100}
_OF_EPOCH = {"max_iter": 150, "learning_rate": 0.08, "max_leaf_nodes": 16, "min_samples_leaf": 15}


class _Set:
    """One data set as rows for fitting.

    Args:
        curves: Its fine-tunings.
    """

    def __init__(self, curves: Curves) -> None:
        self.vectors = np.array(
            [encode(one, task) for one, task in zip(curves.candidates, curves.tasks, strict=True)], np.float64
        ).reshape(-1, len(NAMES))
        self._epochs = [one.epochs for one in curves.candidates]
        self._values = [
            Scale(1 / (task.classes or 1e9), 1.0).of(scores)
            for task, scores in zip(curves.tasks, curves.scores, strict=True)
        ]
        self._best = [np.maximum.accumulate(values) for values in self._values]
        finals = np.array([best[-1] for best in self._best])
        self.mean, self.spread = float(finals.mean()), max(0.05, float(finals.std()))
        medians = np.array([np.median(seconds) for seconds in curves.seconds])
        images = np.array([task.images for task in curves.tasks])
        self.epoch = np.log(np.maximum(medians, 1e-4)) - np.log(images)

    def new(self) -> tuple[Floats, Floats]:
        """Rows of strategies that have not begun, and their best scores in spreads."""
        rows, targets = [], []
        for vector, best, epochs in zip(self.vectors, self._best, self._epochs, strict=True):
            for step in ahead(0, epochs):
                rows.append([*vector, *horizon_numbers(step, 0, epochs)])
                targets.append((best[min(step, len(best)) - 1] - self.mean) / self.spread)
        return np.array(rows), np.array(targets)

    def gains(self) -> tuple[Floats, Floats]:
        """Rows of curves that are cut, and by how much their best scores rise."""
        rows, targets = [], []
        for vector, values, best, epochs in zip(self.vectors, self._values, self._best, self._epochs, strict=True):
            for done in _CUTS:
                if done >= len(values):
                    break
                numbers = curve_numbers(values[:done], epochs)
                for step in sorted(set(ahead(done, epochs))):
                    rows.append([*vector, *numbers, *horizon_numbers(step, done, epochs)])
                    targets.append(best[min(done + step, len(best)) - 1] - best[done - 1])
        return np.array(rows).reshape(-1, len(NAMES) + 12), np.array(targets)


def as_curves(name: str, study: EarlierStudy) -> Curves:
    """A study's trials that have scores, as a data set of a table."""
    scored = [one for one in study.seen if one.scores]
    return Curves(
        name,
        (study.task,) * len(scored),
        tuple(one.candidate for one in scored),
        tuple(one.scores for one in scored),
        tuple(one.seconds for one in scored),
    )


def fit_prior(tables: Sequence[Curves], about: str) -> Prior:
    """Fit the prior.

    Args:
        tables: The fine-tunings of at least two data sets.
        about: What the tables are, for people.

    Raises:
        ValueError: There are fewer than two data sets.
    """
    if len(tables) < 2:
        raise ValueError("the prior is fitted to at least two data sets, since its error is that in other sets")
    sets = [_Set(curves) for curves in tables if curves.scores]
    vectors = np.concatenate([one.vectors for one in sets])
    levels = np.array([one.mean for one in sets])
    with np.errstate(all="ignore"):
        known = ~np.isnan(vectors).all(0)
        center = np.where(known, np.nanmean(np.where(known, vectors, 0), 0), 0)
        width = np.where(known, np.nanstd(np.where(known, vectors, 0), 0), 1)
    return Prior(
        *_with_error([one.new() for one in sets], _OF_NEW),
        *_with_error([one.gains() for one in sets], _OF_GAIN),
        Trees.of(_trees(_OF_EPOCH, vectors, np.concatenate([one.epoch for one in sets]))),
        center,
        np.where(width > 1e-6, width, 1.0),
        float(levels.mean()),
        float(levels.var()) + 0.05,
        float(np.mean([one.spread for one in sets])),
        about,
    )


def _trees(options: dict[str, Any], rows: Floats, targets: Floats) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    # scikit-learn cannot bin a column without any value. No tree compares a constant.
    filled = np.where(np.isnan(rows).all(0), 0, rows)
    return HistGradientBoostingRegressor(random_state=0, **_TREES, **options).fit(filled, targets)


def _with_error(sets: list[tuple[Floats, Floats]], options: dict[str, Any]) -> tuple[Trees, Trees]:
    """Trees fitted to all sets, and trees of their absolute errors in sets that they were not fitted to."""
    halves = sets[::2], sets[1::2]
    rows, errors = [], []
    for fitted, other in (halves, halves[::-1]):
        model = _trees(options, *_joined(fitted))
        others, targets = _joined(other)
        rows.append(others)
        errors.append(np.abs(targets - model.predict(others)))
    return (
        Trees.of(_trees(options, *_joined(sets))),
        Trees.of(_trees(_OF_ERROR, np.concatenate(rows), np.concatenate(errors))),
    )


def _joined(sets: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    rows, targets = zip(*sets, strict=True)
    return np.concatenate(rows), np.concatenate(targets)
