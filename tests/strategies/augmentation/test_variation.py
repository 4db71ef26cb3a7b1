import pytest
import torch

from strategies import Strategy, mix_batch, vary
from strategies.augmentation.levels import LEVELS, Level, augment
from strategies.augmentation.policies import auto_augment, rand_augment, trivial_augment

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_by_name_is_that_level(level):
    assert torch.equal(vary(IMAGES, Strategy(augment=level), seeded()), augment(IMAGES, level, seeded()))


def test_a_custom_level_is_what_its_fields_say():
    fields = {
        "crop_area": 0.3,
        "flip": 0.2,
        "rotate": 40.0,
        "colour": 0.3,
        "saturation": 0.6,
        "hue": 20.0,
        "erase": 0.7,
    }
    found = vary(IMAGES, Strategy(augment="custom", **fields), seeded())
    assert torch.equal(found, augment(IMAGES, Level(**fields), seeded()))
    for name, value in fields.items():
        others = fields | {name: value / 2}
        assert not torch.equal(found, vary(IMAGES, Strategy(augment="custom", **others), seeded()))


@pytest.mark.parametrize(
    ("strategy", "reference"),
    [
        (Strategy(policy="auto"), auto_augment),
        (Strategy(policy="trivial"), trivial_augment),
        (
            Strategy(policy="rand", policy_ops=3, policy_magnitude=20),
            lambda images, generator: rand_augment(images, 3, 20.0, generator),
        ),
    ],
)
def test_a_policy_is_applied_before_the_level(strategy, reference):
    assert torch.equal(vary(IMAGES, strategy, seeded()), reference(IMAGES, seeded()))
    generator = seeded()
    both = augment(reference(IMAGES, generator), "strong", generator)
    assert torch.equal(vary(IMAGES, strategy.replace(augment="strong"), seeded()), both)


def test_nothing_is_drawn_where_nothing_varies():
    generator = seeded()
    before = generator.get_state()
    assert vary(IMAGES, Strategy(), generator) is IMAGES
    targets = torch.arange(6) % 3
    assert mix_batch(IMAGES, targets, 3, Strategy(), generator) == (IMAGES, targets)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("fields", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 0.4}])
def test_mixed_classes_are_shares_that_add_up_to_one(fields):
    targets = torch.arange(6) % 3
    images, shares = mix_batch(IMAGES, targets, 4, Strategy(**fields), seeded())
    assert images.shape == IMAGES.shape
    assert shares.shape == (6, 4)
    assert torch.allclose(shares.sum(1), torch.ones(6))
    assert not torch.equal(images, IMAGES)
    assert not torch.equal(shares, torch.nn.functional.one_hot(targets, 4).float())
    assert (shares[:, 3] == 0).all()
    # Each keeps a share of its own class.
    assert (shares.gather(1, targets[:, None]) > 0).all()


def test_mixed_numbers_lie_between_those_of_the_two_images():
    targets = torch.arange(6.0)[:, None] * 10
    _, mixed = mix_batch(IMAGES, targets, 1, Strategy(mixup=1.0), seeded())
    assert mixed.shape == (6, 1)
    low, high = torch.minimum(targets, targets.flip(0)), torch.maximum(targets, targets.flip(0))
    assert ((low <= mixed) & (mixed <= high)).all()
