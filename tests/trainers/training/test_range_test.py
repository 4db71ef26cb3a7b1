import copy
import itertools
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strategies import ConfigError
from trainers.training.range_test import RangeTest, range_test, suggest_lr

#: The same examples in each run: what holds but for rare noise would fail one run in many.
fixed = settings(derandomize=True, deadline=None, max_examples=60)

curves = st.fixed_dictionaries(
    {
        "updates": st.integers(40, 300),
        "centre": st.floats(-4.0, -2.0),
        "height": st.floats(0.1, 10.0),
        "noise": st.floats(0.0, 0.05),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def falling(updates, centre, height, noise, seed):
    """A loss that falls by ``height`` around the rate 10 ** ``centre`` and diverges two decades above."""
    rates = np.geomspace(1e-6, 1.0, updates)
    decades = np.log10(rates) - centre
    losses = height * (1 / (1 + np.exp(4 * decades)) + np.where(decades > 1.5, (decades - 1.5) ** 2 * 40, 0))
    losses += 0.2 * height + noise * height * np.random.default_rng(seed).standard_normal(updates)
    return rates.tolist(), losses.tolist()


@fixed
@given(curves)
def test_the_suggestion_is_a_rate_near_the_steepest_fall(how):
    rates, losses = falling(**how)
    found = suggest_lr(rates, losses)
    assert found in rates
    assert math.log10(found) == pytest.approx(how["centre"], abs=0.75)


@fixed
@given(curves, st.floats(1e-6, 1e6))
def test_the_unit_of_the_loss_does_not_matter(how, unit):
    rates, losses = falling(**how)
    assert suggest_lr(rates, [loss * unit for loss in losses]) == suggest_lr(rates, losses)


@fixed
@given(curves, st.floats(0.01, 100))
def test_the_suggestion_moves_with_the_rates(how, factor):
    rates, losses = falling(**how)
    assert suggest_lr([rate * factor for rate in rates], losses) == pytest.approx(suggest_lr(rates, losses) * factor)


@fixed
@given(curves, st.floats(1e2, 1e30))
def test_how_far_the_loss_diverges_does_not_matter(how, far):
    rates, losses = falling(**how)
    worse = [
        loss * far if rate > 10 ** (how["centre"] + 1.9) else loss for rate, loss in zip(rates, losses, strict=True)
    ]
    assert suggest_lr(rates, worse) == suggest_lr(rates, losses)


@fixed
@given(st.lists(st.floats(0, 1e3), min_size=20, max_size=100).map(sorted))
def test_a_loss_that_never_falls_suggests_nothing(losses):
    assert suggest_lr(np.geomspace(1e-6, 1.0, len(losses)).tolist(), losses) is None


@pytest.mark.parametrize("updates", [20, 50, 100, 300])
@pytest.mark.parametrize("draw", ["standard_normal", "uniform", "exponential"])
def test_noise_suggests_nothing_but_in_two_curves_of_a_hundred(updates, draw):
    rates = np.geomspace(1e-6, 1.0, updates).tolist()
    noise = (getattr(np.random.default_rng(seed), draw)(size=updates) for seed in range(300))
    assert sum(suggest_lr(rates, (3 + 0.3 * losses).tolist()) is not None for losses in noise) <= 6


def test_a_spike_is_not_taken_for_the_start_of_a_fall():
    rates = np.geomspace(1e-6, 1.0, 100).tolist()
    losses = [2.0 + 0.01 * (-1) ** k for k in range(100)]
    losses[30:33] = [9.0, 50.0, 9.0]
    assert suggest_lr(rates, losses) is None


def test_too_few_losses_suggest_nothing_and_unequal_numbers_are_refused():
    assert suggest_lr([10.0**k for k in range(19)], [19.0 - k for k in range(19)]) is None
    assert suggest_lr([10.0**k for k in range(20)], [20.0 - k for k in range(20)]) is not None
    with pytest.raises(ValueError, match="rates: 2 of them for 1 losses"):
        suggest_lr([1.0, 2.0], [1.0])


def test_rates_rise_exponentially_from_the_lowest_to_the_highest():
    seen = []
    found = range_test(lambda lr: seen.append(lr) or 1.0, 1e-5, 1e-1, 41)
    assert found == RangeTest(tuple(seen), (1.0,) * 41, diverged=False)
    np.testing.assert_allclose(seen, 10.0 ** np.linspace(-5, -1, 41))
    assert found.suggestion is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_test_and_is_left_out(bad):
    losses = [*(2.0 - k / 50 for k in range(50)), bad]
    left = iter(losses)
    found = range_test(lambda lr: next(left), 1e-5, 1.0, 100)
    assert found.diverged
    assert found.losses == tuple(losses[:-1])
    assert len(found.rates) == 50


@pytest.mark.parametrize("level", [1.0, -1.0])
def test_it_ends_when_the_smoothed_loss_rises_too_far_but_not_at_one_bad_batch(level):
    losses = [level] * 30 + [level + 9.0] + [level] * 19 + [level + 9.0] * 50
    left = iter(losses)
    found = range_test(lambda lr: next(left), 1e-5, 1.0, 100)
    assert found.diverged
    # 9 * (1 - 0.9 ** k) first exceeds 3 with the fourth bad batch, give or take what is left of the single one
    assert 50 < len(found.losses) <= 54


@pytest.mark.parametrize(
    ("low", "high", "updates", "message"),
    [
        (0.0, 1.0, 50, "low: 0.0"),
        (math.nan, 1.0, 50, "low: nan"),
        (1e-3, 1e-3, 50, "high: 0.001"),
        (1e-3, math.inf, 50, "high: inf"),
        (1e-5, 1.0, 19, "updates: 19"),
    ],
)
def test_wrong_ranges_are_refused_by_name(low, high, updates, message):
    with pytest.raises(ConfigError, match=message):
        range_test(lambda lr: 1.0, low, high, updates)


def batches(noise):
    """Noisy images of four patterns, for ever."""
    generator = torch.Generator().manual_seed(2)
    patterns = torch.randn(4, 3, 32, 32, generator=generator)
    while True:
        targets = torch.randint(4, (16,), generator=generator)
        yield patterns[targets] + noise * torch.randn(16, 3, 32, 32, generator=generator), targets


def training_step(model, make_optimizer, noise):
    """One update a call, at the rate it is given."""
    model = copy.deepcopy(model).train()
    optimizer, data = make_optimizer(model.parameters()), batches(noise)

    def step(lr):
        images, targets = next(data)
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        return loss.item()

    return step


def loss_after(step, lr, updates=60):
    """Mean loss of the last batches, before each was trained on."""
    losses = [step(lr) for _ in itertools.repeat(None, updates)]
    mean = float(np.mean(losses[-10:]))
    return mean if math.isfinite(mean) else math.inf


@pytest.mark.parametrize(
    ("name", "size", "make_optimizer", "high", "noise"),
    [
        ("test_resnet", {}, lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9), 10.0, 2.0),
        ("test_vit", {"img_size": 32}, torch.optim.AdamW, 1.0, 6.0),
    ],
)
def test_a_real_model_trains_better_at_the_suggestion_than_far_from_it(name, size, make_optimizer, high, noise):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **size)
    found = range_test(training_step(model, make_optimizer, noise), 1e-6, high, 100)
    assert found.diverged
    lr = found.suggestion
    losses = {k: loss_after(training_step(model, make_optimizer, noise), lr * k) for k in (1e-3, 1.0, 100.0)}
    assert losses[1.0] < 0.7 * min(losses[1e-3], losses[100.0])
