"""The rule of a chosen study: from measured speeds and the time to model, size, epochs and images."""

from dataclasses import replace

import pytest

from search.auto.rule import Facts, Measured, choose

LIGHT = Measured("light", "embedded", 224, train_seconds=0.01, score_seconds=0.004)
HEAVY = Measured("heavy", "hub", 224, train_seconds=0.04, score_seconds=0.016)
FACTS = Facts(
    dense=False,
    counts={"train": 1000, "val": 300, "test": 300},
    train=1000,
    val=300,
    test=300,
    classes=10,
    seconds=600.0,
    has_gpu=False,
    effort="good",
)


def test_a_heavier_model_is_taken_where_the_time_holds_enough_of_its_trials():
    assert choose(FACTS, [LIGHT, HEAVY]).model.name == "light"
    assert choose(replace(FACTS, seconds=6000.0), [LIGHT, HEAVY]).model.name == "heavy"
    assert choose(replace(FACTS, effort="quick"), [LIGHT, HEAVY]).model.name == "light"
    assert choose(replace(FACTS, effort="quick", seconds=700.0), [LIGHT, HEAVY]).model.name == "heavy"


def test_less_time_costs_epochs_then_pixels_then_images():
    enough, fewer, smaller, part = (choose(replace(FACTS, seconds=s), [LIGHT]) for s in (600.0, 60.0, 30.0, 5.0))
    assert (enough.epochs, enough.model.size, enough.train) == (5, 224, 1000)
    assert fewer.epochs < enough.epochs
    assert (fewer.model.size, fewer.train) == (224, 1000)
    assert smaller.model.size < 224
    assert smaller.train == 1000
    assert part.train < 1000
    assert part.val < 300
    # Speed goes by the pixels.
    assert smaller.model.train_seconds < LIGHT.train_seconds
    # A full trial, such as that of a preset, fits.
    assert all(one.full_seconds < seconds for one, seconds in ((enough, 600.0), (fewer, 60.0), (smaller, 30.0)))


def test_small_sets_get_more_epochs_and_smaller_batches():
    small = choose(replace(FACTS, train=180, val=60, seconds=6000.0), [LIGHT])
    large = choose(replace(FACTS, train=50_000, val=5000, seconds=1e6, has_gpu=True), [LIGHT])
    assert small.epochs > large.epochs
    assert small.batch_size < large.batch_size
    assert small.epochs * -(-180 // small.batch_size) >= 160


def test_a_trial_fits_at_least_as_often_as_it_is_said_to():
    found = choose(FACTS, [LIGHT])
    assert found.full_seconds == found.epochs * (1000 * 0.01 + 300 * 0.004)
    assert found.trials * found.full_seconds * 0.6 == pytest.approx(FACTS.seconds)
