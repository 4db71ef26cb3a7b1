import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from strategies import IGNORED
from strategies.augmentation.levels import LEVELS, Level, augment, draw_moves
from strategies.augmentation.with_targets import augment_with_targets, move_boxes, move_masks

SIDE = 32
NONE = [0.0, 0.0, 0.0, 0.0, -1.0]
MIRROR = Level(flip=1.0)
GEOMETRIES = st.builds(Level, crop_area=st.floats(0.1, 1), flip=st.floats(0, 1), rotate=st.floats(0, 180))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels_of(seed, n=4):
    return torch.rand(n, 3, SIDE, SIDE, generator=seeded(seed))


def masks_of(seed, n=4):
    """Classes in patches of four pixels, some ignored."""
    coarse = torch.randint(0, 5, (n, 1, SIDE // 4, SIDE // 4), generator=seeded(seed))
    masks = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0]
    return masks.masked_fill(masks == 4, IGNORED).to(torch.uint8)


def boxes_of(seed, n=4, whole=True):
    """Three boxes an image and a row without one; of whole pixels where asked for."""
    first = torch.rand(n, 4, 2, generator=seeded(seed)) * (SIDE - 9)
    extent = 3 + torch.rand(n, 4, 2, generator=seeded(seed + 1)) * 6
    if whole:
        first, extent = first.floor(), extent.floor()
    labels = torch.arange(4.0).expand(n, 4)[..., None]
    boxes = torch.cat([first, first + extent, labels], dim=2)
    boxes[:, 3] = torch.tensor(NONE)
    return boxes


def theta_of(degrees=0.0, mirror=1.0, width=1.0, height=1.0, shift=(0.0, 0.0)):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor(
        [[[mirror * width * cos, -height * sin, shift[0]], [mirror * width * sin, height * cos, shift[1]]]]
    )


def areas(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def as_v2(boxes):
    return tv_tensors.BoundingBoxes(boxes[:, :4], format="XYXY", canvas_size=(SIDE, SIDE), clamping_mode=None)


def near_match(found, expected):
    """Whether each pixel's class is there in the expected mask within a pixel."""
    return all(
        (torch.nn.functional.max_pool2d((expected == label).float()[None], 3, 1, 1)[0].bool() | (found != label)).all()
        for label in found.unique()
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), whole=st.booleans())
def test_mirroring_agrees_with_torchvision_to_the_last_digit(seed, whole):
    pixels, masks, boxes = pixels_of(seed), masks_of(seed), boxes_of(seed, whole=whole)
    found_pixels, found_masks = augment_with_targets(pixels, masks, "masks", MIRROR, seeded())
    _, found_boxes = augment_with_targets(pixels, boxes, "boxes", MIRROR, seeded())
    for i in range(len(pixels)):
        assert torch.equal(found_pixels[i], tv.horizontal_flip(pixels[i]))
        assert torch.equal(found_masks[i], tv.horizontal_flip(tv_tensors.Mask(masks[i])).as_subclass(torch.Tensor))
        expected = tv.horizontal_flip(as_v2(boxes[i, :3])).as_subclass(torch.Tensor)
        assert torch.equal(found_boxes[i, :3, :4], expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_mirroring_twice_changes_nothing_and_keeps_areas(seed):
    pixels, masks, boxes = pixels_of(seed), masks_of(seed), boxes_of(seed)
    once_masks = augment_with_targets(pixels, masks, "masks", MIRROR, seeded())
    once_boxes = augment_with_targets(pixels, boxes, "boxes", MIRROR, seeded())
    assert torch.equal(areas(once_boxes[1]), areas(boxes))
    assert torch.equal(
        once_masks[1].flatten(1).long().sort(1).values,
        masks.flatten(1).long().sort(1).values,
    )
    for once, targets, kind in ((once_masks, masks, "masks"), (once_boxes, boxes, "boxes")):
        twice = augment_with_targets(*once, kind, MIRROR, seeded())
        assert torch.equal(twice[0], pixels)
        assert torch.equal(twice[1], targets)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), degrees=st.floats(-180, 180))
def test_rotation_agrees_with_torchvision_to_a_pixel(seed, degrees):
    mask, boxes = masks_of(seed, n=1), boxes_of(seed, n=1)
    theta = theta_of(degrees)
    expected = tv.rotate(tv_tensors.Mask(mask[0]), degrees, InterpolationMode.NEAREST, fill=[float(IGNORED)])
    assert near_match(move_masks(mask, theta), expected.as_subclass(torch.Tensor)[None])
    found = move_boxes(boxes, theta, (SIDE, SIDE))[0]
    reference = tv.rotate(as_v2(boxes[0, :3]), degrees).as_subclass(torch.Tensor)
    for box, other in zip(found[:3], reference.clamp(0, SIDE), strict=True):
        if box[4] >= 0:
            torch.testing.assert_close(box[:4], other, atol=1.0, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    top=st.integers(0, 16),
    left=st.integers(0, 16),
    height=st.integers(8, 16),
    width=st.integers(8, 16),
)
def test_a_crop_agrees_with_torchvision_to_a_pixel(seed, top, left, height, width):
    mask, boxes = masks_of(seed, n=1), boxes_of(seed, n=1)
    theta = theta_of(
        width=width / SIDE,
        height=height / SIDE,
        shift=((2 * left + width) / SIDE - 1, (2 * top + height) / SIDE - 1),
    )
    where = (top, left, height, width, [SIDE, SIDE])
    expected = tv.resized_crop(tv_tensors.Mask(mask[0]), *where, InterpolationMode.NEAREST).as_subclass(torch.Tensor)
    assert near_match(move_masks(mask, theta), expected[None])
    found = move_boxes(boxes, theta, (SIDE, SIDE))[0, :3]
    reference = tv.resized_crop(as_v2(boxes[0, :3]), *where).as_subclass(torch.Tensor)
    cut = reference.clamp(0, SIDE)
    share = areas(cut) / areas(reference)
    clear = (share - 0.25).abs() > 1e-3
    assert torch.equal((found[:, 4] >= 0)[clear], (share > 0.25)[clear])
    kept = (found[:, 4] >= 0) & clear
    torch.testing.assert_close(found[kept, :4], cut[kept], atol=1.0, rtol=0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), level=GEOMETRIES)
def test_what_a_box_held_lies_within_the_moved_box(seed, level):
    boxes = boxes_of(seed, n=3)[:, :1]
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes[:, 0, :4].int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    pixels = pixels_of(seed, n=3)
    pixels_along_masks, moved_masks = augment_with_targets(pixels, masks, "masks", level, seeded(seed))
    pixels_along_boxes, moved_boxes = augment_with_targets(pixels, boxes, "boxes", level, seeded(seed))
    assert torch.equal(pixels_along_masks, pixels_along_boxes)
    for mask, (left, top, right, bottom, label) in zip(moved_masks, moved_boxes[:, 0].tolist(), strict=True):
        rows, columns = torch.nonzero(mask == 1, as_tuple=True)
        if label >= 0 and len(rows):
            # Centres of pixels.
            assert left - 1e-3 <= columns.min() + 0.5 <= columns.max() + 0.5 <= right + 1e-3
            assert top - 1e-3 <= rows.min() + 0.5 <= rows.max() + 0.5 <= bottom + 1e-3


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), level=GEOMETRIES)
def test_boxes_stay_boxes_inside_the_image_with_their_classes_in_their_rows(seed, level):
    boxes = boxes_of(seed, whole=False)
    _, found = augment_with_targets(pixels_of(seed), boxes, "boxes", level, seeded(seed))
    assert found.shape == boxes.shape
    assert found.dtype == boxes.dtype
    there = found[..., 4] >= 0
    assert (found[~there] == torch.tensor(NONE)).all()
    assert torch.equal(found[there][:, 4], boxes[there][:, 4])
    left, top, right, bottom, _ = found[there].unbind(1)
    for low, high in ((left, right), (top, bottom)):
        assert ((low >= 0) & (low < high) & (high <= SIDE)).all()


@pytest.mark.parametrize(("left", "kept"), [(0.0, True), (-2.9, True), (-3.1, False), (-8.0, False)])
def test_a_box_of_which_less_than_a_quarter_stays_is_dropped(left, kept):
    # The window goes to the right by so much that of a box of four pixels the rest is cut off.
    theta = theta_of(shift=(-2 * left / SIDE, 0.0))
    found = move_boxes(torch.tensor([[[0.0, 8.0, 4.0, 12.0, 2.0]]]), theta, (SIDE, SIDE))[0, 0]
    expected = [0.0, 8.0, 4.0 + left, 12.0, 2.0] if kept else NONE
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), level=GEOMETRIES)
def test_pixels_are_those_of_plain_augmentation_but_black_where_masks_are_ignored(seed, level):
    pixels = pixels_of(seed)
    found, masks = augment_with_targets(
        pixels, torch.ones(4, SIDE, SIDE, dtype=torch.uint8), "masks", level, seeded(seed)
    )
    assert set(masks.unique().tolist()) <= {1, IGNORED}
    outside = (masks == IGNORED)[:, None]
    assert torch.equal(found, augment(pixels, level, seeded(seed)).masked_fill(outside, 0))


@pytest.mark.parametrize("level", LEVELS)
def test_pixels_with_boxes_and_with_masks_are_changed_alike_by_every_level(level):
    pixels = pixels_of(0)
    with_masks, masks = augment_with_targets(pixels, masks_of(0), "masks", level, seeded())
    with_boxes, _ = augment_with_targets(pixels, boxes_of(0), "boxes", level, seeded())
    assert torch.equal(with_masks, with_boxes)
    assert masks.dtype == torch.uint8
    # Only a rotation shows what lies outside.
    if not LEVELS[level].rotate:
        assert torch.equal(with_masks, augment(pixels, level, seeded()))


def test_classes_up_to_254_survive_being_moved():
    masks = torch.arange(255).repeat(5)[: SIDE * SIDE].view(1, SIDE, SIDE).to(torch.uint8)
    found = move_masks(masks, theta_of(mirror=-1.0))
    assert torch.equal(found, masks.flip(2))


@pytest.mark.parametrize("level", [Level(erase=1.0), Level(colour=0.5)])
def test_colours_and_erasing_leave_targets_alone(level):
    masks, boxes = masks_of(0), boxes_of(0)
    found, moved_masks = augment_with_targets(pixels_of(0), masks, "masks", level, seeded())
    _, moved_boxes = augment_with_targets(pixels_of(0), boxes, "boxes", level, seeded())
    assert torch.equal(moved_masks, masks)
    assert torch.equal(moved_boxes, boxes)
    assert torch.equal(found, augment(pixels_of(0), level, seeded()))


def test_none_changes_and_draws_nothing():
    generator, pixels, masks = seeded(), pixels_of(0), masks_of(0)
    before = generator.get_state()
    found = augment_with_targets(pixels, masks, "masks", "none", generator)
    assert found[0] is pixels
    assert found[1] is masks
    assert torch.equal(generator.get_state(), before)
    assert draw_moves(4, Level(colour=0.5), generator) is None
