"""How a strategy shows training images: first its policy's operations, then its level, then mixing."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from strategies.augmentation.draws import Draws
from strategies.augmentation.levels import Level, augment
from strategies.augmentation.mixing import mix
from strategies.augmentation.policies import auto_augment, rand_augment, trivial_augment
from strategies.augmentation.with_targets import augment_with_targets
from strategies.strategy import Strategy

_POLICIES: dict[str, Callable[[Tensor, Strategy, Draws], Tensor]] = {
    "none": lambda images, strategy, draws: images,
    "auto": lambda images, strategy, draws: auto_augment(images, draws),
    "rand": lambda images, strategy, draws: rand_augment(images, strategy.policy_ops, strategy.policy_magnitude, draws),
    "trivial": lambda images, strategy, draws: trivial_augment(images, draws),
}


def vary(images: Tensor, strategy: Strategy, draws: Draws) -> Tensor:
    """Change each image at random as the strategy's ``policy`` and ``augment`` say.

    Args:
        images: (N, C, H, W) float in [0, 1].
        strategy: Gives policy, level and their parameters.
        draws: Source of the random numbers.

    Returns:
        (N, C, H, W) float in [0, 1].
    """
    # Erasing comes last, so that no policy moves or recolours the hole.
    images = _POLICIES[strategy.policy](images, strategy, draws)
    return augment(images, _level(strategy), draws)


def vary_dense(
    images: Tensor, targets: Tensor, kind: Literal["masks", "boxes"], strategy: Strategy, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Change each image at random as the strategy's ``augment`` says, and its mask or boxes along with it.

    Args:
        images: (N, C, S, S) float in [0, 1].
        targets: (N, S, S) uint8 masks or (N, M, 5) float32 boxes, as ``with_targets.augment_with_targets`` takes them.
        kind: What the targets are.
        strategy: Gives the level and its parameters.
        draws: Source of the random numbers.
    """
    return augment_with_targets(images, targets, kind, _level(strategy), draws)


def mix_batch(
    images: Tensor, targets: Tensor, num_classes: int, strategy: Strategy, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix the batch's images and targets as ``mixup`` and ``cutmix`` say; if both are off, return them unchanged.

    Args:
        images: (N, C, H, W) float.
        targets: (N,) int64 class indices, which become (N, num_classes) float shares; or (N, K) float.
        num_classes: Number of the model's outputs.
        strategy: Gives ``mixup``, ``cutmix`` and ``mix_prob``.
        generator: A CPU generator.
    """
    if strategy.mixup == 0 and strategy.cutmix == 0:
        return images, targets
    if targets.ndim == 1:
        targets = torch.nn.functional.one_hot(targets, num_classes).float()
    return mix(
        images, targets, mixup=strategy.mixup, cutmix=strategy.cutmix, prob=strategy.mix_prob, generator=generator
    )


def _level(strategy: Strategy) -> str | Level:
    if strategy.augment != "custom":
        return strategy.augment
    return Level(
        crop_area=strategy.crop_area,
        flip=strategy.flip,
        rotate=strategy.rotate,
        colour=strategy.colour,
        saturation=strategy.saturation,
        hue=strategy.hue,
        erase=strategy.erase,
    )
