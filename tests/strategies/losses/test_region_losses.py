import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import IGNORED, LOSSES, Strategy

REGION_LOSSES = LOSSES["segmentation"]

RNG = np.random.default_rng(0)
CLASSES = 5
LOGITS = torch.from_numpy(RNG.normal(0, 2, (3, CLASSES, 6, 7)).astype(np.float32))
# Class 4 does not occur.
TARGETS = torch.from_numpy(RNG.integers(0, CLASSES - 1, (3, 6, 7)))
TARGETS[0, :2] = IGNORED
TARGETS[2, :, 5:] = IGNORED
STRATEGY = Strategy(loss="focal", focal_gamma=1.5)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])

COUNTED = (TARGETS != IGNORED).numpy()
TRUE = TARGETS.numpy()[COUNTED]
P = LOGITS.double().softmax(1).permute(0, 2, 3, 1).numpy()[COUNTED]
P_TRUE = P[np.arange(len(TRUE)), TRUE]


def dice_by_formula():
    scores = [2 * P[c == TRUE, c].sum() / (P[:, c].sum() + (c == TRUE).sum()) for c in range(CLASSES - 1)]
    return 1 - np.mean(scores)


def lovasz_by_definition():
    """The Lovász extension of a class's 1 - IoU: it weighs each error by what the error adds to those above it."""
    extensions = []
    for c in range(CLASSES - 1):
        shown = c == TRUE
        errors = np.where(shown, 1 - P[:, c], P[:, c])
        wrong, before, total = np.zeros(len(TRUE), bool), 0.0, 0.0
        for pixel in np.argsort(-errors):
            wrong[pixel] = True
            jaccard_loss = wrong.sum() / (shown | wrong).sum()
            total += errors[pixel] * (jaccard_loss - before)
            before = jaccard_loss
        extensions.append(total)
    return np.mean(extensions)


REFERENCES = {
    "cross_entropy": -np.log(P_TRUE).mean(),
    "focal": -((1 - P_TRUE) ** 1.5 * np.log(P_TRUE)).mean(),
    "dice": dice_by_formula(),
    "lovasz": lovasz_by_definition(),
}
WEIGHTED = {
    "cross_entropy": -(WEIGHTS.numpy()[TRUE] * np.log(P_TRUE)).mean(),
    "focal": -(WEIGHTS.numpy()[TRUE] * (1 - P_TRUE) ** 1.5 * np.log(P_TRUE)).mean(),
    "dice": REFERENCES["dice"],
    "lovasz": REFERENCES["lovasz"],
}


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_a_loss_equals_its_formula_over_the_pixels_that_count_and_the_classes_that_occur(name):
    expected = sum(REFERENCES[part] for part in name.split("+"))
    assert REGION_LOSSES[name](LOGITS, TARGETS, STRATEGY).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_class_weights_weigh_pixels_by_their_classes_in_losses_that_are_means_over_pixels(name):
    expected = sum(WEIGHTED[part] for part in name.split("+"))
    assert REGION_LOSSES[name](LOGITS, TARGETS, STRATEGY, WEIGHTS).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_a_batch_without_pixels_that_count_teaches_nothing(name):
    for weights in (None, WEIGHTS):
        logits = LOGITS.clone().requires_grad_(True)
        loss = REGION_LOSSES[name](logits, torch.full_like(TARGETS, IGNORED), STRATEGY, weights)
        loss.backward()
        assert loss.shape == ()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros_like(LOGITS))


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", REGION_LOSSES)
@given(seed=st.integers(0, 1000), shown=st.integers(1, 5), ignored=st.floats(0, 1))
def test_what_ignored_pixels_look_like_changes_neither_loss_nor_gradients(name, seed, shown, ignored):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, CLASSES, 4, 4, generator=generator)
    targets = torch.randint(shown, (2, 4, 4), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORED
    mute = (targets == IGNORED)[:, None]
    found = []
    for given_logits in (logits, torch.where(mute, 50 * torch.randn(logits.shape, generator=generator), logits)):
        given_logits.requires_grad_(True)
        loss = REGION_LOSSES[name](given_logits, targets, STRATEGY)
        (gradient,) = torch.autograd.grad(loss, given_logits)
        assert not gradient.masked_select(mute).any()
        found.append((loss.detach(), gradient))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_a_loss_and_its_gradient_are_finite_however_sure_the_model_is(name):
    targets = torch.tensor([[[0, 1], [2, IGNORED]]])
    sure = torch.eye(3)[targets.masked_fill(targets == IGNORED, 0)].permute(0, 3, 1, 2)
    for gamma in (0.0, 0.5, 2.0) if "focal" in name else (2.0,):
        for scale in (0.0, 100.0, -100.0):
            logits = (sure * scale).clone().requires_grad_(True)
            loss = REGION_LOSSES[name](logits, targets, Strategy(loss="focal", focal_gamma=gamma))
            loss.backward()
            assert torch.isfinite(loss), (scale, gamma)
            assert torch.isfinite(logits.grad).all(), (scale, gamma)
            # Scores of classes that are fully found are one.
            if scale > 0:
                assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_losses_in_half_precision_are_close_to_those_in_full(name):
    with torch.autocast("cpu", torch.bfloat16):
        found = REGION_LOSSES[name](LOGITS.bfloat16(), TARGETS, STRATEGY)
    assert found.item() == pytest.approx(REGION_LOSSES[name](LOGITS, TARGETS, STRATEGY).item(), rel=0.02)


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_descending_a_loss_finds_the_classes(name):
    logits = torch.zeros(2, 3, 5, 5, requires_grad=True)
    targets = torch.randint(3, (2, 5, 5), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        REGION_LOSSES[name](logits, targets, STRATEGY).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), targets)


def test_there_are_the_seven_losses():
    assert set(REGION_LOSSES) == {
        "cross_entropy",
        "dice",
        "focal",
        "lovasz",
        "cross_entropy+dice",
        "focal+dice",
        "cross_entropy+lovasz",
    }
