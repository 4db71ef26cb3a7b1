"""Training losses of segmentation by name, as functions of a model's logits and the classes of pixels.

Pixels of the class :data:`strategies.IGNORED` count nowhere: not in a sum, nor in what a mean is over. A batch
that has no others gives a loss of 0 and gradients of 0. Class weights, (C,) float, multiply the loss of each pixel by
its class's where a loss is a mean over pixels; dice and Lovász are means over classes already, and leave them aside.
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
    # Not segmentation_models_pytorch 0.6's FocalLoss: its probabilities are sigmoids, one class against the rest, where
    # every other loss, the metric and the served model have a softmax; nor its softmax version, which knows no ignored
    # pixels. Both have gradients of nan at p = 1 with an exponent below 1.
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    losses = (-torch.expm1(-losses)).clamp_min(1e-12) ** strategy.focal_gamma * losses
    if class_weights is not None:
        losses = losses * class_weights[targets.masked_fill(targets == IGNORED, 0)]
    return _mean(losses, targets)


def dice(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """One minus the soft Dice score of each class over the batch, mean over the classes that the batch shows.

    Milletari, Navab, Ahmadi: V-Net, 3DV 2016; with plain instead of squared probabilities in the denominator, as
    Drozdzal et al., The Importance of Skip Connections in Biomedical Image Segmentation, 2016.

    Args:
        logits: (N, C, H, W) float.
        targets: (N, H, W) int64.
        strategy: Not used.
        class_weights: Not used.
    """
    from segmentation_models_pytorch.losses import DiceLoss

    over_all: Tensor = DiceLoss("multiclass", ignore_index=IGNORED)(logits, targets)
    # There an absent class counts as one that is found without a fault, so that a batch with few classes of many would
    # teach little. Counted in a table, because a device need not be waited for to fill it.
    shown = logits.new_zeros(IGNORED + 1).scatter_(0, targets.flatten(), 1.0)[:IGNORED].sum()
    return over_all * (logits.shape[1] / shown.clamp_min(1))


def lovasz(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Lovász-softmax, a surrogate of one minus the IoU of each class over the batch, mean over the classes it shows.

    Berman, Rannen Triki, Blaschko: The Lovász-Softmax Loss, CVPR 2018. One sort of all pixels a class.

    Args:
        logits: (N, C, H, W) float, of at least two classes.
        targets: (N, H, W) int64.
        strategy: Not used.
        class_weights: Not used.
    """
    from segmentation_models_pytorch.losses import LovaszLoss

    # Of no pixels it gives no number (0, C) instead of a zero; the sum is that zero, and else the number itself.
    # Of other than fp32 it fails: half of what it multiplies is always that.
    found: Tensor = LovaszLoss("multiclass", ignore_index=IGNORED)(logits.float(), targets)
    return found.sum()


def _mean(losses: Tensor, targets: Tensor) -> Tensor:
    """The mean over pixels (N, H, W) that are not ignored, whose losses are zero; zero of none."""
    return losses.sum() / (targets != IGNORED).sum().clamp_min(1)


def _sum(first: Loss, second: Loss) -> Loss:
    def both(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None, /) -> Tensor:
        return first(logits, targets, strategy, class_weights) + second(logits, targets, strategy, class_weights)

    return both


def _of_bytes(loss: Loss) -> Loss:
    """The loss, of masks as they are stored."""

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

#: Those that are a mean over pixels, so that a batch's can be added up from its parts.
PIXEL_LOSSES = frozenset({"cross_entropy", "focal"})

#: By name, for targets (N, H, W) of any integer type.
REGION_LOSSES: dict[str, Loss] = {name: _of_bytes(loss) for name, loss in _LOSSES.items()}
