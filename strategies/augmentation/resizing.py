"""The size at which images are shown: smaller than the stored size, or growing over the training."""

from torch import Tensor
from torch.nn import functional as F

from strategies.strategy import Strategy

# Most strides of a network divide a multiple of eight evenly; below sixteen pixels little is left to see.
_STEP, _LEAST = 8, 16


def shown_size(image_size: int, strategy: Strategy, epoch: int | None = None) -> int:
    """Height and width in pixels at which images are shown.

    Args:
        image_size: Height and width at which images are stored.
        strategy: Gives ``image_scale``, and for training ``grow_from``: the size grows evenly from the first epoch to
            the last (progressive resizing: Howard, fastai 2018; Tan and Le, EfficientNetV2, ICML 2021).
        epoch: The training epoch, from 0; None for validation, test and serving.

    Returns:
        A multiple of 8, at least 16, or ``image_size`` itself.
    """
    share = strategy.image_scale
    if epoch is not None and strategy.epochs > 1:
        share *= strategy.grow_from + (1 - strategy.grow_from) * epoch / (strategy.epochs - 1)
    return image_size if share == 1 else min(image_size, max(_LEAST, _STEP * round(image_size * share / _STEP)))


def resize(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) float resized to ``size`` x ``size``, bilinear with antialiasing; unchanged at that size."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
