"""The optimizers of stacked heads: one for many probes where possible, else one for each probe."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from strategies import Strategy, optimizer_over

_OF_OPTIMIZERS = ("optimizer", "momentum", "beta1", "beta2", "nesterov")

#: Optimizers that treat every number alike and move it in proportion to the rate, and whether their weight decay is
#: decoupled, p <- (1 - lr * decay) * p, or else added to the gradient.
ELEMENTWISE = {
    **dict.fromkeys(("adadelta", "adagrad", "adam", "adamax", "momentum", "nadam", "nesterov"), False),
    **dict.fromkeys(("radam", "rmsprop", "sgd"), False),
    **dict.fromkeys(("adamw", "lion", "nadamw", "radamw", "sgdw"), True),
}


class Head(NamedTuple):
    """Stacked classifiers, or their gradients: weight (P, C, D) and bias (P, C) float32."""

    weight: Tensor
    bias: Tensor


class SharedStepper:
    """One optimizer for probes that differ in rate and weight decay alone.

    The optimizer moves zeros at rate 1 without weight decay; their move, times a probe's rate, is that probe's step.
    """

    def __init__(self, head: Head, members: slice, strategies: Sequence[Strategy], decayed: bool) -> None:
        self._members = members
        self._head = Head(*(tensor[members] for tensor in head))
        self._decoupled = ELEMENTWISE[strategies[0].optimizer]
        self._decays = torch.tensor([s.weight_decay if decayed else 0.0 for s in strategies], dtype=torch.float64)
        self._coupled = self._decays.float().to(head.weight.device)[:, None, None]
        self._moves = [nn.Parameter(torch.zeros_like(tensor)) for tensor in self._head]
        self._optimizer = optimizer_over([{"params": self._moves}], strategies[0].replace(lr=1.0, weight_decay=0.0))

    def set_rates(self, rates: list[list[float]]) -> None:
        """Set the rates of an epoch, by update and probe."""
        own = torch.tensor(rates, dtype=torch.float64)[:, self._members]
        self._rates = own.float().to(self._coupled.device)
        self._kept = (1 - own * self._decays).float().to(self._coupled.device)

    @torch.no_grad()
    def step(self, grads: Head, update: int) -> None:
        """Step by the gradients of all probes."""
        weight, bias = self._head
        for move, grad in zip(self._moves, grads, strict=True):
            move.grad = grad[self._members]
        if self._decoupled:
            weight.mul_(self._kept[update][:, None, None])
        else:
            self._moves[0].grad = torch.addcmul(grads.weight[self._members], weight, self._coupled)
        self._optimizer.step()
        weight.addcmul_(self._moves[0], self._rates[update][:, None, None])
        bias.addcmul_(self._moves[1], self._rates[update][:, None])
        for move in self._moves:
            move.zero_()


class OwnStepper:
    """The optimizer of a single probe, for optimizers that look at a tensor as a whole."""

    def __init__(self, head: Head, index: int, strategy: Strategy, decayed: bool) -> None:
        self._index = index
        # Views of the stack, so that their steps change the stack.
        self._params = [nn.Parameter(tensor[index]) for tensor in head]
        decays = (strategy.weight_decay if decayed else 0.0, 0.0)
        found = [{"params": [p], "weight_decay": decay} for p, decay in zip(self._params, decays, strict=True)]
        self._optimizer = optimizer_over(found, strategy)

    def set_rates(self, rates: list[list[float]]) -> None:
        """Set the rates of an epoch, by update and probe."""
        self._rates = [of_all[self._index] for of_all in rates]

    def step(self, grads: Head, update: int) -> None:
        """Step by the probe's own part of all gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[update]
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad[self._index]
        self._optimizer.step()


def make_steppers(head: Head, strategies: Sequence[Strategy], decayed: bool) -> list[SharedStepper | OwnStepper]:
    """Optimizers for a stack whose probes are in the order of :func:`optimizer_key`."""
    found: list[SharedStepper | OwnStepper] = []
    start = 0
    for _, members in groupby(strategies, key=optimizer_key):
        alike = list(members)
        rows = range(start, start + len(alike))
        start = rows.stop
        if alike[0].optimizer in ELEMENTWISE:
            found.append(SharedStepper(head, slice(rows.start, rows.stop), alike, decayed))
        else:
            found += [OwnStepper(head, row, strategy, decayed) for row, strategy in zip(rows, alike, strict=True)]
    return found


def optimizer_key(strategy: Strategy) -> str:
    """A key that is equal for strategies whose optimizers differ only in rate and weight decay."""
    return repr([getattr(strategy, name) for name in _OF_OPTIMIZERS])
