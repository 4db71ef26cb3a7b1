"""Regions pooled by products are torchvision's RoI align, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from trainers.decoders.region_pool import RegionPool


def pool_of(strides):
    pool = MultiScaleRoIAlign([str(k) for k in range(len(strides))], 7, sampling_ratio=1)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(2, 1 + len(strides), canonical_scale=64, canonical_level=4)
    return pool


def pooled(pool, features, boxes, side):
    """Regions, and the gradients of a sum of them that weighs each value differently."""
    features = {name: one.detach().requires_grad_() for name, one in features.items()}
    regions = pool(features, boxes, [(side, side)] * len(boxes))
    if regions.requires_grad:
        (regions * torch.arange(regions.numel()).view_as(regions).cos()).sum().backward()
    return regions.detach(), [one.grad for one in features.values()]


def agree(strides, side, boxes):
    generator = torch.Generator().manual_seed(0)
    maps = {
        str(k): torch.randn(len(boxes), 3, -(-side // stride), -(-side // stride), generator=generator)
        for k, stride in enumerate(strides)
    }
    expected, expected_gradients = pooled(pool_of(strides), maps, boxes, side)
    found, gradients = pooled(RegionPool(pool_of(strides)), maps, boxes, side)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if one is None else one, torch.zeros(()) if other is None else other, rtol=1e-4, atol=1e-4
        )


@st.composite
def boxes_of(draw, side):
    """Boxes within an image; sides that end at its border among them, and ones thinner than a pixel."""
    place = st.one_of(st.sampled_from([0.0, float(side)]), st.floats(0, side, width=32))
    pairs = st.tuples(place, place).filter(lambda pair: pair[0] != pair[1]).map(sorted)
    rows = draw(st.lists(st.tuples(pairs, pairs), min_size=1, max_size=6))
    return torch.tensor([[x[0], y[0], x[1], y[1]] for x, y in rows])


@settings(max_examples=60, deadline=None)
@given(boxes=st.lists(boxes_of(64), min_size=1, max_size=3))
def test_a_pyramid_of_small_maps_is_pooled_as_by_torchvision(boxes):
    agree([4, 8, 16, 32], 64, boxes)


@pytest.mark.parametrize(("strides", "side"), [([8], 96), ([14, 28], 98), ([4, 8, 16, 32], 80)])
def test_levels_of_any_number_and_of_sides_that_do_not_divide_are_pooled(strides, side):
    agree(strides, side, [torch.tensor([[0.0, 0, side, side], [3, 5, 33, 64], [side - 1, side - 1, side, side]])])


def test_large_maps_are_left_to_torchvision():
    strides, side = [2], 128
    maps = {"0": torch.zeros(1, 2, 64, 64)}
    asked = []
    pool = pool_of(strides)
    pool.register_forward_hook(lambda *_: asked.append(True))
    RegionPool(pool)(maps, [torch.tensor([[0.0, 0, 30, 30]])], [(side, side)])
    assert asked == [True]


def test_an_image_without_regions_adds_none():
    agree([4, 8], 64, [torch.zeros(0, 4), torch.tensor([[2.0, 4, 40, 50]])])
