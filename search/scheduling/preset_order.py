"""Order of presets in which each computes the outputs of its frozen blocks from those that an earlier one stored."""

from collections.abc import Collection, Mapping
from typing import Any

from strategies import Fixed, Space, Strategy, trained_blocks


def frozen_in_front(params: Mapping[str, Any], space: Space, num_blocks: int) -> int:
    """Number of blocks, from the input on, that a queued trial leaves frozen.

    Args:
        params: Queued parameters; the sampler draws those that are missing.
        space: Space of the study for the model.
        num_blocks: Number of blocks of the model.
    """
    fixed = {name: entry.value for name, entry in space.items() if isinstance(entry, Fixed)}
    asked = {name: value for name, value in (fixed | {**params}).items() if name in ("depth", "depth_from")}
    trained = trained_blocks(Strategy(**asked), num_blocks)
    return trained.start if trained else num_blocks


def each_from_the_last(frozen: Mapping[str, int], stored: Collection[int] = ()) -> list[str]:
    """Order presets so that no block is computed twice for an image.

    Outputs of many frozen blocks can be computed from those of fewer, not the other way round, so fewer come first.
    Presets without a frozen block, and those whose outputs are stored already, keep their places.

    Args:
        frozen: Name of each preset to its number of frozen blocks, from the input on, in the study's order.
        stored: Numbers of frozen blocks whose outputs are stored.
    """
    moved = {name: count for name, count in frozen.items() if count > 0 and count not in stored}
    in_turn = iter(sorted(moved, key=moved.__getitem__))
    return [next(in_turn) if name in moved else name for name in frozen]
