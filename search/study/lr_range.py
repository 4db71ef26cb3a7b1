"""A space's learning rates, centred on the rate that a range test suggests."""

import math
from collections.abc import Callable
from dataclasses import replace

from strategies import Entry, Fixed, FloatRange, Space, Strategy
from trainers import Trainer

# Six decades, which hold the fine-tuning rates of any optimizer.
_LOW, _HIGH, _UPDATES = 1e-6, 1.0, 120


def suggested_lr(space: Space, make_trainer: Callable[[Strategy], Trainer]) -> float | None:
    """The rate that a range test of full fine-tuning suggests; None if the loss never falls clearly.

    Args:
        space: Its fixed values are used.
        make_trainer: Makes a new trainer for a strategy.
    """
    fixed = {name: entry.value for name, entry in space.items() if isinstance(entry, Fixed) and not entry.when}
    trainer = make_trainer(Strategy(**{**fixed, "depth": 1.0}))
    return trainer.try_rates(_LOW, _HIGH, _UPDATES).suggestion


def centred(space: Space, lr: float) -> dict[str, Entry]:
    """The space with its range of rates moved to centre on ``lr``; its width on a log scale stays."""
    rates = space["lr"]
    assert isinstance(rates, FloatRange), "the configuration was checked"
    reach = math.sqrt(rates.high / rates.low)
    return {**space, "lr": replace(rates, low=lr / reach, high=lr * reach)}
