"""A task as data: its metrics, its units, the form of its answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies import Draws, Strategy
from trainers.data import Placing
from trainers.tasks.resampling import Groups, Prepared, Scored, repeated, score_interval, units_of, wilson_interval

Metric = Callable[[Tensor, Tensor], float]
Answers = dict[str, NDArray[Any]]

#: Strategy fields that mean nothing for a classifier, and why.
NO_DECODER: Mapping[str, str] = {"decoder_lr_scale": "a classifier has no decoder"}

#: Strategy fields that mean nothing where targets lie in the image, and why.
UNUSABLE_IF_DENSE: Mapping[str, str] = {
    **dict.fromkeys(("mixup", "cutmix"), "masks and boxes cannot be mixed"),
    **dict.fromkeys(("policy", "views", "tta"), "masks and boxes do not move along"),
    **dict.fromkeys(("image_scale", "grow_from"), "masks and boxes have the size of the images"),
    **dict.fromkeys(("sampling", "class_weights"), "an image has no single class"),
    **dict.fromkeys(("co_tuning", "distill_weight"), "an image has no single class"),
    **dict.fromkeys(("probe_epochs", "bss", "delta", "dropout"), "there is no linear classifier"),
    "stochastic_norm": "the decoder is new",
}


class MakeTop(Protocol):
    """Makes the layers on top of an encoder; see :mod:`trainers.models.dense`."""

    def __call__(
        self, kind: str, channels: Sequence[int], strides: Sequence[int], num_classes: int, image_size: int, /
    ) -> nn.Module:
        """Takes the decoder's name and facts of the encoder's maps, the highest resolution first."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A change of units between targets and a model's outputs.

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
        """Mean and deviation on a device, without waiting for the copy."""
        return self.mean.to(device, non_blocking=True), self.std.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Dense:
    """The further facts of a task whose targets lie in the image.

    Args:
        decoders: Names of the decoders that can stand on the encoder, the default first.
        make_top: Makes a decoder with its head.
        rows: Takes the model, its outputs and the targets of a batch, and gives rows (B, ...) float for the metrics.
        predicted: Takes the model and its outputs, and gives the predictions, (B, ...).
        vary: Changes images (B, C, S, S) float in [0, 1] and their targets at random as a strategy says.
        draw: A picture (H, W, 3) uint8 of an image (C, S, S) uint8, its target, and its prediction.
        answers: Columns of a served model's answers, from predictions, the names of the classes, and the place of each
            image in its square.
        example: A possible answer for one image, by column.
        per_class: A metric's name, and its value for each class (C,) from rows, targets and the number of classes.
        loss: Takes the model, its outputs and the targets, and gives the training loss; for models with their own loss.
        legend: The colour of each class in pictures, as in CSS; for pictures that do not name classes.
        finest_stride: Pixels of the image for each pixel of the finest feature map that is used.
    """

    decoders: tuple[str, ...]
    make_top: MakeTop
    rows: Callable[[nn.Module, Any, Tensor], Tensor]
    predicted: Callable[[nn.Module, Any], Tensor]
    vary: Callable[[Tensor, Tensor, Strategy, Draws], tuple[Tensor, Tensor]]
    draw: Callable[[Tensor, Tensor, Tensor, Sequence[str]], NDArray[np.uint8]]
    answers: Callable[[Tensor, Sequence[str], Sequence[Placing]], Answers]
    example: Mapping[str, Any]
    per_class: tuple[str, Callable[[Tensor, Tensor, int], Tensor]]
    loss: Callable[[nn.Module, Any, Tensor], Tensor] | None = None
    legend: Callable[[Sequence[str]], dict[str, str]] | None = None
    finest_stride: int = 1


@dataclass(frozen=True, slots=True)
class Task:
    """A task as data.

    Args:
        name: The value of ``task`` in a study.
        metrics: By name, functions of outputs (or rows made of them) and targets; the first is the task's default.
        lower_is_better: Names of the metrics that are errors.
        scale: Makes the units in which a model learns the training targets; None keeps the targets' own units.
        answers: Columns of a served model's answers, from raw outputs (N, C) and the names of the classes; a dense task
            has its own.
        intervals: 95% intervals with a formula of their own, for images without groups; the others are bootstrapped.
        drawn: Metrics of draws of images, if that is cheaper than computing each draw anew.
        shares: Names of the metrics that lie between 0 and 1, where 1 means that everything is right.
        counted: Metrics that are the share of right images, with whether each image is right, (N,) bool.
        draws: Draws of a bootstrapped interval.
        unusable: Strategy fields that mean nothing for the task, with the reason in a few words.
        together: Every metric at once, if that is cheaper than one by one.
        dense: The further facts of a task whose targets lie in the image; None for other tasks.
    """

    name: str
    metrics: Mapping[str, Metric]
    lower_is_better: frozenset[str]
    scale: Callable[[Tensor], Scale | None]
    answers: Callable[[Tensor, Sequence[str]], Answers] | None
    intervals: Mapping[str, Callable[[Tensor, Tensor], tuple[float, float]]]
    drawn: Mapping[str, Prepared] = field(default_factory=dict)
    shares: frozenset[str] = frozenset()
    counted: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    draws: int = 2000
    unusable: Mapping[str, str] = field(default_factory=dict)
    together: Callable[[Tensor, Tensor], dict[str, float]] | None = None
    dense: Dense | None = None

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Every metric; ``loss`` is the task's usual loss, even if another loss was trained.

        Args:
            outputs: (N, C) float32 on the CPU, in the units of the targets; or the rows of a dense task.
            targets: (N, ...) on the CPU.
        """
        if self.together is not None:
            return self.together(outputs, targets)
        return {name: metric(outputs, targets) for name, metric in self.metrics.items()}

    @property
    def watched(self) -> str:
        """The metric that the plateau schedule watches: the loss, or the first metric if there is no loss."""
        return "loss" if "loss" in self.metrics else next(iter(self.metrics))

    def goodness(self, metric: str, score: float) -> float:
        """A score with its sign changed if lower is better, so that more is better."""
        return -score if metric in self.lower_is_better else score

    def interval(
        self, metric: str, outputs: Tensor, targets: Tensor, groups: Groups | None = None
    ) -> tuple[float, float]:
        """A 95% interval for a score: by its formula, else bootstrapped over images or whole groups; seeded.

        Args:
            metric: A key of ``metrics``.
            outputs: (N, C) float32 on the CPU, in the units of the targets.
            targets: (N,) int64 or (N, C) float32 on the CPU.
            groups: (N,) group of each image, such as its patient; None if all images are independent.

        Returns:
            Both ends; not numbers if there is one group only.
        """
        formula = self.intervals.get(metric)
        if formula is not None and groups is None:
            return formula(outputs, targets)
        units = units_of(len(targets), groups)
        low, high = score_interval(self.scored(metric, outputs, targets), units, draws=self.draws)
        if formula is not None and low == high:
            # Every draw is the same, such as all right: that is as sure as one image of each group.
            firsts = np.unique(units, return_index=True)[1]
            return formula(outputs[firsts], targets[firsts])
        if low == high and low in (0.0, 1.0) and metric in self.shares:
            # Likewise all or nothing, by a metric without a formula.
            return wilson_interval(int(low) * int(units.max() + 1), int(units.max() + 1))
        return low, high

    def scored(self, metric: str, outputs: Tensor, targets: Tensor) -> Scored:
        """The function that gives a metric of draws, from how often each image is drawn.

        Args:
            metric: A key of ``metrics``.
            outputs: As for :meth:`scores`.
            targets: As for :meth:`scores`.
        """
        return (self.drawn.get(metric) or repeated(self.metrics[metric]))(outputs, targets)
