"""Averages of a model's weights over training: EMA and SWA."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from strategies.model import StochNorm2d, StochNormAct2d


class WeightAverage:
    """A running average of everything that training changes in a model: its trained parameters and all buffers.

    Floating-point buffers, such as BatchNorm's statistics, are averaged; counters and masks are copied. Frozen
    parameters are not kept twice. The average starts at the model's values. Make it when the model is on its device and
    ready to be trained; the model's tensors must stay the same objects.

    For an exponential moving average (EMA), call after every step::

        average.update(ema_weight(average.updates, decay))

    and for stochastic weight averaging (SWA) after each of the last epochs::

        average.update(swa_weight(average.updates))

    Args:
        model: The model that is trained.
        trained: Names of the parameters that are trained in some epoch.
    """

    def __init__(self, model: nn.Module, trained: Collection[str]) -> None:
        self.updates = 0
        self._live: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in trained}
        self._live |= dict(model.named_buffers())
        self._mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._numbers = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        self._others = [name for name, tensor in self._live.items() if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, weight: float) -> None:
        """Move the average towards the model: not at all at ``weight`` 0, all the way at 1."""
        if self._numbers:
            torch._foreach_lerp_(*self._both(self._numbers), weight)
        if self._others:
            torch._foreach_copy_(*self._both(self._others))
        self.updates += 1

    def _both(self, names: list[str]) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of these names, of the average and of the model."""
        return [self._mean[name] for name in names], [self._live[name] for name in names]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the model has the average's values, and the average has the model's.

        Validate, save the best model and fit BatchNorm (:func:`refit_batch_norm`) inside; changes made there belong to
        the average. Do not train, update the average or take its state inside.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self._mean[name])
            self._mean[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The average, by name, and the number of its updates."""
        return {"updates": self.updates, "mean": dict(self._mean)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state_dict` of the same model and parameters."""
        self.updates = state["updates"]
        for name, tensor in self._mean.items():
            tensor.copy_(state["mean"][name])


def ema_weight(updates: int, decay: float) -> float:
    """Share of the model in the next update of its exponential moving average.

    It falls from 1 to ``1 - decay`` as ``(1 + updates) ** (-2 / 3)``. This is timm's warm-up of the decay: without it
    an average that starts at the pretrained weights would hardly leave them in a short training.

    Args:
        updates: Number of updates so far.
        decay: Share of the average that an update keeps in the end, such as 0.999.
    """
    return float(max(1 - decay, (1 + updates) ** (-2 / 3)))


def swa_weight(updates: int) -> float:
    """Share of the model in the next update of an average in which all updates count alike.

    Izmailov et al.: Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018.

    Args:
        updates: Number of updates so far.
    """
    return 1 / (1 + updates)


@torch.no_grad()
def refit_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute BatchNorm's running statistics in one pass, because they do not fit averaged weights.

    Each batch counts alike. Modules in eval mode, such as frozen ones, keep their statistics; if all are in eval mode,
    nothing is computed.

    Args:
        model: The model, with its modules in the modes in which they train.
        batches: (N, C, H, W) float, the model's inputs; at least one batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    stochastic = [(norm, norm.p) for norm in norms if isinstance(norm, StochNorm2d | StochNormAct2d)]
    for norm in norms:
        norm.reset_running_stats()
        # With None the statistics are the plain mean over all batches.
        norm.momentum = None
    for norm, _ in stochastic:
        # The statistics were just reset, so StochNorm must not normalise by them.
        norm.p = 0.0
    try:
        for images in batches:
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for norm, p in stochastic:
            norm.p = p
