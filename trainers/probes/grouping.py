"""Which linear probes can be trained together."""

from collections.abc import Sequence
from typing import Any

from strategies import Strategy

# With any other value than the default, features differ between epochs, or the images are needed besides.
_NEEDS_IMAGES = ("augment", "policy", "mixup", "cutmix", "grow_from", "dropout", "distill_weight")

# The fields that decide which images a step sees, and how.
_IN_COMMON = ("epochs", "batch_size", "sampling", "image_scale", "tta")


def is_batchable(strategy: Strategy) -> bool:
    """Whether a strategy trains the head alone, on features that are the same in every epoch."""
    default = Strategy()
    return strategy.depth == 0 and all(getattr(strategy, name) == getattr(default, name) for name in _NEEDS_IMAGES)


def probe_groups(strategies: Sequence[Strategy]) -> list[list[int]]:
    """Positions of the strategies that :class:`Probes` can train together, group by group.

    Those that are not batchable are in no group.
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    for position, strategy in enumerate(strategies):
        if is_batchable(strategy):
            found.setdefault(_common_key(strategy), []).append(position)
    return list(found.values())


def _common_key(strategy: Strategy) -> tuple[Any, ...]:
    # A sharpness-aware step takes two passes; the other probes would wait for the second.
    return (*(getattr(strategy, name) for name in _IN_COMMON), strategy.sam_rho > 0)
