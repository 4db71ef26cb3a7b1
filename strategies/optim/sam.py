"""Sharpness-aware minimisation: steps by the gradient at the worst point near by."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Sam:
    """Two passes a step around any optimizer.

    Foret et al.: Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021. The first pass's
    gradient, of length ``rho`` (over all trained parameters together), leads to where the loss is about worst near by;
    the step is taken from where the weights were, by the gradient from there.

    A training step, with clipping, if any, of the gradient that the optimizer takes::

        loss(model(images)).backward()
        sam.climb()
        with fixed_batch_stats(model):
            loss(model(images)).backward()
        clip_grad_norm_(parameters, largest)
        sam.step()

    What the optimizer, its groups and its schedule are stays theirs; between steps there is nothing to save. The first
    pass costs one copy of each trained parameter.

    Args:
        optimizer: Takes the steps; what of its parameters has a gradient is trained.
        rho: How far to climb; the paper takes 0.05.

    Raises:
        ValueError: ``rho`` is not above 0, which would be twice the work for the optimizer's own steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float) -> None:
        if rho <= 0:
            raise ValueError(f"rho: {rho!r} is not above 0")
        self._optimizer = optimizer
        self._rho = rho
        self._climbed: list[Tensor] = []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def climb(self) -> None:
        """Go where the loss is about worst near by, and clear the gradients; call it after the first backward pass."""
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        # A gradient of zero leads nowhere, instead of to no number.
        scale = self._rho / nn.utils.get_total_norm(grads).clamp_min(1e-12)
        self._climbed, self._before = params, [p.clone() for p in params]
        # The gradients become the way climbed, so that it needs no memory of its own.
        torch._foreach_mul_(grads, scale)
        torch._foreach_add_(params, grads)
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        """Go back and let the optimizer step; call it after the second backward pass and clipping."""
        torch._foreach_copy_(self._climbed, self._before)
        self._climbed, self._before = [], []
        self._optimizer.step()


@contextmanager
def fixed_batch_stats(model: nn.Module) -> Iterator[None]:
    """A context in which training passes leave BatchNorm's running statistics and counters as they are.

    They still normalise by the batch. For the second pass of :class:`Sam`, whose weights are not the model's own; its
    authors leave the statistics to the first as well.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
