"""Stochastic normalisation: BatchNorm that uses the running statistics in some channels of each step."""

import torch
from timm.layers import BatchNormAct2d, register_notrace_module  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F


# Leaves of torch.fx, as the classes that they replace are: tracing would freeze the branches that depend on the mode.
@register_notrace_module
class StochNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that, in train mode, normalises each channel by the running statistics with probability ``p``.

    In eval mode, and without running statistics, it is BatchNorm2d. Use :func:`use_stochastic_norm` to make one.
    """

    p: float
    #: The branch that normalises by the batch.
    by_batch = nn.BatchNorm2d.forward

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, H, W) float, to the same shape."""
        return _normalise(self, input, self.p)


@register_notrace_module
class StochNormAct2d(BatchNormAct2d):
    """Timm's BatchNorm2d with an activation behind it, changed like :class:`StochNorm2d`."""

    p: float
    by_batch = nn.BatchNorm2d.forward

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (N, C, H, W) float, drop and activate, to the same shape."""
        activated: Tensor = self.act(self.drop(_normalise(self, x, self.p)))
        return activated


_STOCHASTIC: dict[type[nn.Module], type[StochNorm2d] | type[StochNormAct2d]] = {
    nn.BatchNorm2d: StochNorm2d,
    BatchNormAct2d: StochNormAct2d,
}


def use_stochastic_norm(model: nn.Module, p: float) -> int:
    """Turn a model's BatchNorm2d modules, in place, into stochastic normalisation (StochNorm).

    Kou, You, Long, Wang: Stochastic Normalization, NeurIPS 2020. In each step each channel draws one of two branches:
    the batch's statistics, as in BatchNorm, or the running statistics from before the step (the paper calls them
    moving). As in BatchNorm, the batch updates the running statistics of every channel. The draws come from torch's
    global generator of the device.

    The modules stay the same objects with the same parameters, buffers, hooks and names, so an existing optimizer stays
    valid, and state dicts fit both ways. Subclasses of BatchNorm2d other than timm's BatchNormAct2d have their own
    forward and are left as they are.

    Args:
        model: Any model; modules in eval mode put out the same as before.
        p: Probability of the running statistics, in [0, 1]: 0 is BatchNorm, 1 always takes the running statistics. The
            paper takes 0.5.

    Returns:
        The number of modules that were turned.
    """
    turned = 0
    for module in model.modules():
        kind = _STOCHASTIC.get(type(module))
        if kind is not None:
            module.__class__ = kind
            module.p = p  # type: ignore[assignment]
            turned += 1
    return turned


def _normalise(norm: StochNorm2d | StochNormAct2d, x: Tensor, p: float) -> Tensor:
    if not norm.training or norm.running_mean is None or norm.running_var is None or p == 0:
        return norm.by_batch(x)
    # Copies, because the other branch updates the buffers in place, and the backward pass of this branch reads them.
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    by_running = F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False, eps=norm.eps)
    by_batch = norm.by_batch(x)
    running = torch.rand(norm.num_features, device=x.device) < p
    return torch.where(running[:, None, None], by_running, by_batch)
