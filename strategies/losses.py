"""Training losses by name, as functions of logits and class indices."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.strategy import Strategy


def cross_entropy(logits: Tensor, targets: Tensor, strategy: Strategy) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (N, C) float.
        targets: (N,) int64.
        strategy: Not used.
    """
    return F.cross_entropy(logits, targets)


def label_smoothing(logits: Tensor, targets: Tensor, strategy: Strategy) -> Tensor:
    """Cross entropy against targets of which ``label_smoothing`` is spread over all classes (Szegedy et al. 2016).

    Args:
        logits: (N, C) float.
        targets: (N,) int64.
        strategy: Gives ``label_smoothing``.
    """
    return F.cross_entropy(logits, targets, label_smoothing=strategy.label_smoothing)


def focal(logits: Tensor, targets: Tensor, strategy: Strategy) -> Tensor:
    """Cross entropy weighted by ``(1 - p) ** focal_gamma`` of the true class (Lin et al. 2017), mean over images.

    Args:
        logits: (N, C) float.
        targets: (N,) int64.
        strategy: Gives ``focal_gamma``.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    # 1 - p from expm1 keeps its digits, and its gradient, when p is close to one.
    return -((-torch.expm1(log_p)).clamp_min(1e-12) ** strategy.focal_gamma * log_p).mean()


def bce(logits: Tensor, targets: Tensor, strategy: Strategy) -> Tensor:
    """Binary cross entropy against one-hot targets, summed over classes, mean over images (Beyer et al. 2020).

    Args:
        logits: (N, C) float.
        targets: (N,) int64.
        strategy: Not used.
    """
    one_hot = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1).mean()


def mse(logits: Tensor, targets: Tensor, strategy: Strategy) -> Tensor:
    """Squared error of the logits against one-hot targets, mean over classes and images (Hui and Belkin 2021).

    Args:
        logits: (N, C) float.
        targets: (N,) int64.
        strategy: Not used.
    """
    return F.mse_loss(logits, F.one_hot(targets, logits.shape[1]).to(logits.dtype))


LOSSES: dict[str, Callable[[Tensor, Tensor, Strategy], Tensor]] = {
    "cross_entropy": cross_entropy,
    "label_smoothing": label_smoothing,
    "focal": focal,
    "bce": bce,
    "mse": mse,
}
