"""Gradients on small feature maps are torch's own, to rounding, and outputs bit for bit."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainers.models import speed_up_small_maps


def gradients(conv: nn.Conv2d, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and gradients of a sum of different multiples of them with respect to inputs and parameters."""
    inputs = images.clone().requires_grad_()
    outputs = conv(inputs)
    factors = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((outputs * factors).sum(), [inputs, *conv.parameters()])
    return outputs.detach(), list(found)


def assert_agree(conv: nn.Conv2d, images: Tensor) -> None:
    conv, images = (thing.to(memory_format=torch.channels_last) for thing in (conv, images))
    other = deepcopy(conv)
    speed_up_small_maps(other)
    (plain, theirs), (fast, ours) = gradients(conv, images), gradients(other, images)
    assert torch.equal(plain, fast)
    for one, two in zip(theirs, ours, strict=True):
        assert one.shape == two.shape
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


@given(
    side=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.integers(1, 7),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_depthwise_gradients_agree_with_torch(side, kernel, stride, padding, bias):
    if any(size + 2 * pad < kernel for size, pad in zip(side, padding, strict=True)):
        return  # no output at all
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias)
    assert_agree(conv, torch.randn(3, 6, *side))


@given(side=st.tuples(st.integers(1, 3), st.integers(1, 3)), channels=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=50, deadline=None)
def test_pointwise_gradients_agree_with_torch(side, channels):
    torch.manual_seed(0)
    assert_agree(nn.Conv2d(*channels, 1), torch.randn(3, channels[0], *side))


def test_outputs_stay_bit_for_bit_with_many_channels_and_a_bias():
    torch.manual_seed(0)
    assert_agree(nn.Conv2d(1152, 192, 1), torch.randn(1, 1152, 2, 2))


def calls_of(conv: nn.Conv2d, side: int) -> list[str]:
    """Names of the autograd nodes behind a convolution's output."""
    speed_up_small_maps(conv)
    node = conv(torch.randn(2, conv.in_channels, side, side, requires_grad=True)).grad_fn
    assert node is not None
    return [node.name(), *(after.name() for after, _ in node.next_functions if after is not None)]


@pytest.mark.parametrize(
    ("conv", "small", "large"),
    [
        (nn.Conv2d(8, 16, 1, bias=False), 2, 3),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), 2, 3),
        (nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), 4, 5),
        (nn.Conv2d(8, 8, 5, padding=2, stride=2, groups=8, bias=False), 8, 9),
    ],
)
def test_only_small_maps_are_taken_from_torch(conv, small, large):
    assert "_SmallMapBackward" in calls_of(conv, small)
    assert "ConvolutionBackward0" in calls_of(conv, large)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 16, 1, stride=2),
        nn.Conv2d(8, 16, 1, padding=1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect"),
    ],
)
def test_all_other_convolutions_stay_torchs_own(conv):
    assert "ConvolutionBackward0" in calls_of(conv, 2)


def test_frozen_weights_and_other_formats_stay_torchs_own():
    conv = nn.Conv2d(8, 8, 1, bias=False)
    conv.weight.requires_grad_(False)
    assert "ConvolutionBackward0" in calls_of(conv, 2)
    conv.weight.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert "_SmallMapBackward" not in calls_of(conv, 2)
