"""Properties of the splits, folds and subsets."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from strategies import DataError
from trainers.data.splitting import check_fractions, split_indices, subset


def strata_of(counts):
    return np.asarray([name for name, count in counts.items() for _ in range(count)])


def cut(strata, groups=None, splits=None, *, val=0.2, test=0.2, folds=None, fold=0, seed=0):
    splits = ["train"] * len(strata) if splits is None else splits
    return split_indices(
        splits, strata, groups, val_fraction=val, test_fraction=test, folds=folds, fold=fold, seed=seed
    )


def assert_partition(parts, total):
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(total))
    assert all(np.array_equal(part, np.sort(part)) for part in parts.values())


def assert_groups_stay_together(parts, groups):
    present = [{groups[k] for k in part} for part in parts.values()]
    assert sum(map(len, present)) == len(set(groups))


stratum_counts = st.lists(st.integers(10, 60), min_size=2, max_size=5).map(
    lambda counts: {f"class{k}": count for k, count in enumerate(counts)}
)
fractions = st.floats(0.15, 0.4)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def grouped(draw):
    """Strata and groups of 6 to 20 groups with 1 to 12 images each, of one stratum or of several."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=6, max_size=20))
    groups = [f"patient{k}" for k, size in enumerate(sizes) for _ in range(size)]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    pure = draw(st.booleans())
    kinds = rng.integers(0, 2, len(sizes)).repeat(sizes) if pure else rng.integers(0, 3, len(groups))
    strata = np.asarray([f"class{kind}" for kind in kinds])
    shuffled = rng.permutation(len(groups))
    return strata[shuffled], [groups[k] for k in shuffled]


def divisible(strata):
    """With fewer images a stratum may be refused on the way."""
    return min(Counter(strata.tolist()).values()) >= 2


@settings(deadline=None, max_examples=60)
@given(stratum_counts, fractions, fractions, seeds)
def test_splits_are_disjoint_complete_stratified_and_seeded(counts, val, test, seed):
    strata = strata_of(counts)
    parts = cut(strata, val=val, test=test, seed=seed)
    assert_partition(parts, len(strata))
    for split, fraction in (("val", val), ("test", test)):
        assert abs(len(parts[split]) - fraction * len(strata)) <= 1
        drawn = Counter(strata[parts[split]].tolist())
        for name, count in counts.items():
            # Two cuts follow each other, each exact to less than one image.
            assert abs(drawn[name] - fraction * count) <= 2
    again = cut(strata, val=val, test=test, seed=seed)
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


@pytest.mark.parametrize("groups", [None, [f"g{k % 30}" for k in range(100)]], ids=["images", "groups"])
@pytest.mark.parametrize("folds", [None, 4], ids=["cut", "folds"])
def test_another_seed_gives_another_split(groups, folds):
    strata = strata_of({"a": 50, "b": 50})
    one, other = (cut(strata, groups, folds=folds, seed=seed) for seed in (0, 1))
    assert all(not np.array_equal(one[split], other[split]) for split in one)


@settings(deadline=None, max_examples=150)
@given(grouped(), fractions, fractions, seeds)
def test_no_group_is_in_two_splits(data, val, test, seed):
    strata, groups = data
    try:
        parts = cut(strata, groups, val=val, test=test, seed=seed)
    except DataError as error:
        # The cut of test may leave a stratum with a single image, or a single group.
        assert re.search("too few images left|train has 1 group", str(error))
        return
    assert_partition(parts, len(strata))
    assert_groups_stay_together(parts, groups)
    assert all(len(part) for part in parts.values())
    again = cut(strata, groups, val=val, test=test, seed=seed)
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25, 1 / 3, 0.5, 0.6, 0.75])
def test_many_small_groups_meet_the_fraction_and_the_strata(fraction):
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 200, 1000)
    strata = np.where(patients % 4 == 0, "ill", "well")
    parts = cut(strata, [f"p{k}" for k in patients], test=fraction, val=0.1)
    # Of parts of equal size, 0.6 can be one half only.
    reached = {0.6: 0.5}.get(fraction, fraction)
    for name in ("ill", "well"):
        assert abs((strata[parts["test"]] == name).sum() / (strata == name).sum() - reached) < 0.03


def test_val_of_whole_groups_is_a_fraction_of_what_train_had_before_test_was_cut():
    groups = [f"p{k // 5}" for k in range(1000)]
    parts = cut(strata_of({"a": 500, "b": 500}), groups, val=0.25, test=0.25)
    assert {split: len(part) for split, part in parts.items()} == {"train": 500, "val": 250, "test": 250}


def test_one_large_group_is_not_what_is_cut():
    groups = ["large"] * 60 + [f"small{k // 2}" for k in range(40)]
    strata = np.asarray(["a", "b"] * 50)
    for seed in range(5):
        parts = cut(strata, groups, seed=seed)
        assert "large" in {groups[k] for k in parts["train"]}
        assert len(parts["test"]) <= 20


def test_the_only_group_of_a_class_stays_in_train():
    groups = [f"p{k // 5}" for k in range(50)]
    strata = np.asarray(["common"] * 45 + ["rare"] * 5)
    for seed in range(10):
        assert "rare" in strata[cut(strata, groups, seed=seed)["train"]]


def test_groups_too_few_to_cut_are_refused():
    with pytest.raises(DataError, match=r"train has 1 group \(data\.columns\.group\) left.* to cut val from it"):
        cut(strata_of({"a": 20}), ["p1"] * 10 + ["p2"] * 10)


def test_groups_that_overlap_in_the_splits_of_the_data_are_counted_and_named():
    splits = ["train", "train", "val", "val", "test", "test"]
    groups = ["p1", "p2", "p2", "p3", "p4", "p1"]
    with pytest.raises(DataError, match=r"2 groups.*\n  'p1': train, test\n  'p2': train, val\n.*leave the splits out"):
        cut(strata_of({"a": 6}), groups, splits)


def test_groups_in_splits_of_the_data_that_do_not_overlap_are_kept():
    splits = ["train"] * 8 + ["test"] * 2
    parts = cut(strata_of({"a": 10}), ["p1", "p1", "p2", "p2", "p3", "p3", "p4", "p4", "p5", "p5"], splits, val=0.25)
    assert parts["test"].tolist() == [8, 9]
    assert len(parts["val"]) == 2


@settings(deadline=None, max_examples=60)
@given(stratum_counts, st.integers(2, 10), seeds)
def test_every_train_image_is_val_in_one_fold_and_test_is_the_same_in_all(counts, folds, seed):
    strata = strata_of(counts)
    each = [cut(strata, folds=folds, fold=fold, seed=seed) for fold in range(folds)]
    for parts in each:
        assert_partition(parts, len(strata))
        assert np.array_equal(parts["test"], each[0]["test"])
    train = np.setdiff1d(np.arange(len(strata)), each[0]["test"])
    assert sorted(np.concatenate([parts["val"] for parts in each]).tolist()) == train.tolist()
    for name, count in Counter(strata[train].tolist()).items():
        assert all(abs((strata[parts["val"]] == name).sum() - count / folds) < 1 for parts in each)
    assert all(abs(len(parts["val"]) - len(train) / folds) < 1 for parts in each)


@settings(deadline=None, max_examples=150)
@given(grouped(), st.integers(2, 5), seeds)
def test_folds_of_groups_divide_train_without_parting_a_group(data, folds, seed):
    strata, groups = data
    splits = ["test" if group == "patient0" else "train" for group in groups]
    train = np.flatnonzero(np.asarray(splits) == "train")
    if not divisible(strata[train]):
        return
    each = [cut(strata, groups, splits, folds=folds, fold=fold, seed=seed) for fold in range(folds)]
    for parts in each:
        assert_partition(parts, len(strata))
        assert_groups_stay_together(parts, groups)
        assert len(parts["val"])
        assert len(parts["train"])
    assert sorted(np.concatenate([parts["val"] for parts in each]).tolist()) == train.tolist()


@settings(deadline=None, max_examples=100)
@given(grouped(), seeds)
def test_as_many_folds_as_groups_leave_one_group_out_each(data, seed):
    strata, groups = data
    folds = len(set(groups)) - 1
    splits = ["test" if group == "patient0" else "train" for group in groups]
    if not divisible(strata[np.asarray(splits) == "train"]):
        return
    left_out = set()
    for fold in range(folds):
        (group,) = {groups[k] for k in cut(strata, groups, splits, folds=folds, fold=fold, seed=seed)["val"]}
        left_out.add(group)
    assert len(left_out) == folds


def test_folds_of_groups_are_as_even_as_those_of_scikit_learn():
    """Mean distance, relative to a fold's share, over sets whose groups differ much in size."""
    ours, theirs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.arange(60).repeat(np.maximum(1, rng.lognormal(1.5, 1, 60).astype(int)))
        kinds = rng.integers(0, 3, len(groups))
        strata, splits = np.asarray(["a", "b", "c"])[kinds], ["train"] * (len(groups) - 2) + ["test"] * 2
        groups[-2:] = 60
        train = np.arange(len(groups) - 2)
        each = [cut(strata, [f"{k}" for k in groups], splits, folds=4, fold=k)["val"] for k in range(4)]
        splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(train, strata[train], groups[train])
        for folds, found in ((each, ours), ([held for _, held in splitter], theirs)):
            shares = [np.bincount(kinds[fold], minlength=3) / np.bincount(kinds[train]) for fold in folds]
            found.append(np.abs(np.asarray(shares) * 4 - 1).mean())
    assert np.mean(ours) <= np.mean(theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"data\.folds=1 must be at least 2"),
        ({"folds": 3, "fold": 3}, r"data\.fold=3 is not one of data\.folds=3.*from 0 to 2"),
        ({"folds": 3, "fold": -1}, r"data\.fold=-1 is not one of data\.folds=3"),
        ({"fold": 1}, r"data\.fold=1 is without meaning as data\.folds is not given"),
        ({"folds": 17}, r"data\.folds=17 is more than the 16 images in train"),
        ({"folds": 9, "groups": [f"p{k // 2}" for k in range(20)]}, r"data\.folds=9 is more than the 8 groups"),
        ({"folds": 3, "splits": ["train"] * 15 + ["val"] * 5}, r"data\.folds=3 .*val split of its own \(5 images\)"),
    ],
)
def test_folds_that_cannot_be_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        cut(strata_of({"a": 10, "b": 10}), **options)


def test_a_class_with_too_few_images_for_folds_is_named():
    splits = ["train"] * 11 + ["test"] * 2
    with pytest.raises(DataError, match=r"too few images left to divide train into data\.folds=2.*\n  'rare' with 1"):
        cut(strata_of({"common": 10, "rare": 3}), splits=splits, folds=2)


def test_a_class_with_fewer_images_than_folds_never_leaves_train():
    strata = strata_of({"common": 20, "rare": 2})
    splits = ["train"] * 22 + ["test"]
    for fold in range(5):
        parts = cut(np.append(strata, "common"), splits=splits, folds=5, fold=fold)
        assert "rare" in strata[parts["train"]]


@settings(deadline=None, max_examples=100)
@given(stratum_counts, st.data())
def test_a_subset_has_the_size_asked_for_and_every_stratum_in_proportion(counts, data):
    strata = strata_of(counts)
    everything = np.arange(len(strata))
    limit = data.draw(st.integers(len(counts), len(strata)))
    chosen = subset(everything, strata, limit, 0, "train")
    assert len(chosen) == limit == len(set(chosen.tolist()))
    drawn = Counter(strata[chosen].tolist())
    for name, count in counts.items():
        assert 1 <= drawn[name] <= count
    # Where every share is an image or more, no stratum is further than one image from its share.
    if min(counts.values()) * limit / len(strata) >= 1:
        assert all(abs(drawn[name] - count * limit / len(strata)) <= 1 for name, count in counts.items())
    assert np.array_equal(chosen, subset(everything, strata, limit, 0, "train"))


def test_splits_that_the_source_gives_are_kept_and_only_the_missing_one_is_cut():
    splits = ["train"] * 20 + ["test"] * 5
    parts = cut(strata_of({"a": 10, "b": 15}), splits=splits, val=0.25, test=0.5)
    assert parts["test"].tolist() == list(range(20, 25))
    assert len(parts["val"]) == 5
    assert len(parts["train"]) == 15


def test_a_limit_above_the_size_keeps_everything():
    assert subset(np.arange(4), np.asarray(["a", "b", "a", "b"]), 100, 0, "val").tolist() == [0, 1, 2, 3]


def test_a_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(DataError, match=r"data\.limit_val=2 is less than the number of classes, 3"):
        subset(np.arange(6), np.asarray(["a", "b", "c"] * 2), 2, 0, "val")


@pytest.mark.parametrize("groups", [None, [f"p{k // 4}" for k in range(41)]], ids=["images", "groups"])
def test_a_class_with_too_few_images_to_divide_is_named(groups):
    with pytest.raises(DataError, match=r"too few images left to cut test.*\n.*'rare' with 1"):
        cut(strata_of({"common": 40, "rare": 1}), groups)


def test_a_fraction_too_small_to_hold_every_class_is_refused():
    with pytest.raises(DataError, match=r"data\.test_fraction puts 1 of 30 images in test"):
        cut(strata_of({"a": 10, "b": 10, "c": 10}), test=0.01)


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
