"""The size at which images are shown: smaller than they are stored, or growing over the training."""

from torch import Tensor
from torch.nn import functional as F

from strategies.strategy import Strategy

# Multiples of eight divide evenly by most of a network's strides; below sixteen pixels little is left to see.
_STEP, _LEAST = 8, 16


def shown_size(image_size: int, strategy: Strategy, epoch: int | None = None) -> int:
    """Height and width in pixels at which images are shown.

    Args:
        image_size: What they are stored at.
        strategy: Gives ``image_scale``, and for training ``grow_from``: the size grows evenly from the first epoch's
            to the last's (progressive resizing: Howard, fastai 2018; Tan and Le, EfficientNetV2, ICML 2021).
        epoch: That trains, from 0; None for validation, test and serving.

    Returns:
        A multiple of 8, at least 16, or ``image_size`` itself.
    """
    share = strategy.image_scale
    if epoch is not None and strategy.epochs > 1:
        share *= strategy.grow_from + (1 - strategy.grow_from) * epoch / (strategy.epochs - 1)
    return image_size if share == 1 else min(image_size, max(_LEAST, _STEP * round(image_size * share / _STEP)))


def resize(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) float at ``size`` x ``size``, bilinear with antialiasing; themselves if they have it."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
