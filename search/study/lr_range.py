"""A space's learning rates, centred on the rate that a range test suggests."""

import math
from collections.abc import Callable
from dataclasses import replace

from strategies import ConfigError, Entry, Fixed, FloatRange, Space, Strategy, first_line
from trainers import Trainer, is_out_of_memory

# Six decades, which hold the fine-tuning rates of any optimizer.
_LOW, _HIGH, _UPDATES = 1e-6, 1.0, 120


def suggested_lr(space: Space, make_trainer: Callable[[Strategy], Trainer]) -> float | None:
    """The rate that a range test of full fine-tuning suggests; None if the loss never falls clearly.

    Args:
        space: Its fixed values are used.
        make_trainer: Makes a new trainer for a strategy.

    Raises:
        ConfigError: Full fine-tuning does not fit into memory.
    """
    fixed = {name: entry.value for name, entry in space.items() if isinstance(entry, Fixed) and not entry.when}
    trainer = make_trainer(Strategy(**{**fixed, "depth": 1.0}))
    try:
        return trainer.try_rates(_LOW, _HIGH, _UPDATES).suggestion
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"centre_lr: the range test runs out of memory: {first_line(error)}") from error


def centred(space: Space, lr: float) -> dict[str, Entry]:
    """The space with its range of rates moved to centre on ``lr``; its width on a log scale stays."""
    rates = space["lr"]
    assert isinstance(rates, FloatRange), "the configuration was checked"
    reach = math.sqrt(rates.high / rates.low)
    return {**space, "lr": replace(rates, low=lr / reach, high=lr * reach)}
