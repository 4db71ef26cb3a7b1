"""Sharpness-aware minimisation: steps by the gradient at the worst point nearby."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Sam:
    """Sharpness-aware minimisation around any optimizer, with two passes in each step.

    Foret et al.: Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021. The first pass's
    gradient, scaled to length ``rho`` (over all trained parameters together), leads to roughly the worst loss nearby.
    The optimizer then steps from the original weights by the gradient at that point.

    A training step; clipping, if any, applies to the gradient that the optimizer takes::

        loss(model(images)).backward()
        sam.climb()
        with fixed_batch_stats(model):
            loss(model(images)).backward()
        clip_grad_norm_(parameters, largest)
        sam.step()

    Optimizer, groups and schedule do not change, and between steps there is no state to save. The first pass costs one
    copy of each trained parameter.

    Args:
        optimizer: Takes the steps; its parameters that have a gradient are trained.
        rho: How far to climb; the paper takes 0.05.

    Raises:
        ValueError: ``rho`` is not above 0; with 0 the second pass would only repeat the first.
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
        """Go to roughly the worst loss nearby and clear the gradients; call this after the first backward pass."""
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        # With a gradient of zero the weights stay, instead of becoming NaN.
        scale = self._rho / nn.utils.get_total_norm(grads).clamp_min(1e-12)
        self._climbed, self._before = params, [p.clone() for p in params]
        # The gradients are scaled in place, so that the climb needs no memory of its own.
        torch._foreach_mul_(grads, scale)
        torch._foreach_add_(params, grads)
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        """Go back and let the optimizer step; call this after the second backward pass and clipping."""
        self.go_back()
        self._optimizer.step()

    @torch.no_grad()
    def go_back(self) -> None:
        """Go back to the weights before the climb, without a step."""
        torch._foreach_copy_(self._climbed, self._before)
        self._climbed, self._before = [], []


@contextmanager
def fixed_batch_stats(model: nn.Module) -> Iterator[None]:
    """A context in which training passes leave BatchNorm's running statistics and counters as they are.

    They still normalise by the batch. Use it for the second pass of :class:`Sam`, whose weights are not the model's
    own; the authors of SAM also update the statistics in the first pass only.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
