"""Training losses by task and name, as functions of a model's outputs and the targets.

Targets of classification are classes, (N,) int64, or shares of the classes, (N, C) float, as mixed images have; the
shares of an image add up to one. Every loss of classification is linear in the shares: the loss of a mixture is the
mixture of the losses.

Class weights, (C,) float, multiply the loss of each image by the weight of its class, and the loss of each share by the
weight of the share's class; for multilabel they multiply each class's column. The mean is still over images, or images
and classes, not over weights, so that a batch without a class does not change how much the others count.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.losses.loss import Loss
from strategies.losses.region_losses import REGION_LOSSES
from strategies.strategy import Strategy


def cross_entropy(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (N, C) float.
        targets: (N,) int64 or (N, C) float.
        strategy: Not used.
        class_weights: (C,) float, or None for all alike.
    """
    shares, weights = _weighted_shares(logits, targets, class_weights)
    return (weights * F.cross_entropy(logits, shares, reduction="none")).mean()


def label_smoothing(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy against targets of which ``label_smoothing`` is spread over all classes (Szegedy et al. 2016).

    Args:
        logits: (N, C) float.
        targets: (N,) int64 or (N, C) float.
        strategy: Gives ``label_smoothing``.
        class_weights: (C,) float, or None for all alike.
    """
    shares, weights = _weighted_shares(logits, targets, class_weights)
    # Torch's own argument takes no tensor, but probes that train together each have their own smoothing.
    shares = (1 - strategy.label_smoothing) * shares + strategy.label_smoothing / shares.shape[1]
    return (weights * F.cross_entropy(logits, shares, reduction="none")).mean()


def focal(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy weighted by ``(1 - p) ** focal_gamma`` of the true class (Lin et al. 2017), mean over images.

    Args:
        logits: (N, C) float.
        targets: (N,) int64 or (N, C) float.
        strategy: Gives ``focal_gamma``.
        class_weights: (C,) float, or None for all alike.
    """
    shares, weights = _weighted_shares(logits, targets, class_weights)
    return (weights * (shares * _focal(F.log_softmax(logits, dim=1), strategy.focal_gamma)).sum(1)).mean()


def bce(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy against one-hot targets, summed over classes, mean over images (Beyer et al. 2020).

    Args:
        logits: (N, C) float.
        targets: (N,) int64 or (N, C) float.
        strategy: Not used.
        class_weights: (C,) float, or None for all alike.
    """
    shares, weights = _weighted_shares(logits, targets, class_weights)
    return (weights * F.binary_cross_entropy_with_logits(logits, shares, reduction="none").sum(1)).mean()


def mse(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Squared error of the logits against one-hot targets, mean over classes and images.

    Hui and Belkin: Evaluation of Neural Architectures Trained with Square Loss vs Cross-Entropy in Classification
    Tasks, ICLR 2021. In the paper the true class's error counts k times, and the target of its logit is M: 1 and 1 for
    few classes, 15 and 30 for the 1,000 of ImageNet.

    Args:
        logits: (N, C) float.
        targets: (N,) int64 or (N, C) float.
        strategy: Gives k as ``mse_weight`` and M as ``mse_target``.
        class_weights: (C,) float, or None for all alike.
    """
    shares, weights = _weighted_shares(logits, targets, class_weights)
    errors = shares * strategy.mse_weight * (logits - strategy.mse_target) ** 2 + (1 - shares) * logits**2
    return (weights * errors.mean(1)).mean()


def poly1(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy plus ``poly1_epsilon * (1 - p)`` of the true class, mean over images.

    Leng et al.: PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, ICLR 2022. Cross entropy
    is a sum of ``(1 - p) ** j / j``; this changes the first coefficient from 1 to ``1 + epsilon``.

    Args:
        logits: (N, C) float.
        targets: (N,) int64 or (N, C) float.
        strategy: Gives ``poly1_epsilon``, at least -1; the paper takes 2 for ImageNet.
        class_weights: (C,) float, or None for all alike.
    """
    shares, weights = _weighted_shares(logits, targets, class_weights)
    missed = 1 - (shares * logits.softmax(1)).sum(1)
    return (weights * (F.cross_entropy(logits, shares, reduction="none") + strategy.poly1_epsilon * missed)).mean()


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Distance of softened outputs from a teacher's: temperature² KL(teacher || model), mean over images.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NeurIPS Deep Learning Workshop 2014. The factor
    temperature² keeps the gradient's size when the temperature changes. The teacher gets no gradient.

    Args:
        logits: (N, C) float.
        teacher_logits: (N, C) float.
        temperature: Above 0; logits are divided by it.
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    teacher_log_p = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, teacher_log_p, reduction="batchmean", log_target=True)


def multilabel_bce(logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of each class by itself, mean over classes and images.

    Args:
        logits: (N, C) float.
        targets: (N, C) float, 1 if the image shows the class, else 0.
        strategy: Not used.
        class_weights: (C,) float, or None for all alike.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, weight=class_weights)


def multilabel_focal(
    logits: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None
) -> Tensor:
    """Binary cross entropy of each class weighted by ``(1 - p) ** focal_gamma`` of the true label (Lin et al. 2017).

    Args:
        logits: (N, C) float.
        targets: (N, C) float, 1 if the image shows the class, else 0; values between are shares of both.
        strategy: Gives ``focal_gamma``.
        class_weights: (C,) float, or None for all alike.
    """
    gamma = strategy.focal_gamma
    yes, no = _focal(F.logsigmoid(logits), gamma), _focal(F.logsigmoid(-logits), gamma)
    losses = targets * yes + (1 - targets) * no
    return (losses if class_weights is None else losses * class_weights).mean()


def regression_mse(outputs: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Squared error, mean over targets and images.

    Args:
        outputs: (N, K) float, of standardised targets.
        targets: (N, K) float, standardised.
        strategy: Not used.
        class_weights: Not used.
    """
    return F.mse_loss(outputs, targets)


def regression_l1(outputs: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None) -> Tensor:
    """Absolute error, mean over targets and images.

    Args:
        outputs: (N, K) float, of standardised targets.
        targets: (N, K) float, standardised.
        strategy: Not used.
        class_weights: Not used.
    """
    return F.l1_loss(outputs, targets)


def regression_huber(
    outputs: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None
) -> Tensor:
    """Squared error up to one standard deviation of the target, absolute error beyond (Huber 1964), mean over all.

    Args:
        outputs: (N, K) float, of standardised targets.
        targets: (N, K) float, standardised.
        strategy: Not used.
        class_weights: Not used.
    """
    return F.huber_loss(outputs, targets)


def _weighted_shares(logits: Tensor, targets: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each image's shares of the classes, (N, C), weighted and scaled to add up to one, and its weight, (N,).

    In a loss that is linear in the shares, these two have the effect of weighing each share by its class.
    """
    shares = targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1])
    shares = shares.to(logits.dtype)
    if class_weights is None:
        return shares, shares.new_ones(len(shares))
    weighted = shares * class_weights
    weights = weighted.sum(1)
    # An image of weight zero adds nothing to the mean, whatever its shares.
    return weighted / weights.clamp_min(torch.finfo(weights.dtype).tiny)[:, None], weights


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    # 1 - p from expm1 keeps its digits, and its gradient, when p is close to one.
    return -((-torch.expm1(log_p)).clamp_min(1e-12) ** gamma * log_p)


LOSSES: dict[str, dict[str, Loss]] = {
    "classification": {
        "cross_entropy": cross_entropy,
        "label_smoothing": label_smoothing,
        "focal": focal,
        "poly1": poly1,
        "bce": bce,
        "mse": mse,
    },
    "multilabel": {"bce": multilabel_bce, "focal": multilabel_focal},
    "regression": {"mse": regression_mse, "l1": regression_l1, "huber": regression_huber},
    "segmentation": REGION_LOSSES,
}
