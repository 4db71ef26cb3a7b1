"""What the trainer and the search must know of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Metric = Callable[[Tensor, Tensor], float]
Answers = dict[str, NDArray[Any]]

_RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Scale:
    """A change of units between targets and what a model gives.

    Args:
        mean: (K,) float32.
        std: (K,) float32.
    """

    mean: Tensor
    std: Tensor

    def standardise(self, targets: Tensor) -> Tensor:
        """Targets (N, K) in units of the training targets' standard deviation, around their mean."""
        mean, std = self._on(targets.device)
        return (targets - mean) / std

    def restore(self, outputs: Tensor) -> Tensor:
        """A model's outputs (N, K) in the units of the targets."""
        mean, std = self._on(outputs.device)
        return outputs * std + mean

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation on a device, which is not waited for."""
        return self.mean.to(device, non_blocking=True), self.std.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as data.

    Args:
        name: The value of ``task`` in a study.
        metrics: Scores of outputs and targets by name; the first is the task's default. All have ``loss``.
        lower_is_better: Names of the metrics that are errors.
        scale: The units that a model is to learn training targets in; None to leave both as they are.
        answers: Columns of what a served model says, from raw outputs (N, C) and the names of the classes.
        intervals: 95% intervals with a formula of their own; the others are bootstrapped.
    """

    name: str
    metrics: Mapping[str, Metric]
    lower_is_better: frozenset[str]
    scale: Callable[[Tensor], Scale | None]
    answers: Callable[[Tensor, Sequence[str]], Answers]
    intervals: Mapping[str, Callable[[Tensor, Tensor], tuple[float, float]]]

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Every metric; ``loss`` is the task's usual one, whatever was trained.

        Args:
            outputs: (N, C) float32 on the CPU, in the units of the targets.
            targets: (N,) int64 or (N, C) float32 on the CPU.
        """
        return {name: metric(outputs, targets) for name, metric in self.metrics.items()}

    def interval(self, metric: str, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """A 95% interval for a score: by its formula, else percentile bootstrap over images with a fixed seed.

        Args:
            metric: A key of ``metrics``.
            outputs: (N, C) float32 on the CPU, in the units of the targets.
            targets: (N,) int64 or (N, C) float32 on the CPU.
        """
        if metric in self.intervals:
            return self.intervals[metric](outputs, targets)
        rng = np.random.default_rng(0)
        draws = (torch.from_numpy(rng.integers(0, len(targets), len(targets))) for _ in range(_RESAMPLES))
        # A draw may hold nothing to score, such as one image over and over.
        low, high = np.nanquantile(
            [self.metrics[metric](outputs[rows], targets[rows]) for rows in draws], [0.025, 0.975]
        )
        return float(low), float(high)
