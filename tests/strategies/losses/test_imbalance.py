import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from strategies import ConfigError
from strategies.losses import class_weights, sampling_order

CLASSES = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
LABELS = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])


def order(targets, how, seed=0):
    return sampling_order(targets, how, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("targets", [CLASSES, LABELS])
def test_without_weighting_all_classes_count_alike(targets):
    assert torch.equal(class_weights(targets, 4, "none", 0.99)[:3], torch.ones(3))


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(4), y=CLASSES.numpy())
    np.testing.assert_allclose(class_weights(CLASSES, 4, "balanced", 0.9), expected, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 1 - 1e-9])
def test_weights_by_effective_numbers_follow_the_papers_formula(beta):
    sizes = np.array([60, 30, 9, 1])
    effective = np.array([sum(beta**k for k in range(size)) for size in sizes])
    expected = 1 / effective
    expected *= sizes.sum() / (expected * sizes).sum()
    np.testing.assert_allclose(class_weights(CLASSES, 4, "effective_number", beta), expected, rtol=1e-6)


def test_effective_numbers_lie_between_no_weights_and_balanced_ones():
    for beta, how in ((0.0, "none"), (1 - 1e-12, "balanced")):
        found = class_weights(CLASSES, 4, "effective_number", beta)
        torch.testing.assert_close(found, class_weights(CLASSES, 4, how, 0.0), rtol=1e-5, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any),
    how=st.sampled_from(["none", "balanced", "effective_number"]),
    beta=st.floats(0, 0.9999),
)
def test_weights_leave_the_mean_over_images_at_one(sizes, how, beta):
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    weights = class_weights(targets, len(sizes), how, beta)
    assert weights.dtype == torch.float32
    assert (weights > 0).all()
    assert weights[targets].mean().item() == pytest.approx(1, rel=1e-5)


def test_labels_weights_are_the_rarer_the_heavier_and_have_mean_one():
    weights = class_weights(LABELS, 3, "balanced", 0.0)
    np.testing.assert_allclose(weights, np.array([1 / 5, 1 / 2, 1]) / np.mean([1 / 5, 1 / 2, 1]), rtol=1e-6)


@pytest.mark.parametrize("targets", [CLASSES, torch.cat([LABELS, torch.zeros(6, 2)], dim=1)])
def test_a_class_that_no_image_shows_counts_least(targets):
    weights = class_weights(targets, 5, "balanced", 0.0)
    assert weights[4] == weights[0] == weights.min()
    assert torch.isfinite(weights).all()


def test_labels_that_no_image_shows_at_all_count_alike():
    assert torch.equal(class_weights(torch.zeros(4, 3), 3, "balanced", 0.0), torch.ones(3))


def test_the_natural_order_is_each_image_once_as_torch_shuffles():
    assert torch.equal(order(CLASSES, "natural", 5), torch.randperm(100, generator=torch.Generator().manual_seed(5)))


@settings(max_examples=60, deadline=None)
@given(
    targets=st.lists(st.sampled_from([0, 0, 0, 0, 2, 2, 7]), min_size=1, max_size=80),
    how=st.sampled_from(["balanced", "sqrt"]),
    seed=st.integers(0, 1000),
)
def test_classes_come_as_often_as_asked_up_to_one(targets, how, seed):
    found = order(torch.tensor(targets), how, seed)
    assert found.shape == (len(targets),)
    assert found.dtype == torch.int64
    shares = {c: targets.count(c) ** (0.0 if how == "balanced" else 0.5) for c in set(targets)}
    drawn = [targets[i] for i in found.tolist()]
    for c, share in shares.items():
        assert abs(drawn.count(c) - len(targets) * share / sum(shares.values())) <= 1 + 1e-9


def test_images_of_a_class_are_drawn_alike_and_in_no_order():
    counts, places = torch.zeros(100), torch.zeros(100)
    for seed in range(300):
        found = order(CLASSES, "balanced", seed)
        counts += torch.bincount(found, minlength=100)
        places += (CLASSES[found] == 3).float()
    for c, size in enumerate((60, 30, 9, 1)):
        of_class = counts[c == CLASSES] / 300
        assert of_class.mean().item() == pytest.approx(25 / size, rel=0.01)
        assert of_class.min() > 0.6 * 25 / size
        assert of_class.max() < 1.4 * 25 / size
    assert ((places / 300 > 0.1) & (places / 300 < 0.4)).all()


def test_an_image_with_many_labels_is_drawn_for_its_rarest():
    # Label 0 alone, 1 the rarest of two images, 2 of one, and one image without any: four classes of six images.
    found = order(LABELS.repeat(100, 1), "balanced") % 6
    counts = torch.bincount(found, minlength=6)
    assert counts[2] == 150
    assert counts[5] == 150
    assert counts[1] + counts[3] == 150
    assert counts[0] + counts[4] == 150


@pytest.mark.parametrize("how", ["natural", "balanced", "sqrt"])
def test_the_order_depends_on_the_seed_alone(how):
    assert torch.equal(order(CLASSES, how, 3), order(CLASSES, how, 3))
    assert not torch.equal(order(CLASSES, how, 3), order(CLASSES, how, 4))


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'balance' is unknown; did you mean 'balanced'"):
        class_weights(CLASSES, 4, "balance", 0.0)
    with pytest.raises(ConfigError, match="'squrt' is unknown; did you mean 'sqrt'"):
        order(CLASSES, "squrt")
