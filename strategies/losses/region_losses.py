"""Training losses of segmentation by name, as functions of a model's logits and the classes of pixels.

Pixels of the class :data:`strategies.IGNORED` count neither in a sum nor in the number that a mean divides by. A batch
of only such pixels gives a loss of 0 and gradients of 0. Class weights, (C,) float, multiply the loss of each pixel by
the weight of its class where a loss is a mean over pixels. Dice and Lovász are means over classes and ignore them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.loss_facts import IGNORED
from strategies.losses.loss import Loss
from strategies.strategy import Strategy


def cross_entropy(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy of the pixels.

    Args:
        logits: (N, C, H, W) float.
        targets: (N, H, W) int64.
        strategy: Not used.
        class_weights: (C,) float, or None for all alike.
    """
    losses = F.cross_entropy(logits, targets, class_weights, ignore_index=IGNORED, reduction="none")
    return _mean(losses, targets)


def focal(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy weighted by ``(1 - p) ** focal_gamma`` of the true class (Lin et al. 2017), mean over pixels.

    Args:
        logits: (N, C, H, W) float.
        targets: (N, H, W) int64.
        strategy: Gives ``focal_gamma``.
        class_weights: (C,) float, or None for all alike.
    """
    # Not segmentation_models_pytorch 0.6's FocalLoss: its probabilities are sigmoids, one class against the rest, but
    # every other loss, the metric and the served model use a softmax. Its softmax version cannot ignore pixels. Both
    # have gradients of nan at p = 1 with an exponent below 1.
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    losses = (-torch.expm1(-losses)).clamp_min(1e-12) ** strategy.focal_gamma * losses
    if class_weights is not None:
        losses = losses * class_weights[targets.masked_fill(targets == IGNORED, 0)]
    return _mean(losses, targets)


def dice(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """One minus the soft Dice score of each class over the batch, mean over the classes that the batch shows.

    Milletari, Navab, Ahmadi: V-Net, 3DV 2016; with plain instead of squared probabilities in the denominator, as in
    Drozdzal et al., The Importance of Skip Connections in Biomedical Image Segmentation, 2016.

    Args:
        logits: (N, C, H, W) float.
        targets: (N, H, W) int64.
        strategy: Not used.
        class_weights: Not used.
    """
    from segmentation_models_pytorch.losses import DiceLoss

    over_all: Tensor = DiceLoss("multiclass", ignore_index=IGNORED)(logits, targets)
    # DiceLoss counts an absent class as perfectly found, so a batch that shows few of many classes would teach little.
    # The classes shown are counted in a table, which can be filled without waiting for the device.
    shown = logits.new_zeros(IGNORED + 1).scatter_(0, targets.flatten(), 1.0)[:IGNORED].sum()
    return over_all * (logits.shape[1] / shown.clamp_min(1))


def lovasz(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Lovász-softmax, a surrogate of one minus the IoU of each class over the batch, mean over the classes shown.

    Berman, Rannen Triki, Blaschko: The Lovász-Softmax Loss, CVPR 2018. It sorts all pixels once for each class.

    Args:
        logits: (N, C, H, W) float, of at least two classes.
        targets: (N, H, W) int64.
        strategy: Not used.
        class_weights: Not used.
    """
    from segmentation_models_pytorch.losses import LovaszLoss

    # Without pixels LovaszLoss returns an empty (0, C) tensor, whose sum is zero; else the sum is the number itself.
    # With types other than fp32 it fails, because one of its factors is always fp32.
    found: Tensor = LovaszLoss("multiclass", ignore_index=IGNORED)(logits.float(), targets)
    return found.sum()


def _mean(losses: Tensor, targets: Tensor) -> Tensor:
    """The mean over pixels (N, H, W) that are not ignored, zero without any; losses of ignored pixels are zero."""
    return losses.sum() / (targets != IGNORED).sum().clamp_min(1)


def _sum(first: Loss, second: Loss) -> Loss:
    def both(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None, /) -> Tensor:
        return first(logits, targets, strategy, class_weights) + second(logits, targets, strategy, class_weights)

    return both


def _of_bytes(loss: Loss) -> Loss:
    """The loss, for masks of any integer type."""

    def widened(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None, /) -> Tensor:
        return loss(logits, targets.long(), strategy, class_weights)

    return widened


_LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "cross_entropy+dice": _sum(cross_entropy, dice),
    "focal+dice": _sum(focal, dice),
    "cross_entropy+lovasz": _sum(cross_entropy, lovasz),
}

#: Losses that are a mean over pixels, so that a batch's loss can be added up from its parts.
PIXEL_LOSSES = frozenset({"cross_entropy", "focal"})

#: The losses by name, for targets (N, H, W) of any integer type.
REGION_LOSSES: dict[str, Loss] = {name: _of_bytes(loss) for name, loss in _LOSSES.items()}
