"""Gradients of convolutions on feature maps of a few pixels, for CPUs.

On CPUs torch calls oneDNN, which takes several times longer than the same arithmetic written as products and sums of
whole tensors. In the last blocks, which fine-tuning trains, all maps of small images are that small. Forward passes
stay torch's own. Measured on 2 cores (AMD EPYC with AVX-512, torch 2.14), batch 64, milliseconds before and after:
depthwise 5x5 of 1,152 channels on 2x2 pixels 2.9 and 0.3, depthwise 7x7 of 768 on 4x4 19 and 2.4, 1x1 from 192 to
1,152 channels on 2x2 2.1 and 1.2; from 1x1 kernels on 4x4 pixels and 3x3 kernels on 3x3 pixels upward oneDNN is faster.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from trainers.private_apis import conv_forward, set_conv_forward

# Pixels of the output up to which whole-tensor arithmetic is faster; the limit for large depthwise kernels differs.
_FEW_PIXELS = 4
_FEW_PIXELS_LARGE_KERNEL = 16
_LARGE_KERNEL = 5


def speed_up_small_maps(model: nn.Module) -> None:
    """Give a model's pointwise and depthwise convolutions the faster gradients, used where a map is small.

    Args:
        model: Changed in place, on a CPU; its outputs stay the same bit for bit, its gradients to rounding.
    """
    for module in model.modules():
        # Not subclasses, which may do more than convolve.
        if type(module) is nn.Conv2d and (_is_pointwise(module) or _is_depthwise(module)):
            set_conv_forward(module, _convolve)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether each pixel's outputs are a product of its inputs and a matrix."""
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def _convolve(conv: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (_asks_for_gradients(inputs, weight) and _is_small(conv, inputs)):
        return conv_forward(conv, inputs, weight, bias)
    outputs: Tensor = _SmallMap.apply(inputs, weight, bias, conv.stride, conv.padding, conv.groups)
    return outputs


def _asks_for_gradients(inputs: Tensor, weight: Tensor) -> bool:
    # Autocast's own backward pass handles its number format.
    in_fp32 = inputs.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return torch.is_grad_enabled() and in_fp32 and inputs.device.type == "cpu" and weight.requires_grad


def _is_small(conv: nn.Conv2d, inputs: Tensor) -> bool:
    pixels = 1
    for size, kernel, stride, padding in zip(
        inputs.shape[-2:], conv.kernel_size, conv.stride, conv.padding, strict=True
    ):
        assert isinstance(padding, int)
        pixels *= (size + 2 * padding - kernel) // stride + 1
    return pixels <= (_FEW_PIXELS_LARGE_KERNEL if min(conv.kernel_size) >= _LARGE_KERNEL else _FEW_PIXELS)


class _SmallMap(torch.autograd.Function):
    """A pointwise or depthwise convolution by torch, with gradients by products and sums of whole tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        return F.conv2d(inputs, weight, bias, stride, padding, 1, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = _input_gradient(inputs, weight, grads, ctx.stride, ctx.padding, ctx.groups)
        if ctx.needs_input_grad[1] and ctx.groups == 1:
            of_weight = _pointwise_weight_gradient(inputs, weight, grads)
        elif ctx.needs_input_grad[1]:
            of_weight = _depthwise_weight_gradient(inputs, weight, grads, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = grads.sum((0, 2, 3))
        return of_inputs, of_weight, of_bias, None, None, None


def _input_gradient(
    inputs: Tensor, weight: Tensor, grads: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> Tensor:
    if groups == 1:
        return (grads.permute(0, 2, 3, 1) @ weight.flatten(1)).permute(0, 3, 1, 2)
    # For a depthwise convolution oneDNN is fast enough.
    found: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        inputs.shape, weight, grads, stride, padding, 1, groups
    )
    return found


def _pointwise_weight_gradient(inputs: Tensor, weight: Tensor, grads: Tensor) -> Tensor:
    """The gradient (D, C, 1, 1) of a 1x1 kernel."""
    of_outputs = grads.permute(0, 2, 3, 1).reshape(-1, len(weight))
    return (of_outputs.t() @ inputs.permute(0, 2, 3, 1).reshape(len(of_outputs), -1)).view_as(weight)


def _depthwise_weight_gradient(
    inputs: Tensor, weight: Tensor, grads: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient (C, 1, h, w) of a depthwise kernel."""
    channels_last, of_outputs = inputs.permute(0, 2, 3, 1), grads.permute(0, 2, 3, 1)
    height, width = weight.shape[2:]
    found = weight.new_zeros(height, width, len(weight))
    rows = [_met(k, inputs.shape[2], grads.shape[2], stride[0], padding[0]) for k in range(height)]
    columns = [_met(k, inputs.shape[3], grads.shape[3], stride[1], padding[1]) for k in range(width)]
    for i, (in_rows, out_rows) in enumerate(rows):
        for j, (in_columns, out_columns) in enumerate(columns):
            met = channels_last[:, in_rows, in_columns] * of_outputs[:, out_rows, out_columns]
            torch.sum(met, dim=(0, 1, 2), out=found[i, j])
    return found.permute(2, 0, 1)[:, None]


def _met(place: int, size_in: int, size_out: int, stride: int, padding: int) -> tuple[slice, slice]:
    """The inputs that a place of the kernel is multiplied with along one side, and the outputs of these products."""
    first = max(0, -((place - padding) // stride))
    last = min(size_out - 1, (size_in - 1 - place + padding) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    begin = first * stride + place - padding
    return slice(begin, begin + (last - first) * stride + 1, stride), slice(first, last + 1)
