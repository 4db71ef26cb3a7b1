"""Optimizers and learning-rate schedules, from timm's factories, or written here where timm has none.

Torch and timm are imported only when something is built, so that checking a configuration does not wait for them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from strategies.errors import ConfigError, nearest
from strategies.optimizer_facts import optimizer_parameters
from strategies.space import Choice, Fixed, Space
from strategies.strategy import CHOICES_DEFAULTS, Strategy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from strategies.model import Plan

# Adan has three betas: of gradients, of their differences and of squares.
_SQUARES_COME_THIRD = frozenset({"adan", "adanw", "cadan", "cadanw"})

# Timm's names for the torch optimizers that have a fused step on both CPUs and CUDA devices.
_FUSED = frozenset({"adam", "adamw", "momentum", "nesterov", "sgd"})

#: Without a warm-up one_cycle rises over this share of the training, and falls over the same; and its start.
_ONE_CYCLE_RISE = 0.45
_ONE_CYCLE_START = 1 / 25


def check_optimizer_names(space: Space) -> None:
    """Refuse optimizers that timm does not have.

    Raises:
        ConfigError: Names the unknown optimizer and the nearest known one.
    """
    from timm.optim import list_optimizers  # type: ignore[attr-defined]

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
    for field, entry in space.items():
        for when in entry.when:
            unknown = [name for name in when.values if when.name == "optimizer" and name not in known]
            if unknown:
                raise ConfigError(
                    f"strategy.{field}.when.optimizer: {unknown[0]!r} is no optimizer of timm; "
                    + nearest(unknown[0], known)
                )


def make_optimizer(model: nn.Module, plan: Plan, strategy: Strategy) -> torch.optim.Optimizer:
    """The strategy's optimizer over the planned parameter groups.

    Raises:
        ConfigError: timm refuses the name or its settings, or the optimizer needs second derivatives.
    """
    from strategies.model import param_groups

    return optimizer_over(param_groups(model, plan, by_block=strategy.lr_by == "gradient"), strategy)


def optimizer_over(groups: list[dict[str, Any]], strategy: Strategy) -> torch.optim.Optimizer:
    """The strategy's optimizer over parameter groups; see :func:`build_optimizer`."""
    return build_optimizer(
        groups,
        strategy.optimizer,
        lr=strategy.lr,
        weight_decay=strategy.weight_decay,
        momentum=strategy.momentum,
        beta1=strategy.beta1,
        beta2=strategy.beta2,
        nesterov=strategy.nesterov,
    )


def build_optimizer(
    groups: list[dict[str, Any]],
    name: str,
    *,
    lr: float,
    weight_decay: float,
    momentum: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    nesterov: bool | None = None,
) -> torch.optim.Optimizer:
    """Timm's optimizer of that name over parameter groups.

    For ``momentum`` to ``nesterov``, None keeps the optimizer's default, and a parameter that has no effect on the
    optimizer (:func:`optimizer_parameters`) is ignored. Without momentum ``nesterov`` is off: there is nothing to look
    ahead along, and torch refuses it.

    Adam, AdamW and SGD step by torch's fused kernels, which equal its other implementations up to rounding. The kernels
    for CPUs need gradients with the memory layout of their parameters; ``backward()`` makes them so.

    Args:
        groups: Parameter groups; each may have its own weight decay.
        name: One of ``timm.optim.list_optimizers()``.
        lr: Peak learning rate.
        weight_decay: Weight decay of groups without their own.
        momentum: Share of the last step that is kept, in [0, 1).
        beta1: Share kept in the running mean of gradients, in [0, 1).
        beta2: Share kept in the running mean of squared gradients, in [0, 1); for Lion, of gradients.
        nesterov: Whether gradients are taken as if one step ahead (Nesterov's momentum).

    Raises:
        ConfigError: timm refuses the name or its settings, or the optimizer needs second derivatives.
    """
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    asked = {"momentum": momentum, "beta1": beta1, "beta2": beta2, "nesterov": nesterov}
    had = optimizer_parameters(name)
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None and key in had}
    if given.get("momentum") == 0 and "nesterov" in had and "beta1" not in had:
        given["nesterov"] = False
    try:
        if "beta1" in given or "beta2" in given:
            given["betas"] = _betas(name, given.pop("beta1", None), given.pop("beta2", None))
        if name in _FUSED and _can_fuse(groups):
            given["fused"] = True
        optimizer = create_optimizer_v2(cast(Any, groups), opt=name, lr=lr, weight_decay=weight_decay, **given)
    except (TypeError, ValueError, AssertionError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"strategy.optimizer: {name!r} cannot be made: {error}") from error
    _fill_momentum(optimizer)
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError(f"strategy.optimizer: {name!r} needs second derivatives")
    return optimizer


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether torch has fused steps for the parameters' devices and types."""
    params = [param for group in groups for param in group["params"]]
    return all(param.is_floating_point() and param.device.type in ("cpu", "cuda") for param in params)


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter of a fused SGD its initial momentum of zero.

    The kernel refuses a group in which only some parameters have taken their first step (torch 2.14), which happens
    when blocks are unfrozen one after the other.
    """
    import torch

    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            if group["fused"] and group["momentum"] > 0:
                for param in group["params"]:
                    optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)


def _betas(name: str, beta1: float | None, beta2: float | None) -> tuple[float, ...]:
    """An optimizer's betas; None keeps its default."""
    from timm.optim import get_optimizer_class, get_optimizer_info  # type: ignore[attr-defined]

    own = (get_optimizer_info(name).defaults or {}).get("betas")
    if own is None:
        own = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters["betas"].default
    # Adafactor has no mean of gradients by default, and reads only the first beta.
    betas = list(own or (0.0, 0.0))
    if beta1 is not None:
        betas[0] = beta1
    if beta2 is not None:
        betas[2 if name in _SQUARES_COME_THIRD else 1] = beta2
    return tuple(betas)


class Schedule(Protocol):
    """Sets the learning rate of every parameter group, times its ``lr_scale``.

    Call ``step_update(n)`` before update ``n``, counted from 0, and ``step(n, score)`` after epoch ``n``, counted from
    1, with a validation score, where higher is better.
    """

    def step_update(self, num_updates: int) -> None:
        """Set the rates for an update."""

    def step(self, epoch: int, metric: float) -> None:
        """Record the score after an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which a schedule of the same settings resumes."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the values of :meth:`state_dict`."""


def make_scheduler(optimizer: torch.optim.Optimizer, strategy: Strategy, updates_per_epoch: int) -> Schedule:
    """The strategy's schedule; a warm-up longer than the training is cut to the training's length."""
    steps = strategy.warmup_steps or strategy.warmup_epochs * updates_per_epoch
    return build_scheduler(
        optimizer,
        strategy.schedule,
        lr=strategy.lr,
        epochs=strategy.epochs,
        updates_per_epoch=updates_per_epoch,
        warmup_epochs=min(steps / updates_per_epoch, strategy.epochs),
        warmup_lr=strategy.warmup_lr,
        decay_rate=strategy.decay_rate,
        decay_epochs=strategy.decay_epochs,
        patience_epochs=strategy.patience_epochs,
        poly_power=strategy.poly_power,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str,
    *,
    lr: float,
    epochs: int,
    updates_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    decay_rate: float = 0.1,
    decay_epochs: float = 0.0,
    patience_epochs: int = 1,
    poly_power: float = 1.0,
) -> Schedule:
    """A learning-rate schedule over the whole training.

    - ``constant``: the rate does not change.
    - ``cosine``: half a period of a cosine, down to zero (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts).
    - ``poly``: ``(1 - share of the training done) ** poly_power``.
    - ``step``: times ``decay_rate`` every ``decay_epochs``.
    - ``multistep``: times ``decay_rate`` after half and after three quarters of the training (He et al., Deep Residual
      Learning for Image Recognition, CVPR 2016).
    - ``plateau``: times ``decay_rate`` whenever the score has not risen for ``patience_epochs`` epochs; epochs of the
      warm-up do not count.
    - ``one_cycle``: linearly up, linearly down in the same time, then down to zero (Smith and Topin, Super-Convergence,
      SPIE 2019). The rise is the warm-up, or 45% of the training without a warm-up; momentum is not cycled.

    The warm-up replaces the first part of the schedule: the other schedules continue after it as if there were none.

    Args:
        optimizer: Each group's ``lr`` is set to the schedule's rate, times ``lr_scale`` if the group has one.
        name: One of the above.
        lr: Peak rate.
        epochs: Length of the training.
        updates_per_epoch: Optimizer steps in an epoch.
        warmup_epochs: Length of the linear rise at the start; fractions count.
        warmup_lr: Where the rise starts, as a share of ``lr``. With 0 the first update is one step above zero, because
            an update with a rate of zero would be lost; one_cycle then starts at 1/25.
        decay_rate: See above.
        decay_epochs: See above; 0 for a third of ``epochs``.
        patience_epochs: See above.
        poly_power: See above; 1 is a straight line.
    """
    updates = epochs * updates_per_epoch
    warmup = round(warmup_epochs * updates_per_epoch)
    start = warmup_lr or 1 / (warmup + 1)
    if name == "one_cycle":
        rise = max(1, round(warmup if warmup_epochs > 0 else _ONE_CYCLE_RISE * updates))
        return _Ruled(optimizer, lr, _one_cycle(updates, rise, warmup_lr or _ONE_CYCLE_START))
    if name == "plateau":
        return _Plateau(optimizer, lr, warmup, start, warmup_epochs, decay_rate, patience_epochs)
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    # Timm is told that each update is an epoch, so that all its times are whole numbers.
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=updates,
        # The rate falls at the first update at or after its time; without the margin, rounding could delay it by one.
        decay_epochs=(decay_epochs * updates_per_epoch or updates / 3) * (1 - 1e-9),
        # timm's own milestones come one update early.
        decay_milestones=[math.ceil(updates / 2) + 1, math.ceil(updates * 3 / 4) + 1],
        decay_rate=poly_power if name == "poly" else decay_rate,
        warmup_epochs=warmup,
        warmup_lr=lr * start,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return cast(Schedule, scheduler)


class _Ruled:
    """A schedule by a rule, which gives the rate at each update as a share of its peak."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, rule: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._lr = lr
        self._rule = rule
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * self._share(num_updates) * group.get("lr_scale", 1.0)

    def _share(self, num_updates: int) -> float:
        return self._rule(num_updates)

    def step(self, epoch: int, metric: float) -> None:
        """Do nothing: the rule does not depend on scores."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the rule has no state."""


def _one_cycle(updates: int, rise: int, start: float) -> Callable[[int], float]:
    fall = min(rise, updates - rise)
    tail = updates - rise - fall

    def rule(update: int) -> float:
        if update < rise:
            return start + (1 - start) * update / rise
        if update < rise + fall:
            return 1 - (1 - start) * (update - rise) / fall
        return start * (1 - (update - rise - fall) / tail)

    return rule


class _Plateau(_Ruled):
    """Cuts the rate when the score stops rising.

    Timm's plateau schedule will be removed, loses its waiting time on resume, and warms up by whole epochs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr: float,
        warmup: int,
        start: float,
        warmup_epochs: float,
        decay_rate: float,
        patience: int,
    ) -> None:
        self._warmup_epochs = warmup_epochs
        self._decay_rate = decay_rate
        self._patience = patience
        self._best = -math.inf
        self._waited = 0
        self._cuts = 0

        def ramp(update: int) -> float:
            return start + (1 - start) * update / warmup if update < warmup else 1.0

        super().__init__(optimizer, lr, ramp)

    def _share(self, num_updates: int) -> float:
        # Not a rule that reads the cuts: it would hold this object, and with it the optimizer until a collection.
        return self._rule(num_updates) * float(self._decay_rate**self._cuts)

    def step(self, epoch: int, metric: float) -> None:
        """Cut the rate from the next update on if the patience is over; NaN is no rise."""
        rises = metric > self._best
        self._best = metric if rises else self._best
        self._waited = 0 if rises or epoch <= self._warmup_epochs else self._waited + 1
        if self._waited >= self._patience:
            self._cuts += 1
            self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited, "cuts": self._cuts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]
        self._waited = state_dict["waited"]
        self._cuts = state_dict["cuts"]
