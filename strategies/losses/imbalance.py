"""Classes of unequal frequency: weights for the loss, and orders that draw rare classes more often."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from strategies.errors import ConfigError, nearest


def class_weights(targets: Tensor, num_classes: int, how: str, beta: float) -> Tensor:
    """The weight of each class in the loss.

    - ``none``: all classes alike.
    - ``balanced``: in inverse proportion to the class's frequency.
    - ``effective_number``: in inverse proportion to ``(1 - beta ** n) / (1 - beta)``, the number of images that still
      add something new when ``n`` are drawn (Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR
      2019). A ``beta`` of 0 is ``none``; towards 1 it nears ``balanced``.

    Weights are scaled so that the loss keeps its size: their mean over the training images is one. For multilabel,
    where every image counts for every class, their mean over the classes is one. A class that no image shows gets the
    weight of the most frequent class.

    Args:
        targets: Of the training images: classes, (N,) int64, or labels, (N, C) float, 1 if the image shows the class.
        num_classes: C.
        how: One of the above.
        beta: At least 0 and below 1; only for ``effective_number``.

    Returns:
        (C,) float32 on the CPU.

    Raises:
        ConfigError: ``how`` is none of the above.
    """
    if how not in _WEIGHTS:
        raise ConfigError(f"class weights: {how!r} is unknown; {nearest(how, _WEIGHTS)}")
    counts = _counts(targets, num_classes).double()
    weights = _WEIGHTS[how](torch.where(counts > 0, counts, counts.max().clamp_min(1)), beta)
    mean = weights.mean() if targets.ndim == 2 else (weights * counts).sum() / counts.sum()
    return (weights / mean).float()


def sampling_order(targets: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """The images that an epoch shows, in order; as many as there are images.

    - ``natural``: each image once.
    - ``balanced``: every class equally often.
    - ``sqrt``: every class in proportion to the square root of its size (Mahajan et al., Exploring the Limits of Weakly
      Supervised Pretraining, ECCV 2018).

    The last two (compared by Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR
    2020) draw images of a class at random, with replacement; a class comes at most one time more or less than its share
    says. A multilabel image belongs to the rarest class that it shows; images that show none are a class of their own.

    Args:
        targets: Classes, (N,) int64, or labels, (N, C) float, 1 if the image shows the class.
        how: One of the above.
        generator: A CPU generator.

    Returns:
        (N,) int64 indices on the CPU.

    Raises:
        ConfigError: ``how`` is none of the above.
    """
    n = len(targets)
    if how == "natural":
        return torch.randperm(n, generator=generator)
    if how not in _SIZE_POWERS:
        raise ConfigError(f"sampling: {how!r} is unknown; {nearest(how, ('natural', *_SIZE_POWERS))}")
    _, classes, sizes = torch.unique(_rarest(targets), return_inverse=True, return_counts=True)
    ends = (sizes.double() ** _SIZE_POWERS[how]).cumsum(0)
    # Evenly spaced points meet each class as often as its share says; independent draws would scatter.
    points = (torch.arange(n, dtype=torch.float64) + torch.rand((), generator=generator)) * (ends[-1] / n)
    drawn = torch.searchsorted(ends, points, right=True).clamp_max(len(sizes) - 1)
    place = (torch.rand(n, generator=generator, dtype=torch.float64) * sizes[drawn]).long()
    # The images are sorted by class: each class begins where the class before it ends.
    images: Tensor = classes.argsort(stable=True)[sizes.cumsum(0)[drawn] - sizes[drawn] + place]
    return images[torch.randperm(n, generator=generator)]


def _counts(targets: Tensor, num_classes: int) -> Tensor:
    """How many images show each class, (C,)."""
    targets = targets.cpu()
    return (targets > 0).sum(0) if targets.ndim == 2 else torch.bincount(targets, minlength=num_classes)


def _rarest(targets: Tensor) -> Tensor:
    """Each image's class, or the rarest class that it shows, or -1 for none, (N,) int64."""
    targets = targets.cpu()
    if targets.ndim == 1:
        return targets
    shown = targets > 0
    sizes = torch.where(shown, shown.sum(0), len(targets) + 1)
    return torch.where(shown.any(1), sizes.argmin(1), -1)


_WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda counts, beta: torch.ones_like(counts),
    "balanced": lambda counts, beta: 1 / counts,
    # This is 1 - beta ** n; plain subtraction would lose digits when beta is close to one.
    "effective_number": lambda counts, beta: -1 / torch.expm1(counts * (math.log(beta) if beta > 0 else -math.inf)),
}

# A class is drawn in proportion to this power of its size.
_SIZE_POWERS = {"balanced": 0.0, "sqrt": 0.5}
