import pytest
import torch

from strategies import Strategy, View

IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PLACES = torch.arange(12)
VARIED = [
    {"augment": "light"},
    {"augment": "strong"},
    {"augment": "custom", "crop_area": 1.0, "flip": 0.5, "saturation": 0.5, "hue": 20.0},
    {"policy": "auto"},
    {"policy": "rand", "policy_ops": 3},
    {"policy": "trivial", "augment": "medium"},
]


def view(epoch: int = 0, seed: int = 0, **fields) -> View:
    return View(Strategy(views=3, epochs=9, **fields).canonical(1), len(IMAGES), seed, epoch)


@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_an_image_looks_the_same_in_a_view_whichever_others_are_shown_with_it(fields):
    whole = view(**fields).show(IMAGES, PLACES)
    assert not torch.equal(whole, IMAGES)
    again = view(**fields)
    for places in (torch.tensor([7]), torch.tensor([3, 11, 3, 0]), PLACES.flip(0)):
        assert torch.equal(again.show(IMAGES[places], places), whole[places])


@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_epochs_show_the_views_in_turn_and_each_view_and_seed_another_copy(fields):
    shown = [view(epoch, **fields).show(IMAGES, PLACES) for epoch in range(4)]
    assert torch.equal(shown[3], shown[0])
    shown[3] = view(seed=1, **fields).show(IMAGES, PLACES)
    for position, one in enumerate(shown):
        assert not any(torch.equal(one, other) for other in shown[:position])


def test_views_of_other_augmentation_or_seed_are_described_otherwise():
    told = [view(**fields).description for fields in VARIED] + [view(seed=1, **VARIED[0]).description]
    assert len(set(told)) == len(told)
    assert view(epoch=1, **VARIED[0]).description == told[0]


def test_views_without_effect_are_no_other_strategy():
    assert Strategy(views=3).canonical(5).views == 0
    assert Strategy(views=3, policy="auto").canonical(5).views == 3
    never_shown = Strategy(views=9, augment="light", epochs=4)
    assert never_shown.fingerprint(5) == never_shown.replace(views=4).fingerprint(5)
