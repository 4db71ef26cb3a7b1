import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from strategies import CHOICES
from strategies.augmentation import tta_views
from strategies.augmentation.levels import LEVELS, Level, augment

IMAGES = torch.rand(16, 3, 24, 20, generator=torch.Generator().manual_seed(0))


def changed(level: str | Level, seed: int = 0, images: torch.Tensor = IMAGES) -> torch.Tensor:
    return augment(images, level, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_keeps_shape_and_range_and_depends_on_the_seed_alone(level):
    found = changed(level)
    assert found.shape == IMAGES.shape
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert torch.equal(found, changed(level))
    assert not torch.equal(found, changed(level, seed=1))


@pytest.mark.parametrize("level", LEVELS)
def test_images_are_changed_independently(level):
    same = IMAGES[:1].expand(16, -1, -1, -1)
    found = changed(level, images=same)
    assert len({tuple(image.flatten().tolist()) for image in found}) == 16


@pytest.mark.parametrize(
    ("level", "pixels"),
    [
        ("light", [0.4263, 0.429, 0.4395, 0.4553, 0.4304, 0.4311]),
        ("medium", [0.369, 0.5159, 0.5, 0.5248, 0.4265, 0.3835]),
        ("strong", [0.3168, 0.6065, 0.5699, 0.6176, 0.4347, 0.344]),
    ],
)
def test_the_levels_change_images_of_a_seed_as_they_always_did(level, pixels):
    ramp = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16).expand(6, -1, -1, -1)
    assert changed(level, images=ramp)[:, 1, 4, 9].tolist() == pytest.approx(pixels, abs=1e-4)


def test_none_changes_nothing():
    assert changed("none") is IMAGES


def test_a_level_without_anything_changes_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(IMAGES, Level(), generator) is IMAGES
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("level", "flips"), [("light", False), ("medium", True), ("strong", True)])
def test_only_levels_that_flip_mirror_left_and_right(level, flips):
    ramp = torch.linspace(0, 1, 24).expand(1000, 1, 6, 24)
    found = changed(level, images=ramp)
    slopes = found[..., 16:].mean((1, 2, 3)) - found[..., :8].mean((1, 2, 3))
    assert (slopes < 0).float().mean().item() == pytest.approx(0.5 if flips else 0.0, abs=0.04)


@settings(max_examples=50, deadline=None)
@given(
    level=st.builds(
        Level,
        crop_area=st.floats(0.01, 1),
        flip=st.floats(0, 1),
        rotate=st.floats(0, 180),
        colour=st.floats(0, 1),
        saturation=st.floats(0, 1),
        hue=st.floats(0, 180),
        erase=st.floats(0, 1),
    ),
    n=st.integers(1, 4),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_level_keeps_shape_type_and_range_of_any_images(level, n, channels, size):
    images = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    found = changed(level, images=images)
    assert torch.equal(images, before)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert found.min() >= -1e-5
    assert found.max() <= 1 + 1e-5


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("rotate", [0.0, 1e-6])
def test_so_many_images_are_mirrored_as_asked_for(share, rotate):
    # A hair's rotation takes the way through resampling.
    images = torch.rand(400, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = changed(Level(flip=share, rotate=rotate), images=images)
    same, mirrored = ((found - other).abs().amax((1, 2, 3)) < 1e-4 for other in (images, images.flip(3)))
    assert (same ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("crop_area", [0.1, 0.5, 0.9])
def test_crops_keep_between_the_asked_for_share_of_the_image_and_all_of_it(crop_area):
    columns = torch.linspace(0, 1, 64).expand(300, 1, 64, 64)
    rows = columns.transpose(2, 3)
    width, height = (
        (found.amax((1, 2, 3)) - found.amin((1, 2, 3))) * 64 / 63
        for found in (changed(Level(crop_area=crop_area), images=images) for images in (columns, rows))
    )
    area = width * height
    # Sides are cut off at the image's own where the shape drawn is longer.
    assert area.min() > crop_area * 0.75**0.5 - 0.05
    assert area.min() < crop_area * 1.15
    assert area.max() > 0.85


def test_rotations_go_both_ways_as_far_as_asked_for():
    # The angle of the gradient of a ramp.
    ramp = torch.linspace(-1, 1, 33).expand(200, 1, 33, 33) / 4 + 0.5
    found = changed(Level(rotate=30.0), images=ramp)[:, 0, 10:23, 10:23]
    angles = torch.atan2(found.diff(dim=1).mean((1, 2)), found.diff(dim=2).mean((1, 2))).rad2deg()
    assert angles.abs().max() <= 30.1
    assert angles.min() < -27
    assert angles.max() > 27


def test_brightness_and_contrast_change_by_up_to_the_asked_for_share():
    flat = torch.full((500, 1, 4, 4), 0.4)
    means = changed(Level(colour=0.5), images=flat)[:, 0, 0, 0]
    assert means.min().item() == pytest.approx(0.2, abs=0.01)
    assert means.max().item() == pytest.approx(0.6, abs=0.01)
    small = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.45).expand(500, -1, -1, -1)
    found = changed(Level(colour=0.5), images=small)
    contrast = found.std((1, 2, 3)) / found.mean((1, 2, 3)) / (small[0].std() / small[0].mean())
    assert contrast.min().item() == pytest.approx(0.5, abs=0.02)
    assert contrast.max().item() == pytest.approx(1.5, abs=0.02)


def test_saturation_changes_as_in_torchvision_by_up_to_the_asked_for_share():
    image = torch.tensor([0.5, 0.45, 0.55])[:, None, None].expand(3, 2, 2)
    found = changed(Level(saturation=0.6), images=image.expand(500, -1, -1, -1))
    factors = (found[:, 0, 0, 0] - found[:, 1, 0, 0]) / 0.05
    assert factors.min().item() == pytest.approx(0.4, abs=0.02)
    assert factors.max().item() == pytest.approx(1.6, abs=0.02)
    for one, factor in zip(found[:20], factors[:20].tolist(), strict=True):
        torch.testing.assert_close(one, tv.adjust_saturation(image, factor), atol=1e-3, rtol=0)


def test_hues_turn_by_up_to_the_asked_for_degrees_and_leave_luminance_and_grey():
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    image = torch.tensor([0.55, 0.45, 0.5])[:, None, None].expand(3, 2, 2)
    found = changed(Level(hue=40.0), images=image.expand(500, -1, -1, -1))
    torch.testing.assert_close((found * weights).sum(1), (image * weights).sum(0).expand(500, 2, 2), atol=1e-4, rtol=0)
    plane = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    colours = found[:, :, 0, 0].numpy() @ plane.T
    own = plane @ image[:, 0, 0].numpy()
    turns = np.degrees(np.angle((colours @ [1, 1j]) / (own @ [1, 1j])))
    assert np.abs(turns).max() <= 40.1
    assert turns.min() < -37
    assert turns.max() > 37
    np.testing.assert_allclose(np.linalg.norm(colours, axis=1), np.linalg.norm(own), atol=1e-4)
    grey = torch.full((4, 3, 2, 2), 0.3)
    torch.testing.assert_close(changed(Level(hue=40.0, saturation=0.5), images=grey), grey, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_than_three_channels_have_no_hue_or_saturation(channels):
    images = torch.rand(2, channels, 3, 3)
    assert changed(Level(hue=90.0, saturation=1.0), images=images) is images


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_so_many_images_lose_a_rectangle_as_asked_for(share):
    images = torch.rand(500, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    lost = (changed(Level(erase=share), images=images) != images)[:, 0].float().mean((1, 2))
    assert (lost > 0).float().mean().item() == pytest.approx(share, abs=0.04)
    assert lost[lost > 0].min() >= 0.14**2
    assert lost.max() <= 0.5**2


def test_a_named_level_is_its_limits():
    for name, level in LEVELS.items():
        assert torch.equal(changed(name), changed(level))


def test_views_are_the_images_first_and_then_their_mirror_images_or_corners():
    assert [view is IMAGES for view in tta_views(IMAGES, "none")] == [True]
    first, mirrored = tta_views(IMAGES, "flip")
    assert first is IMAGES
    assert torch.equal(mirrored, torch.from_numpy(IMAGES.numpy()[:, :, :, ::-1].copy()))
    first, *corners = tta_views(IMAGES, "crops")
    assert first is IMAGES
    # Of 24 rows and 20 columns 21 and 18 are kept.
    for found, (top, left) in zip(corners, [(0, 0), (0, 2), (3, 0), (3, 2)], strict=True):
        cut = IMAGES[:, :, top : top + 21, left : left + 18]
        expected = tv.resize(cut, [24, 20], antialias=False)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["none", "flip", "crops"])
def test_views_have_the_images_shape(kind):
    for size in ((1, 1), (1, 7), (3, 2), (8, 8)):
        images = torch.rand(2, 5, *size)
        assert all(view.shape == images.shape for view in tta_views(images, kind)), size


def test_levels_are_those_a_strategy_can_name():
    assert {"none", *LEVELS} == set(CHOICES["augment"].options) - {"custom"}
