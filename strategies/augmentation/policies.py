"""Augmentation policies: AutoAugment, RandAugment and TrivialAugment, for whole batches on the device.

Each image gets operations and magnitudes of its own. Images are grouped by operation. All that are sheared, shifted or
rotated share one bilinear resampling, which is mid-grey outside the image.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.augmentation.draws import Draws, shares, whole_numbers

#: The operations, and the largest magnitude of each: in AutoAugment and RandAugment, and in TrivialAugment. Units:
#: slope of a shear, translation as a share of the side (TrivialAugment: 32 pixels of 224), degrees of a rotation,
#: change of the factor for brightness to sharpness, bits that posterize drops, how far the threshold of solarize sinks.
REACH: dict[str, tuple[float, float]] = {
    "shear_x": (0.3, 0.99),
    "shear_y": (0.3, 0.99),
    "translate_x": (150 / 331, 1 / 7),
    "translate_y": (150 / 331, 1 / 7),
    "rotate": (30.0, 135.0),
    "identity": (0.0, 0.0),
    "brightness": (0.9, 0.99),
    "colour": (0.9, 0.99),
    "contrast": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "posterize": (4.0, 6.0),
    "solarize": (1.0, 1.0),
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
    "invert": (0.0, 0.0),
}
OPS = tuple(REACH)

_NARROW, _WIDE = torch.tensor(list(REACH.values())).T
_GEOMETRIC = OPS.index("identity")
_DRAWN = OPS.index("invert")  # RandAugment and TrivialAugment draw from all operations before it.
_SIGNED = torch.tensor([name not in ("posterize", "solarize") for name in OPS])

# The policy found on ImageNet (Cubuk et al. 2019): operation, probability and magnitude (0 to 9), twice a line.
_IMAGENET = """
    posterize    0.4 8  rotate       0.6 9
    solarize     0.6 5  autocontrast 0.6 0
    equalize     0.8 0  equalize     0.6 0
    posterize    0.6 7  posterize    0.6 6
    equalize     0.4 0  solarize     0.2 4
    equalize     0.4 0  rotate       0.8 8
    solarize     0.6 3  equalize     0.6 0
    posterize    0.8 5  equalize     1.0 0
    rotate       0.2 3  solarize     0.6 8
    equalize     0.6 0  posterize    0.4 6
    rotate       0.8 8  colour       0.4 0
    rotate       0.4 9  equalize     0.6 0
    equalize     0.0 0  equalize     0.8 0
    invert       0.6 0  equalize     1.0 0
    colour       0.6 4  contrast     1.0 8
    rotate       0.8 8  colour       1.0 2
    colour       0.8 8  solarize     0.8 7
    sharpness    0.4 7  invert       0.6 0
    shear_x      0.6 5  equalize     1.0 0
    colour       0.4 0  equalize     0.6 0
    equalize     0.4 0  solarize     0.2 4
    solarize     0.6 5  autocontrast 0.6 0
    invert       0.6 0  equalize     1.0 0
    colour       0.6 4  contrast     1.0 8
    equalize     0.8 0  equalize     0.6 0
"""
_CELLS = _IMAGENET.split()
_POLICY_OPS = torch.tensor([OPS.index(name) for name in _CELLS[0::3]]).view(25, 2)
_POLICY_PROBS = torch.tensor([float(prob) for prob in _CELLS[1::3]]).view(25, 2)
_POLICY_LEVELS = torch.tensor([int(level) / 9 for level in _CELLS[2::3]]).view(25, 2)


def auto_augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply two operations to each image: one of the 25 pairs found on ImageNet.

    Source: Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019.

    Args:
        images: (N, C, H, W) float in [0, 1].
        draws: Source of the random numbers; a CPU generator gives the same changes on every device.

    Returns:
        (N, C, H, W) float in [0, 1], on the device of ``images``.
    """
    n = len(images)
    pair = whole_numbers(n, len(_POLICY_OPS), draws)
    for which in range(2):
        done = shares(n, draws) < _POLICY_PROBS[pair, which]
        ops = torch.where(done, _POLICY_OPS[pair, which], OPS.index("identity"))
        images = apply_ops(images, ops, _magnitudes(ops, _POLICY_LEVELS[pair, which], _NARROW, draws))
    return images


def rand_augment(images: Tensor, num_ops: int, magnitude: float, draws: Draws) -> Tensor:
    """Apply ``num_ops`` operations to each image, each one of 14, all of the same magnitude.

    Source: Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, NeurIPS 2020.

    Args:
        images: (N, C, H, W) float in [0, 1].
        num_ops: Number of operations, applied one after the other.
        magnitude: Of all operations, 0 to 30, where 30 is AutoAugment's strongest. This is torchvision's scale; timm's
            ends at 10, so timm's 9 is 27 here.
        draws: Source of the random numbers; a CPU generator gives the same changes on every device.

    Returns:
        (N, C, H, W) float in [0, 1], on the device of ``images``.
    """
    n = len(images)
    for _ in range(num_ops):
        ops = whole_numbers(n, _DRAWN, draws)
        images = apply_ops(images, ops, _magnitudes(ops, torch.full((n,), magnitude / 30), _NARROW, draws))
    return images


def trivial_augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply one of 14 operations to each image, with one of 31 magnitudes up to very strong ones.

    Source: Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, ICCV 2021 (the wide
    space).

    Args:
        images: (N, C, H, W) float in [0, 1].
        draws: Source of the random numbers; a CPU generator gives the same changes on every device.

    Returns:
        (N, C, H, W) float in [0, 1], on the device of ``images``.
    """
    n = len(images)
    ops = whole_numbers(n, _DRAWN, draws)
    levels = whole_numbers(n, 31, draws) / 30
    return apply_ops(images, ops, _magnitudes(ops, levels, _WIDE, draws))


def _magnitudes(ops: Tensor, levels: Tensor, reach: Tensor, draws: Draws) -> Tensor:
    """Magnitudes (N,) of operations (N,) at ``levels`` (N,) in [0, 1]; half of the signed ones are negative."""
    negative = (shares(len(ops), draws) < 0.5) & _SIGNED[ops]
    return torch.where(negative, -levels, levels) * reach[ops]


def apply_ops(images: Tensor, ops: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: (N, C, H, W) float in [0, 1].
        ops: (N,) int64 on the CPU, indices into :data:`OPS`.
        magnitudes: (N,) float on the CPU, each in the unit of its operation; see :data:`REACH`.

    Returns:
        (N, C, H, W) float in [0, 1], on the device of ``images``.
    """
    # Sorted by operation, each group is a slice. Counting on the CPU does not wait for the device.
    order = ops.argsort(stable=True)
    counts = ops.bincount(minlength=len(OPS)).tolist()
    sizes = [sum(counts[:_GEOMETRIC]), *counts[_GEOMETRIC:]]
    places = order.to(images.device, non_blocking=True)
    parts = torch.split(images[places], sizes)
    sorted_magnitudes = magnitudes[order].to(images.device, images.dtype, non_blocking=True)
    amounts = torch.split(sorted_magnitudes[:, None, None, None], sizes)
    bent = order[: sizes[0]]
    changed = [_bend(parts[0], ops[bent], magnitudes[bent])] if sizes[0] else []
    for name, part, amount in zip(OPS[_GEOMETRIC:], parts[1:], amounts[1:], strict=True):
        if len(part):
            changed.append(_POINTWISE[name](part, amount))
    return torch.empty_like(images).index_copy_(0, places, torch.cat(changed))


def _bend(images: Tensor, ops: Tensor, magnitudes: Tensor) -> Tensor:
    """Shear about the upper left corner, translate by whole pixels, or rotate about the centre, in one resampling."""
    height, width = images.shape[2:]

    def amount(name: str) -> Tensor:
        return torch.where(ops == OPS.index(name), magnitudes, 0.0)

    # The place each pixel comes from, measured from the centre in halves of the image's sides.
    shear_x, shear_y = amount("shear_x") * height / width, amount("shear_y") * width / height
    shift_x = 2 * (amount("translate_x") * width).trunc() / width
    shift_y = 2 * (amount("translate_y") * height).trunc() / height
    angle = amount("rotate") * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos, shear_x - sin * height / width, shear_x - shift_x], dim=1),
            torch.stack([shear_y + sin * width / height, cos, shear_y - shift_y], dim=1),
        ],
        dim=1,
    ).to(images.device, images.dtype, non_blocking=True)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # grid_sample fills the outside with zero, so mid-grey is shifted to zero.
    return F.grid_sample(images - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5


def _grey(images: Tensor) -> Tensor:
    """Luminance (N, 1, H, W) of three channels (Rec. 601), or the mean of any other number."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _identity(images: Tensor, amount: Tensor) -> Tensor:
    return images


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return (images * (1 + amount)).clamp(0, 1)


def _colour(images: Tensor, amount: Tensor) -> Tensor:
    """Move colours away from grey or towards it; only images of three channels are changed."""
    return _grey(images).lerp(images, 1 + amount).clamp(0, 1) if images.shape[1] == 3 else images


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    return _grey(images).mean(dim=(2, 3), keepdim=True).lerp(images, 1 + amount).clamp(0, 1)


def _sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Move pixels away from the smoothed image or towards it; the border, which lacks neighbours, stays."""
    if min(images.shape[2:]) < 3:
        return images
    inner = images[:, :, 1:-1, 1:-1]
    # The middle pixel has weight 5, its neighbours 1: nine times the mean of all nine plus four times the middle.
    smooth = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13
    sharp = images.clone()
    sharp[:, :, 1:-1, 1:-1] = smooth.lerp(inner, 1 + amount).clamp(0, 1)
    return sharp


def _posterize(images: Tensor, amount: Tensor) -> Tensor:
    """Drop the lowest ``amount`` of eight bits, rounded to a whole number."""
    step = torch.exp2(amount.round())
    return ((images * 255).round() / step).floor() * step / 255


def _solarize(images: Tensor, amount: Tensor) -> Tensor:
    """Invert pixels from the brightness ``1 - amount`` on, on a scale on which white is a little below 1."""
    # AutoAugment's scale has 256 levels, so that with an amount of zero white stays white.
    return torch.where(images >= (1 - amount) * (256 / 255), 1 - images, images)


def _autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to the full range; a constant channel stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    return ((images - low.masked_fill(flat, 0)) / (high - low).masked_fill(flat, 1)).clamp(0, 1)


def _equalize(images: Tensor, amount: Tensor) -> Tensor:
    """Spread each channel's 256 levels until they are about equally frequent; a channel of too few pixels stays."""
    n, channels, height, width = images.shape
    levels = (images * 255).round().long().reshape(n * channels, height * width)
    counts = levels.new_zeros(len(levels), 256).scatter_add_(1, levels, levels.new_ones(1, 1).expand_as(levels))
    below = counts.cumsum(1) - counts
    # The number of pixels below the brightest level that occurs, divided by the 255 steps between levels.
    step = torch.where(counts > 0, below, 0).amax(1, keepdim=True) // 255
    spread = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    equal = spread.gather(1, levels).to(images.dtype).view(images.shape) / 255
    return torch.where((step > 0).view(n, channels, 1, 1), equal, images)


def _invert(images: Tensor, amount: Tensor) -> Tensor:
    return 1 - images


_POINTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
}
