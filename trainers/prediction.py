"""What a model says of a split, and what it is shown of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from strategies import Strategy, resize, shown_size, tta_views
from trainers.compiled import EAGER, Forward
from trainers.cut import Cut
from trainers.data import Split
from trainers.device import Device
from trainers.stored_rows import Activations
from trainers.tasks import Scale

Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Known:
    """What the frozen part of a model gives for the images of a split, and the rest of the model, which takes it."""

    cut: Cut
    rows: Activations


def normaliser(mean: Sequence[float], std: Sequence[float], device: Device) -> Normalise:
    """A function that makes a model's input of images (N, C, H, W) float in [0, 1] on the device.

    Args:
        mean: (C,) per channel.
        std: (C,) per channel.
        device: Where the images are.
    """
    centre, spread = (torch.tensor(values, device=device.torch).view(1, -1, 1, 1) for values in (mean, std))
    return lambda images: ((images - centre) / spread).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(
    model: nn.Module,
    split: Split,
    strategy: Strategy,
    normalise: Normalise,
    scale: Scale | None,
    device: Device,
    known: Known | None = None,
    forward: Forward = EAGER,
) -> tuple[Tensor, Tensor]:
    """Outputs and targets of a split, both on the CPU, in its order.

    Args:
        model: A classifier on the device; it is put into eval mode.
        split: Images and targets.
        strategy: Gives the images' size, the views that are averaged (``tta``) and the batch size.
        normalise: Makes the model's input.
        scale: The units that the model was taught targets in; None for the targets' own.
        device: Where to compute.
        known: What the frozen part of the model gives for the split's images, if that is known.
        forward: Calls the model.

    Returns:
        Logits (N, C) float32 and class indices (N,) int64; for multilabel logits and targets (N, C) float32; for
        regression numbers (N, K) float32, both in the units of the targets.
    """
    model.eval()
    # Without gradients a batch takes a fraction of the memory of a training batch.
    order, batch_size = torch.arange(len(split)), 4 * strategy.batch_size
    with device.autocast():
        if known is not None:
            outputs = [
                forward(model, rows, known.cut).float() for rows in known.rows.batches(order, batch_size, device.torch)
            ]
        else:
            outputs = [
                _seen(model, images, strategy, normalise, forward)
                for images, _ in split.batches(order, batch_size, device.torch)
            ]
    found = torch.cat(outputs)
    return (found if scale is None else scale.restore(found)).cpu(), split.targets.cpu()


def _seen(model: nn.Module, images: Tensor, strategy: Strategy, normalise: Normalise, forward: Forward) -> Tensor:
    """Outputs (B, C) float32 for images (B, C, H, W) uint8, averaged over the strategy's views."""
    pixels = resize(images.float().div_(255), shown_size(images.shape[-1], strategy))
    return torch.stack([forward(model, view).float() for view in tta_views(normalise(pixels), strategy.tta)]).mean(0)
