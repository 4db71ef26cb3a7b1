"""A model's predictions for a split."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from strategies import Strategy, resize, shown_size, tta_views
from trainers.data import Split
from trainers.device import Device
from trainers.forward import EAGER, Forward
from trainers.models import Normalise
from trainers.reuse import FrozenOutputs, Rows
from trainers.tasks import Scale, Task


@torch.inference_mode()
def predict(
    model: nn.Module,
    split: Split,
    strategy: Strategy,
    normalise: Normalise,
    task: Task,
    scale: Scale | None,
    device: Device,
    known: FrozenOutputs | None = None,
    forward: Forward = EAGER,
    parts: int = 1,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and targets for the task's metrics, both on the CPU, in the order of the split.

    Args:
        model: The model on the device; it is put into eval mode.
        split: Images and targets.
        strategy: Gives the images' size, the views that are averaged (``tta``) and the batch size.
        normalise: Makes the model's input.
        task: The task of the split.
        scale: The units in which the model learned the targets; None for the targets' own.
        device: Where to compute.
        known: Outputs of the model's frozen part for the split's images, if they are stored.
        forward: Calls the model.
        parts: Number of parts of a batch that would not fit into memory.
        places: (M,) int64, places of images in the split, at least one; None for all images.

    Returns:
        Logits (N, C) float32 and class indices (N,) int64; for multilabel logits and targets (N, C) float32; for
        regression numbers (N, K) float32, both in the units of the targets; for a dense task its rows from outputs and
        targets, (N, ...) float, and the targets.
    """
    model.eval()
    found = []
    places = torch.arange(len(split)) if places is None else places
    with device.autocast():
        for outputs, targets in _answered(model, split, strategy, normalise, device, known, forward, parts, places):
            found.append(outputs.float() if task.dense is None else task.dense.rows(model, outputs, targets))
    rows = torch.cat(found)
    return (rows if scale is None else scale.restore(rows)).cpu(), split.targets[places].cpu()


def _answered(
    model: nn.Module,
    split: Split,
    strategy: Strategy,
    normalise: Normalise,
    device: Device,
    known: FrozenOutputs | None,
    forward: Forward,
    parts: int,
    places: Tensor,
) -> Iterator[tuple[Any, Tensor]]:
    """Outputs and targets of the batches of images at some places of a split."""
    # Without gradients a batch takes a fraction of the memory of a training batch.
    batch_size = max(1, 4 * strategy.batch_size // parts)
    if known is None:
        for images, targets in split.batches(places, batch_size, device.torch):
            yield _seen(model, images, strategy, normalise, forward), targets
        return
    rows: Iterator[Rows] = known.batches(places, batch_size, device.torch)
    for batch, targets in zip(rows, torch.split(split.targets[places], batch_size), strict=True):
        yield forward(model, batch, known.cut), targets.to(device.torch)


def _seen(model: nn.Module, images: Tensor, strategy: Strategy, normalise: Normalise, forward: Forward) -> Any:
    """Outputs for images (B, C, H, W) uint8, averaged over the strategy's views (``tta``), if there are several."""
    pixels = normalise(resize(images.float().div_(255), shown_size(images.shape[-1], strategy)))
    if strategy.tta == "none":
        return forward(model, pixels)
    return torch.stack([forward(model, view).float() for view in tta_views(pixels, strategy.tta)]).mean(0)
