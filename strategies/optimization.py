"""Optimizers and learning-rate schedules, from timm's factories."""

from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from timm.scheduler.scheduler import Scheduler
from torch import nn

from strategies.errors import ConfigError, nearest
from strategies.plan import Plan, param_groups
from strategies.space import Choice, Fixed, Space
from strategies.strategy import CHOICES_DEFAULTS, Strategy


def check_optimizer_names(space: Space) -> None:
    """Refuse optimizers that timm does not have.

    Raises:
        ConfigError: Names the unknown optimizer and the nearest known one.
    """
    known = [str(name) for name in list_optimizers()]
    match space.get("optimizer", Fixed(CHOICES_DEFAULTS["optimizer"])):
        case Choice(choices=names):
            asked = names
        case Fixed(value=name):
            asked = (name,)
        case entry:
            raise ConfigError(f"strategy.optimizer: {entry} is not a name or a list of names")
    for name in asked:
        if name not in known:
            raise ConfigError(f"strategy.optimizer: {name!r} is no optimizer of timm; {nearest(name, known)}")


def make_optimizer(model: nn.Module, plan: Plan, strategy: Strategy) -> torch.optim.Optimizer:
    """Timm's optimizer of that name over the planned parameter groups.

    Raises:
        ConfigError: timm refuses the name or its settings, or the optimizer needs second derivatives.
    """
    try:
        optimizer = create_optimizer_v2(
            cast(Any, param_groups(model, plan)),
            opt=strategy.optimizer,
            lr=strategy.lr,
            weight_decay=strategy.weight_decay,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"strategy.optimizer: {strategy.optimizer!r} cannot be made: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError(f"strategy.optimizer: {strategy.optimizer!r} needs second derivatives")
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, strategy: Strategy, updates_per_epoch: int) -> Scheduler:
    """Timm's schedule, stepped once an update: call ``step_update(n)`` before update ``n``, counted from 0.

    ``poly`` falls linearly to zero; ``step`` divides the rate by ten after each third of the epochs.
    """
    warmup_updates = round(strategy.warmup_epochs * updates_per_epoch)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=strategy.schedule,
        num_epochs=strategy.epochs,
        decay_epochs=strategy.epochs / 3,
        decay_rate=1.0 if strategy.schedule == "poly" else 0.1,
        warmup_epochs=cast(Any, warmup_updates / updates_per_epoch),
        # The first update already moves: from zero it would be a step of no length.
        warmup_lr=strategy.lr / (warmup_updates + 1),
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return cast(Scheduler, scheduler)
