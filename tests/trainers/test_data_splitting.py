"""Properties of the splits and subsets."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import DataError
from trainers.data.found import Found
from trainers.data.splitting import check_fractions, split_indices, subset


def found(counts, splits=None):
    labels = [name for name, count in counts.items() for _ in range(count)]
    total = len(labels)
    return Found(
        images=[np.zeros((1, 1), np.uint8)] * total,
        labels=labels,
        names=[str(k) for k in range(total)],
        splits=splits or ["train"] * total,
        classes=tuple(counts),
    )


class_counts = st.lists(st.integers(10, 60), min_size=2, max_size=5).map(
    lambda counts: {f"class{k}": count for k, count in enumerate(counts)}
)
fractions = st.floats(0.15, 0.4)


@settings(deadline=None, max_examples=60)
@given(class_counts, fractions, fractions, st.integers(0, 2**31))
def test_splits_are_disjoint_complete_stratified_and_seeded(counts, val_fraction, test_fraction, seed):
    images = found(counts)
    parts = split_indices(images, val_fraction, test_fraction, seed)
    together = np.concatenate(list(parts.values()))
    assert sorted(together) == list(range(len(images.labels)))
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        assert abs(len(parts[split]) - fraction * len(images.labels)) <= 1
        drawn = Counter(images.labels[k] for k in parts[split])
        for name, count in counts.items():
            # Two cuts follow each other, each exact to less than one image.
            assert abs(drawn[name] - fraction * count) <= 2
    again = split_indices(images, val_fraction, test_fraction, seed)
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


def test_another_seed_gives_another_split():
    images = found({"a": 50, "b": 50})
    one, other = (split_indices(images, 0.2, 0.2, seed) for seed in (0, 1))
    assert not np.array_equal(one["train"], other["train"])


@settings(deadline=None, max_examples=100)
@given(class_counts, st.data())
def test_a_subset_has_the_size_asked_for_and_every_class_in_proportion(counts, data):
    labels = found(counts).labels
    everything = np.arange(len(labels))
    limit = data.draw(st.integers(len(counts), len(labels)))
    chosen = subset(everything, labels, limit, 0, "train")
    assert len(chosen) == limit == len(set(chosen.tolist()))
    drawn = Counter(labels[k] for k in chosen)
    for name, count in counts.items():
        assert 1 <= drawn[name] <= count
    # Where every share is an image or more, no class is further than one image from its share.
    if min(counts.values()) * limit / len(labels) >= 1:
        assert all(abs(drawn[name] - count * limit / len(labels)) <= 1 for name, count in counts.items())
    assert np.array_equal(chosen, subset(everything, labels, limit, 0, "train"))


def test_splits_that_the_source_gives_are_kept_and_only_the_missing_one_is_cut():
    splits = ["train"] * 20 + ["test"] * 5
    images = found({"a": 10, "b": 15}, splits)
    parts = split_indices(images, 0.25, 0.5, 0)
    assert parts["test"].tolist() == list(range(20, 25))
    assert len(parts["val"]) == 5
    assert len(parts["train"]) == 15


def test_a_limit_above_the_size_keeps_everything():
    assert subset(np.arange(4), ["a", "b", "a", "b"], 100, 0, "val").tolist() == [0, 1, 2, 3]


def test_a_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(DataError, match=r"data\.limit_val=2 is less than the number of classes, 3"):
        subset(np.arange(6), ["a", "b", "c"] * 2, 2, 0, "val")


def test_a_class_with_too_few_images_to_divide_is_named():
    with pytest.raises(DataError, match=r"too few images left to cut test.*\n.*'rare' with 1"):
        split_indices(found({"common": 40, "rare": 1}), 0.2, 0.2, 0)


def test_a_class_that_cutting_took_out_of_train_is_named():
    with pytest.raises(DataError, match="'rare'"):
        for seed in range(20):
            split_indices(found({"common": 40, "rare": 3}), 0.45, 0.45, seed)


def test_a_fraction_too_small_to_hold_every_class_is_refused():
    with pytest.raises(DataError, match=r"data\.test_fraction puts 1 of 30 images in test"):
        split_indices(found({"a": 10, "b": 10, "c": 10}), 0.2, 0.01, 0)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (0.0, 0.2, r"data\.val_fraction=0\.0 must be above 0 and below 1"),
        (1.0, 0.2, r"data\.val_fraction=1\.0"),
        (0.2, -0.1, r"data\.test_fraction=-0\.1"),
        (float("nan"), 0.2, r"data\.val_fraction=nan"),
        (0.5, 0.5, "their sum must be below 1"),
    ],
)
def test_fractions_that_leave_a_split_empty_are_refused(val, test, message):
    with pytest.raises(DataError, match=message):
        check_fractions(val, test)
