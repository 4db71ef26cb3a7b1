import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from strategies import LOSSES, Strategy
from strategies.augmentation.mixing import mix

N = 12
IMAGES = torch.rand(N, 3, 9, 7, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(N)
MIXES = [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}]


def mixed(seed=0, images=IMAGES, targets=TARGETS, prob=1.0, **alphas):
    return mix(images, targets, prob=prob, generator=torch.Generator().manual_seed(seed), **alphas)


def shares_of(targets):
    """What each of an even number of images kept, read off the mixture of one-hot targets."""
    return targets.diagonal()


@pytest.mark.parametrize("images", [IMAGES, IMAGES.double()])
@pytest.mark.parametrize("alphas", MIXES)
def test_a_mixture_is_as_a_loop_over_images_and_pixels_makes_it(alphas, images):
    found, targets = mixed(images=images, **alphas)
    assert found.dtype == images.dtype
    for i, share in enumerate(shares_of(targets).tolist()):
        other = N - 1 - i
        np.testing.assert_allclose(targets[i], share * TARGETS[i] + (1 - share) * TARGETS[other], atol=1e-6)
        if alphas["mixup"]:
            np.testing.assert_allclose(found[i], share * images[i] + (1 - share) * images[other], atol=1e-6)
        else:
            own, foreign = (found[i] == images[i]).all(0), (found[i] == images[other]).all(0)
            assert (own ^ foreign).all()
            assert own.float().mean().item() == pytest.approx(share, abs=1e-6)
            rows, columns = foreign.any(1).nonzero().flatten(), foreign.any(0).nonzero().flatten()
            if len(rows):
                assert foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    channels=st.integers(1, 4),
    mixup=st.sampled_from([0.0, 1e-6, 0.2, 8.0]),
    cutmix=st.sampled_from([0.0, 1e-6, 1.0, 4.0]),
    prob=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_images_and_targets_are_mixed_in_equal_shares(n, size, channels, mixup, cutmix, prob, seed):
    # Image i is i all over, so its mean is that of the numbers mixed into it.
    numbers = torch.arange(n, dtype=torch.float64)
    images = numbers[:, None, None, None].expand(n, channels, *size)
    found, targets = mixed(seed, images, numbers[:, None], prob, mixup=mixup, cutmix=cutmix)
    assert found.shape == images.shape
    assert torch.allclose(found.mean((1, 2, 3)), targets[:, 0], atol=1e-6)


def kept_by_cutmix(share, length, rng):
    """Share of an image of ``length`` by ``length`` pixels that CutMix leaves, one image after the other."""
    sides = []
    for _ in range(2):
        pixels, centre = int(length * (1 - share) ** 0.5), rng.integers(length)
        sides.append(sum(0 <= centre - pixels // 2 + i < length for i in range(pixels)))
    return 1 - sides[0] * sides[1] / length**2


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_shares_are_drawn_from_the_beta_distribution_of_alpha(name, alpha):
    n = 8000
    images = torch.zeros(n, 1, 20, 20)
    images[: n // 2] = 1
    found, targets = mixed(images=images, targets=images[:, :, 0, 0], **{"mixup": 0.0, "cutmix": 0.0, name: alpha})
    shares = torch.where(images[:, 0, 0, 0] == 1, targets[:, 0], 1 - targets[:, 0])
    rng = np.random.default_rng(0)
    expected = rng.beta(alpha, alpha, n) if alpha > 1e-3 else rng.integers(0, 2, n)
    if name == "cutmix":
        expected = np.array([kept_by_cutmix(share, 20, rng) for share in expected])
        assert (found != images).any(0).all()
    assert shares.mean().item() == pytest.approx(expected.mean(), abs=0.02)
    assert shares.std().item() == pytest.approx(expected.std(), abs=0.02)


@pytest.mark.parametrize("alphas", MIXES)
def test_so_many_images_are_mixed_as_asked_for(alphas):
    images = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for prob in (0.0, 0.3):
        found, targets = mixed(images=images, targets=images[:, 0, 0], prob=prob, **alphas)
        changed = (found != images).flatten(1).any(1)
        # With CutMix some rectangles are too small to have a pixel.
        assert prob * 0.9 - 0.03 <= changed.float().mean() <= prob + 0.03
        assert torch.equal(targets[~changed], images[~changed, 0, 0])


def test_with_both_on_each_batch_is_mixed_one_way_and_either_way_comes_up():
    ways = []
    for seed in range(40):
        found, _ = mixed(seed, mixup=4.0, cutmix=1.0)
        whole = ((found == IMAGES) | (found == IMAGES.flip(0))).flatten(1).all(1)
        assert whole.all() or not whole.any()
        ways.append(bool(whole.all()))
    assert 8 < sum(ways) < 32


def test_nothing_is_mixed_or_drawn_with_both_off():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    images, targets = mix(IMAGES, TARGETS, mixup=0, cutmix=0, prob=1, generator=generator)
    assert images is IMAGES
    assert targets is TARGETS
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("alphas", [*MIXES, {"mixup": 0.4, "cutmix": 1.0}])
def test_the_mixture_depends_on_the_seed_alone_and_each_image_has_its_own(alphas):
    before = IMAGES.clone()
    for found, again in zip(mixed(3, **alphas), mixed(3, **alphas), strict=True):
        assert torch.equal(found, again)
    assert torch.equal(IMAGES, before)
    assert not torch.equal(mixed(3, **alphas)[1], mixed(4, **alphas)[1])
    assert len(set(shares_of(mixed(3, **alphas)[1]).tolist())) > N // 2


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("classification", "cross_entropy"),
        ("classification", "label_smoothing"),
        ("multilabel", "bce"),
        ("regression", "mse"),
    ],
)
def test_mixed_targets_pull_as_the_mean_of_both_losses_does(task, loss):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(N, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(5, (N,), generator=generator)
    own = F.one_hot(classes, 5).double() if task == "classification" else (outputs.detach().roll(1, 0) > 0).double()
    _, targets = mixed(targets=own, mixup=1.0, cutmix=0.0)
    share = shares_of(mixed(mixup=1.0, cutmix=0.0)[1])
    function, strategy = LOSSES[task][loss], Strategy(label_smoothing=0.2)

    def each(wanted):
        return torch.stack([function(outputs[i : i + 1], wanted[i : i + 1], strategy) for i in range(N)])

    plain = classes if task == "classification" else own
    both = (share * each(plain) + (1 - share) * each(plain.flip(0))).mean()
    (expected,) = torch.autograd.grad(both, outputs)
    (found,) = torch.autograd.grad(function(outputs, targets, strategy), outputs)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)
