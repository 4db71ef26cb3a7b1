import pytest
import torch

from strategies import CHOICES
from strategies.augment import LEVELS, augment

IMAGES = torch.rand(16, 3, 24, 20, generator=torch.Generator().manual_seed(0))


def changed(level: str, seed: int = 0, images: torch.Tensor = IMAGES) -> torch.Tensor:
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


def test_none_changes_nothing():
    assert changed("none") is IMAGES


@pytest.mark.parametrize(("level", "flips"), [("light", False), ("medium", True), ("strong", True)])
def test_only_levels_that_flip_mirror_left_and_right(level, flips):
    ramp = torch.linspace(0, 1, 24).expand(64, 3, 24, 24)
    found = changed(level, images=ramp)
    slopes = found[..., 16:].mean((1, 2, 3)) - found[..., :8].mean((1, 2, 3))
    assert bool((slopes < 0).any()) is flips
    assert bool((slopes > 0).any())


def test_levels_are_those_a_strategy_can_name():
    assert {"none", *LEVELS} == set(CHOICES["augment"].options)
