"""Multiply-adds of each block of a model, counted and not timed: equal on every machine."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from strategies import split_blocks
from trainers.models.source import ModelSource


def multiply_adds(source: ModelSource) -> tuple[float, ...]:
    """Multiply-adds of the forward pass of one image in each block, from the input on.

    Convolutions and matrix products count, which take nearly all of the time. What belongs to no block, such as the
    head, is left out.

    Args:
        source: Builds the model; the image has its ``image_size``.
    """
    model = source.build(0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, source.in_chans, source.image_size, source.image_size))
    name = type(model).__name__
    counts = {module: sum(by_kind.values()) / 2 for module, by_kind in counter.get_flop_counts().items()}
    return tuple(
        float(sum(counts.get(f"{name}.{module}", 0.0) for module in block.modules))
        for block in split_blocks(model).body
    )
