"""BatchNorm over the images of all ranks: in train mode it normalises by the whole batch, as in one process."""

from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from strategies import ConfigError, StochNorm2d, StochNormAct2d
from trainers.private_apis import BatchNorm, SyncBatchNormFunction
from trainers.training.ranks import Ranks


def sync_batch_norm(model: nn.Module, ranks: Ranks, never_train: Collection[str] = ()) -> None:
    """Let a model's BatchNorm compute its statistics from all ranks' images, within steps (:meth:`Ranks.stepping`).

    Modules stay the same objects of the same classes. In eval mode, and outside of steps, they work as before. On CUDA
    devices the statistics are computed by torch's SyncBatchNorm, which has kernels for no other device; else by
    :class:`_Synced`.

    Args:
        model: Changed in place.
        ranks: The processes that train together; with a single rank nothing is changed.
        never_train: Names of modules that stay in eval mode.

    Raises:
        ConfigError: A module normalises by the batch in a way of its own in train mode.
    """
    if ranks.is_alone:
        return
    for name, module in model.named_modules():
        if not isinstance(module, BatchNorm):
            continue
        if isinstance(module, StochNorm2d | StochNormAct2d):
            # One of their two branches is BatchNorm.
            module.by_batch = MethodType(_forward_of(ranks, type(module).by_batch), module)  # type: ignore[method-assign]
        elif isinstance(module, BatchNormAct2d):
            module.forward = MethodType(_activated_forward_of(ranks, type(module).forward), module)  # type: ignore[method-assign]
        elif type(module).forward is BatchNorm.forward:
            module.forward = MethodType(_forward_of(ranks, BatchNorm.forward), module)  # type: ignore[method-assign]
        elif name not in never_train:
            raise ConfigError(
                f"executor.gpus_per_trial: {name} ({type(module).__name__}) cannot take its statistics of several "
                "processes' images; strategy.batch_norm: frozen_stats leaves them as they are"
            )


def norms_by_batch(model: nn.Module) -> list[str]:
    """Names of modules that normalise by the batch in the model's present modes; there ranks wait for each other."""
    return [name for name, module in model.named_modules() if isinstance(module, BatchNorm) and module.training]


def _forward_of(ranks: Ranks, plain: Any) -> Any:
    def forward(norm: BatchNorm, x: Tensor) -> Tensor:
        found: Tensor = _normalise(norm, x, ranks) if norm.training and ranks.in_step else plain(norm, x)
        return found

    return forward


def _activated_forward_of(ranks: Ranks, plain: Any) -> Any:
    def forward(norm: Any, x: Tensor) -> Tensor:
        if norm.training and ranks.in_step:
            activated: Tensor = norm.act(norm.drop(_normalise(norm, x, ranks)))
        else:
            activated = plain(norm, x)
        return activated

    return forward


def _normalise(norm: BatchNorm, x: Tensor, ranks: Ranks) -> Tensor:
    """Normalise as BatchNorm does in train mode, and update running statistics and counter."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    function = SyncBatchNormFunction if x.is_cuda else _Synced
    last: Any = (torch.distributed.group.WORLD, ranks.count) if x.is_cuda else (ranks,)
    found: Tensor = function.apply(x, norm.weight, norm.bias, *running, norm.eps, momentum, *last)
    return found


class _Synced(torch.autograd.Function):
    """Normalisation by the mean and variance of all ranks' images on CPUs, for which torch has none.

    After Ioffe and Szegedy, Batch Normalization, ICML 2015; in float64, in which torch's BatchNorm adds up on CPUs.
    Gradients of weight and bias are of this rank's images only, since all gradients are added up afterwards.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
        ranks: Ranks,
    ) -> Tensor:
        over = [dim for dim in range(x.ndim) if dim != 1]
        values = x.double()
        own_var, own_mean = torch.var_mean(values, over, correction=0)
        own = torch.cat([own_mean, own_var, own_mean.new_tensor([values.numel() / values.shape[1]])])
        parts = ranks.gather(own[None], [1] * ranks.count)
        channels = values.shape[1]
        means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        # After Chan, Golub, LeVeque 1979: squares of the values themselves would lose digits.
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (var + eps).rsqrt()
        normal = (values - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal.float(), scale, weight, total)
        ctx.ranks, ctx.has_bias, ctx.dtype = ranks, bias is not None, x.dtype
        out = normal if weight is None else normal * weight.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, weight, total = ctx.saved_tensors
        over = [dim for dim in range(normal.ndim) if dim != 1]
        shape = (1, -1, *[1] * (normal.ndim - 2))
        grads = grads.double()
        of_bias, of_weight = grads.sum(over), (grads * normal).sum(over)
        # If no layer in front is trained, no rank needs the gradient of the input.
        of_x = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([of_bias, of_weight])
            ctx.ranks.add_up([sums])
            means = sums / total
            of_x = grads - means[0].view(shape) - normal * means[1].view(shape)
            of_x = (of_x * (scale if weight is None else scale * weight).view(shape)).to(ctx.dtype)
        rest = (None, None, None, None, None)
        of_bias = of_bias.float()
        return of_x, None if weight is None else of_weight.float(), of_bias if ctx.has_bias else None, *rest
