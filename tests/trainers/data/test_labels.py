"""Targets of each task, the labels that are refused, and strata."""

import logging
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import DataError
from trainers.data.found import Found
from trainers.data.labels import check_parts, make_targets


def found(labels, splits=None, classes=()):
    total = len(labels)
    return Found(
        images=[np.zeros((1, 1), np.uint8)] * total,
        labels=labels,
        names=[f"{k}.png" for k in range(total)],
        splits=splits or ["train"] * total,
        classes=classes,
    )


def numbers(values, splits=None):
    return found([(float(value),) for value in values], splits, ("age",))


def members(*indices):
    return np.asarray(indices, dtype=np.int64)


def test_classes_are_in_natural_order_and_values_are_their_indices():
    targets = make_targets(found(["class10", "class2", "class10", "class1"]), "classification")
    assert targets.task == "classification"
    assert targets.classes == ("class1", "class2", "class10")
    assert targets.values.dtype == torch.int64
    assert targets.values.tolist() == [2, 1, 2, 0]
    assert targets.strata.tolist() == ["class10", "class2", "class10", "class1"]


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_order_of_classes_that_the_source_gives_is_kept(task):
    labels = ["cat", "dog"] if task == "classification" else [("cat",), ("dog",)]
    assert make_targets(found(labels, classes=("dog", "cat")), task).classes == ("dog", "cat")


def test_an_image_may_show_any_number_of_classes():
    targets = make_targets(found([("dog", "cat"), (), ("cat",)]), "multilabel")
    assert targets.classes == ("cat", "dog")
    assert targets.values.dtype == torch.float32
    assert targets.values.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_one_class_is_enough_where_images_may_show_none():
    targets = make_targets(found([("cat",), ()]), "multilabel")
    assert targets.values.tolist() == [[1], [0]]


def test_a_multilabel_stratum_is_the_rarest_class_that_an_image_shows():
    labels = [("cat", "dog")] * 15 + [("cat",)] * 20 + [()] * 12
    targets = make_targets(found(labels), "multilabel")
    assert targets.strata.tolist() == ["dog"] * 15 + ["cat"] * 20 + ["none of the classes"] * 12


def test_regression_values_are_numbers_and_classes_the_names_of_the_targets():
    targets = make_targets(found([(1.0, 10.0), (2.5, -3.0)], classes=("age", "weight")), "regression")
    assert targets.classes == ("age", "weight")
    assert targets.values.dtype == torch.float32
    assert targets.values.tolist() == [[1.0, 10.0], [2.5, -3.0]]


def test_regression_strata_are_tenths_of_the_first_target():
    rng = np.random.default_rng(0)
    values = rng.permutation(200)
    strata = make_targets(numbers(values), "regression").strata
    counts = Counter(strata.tolist())
    assert len(counts) == 10
    assert all(count == 20 for count in counts.values())
    ordered = strata[np.argsort(values)].tolist()
    # Each tenth is one run of neighbouring values.
    assert sum(one != other for one, other in pairwise(ordered)) == 9


@pytest.mark.parametrize(
    ("values", "strata"),
    [
        ([0] * 95 + [7] * 5, 1),
        ([0] * 50 + [1] * 50, 2),
        ([0] * 50 + list(range(1, 51)), 6),
        ([1] * 30 + [2] * 30 + [3] * 40, 3),
    ],
    ids=["almost all alike", "two values", "many zeros", "three values"],
)
def test_a_value_that_many_images_have_is_a_stratum_of_its_own(values, strata):
    assert len(set(make_targets(numbers(values), "regression").strata.tolist())) == strata


def test_large_numbers_that_differ_in_late_digits_have_strata_of_their_own():
    strata = make_targets(numbers(1_000_000 + np.arange(100)), "regression").strata
    assert len(set(strata.tolist())) == 10


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=80))
def test_strata_of_any_numbers_are_large_enough_to_divide(values):
    if len(set(values)) < 2:
        return
    targets = make_targets(numbers(values), "regression")
    assert torch.equal(targets.values, torch.tensor(values)[:, None])
    counts = Counter(targets.strata.tolist())
    assert len(counts) == 1 or min(counts.values()) >= 10


def test_small_strata_are_put_together_and_with_the_next_smallest_until_they_can_be_divided():
    cases = [
        # Three and four are not ten: the next smallest joins them.
        ({"a": 3, "b": 4, "c": 12, "d": 30}, {"others": 19, "d": 30}),
        ({"a": 6, "b": 7, "c": 12}, {"others": 13, "c": 12}),
        ({"a": 10, "b": 11}, {"a": 10, "b": 11}),
        ({"a": 2, "b": 3}, {"others": 5}),
    ]
    for counts, merged in cases:
        labels = [(name,) for name, count in counts.items() for _ in range(count)]
        assert Counter(make_targets(found(labels), "multilabel").strata.tolist()) == merged


ONE_CLASS = ["cat", "cat"]


@pytest.mark.parametrize(
    ("images", "task", "message"),
    [
        (found([]), "classification", "no images were found"),
        (found(["cat", "dog"], ["val", "test"]), "classification", "no train images: all 2 images are in val or test"),
        (found(["cat", "dog"]), "clasification", r"task=clasification is unknown \(did you mean 'classification'\?\)"),
        (found(ONE_CLASS), "classification", r"one class only \('cat'\)"),
        (
            found(["cat", "dog", "bird"], ["train", "train", "val"]),
            "classification",
            "val has classes without any image in train: 'bird'",
        ),
        (
            found([("cat",), ("dog",), ("cat", "bird")], ["train", "train", "test"]),
            "multilabel",
            "test has classes without any image in train: 'bird'",
        ),
        (
            found(["cat", "dog"], classes=("cat", "dog", "bird")),
            "classification",
            "classes without any image in train: 'bird'",
        ),
        (found([("cat",), ()], classes=("cat", "dog")), "multilabel", "classes without any image in train: 'dog'"),
        (found([(), ()]), "multilabel", "no image has any label"),
        (
            numbers([1, float("nan"), float("inf"), 2]),
            "regression",
            r"2 images.*\n  1\.png: \[nan\]\n  2\.png: \[inf\]",
        ),
        (numbers([1, 2, 1e39]), "regression", r"1 images have targets that are not finite.*\n  2\.png: \[1e\+39\]"),
        (numbers([5, 5, 5]), "regression", "nothing to learn: all train images have the same value of 'age'"),
        (numbers([5, 5, 6], ["train", "train", "val"]), "regression", "all train images have the same value of 'age'"),
        (
            found([(1.0, 4.0), (2.0, 4.0)], classes=("age", "weight")),
            "regression",
            "all train images have the same value of 'weight'$",
        ),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(images, task, message):
    with pytest.raises(DataError, match=message):
        make_targets(images, task)


def test_present_names_the_classes_that_images_show():
    single = make_targets(found(["cat", "dog", "bird"]), "classification")
    assert single.present(members(0, 2)) == {"cat", "bird"}
    several = make_targets(found([("cat", "dog"), (), ("bird",)]), "multilabel")
    assert several.present(members(0, 1)) == {"cat", "dog"}
    assert several.present(members(1)) == set()
    assert make_targets(numbers([1, 2]), "regression").present(members(0, 1)) == set()
    for targets in (single, several):
        assert targets.present(members()) == set()


def test_a_class_that_train_has_lost_is_named():
    targets = make_targets(found(["cat", "cat", "dog", "dog"]), "classification")
    with pytest.raises(DataError, match="no image left in train, once val and test are cut, of the classes 'dog'"):
        check_parts(targets, {"train": members(0, 1), "val": members(2), "test": members(3)})


def test_a_class_that_val_or_test_lacks_is_only_warned_of(caplog):
    targets = make_targets(found([("cat",), ("cat", "dog"), ("dog",)]), "multilabel")
    with caplog.at_level(logging.WARNING):
        check_parts(targets, {"train": members(1), "val": members(0), "test": members(0, 2)})
    assert [record.getMessage() for record in caplog.records] == ["val has no image of the classes 'dog'"]


def test_a_class_that_no_split_has_any_more_is_no_fault_of_the_split(caplog):
    # A limit may have left it out altogether.
    targets = make_targets(found(["cat", "dog", "bird"]), "classification")
    with caplog.at_level(logging.WARNING):
        check_parts(targets, {"train": members(0, 1), "val": members(0, 1), "test": members(0, 1)})
    assert not caplog.records


def test_parts_of_a_regression_lack_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        targets = make_targets(numbers([1, 2, 3]), "regression")
        check_parts(targets, {"train": members(0), "val": members(1), "test": members(2)})
    assert not caplog.records
