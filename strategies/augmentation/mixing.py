"""Mixing the images of a batch with each other, and their targets with them."""

import torch
from torch import Tensor

#: Here Beta(alpha, alpha) is almost a toss of a coin; below this alpha torch's sampler is not exact.
_LEAST_ALPHA = 0.01


def mix(
    images: Tensor, targets: Tensor, *, mixup: float, cutmix: float, prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix image i, and its target, with image N - 1 - i of the batch.

    Each image keeps a share of its own, drawn from Beta(alpha, alpha). Mixup blends the two images. CutMix puts a
    rectangle of the other image into the first, and the share is that of the pixels that are kept. With both on, a coin
    toss chooses one of them for each batch.

    If a loss is linear in the targets, as cross entropy is, its value for mixed targets is the mean over images of
    ``share * loss(own) + (1 - share) * loss(other)``. Squared error differs from that by a term without gradient.

    Sources: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018. Yun et al., CutMix: Regularization
    Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019.

    Args:
        images: (N, C, H, W) float, in random order.
        targets: (N, K) float: one-hot classes, labels or numbers.
        mixup: Mixup's alpha, 0 for none.
        cutmix: CutMix's alpha, 0 for none.
        prob: Share of images that are mixed.
        generator: A CPU generator, so that the same seed gives the same mixture on every device.

    Returns:
        Images and targets of the same shapes; the arguments themselves if both alphas are 0.
    """
    if mixup == 0 and cutmix == 0:
        return images, targets
    n = len(images)
    cut = cutmix > 0 and (mixup == 0 or torch.rand((), generator=generator).item() < 0.5)
    alpha = torch.full((n, 2), max(cutmix if cut else mixup, _LEAST_ALPHA))
    # Each of two Dirichlet shares, which add up to one, is Beta-distributed; torch's own Beta takes no generator.
    share = torch._sample_dirichlet(alpha, generator)[:, 0]
    share = torch.where(torch.rand(n, generator=generator) < prob, share, 1.0)
    if cut:
        images, share = _cut(images, share, generator)
    else:
        images = images.flip(0).lerp(images, _like(images, share)[:, None, None, None])
    return images, targets.flip(0).lerp(targets, _like(targets, share)[:, None])


def _like(other: Tensor, values: Tensor) -> Tensor:
    """Values with the type and on the device of ``other``, copied without waiting for the device."""
    return values.to(other.device, other.dtype, non_blocking=True)


def _cut(images: Tensor, share: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with a rectangle of their partners, and the share (N,) of pixels that each kept."""
    n, _, height, width = images.shape
    side = (1 - share).sqrt()
    top, bottom = _span(height, side, torch.rand(n, generator=generator))
    left, right = _span(width, side, torch.rand(n, generator=generator))
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    edges = torch.stack([top, bottom, left, right]).to(images.device, non_blocking=True)[:, :, None]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= edges[0]) & (rows < edges[1])
    in_columns = (columns >= edges[2]) & (columns < edges[3])
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return torch.where(inside, images.flip(0), images), kept


def _span(length: int, side: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end (exclusive), in pixels, of a span cut at the edges; ``side`` and ``centre`` are shares."""
    pixels, middle = (length * side).long(), (length * centre).long()
    return (middle - pixels // 2).clamp(min=0), (middle + (pixels + 1) // 2).clamp(max=length)
