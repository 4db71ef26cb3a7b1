"""The penalties of a strategy together, which keep a model near its start while it is trained."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strategies.errors import ConfigError
from strategies.model import HEAD, Plan
from strategies.penalties.penalties import Delta, Features, bss, co_tuning, l2_sp, map_modules, start_of
from strategies.strategy import Strategy


@dataclass(frozen=True, slots=True)
class SourceClasses:
    """The classifier of the pretrained weights, and how its classes relate to the study's classes, for Co-Tuning.

    Args:
        weight: (S, D) float.
        bias: (S,) float.
        relationship: (T, S) float, from :func:`strategies.penalties.penalties.learn_relationship`.
    """

    weight: Tensor
    bias: Tensor
    relationship: Tensor


class TotalPenalty:
    """The weighted sum of the penalties that a strategy asks for.

    Make it before the first step: it keeps the start's values and hooks into the model's forward passes.

    Args:
        model: A timm classifier, ready to be trained, on its device.
        plan: The plan of that model.
        strategy: Gives the weights ``l2_sp``, ``delta``, ``bss`` and ``co_tuning``.
        source: Needed for ``co_tuning``, otherwise None.
        autocast: Makes the context of the model's forward passes.

    Raises:
        ConfigError: ``co_tuning`` is asked for without ``source``.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        strategy: Strategy,
        source: SourceClasses | None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if strategy.co_tuning > 0 and source is None:
            raise ConfigError("strategy.co_tuning: the pretrained weights bring no classifier of their own")
        body = [p.name for p in plan.params if p.block != HEAD and p.from_epoch is not None]
        self._strategy = strategy
        self._source = source
        self._params = dict(model.named_parameters())
        self._start = start_of(model, body if strategy.l2_sp > 0 else ())
        self._delta = Delta(model, map_modules(model, plan.trainable), autocast) if strategy.delta > 0 else None
        self._features = Features(model) if strategy.bss > 0 or strategy.co_tuning > 0 else None

    @staticmethod
    def is_asked_for(strategy: Strategy) -> bool:
        """Whether the strategy has any penalty."""
        return any(weight > 0 for weight in (strategy.l2_sp, strategy.delta, strategy.bss, strategy.co_tuning))

    def penalty(
        self,
        images: Tensor | None,
        targets: Tensor,
        everyones: Callable[[Tensor], Tensor] = lambda features: features,
    ) -> Tensor:
        """The sum for the model's latest training forward pass, as a scalar.

        Args:
            images: (N, C, H, W) float, the model's inputs; only for DELTA.
            targets: (N,) int64, or (N, T) float shares of the classes; only for Co-Tuning.
            everyones: Extends features (N, D) to those of the whole batch, of which they may be a part; only for BSS,
                which is no mean over images.
        """
        strategy = self._strategy
        total = torch.zeros((), device=targets.device)
        if strategy.l2_sp > 0:
            total = total + strategy.l2_sp * l2_sp(self._params, self._start).to(targets.device)
        if self._delta is not None:
            assert images is not None, "DELTA shows the start model the images themselves"
            total = total + strategy.delta * self._delta.penalty(images)
        if self._features is None:
            return total
        features = self._features.take()
        if strategy.bss > 0:
            total = total + strategy.bss * bss(everyones(features))
        if strategy.co_tuning > 0:
            assert self._source is not None
            logits = F.linear(features.float(), self._source.weight, self._source.bias)
            total = total + strategy.co_tuning * co_tuning(logits, targets, self._source.relationship)
        return total
