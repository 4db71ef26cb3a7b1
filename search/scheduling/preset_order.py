"""In which order presets are tried, so that each computes what is frozen from what an earlier one has stored."""

from collections.abc import Collection, Mapping
from typing import Any

from strategies import Fixed, Space, Strategy, trained_blocks


def frozen_in_front(params: Mapping[str, Any], space: Space, num_blocks: int) -> int:
    """How many blocks, from the input, a queued trial leaves frozen.

    Args:
        params: Those that are queued, which may lack what the sampler is to draw.
        space: The study's, for the model.
        num_blocks: Of the model.
    """
    fixed = {name: entry.value for name, entry in space.items() if isinstance(entry, Fixed)}
    asked = {name: value for name, value in (fixed | {**params}).items() if name in ("depth", "depth_from")}
    trained = trained_blocks(Strategy(**asked), num_blocks)
    return trained.start if trained else num_blocks


def each_from_the_last(frozen: Mapping[str, int], stored: Collection[int] = ()) -> list[str]:
    """Names in the order in which no block is computed twice for an image.

    Outputs of many frozen blocks can be computed from those of fewer, not the other way round, so fewer come first.
    Names that share nothing, having no frozen block, and those whose outputs are stored already keep their places.

    Args:
        frozen: Name to how many blocks, from the input, are frozen, in the order in which they are given.
        stored: Numbers of frozen blocks whose outputs are stored.
    """
    moved = {name: count for name, count in frozen.items() if count > 0 and count not in stored}
    in_turn = iter(sorted(moved, key=moved.__getitem__))
    return [next(in_turn) if name in moved else name for name in frozen]
