import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from strategies.augmentation import policies
from strategies.augmentation.policies import OPS, apply_ops, auto_augment, rand_augment, trivial_augment

BYTES = torch.randint(0, 256, (20, 3, 19, 26), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BYTES[1] = BYTES[1] // 4 + 90  # little contrast
BYTES[2, :, :12] = 40  # a common level
BYTES[3] = 77  # nothing to stretch
BYTES[4, :, 3:9, 4:20] = torch.tensor([255, 0, 128], dtype=torch.uint8)[:, None, None]
IMAGES = BYTES / 255
HEIGHT, WIDTH = IMAGES.shape[2:]
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
POLICIES = {
    "auto": auto_augment,
    "rand": lambda images, generator: rand_augment(images, 2, 9, generator),
    "trivial": trivial_augment,
}
TV_NAMES = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}


def done(name, images, magnitude):
    n = len(images)
    return apply_ops(images, torch.full((n,), OPS.index(name)), torch.full((n,), magnitude))


def affine(image, shear=(0.0, 0.0), translate=(0, 0), center=None):
    return tv.affine(image, 0.0, list(translate), 1.0, list(shear), InterpolationMode.BILINEAR, center=center)


def bent(name, image, magnitude):
    """One image (C, H, W) float as torchvision bends it, which leaves zero where nothing was."""
    slope, image = math.degrees(math.atan(magnitude)), image - 0.5
    shift_x, shift_y = (torch.tensor([WIDTH, HEIGHT]) * magnitude).int().tolist()
    return (
        0.5
        + {
            "shear_x": lambda: affine(image, shear=(slope, 0.0), center=[0, 0]),
            "shear_y": lambda: affine(image, shear=(0.0, slope), center=[0, 0]),
            "translate_x": lambda: affine(image, translate=(shift_x, 0)),
            "translate_y": lambda: affine(image, translate=(0, shift_y)),
            "rotate": lambda: tv.rotate(image, magnitude, InterpolationMode.BILINEAR),
        }[name]()
    )


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("name", GEOMETRIC)
@given(data=st.data())
def test_an_image_is_sheared_shifted_or_rotated_as_torchvision_does_it(name, data):
    reach = {"shear": 0.875, "translate": 0.625, "rotate": 135.0}[name.split("_")[0]]
    magnitude = data.draw(st.sampled_from([0.0, reach, -reach]) | st.floats(-reach, reach, width=32))
    found = done(name, IMAGES[:2], magnitude)
    for i in range(2):
        torch.testing.assert_close(found[i], bent(name, IMAGES[i], magnitude), atol=2e-4, rtol=0)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", tv.adjust_brightness),
        ("colour", tv.adjust_saturation),
        ("contrast", tv.adjust_contrast),
        ("sharpness", tv.adjust_sharpness),
    ],
)
def test_a_factor_changes_an_image_as_in_torchvision(name, reference, channels):
    for magnitude in (-0.99, -0.5, -0.031, 0.0, 0.3, 0.9):
        found = done(name, IMAGES[:6, :channels], magnitude) * 255
        for i in range(6):
            # Torchvision cuts off what is behind the point, of the mean as well.
            expected = reference(BYTES[i, :channels], 1 + magnitude).float()
            assert (found[i] - expected).abs().max() <= 2, magnitude


def test_posterize_drops_bits_as_in_torchvision():
    for bits in (0, 1, 2, 3, 4, 6):
        expected = torch.stack([tv.posterize(image, 8 - bits) for image in BYTES])
        assert torch.equal((done("posterize", IMAGES, float(bits)) * 255).round(), expected.float()), bits


def test_solarize_inverts_as_in_torchvision_from_the_threshold_on():
    for level in (1, 5, 13, 22, 30):
        expected = torch.stack([tv.solarize(image, 256 * (1 - level / 30)) for image in BYTES])
        assert torch.equal((done("solarize", IMAGES, level / 30) * 255).round(), expected.float()), level


def test_posterize_drops_the_nearest_whole_number_of_bits():
    assert torch.equal(done("posterize", IMAGES, 1.7), done("posterize", IMAGES, 2.0))
    assert torch.equal(done("posterize", IMAGES, 2.3), done("posterize", IMAGES, 2.0))


def test_solarize_of_magnitude_zero_leaves_white_white():
    assert torch.equal(done("solarize", torch.ones(1, 3, 4, 4), 0.0), torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("name", "reference", "levels"),
    [("autocontrast", tv.autocontrast, 1), ("equalize", tv.equalize, 0), ("invert", tv.invert, 0)],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_what_has_no_magnitude_is_done_as_in_torchvision(name, reference, levels, channels):
    found = done(name, IMAGES[:, :channels], 0.0) * 255
    for i, image in enumerate(BYTES[:, :channels]):
        assert (found[i] - reference(image).float()).abs().max() <= levels + 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (1, 9), (30, 40)])
def test_equalize_and_sharpness_of_small_and_large_images_are_as_in_torchvision(shape):
    small = torch.randint(0, 256, (4, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for name, reference in (("equalize", tv.equalize), ("sharpness", lambda image: tv.adjust_sharpness(image, 1.5))):
        found = done(name, small / 255, 0.5) * 255
        for i, image in enumerate(small):
            # A smoothed value may be rounded either way, a level of a histogram not.
            assert (found[i] - reference(image).float()).abs().max() <= (name == "sharpness") + 1e-3


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 20),
    channels=st.sampled_from([1, 2, 3, 5]),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_images_done_together_are_as_done_alone_in_range_and_in_place(n, channels, double, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, 11, 8, generator=generator).to(torch.float64 if double else torch.float32)
    ops = torch.randint(len(OPS), (n,), generator=generator)
    magnitudes = torch.rand(n, generator=generator)
    before = images.clone()
    found = apply_ops(images, ops, magnitudes)
    assert torch.equal(images, before)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    for i in range(n):
        alone = apply_ops(images[i : i + 1], ops[i : i + 1], magnitudes[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_does_not_matter(memory_format):
    ops, magnitudes = torch.arange(20) % len(OPS), torch.full((20,), 0.4)
    found = apply_ops(IMAGES.contiguous(memory_format=memory_format), ops, magnitudes)
    torch.testing.assert_close(found, apply_ops(IMAGES, ops, magnitudes), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_changes_only_what_has_three_channels(channels):
    images = torch.rand(2, channels, 5, 5)
    assert torch.equal(done("colour", images, 0.7), images)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_depends_on_the_seed_alone_and_treats_images_differently(policy):
    same = IMAGES[:1].expand(20, -1, -1, -1)

    def changed(seed):
        return POLICIES[policy](same, torch.Generator().manual_seed(seed))

    found = changed(0)
    assert found.shape == same.shape
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    assert torch.equal(found, changed(0))
    assert not torch.equal(found, changed(1))
    assert len({tuple(image.flatten().tolist()) for image in found}) > 7


@pytest.fixture
def asked(monkeypatch):
    """Gathers what a policy asks to be done: one (ops, magnitudes) a call."""
    calls = []

    def gather(images, ops, magnitudes):
        calls.append((ops, magnitudes))
        return images

    monkeypatch.setattr(policies, "apply_ops", gather)
    return calls


def torchvision_magnitudes(space, name, bins):
    """The magnitudes of a torchvision policy by bin, in our units, without signs."""
    values = space[TV_NAMES[name]][0](bins, 1, 1)
    if values is None:
        return torch.zeros(bins)
    if name == "posterize":
        return 8.0 - values
    return 1 - values if name == "solarize" else values


MANY = torch.zeros(30_000, 1, 1, 1)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_draws_14_operations_alike_with_torchvisions_magnitudes(asked, magnitude):
    rand_augment(MANY, 3, magnitude, torch.Generator().manual_seed(0))
    assert len(asked) == 3
    for ops, magnitudes in asked:
        assert ops.bincount().div(len(MANY)).sub(1 / 14).abs().max() < 0.01
        assert len(ops.unique()) == 14
        for number, name in enumerate(OPS[:-1]):
            expected = torchvision_magnitudes(v2.RandAugment._AUGMENTATION_SPACE, name, 31)[magnitude]
            found = magnitudes[ops == number]
            if name == "posterize":
                found = found.round()
            torch.testing.assert_close(found.abs(), expected.float().expand_as(found), atol=1e-5, rtol=1e-5)
            signed = name in TV_NAMES and v2.RandAugment._AUGMENTATION_SPACE[TV_NAMES[name]][1]
            share = (found < 0).float().mean().item()
            assert share == pytest.approx(0.5 if signed and expected else 0.0, abs=0.05)
    first, second = asked[0][0], asked[1][0]
    assert (first == second).float().mean().item() == pytest.approx(1 / 14, abs=0.01)


def test_trivial_augment_draws_one_operation_of_any_of_torchvisions_magnitudes(asked):
    trivial_augment(MANY, torch.Generator().manual_seed(0))
    ((ops, magnitudes),) = asked
    assert len(ops.unique()) == 14
    for number, name in enumerate(OPS[:-1]):
        expected = torchvision_magnitudes(v2.TrivialAugmentWide._AUGMENTATION_SPACE, name, 31).float()
        if name.startswith("translate"):
            expected = expected / 224
        found = magnitudes[ops == number].abs()
        if name == "posterize":
            found = found.round()
        nearest = (found[:, None] - expected.abs()).abs().min(1)
        assert nearest.values.max() < 1e-4
        assert len(nearest.indices.unique()) == len(expected.unique())


def test_auto_augment_has_the_25_pairs_probabilities_and_magnitudes_of_torchvision(asked):
    auto_augment(torch.zeros(200_000, 1, 1, 1), torch.Generator().manual_seed(0))
    space, pairs = v2.AutoAugment._AUGMENTATION_SPACE, v2.AutoAugment()._policies
    expected: dict[tuple, float] = {}
    for pair in pairs:
        options = []
        for name, prob, level in pair:
            ours = next(key for key, value in TV_NAMES.items() if value == name)
            magnitude = torchvision_magnitudes(space, ours, 10)[level or 0].item()
            options.append([((ours, round(magnitude, 3)), prob), (("identity", 0.0), 1 - prob)])
        for first, p in options[0]:
            for second, q in options[1]:
                expected[first, second] = expected.get((first, second), 0.0) + p * q / 25
    (ops, magnitudes), (ops_2, magnitudes_2) = asked
    found: dict[tuple, float] = {}
    steps = []
    for which, signed in ((ops, magnitudes), (ops_2, magnitudes_2)):
        amounts = torch.where(which == OPS.index("posterize"), signed.round(), signed.abs())
        steps.append([(OPS[op], round(m, 3)) for op, m in zip(which.tolist(), amounts.tolist(), strict=True)])
    for pair in zip(*steps, strict=True):
        found[pair] = found.get(pair, 0.0) + 1 / len(ops)
    assert set(found) <= {pair for pair, share in expected.items() if share > 0}
    for pair, share in expected.items():
        assert found.get(pair, 0.0) == pytest.approx(share, abs=0.003)
