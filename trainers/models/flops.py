"""Multiply-adds of each block of a model, counted and not timed: equal on every machine."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from strategies import Block, split_blocks
from trainers.models.source import ModelSource


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """What a table of blocks says of one.

    Args:
        name: The modules and parameters of the block.
        parameters: Their number.
        multiply_adds: Those of the forward pass of one image.
    """

    name: str
    parameters: int
    multiply_adds: float


def multiply_adds(source: ModelSource) -> tuple[float, ...]:
    """Multiply-adds of the forward pass of one image in each block, from the input on.

    Convolutions and matrix products count, which take nearly all of the time. What belongs to no block, such as the
    head, is left out.

    Args:
        source: Builds the model; the image has its ``image_size``.
    """
    model = source.build(0).eval()
    return tuple(_counted(model, source, split_blocks(model).body))


def facts_of_blocks(source: ModelSource) -> list[BlockFacts]:
    """What is in each block of a model, from the input on; the head comes last.

    Args:
        source: Builds the model; the image has its ``image_size``.
    """
    model = source.build(0).eval()
    blocks = split_blocks(model)
    every = (*blocks.body, blocks.head)
    sizes = {name: param.numel() for name, param in model.named_parameters()}
    return [
        BlockFacts(_name_of(block.params, sizes), sum(sizes[name] for name in block.params), count)
        for block, count in zip(every, _counted(model, source, every), strict=True)
    ]


def _counted(model: nn.Module, source: ModelSource, blocks: Iterable[Block]) -> list[float]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, source.in_chans, source.image_size, source.image_size))
    name = type(model).__name__
    counts = {module: sum(by_kind.values()) / 2 for module, by_kind in counter.get_flop_counts().items()}
    return [float(sum(counts.get(f"{name}.{module}", 0.0) for module in block.modules)) for block in blocks]


def _name_of(params: Collection[str], every: Collection[str]) -> str:
    """The largest modules that hold a block's parameters and no others."""
    mine, found = set(params), list[str]()
    for param in params:
        parts = param.split(".")
        holders = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        # The last of them is the parameter itself.
        name = next(one for one in holders if mine.issuperset(p for p in every if f"{p}.".startswith(f"{one}.")))
        if name not in found:
            found.append(name)
    return ", ".join(found)
