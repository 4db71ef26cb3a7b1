"""What fine-tunings of other models and data sets have taught: a predictor of scores and seconds, made of arrays."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.scheduling.learned.curves import AHEAD, Floats, ahead, curve_numbers, horizon_numbers
from search.scheduling.learned.encoding import NAMES
from search.scheduling.learned.trees import Trees

SHIPPED = Path(__file__).with_name("prior.safetensors")
# Errors are predicted as absolute errors; a normal distribution's standard deviation is this many times larger.
_ABSOLUTE_TO_STANDARD = 1.25
_LEAST_ERROR = {"new": 0.05, "gain": 0.004}


@dataclass(frozen=True, slots=True)
class Prior:
    """A fitted predictor.

    Scores of new strategies are predicted in units of a data set's spread around its mean, since the mean and the
    spread of another data set are not known. Scores are on their :class:`~search.scheduling.learned.curves.Scale`.

    Args:
        new: Predicts the best score of a strategy that has not begun.
        new_error: Its absolute error.
        gain: Predicts by how much a curve's best score will rise.
        gain_error: Its absolute error.
        epoch: Predicts the logarithm of an epoch's seconds for each image.
        center: (fields,) mean of each field, by which strategies are compared.
        width: (fields,) standard deviation of each field.
        level: Mean over data sets of their mean final score.
        level_variance: Its variance over data sets.
        spread: Mean over data sets of the standard deviation of their final scores.
        about: What it was fitted on, for people.
    """

    new: Trees
    new_error: Trees
    gain: Trees
    gain_error: Trees
    epoch: Trees
    center: Floats
    width: Floats
    level: float
    level_variance: float
    spread: float
    about: str

    def new_scores(self, vectors: Floats, epochs: Sequence[int]) -> tuple[Floats, Floats]:
        """Best scores of strategies after each number of epochs ahead, with standard deviations, in spreads.

        Args:
            vectors: (strategies, fields) of :func:`~search.scheduling.learned.encoding.encode`.
            epochs: (strategies,) epochs of each whole trial.

        Returns:
            Two arrays, each (strategies, horizons).
        """
        steps = np.array([ahead(0, total) for total in epochs])
        numbers = np.stack([np.log(steps), steps / np.array(epochs)[:, None]], 2)
        rows = np.concatenate([np.repeat(vectors, len(AHEAD), 0), numbers.reshape(-1, 2)], 1)
        return self._pair(self.new, self.new_error, rows, "new")

    def gains(self, vectors: Floats, curves: Sequence[Floats], epochs: Sequence[int]) -> tuple[Floats, Floats]:
        """By how much the best scores of curves will rise, with standard deviations.

        Args:
            vectors: (strategies, fields).
            curves: Of each strategy, its scores so far on their scale; at least one.
            epochs: Epochs of each whole trial.

        Returns:
            Two arrays, each (strategies, horizons).
        """
        rows = [
            [*vector, *numbers, *horizon_numbers(step, len(curve), total)]
            for vector, curve, total in zip(vectors, curves, epochs, strict=True)
            for numbers in [curve_numbers(curve, total)]
            for step in ahead(len(curve), total)
        ]
        risen, error = self._pair(self.gain, self.gain_error, np.array(rows, np.float64), "gain")
        return np.maximum(risen, 0), error

    def rises(self, vectors: Floats, curves: Sequence[Floats], epochs: Sequence[int], steps: Sequence[int]) -> Floats:
        """By how much the best scores of curves will rise within some epochs, (strategies,).

        Args:
            vectors: (strategies, fields).
            curves: Of each strategy, its scores so far on their scale; at least one.
            epochs: Epochs of each whole trial.
            steps: Epochs ahead.
        """
        rows = [
            [*vector, *curve_numbers(curve, total), *horizon_numbers(step, len(curve), total)]
            for vector, curve, total, step in zip(vectors, curves, epochs, steps, strict=True)
        ]
        return np.maximum(self.gain.predict(np.array(rows, np.float64)), 0)

    @staticmethod
    def _pair(mean: Trees, error: Trees, rows: Floats, name: str) -> tuple[Floats, Floats]:
        errors = np.maximum(error.predict(rows) * _ABSOLUTE_TO_STANDARD, _LEAST_ERROR[name])
        return mean.predict(rows).reshape(-1, len(AHEAD)), errors.reshape(-1, len(AHEAD))

    def epoch_seconds(self, vectors: Floats, images: int) -> Floats:
        """Logarithm of the seconds of an epoch of each strategy, (strategies,), on the machines of the tables."""
        return np.asarray(self.epoch.predict(vectors) + np.log(max(1, images)), np.float64)

    def alike(self, vectors: Floats, own: Floats) -> tuple[Floats, Floats]:
        """Strategies as points whose squared distances are compared; missing fields count as average.

        Args:
            vectors: (strategies, fields).
            own: (strategies, further) fields of the study's own, each 0 to 1.
        """
        points = np.nan_to_num((vectors - self.center) / self.width)
        return np.clip(points, -4, 4), own * 3.5

    def save(self, file: Path) -> None:
        """Write the numbers as a safetensors file."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {
            "center": self.center.astype(np.float32),
            "width": self.width.astype(np.float32),
            "levels": np.array([self.level, self.level_variance, self.spread], np.float32),
        }
        for field in fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Trees):
                arrays |= part.arrays(field.name)
        save_file(arrays, file, {"about": self.about, "fields": json.dumps(NAMES)})

    @classmethod
    def load(cls, file: Path) -> "Prior":
        """Read the numbers of a safetensors file.

        Raises:
            ValueError: The file was fitted for other fields.
        """
        from safetensors import safe_open

        with safe_open(file, "numpy") as opened:
            told = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        if json.loads(told.get("fields", "[]")) != list(NAMES):
            raise ValueError(f"{file} was fitted for other fields of strategies; fit it anew")
        level, variance, spread = (float(one) for one in arrays["levels"])
        return cls(
            Trees.from_arrays(arrays, "new"),
            Trees.from_arrays(arrays, "new_error"),
            Trees.from_arrays(arrays, "gain"),
            Trees.from_arrays(arrays, "gain_error"),
            Trees.from_arrays(arrays, "epoch"),
            arrays["center"].astype(np.float64),
            arrays["width"].astype(np.float64),
            level,
            variance,
            spread,
            told.get("about", ""),
        )


@cache
def shipped_prior() -> Prior:
    """The prior that comes with Unfreeze; read at the first call."""
    return Prior.load(SHIPPED)
