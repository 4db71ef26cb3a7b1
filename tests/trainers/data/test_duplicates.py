"""Images of equal content in different splits, and with different labels."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import DataError
from trainers.data.duplicates import find_duplicates, move_duplicates

SPLITS = ("train", "val", "test")


def parts_of(splits):
    return {split: np.flatnonzero(np.asarray(splits) == split) for split in SPLITS}


def find(images, labels=None):
    """``images``: name, split and digest of each."""
    names, splits, digests = zip(*images, strict=True)
    return find_duplicates(parts_of(splits), digests, names, labels or ["cat"] * len(images))


def test_copies_in_different_splits_are_counted_and_named():
    duplicates = find(
        [
            ("a.png", "train", b"1"),
            ("b.png", "test", b"1"),
            ("c.png", "train", b"2"),
            ("d.png", "val", b"2"),
            ("e.png", "test", b"2"),
            ("f.png", "test", b"2"),
            ("g.png", "test", b"3"),
        ]
    )
    assert duplicates.lines == ("a.png (train) = b.png (test)", "c.png (train) = d.png (val) = e.png (test)")
    assert duplicates.contents == 2
    assert duplicates.images == 6
    assert duplicates.pairs == {("train", "test"): 2, ("train", "val"): 1, ("val", "test"): 1}
    assert duplicates.contradictions == ()


def test_the_earlier_split_is_named_first_wherever_its_image_lies():
    assert find([("a.png", "test", b"1"), ("b.png", "train", b"1")]).lines == ("b.png (train) = a.png (test)",)


def test_copies_within_one_split_are_not_reported():
    duplicates = find([("a.png", "train", b"1"), ("b.png", "train", b"1"), ("c.png", "test", b"2")])
    assert (duplicates.contents, duplicates.images, duplicates.lines, duplicates.pairs) == (0, 0, (), {})


def test_images_that_could_not_be_read_are_copies_of_none():
    duplicates = find([("a.png", "train", b""), ("b.png", "test", b"")], ["cat", "dog"])
    assert duplicates.lines == duplicates.contradictions == ()


def test_an_image_outside_all_splits_is_no_copy():
    parts = {"train": np.asarray([0]), "val": np.asarray([1]), "test": np.asarray([2])}
    duplicates = find_duplicates(parts, [b"1", b"2", b"3", b"1"], list("abcd"), ["cat", "cat", "cat", "dog"])
    assert duplicates.lines == duplicates.contradictions == ()


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (("cat", "dog"), "a.png (cat) = b.png (dog)"),
        ((("cat", "dog"), ("dog",)), "a.png (cat, dog) = b.png (dog)"),
        ((("cat", "dog"), ()), "a.png (cat, dog) = b.png (no class)"),
        (((1.0, 2.0), (2.0, 1.0)), "a.png (1.0, 2.0) = b.png (2.0, 1.0)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_copies_with_different_labels_are_named_in_whichever_splits_they_are(labels, line, split):
    assert find([("a.png", "train", b"1"), ("b.png", split, b"1")], labels).contradictions == (line,)


@pytest.mark.parametrize("labels", [(("cat", "dog"), ("dog", "cat")), ((1.0,), (1.0,)), ("cat", "cat"), ((), ())])
def test_copies_with_the_same_label_do_not_contradict(labels):
    assert find([("a.png", "train", b"1"), ("b.png", "train", b"1")], labels).contradictions == ()


def test_a_content_with_many_labels_takes_one_short_line():
    images = [(f"{k}.png", "train", b"1") for k in range(1000)]
    (line,) = find(images, [(float(k),) for k in range(1000)]).contradictions
    assert line == "0.png (0.0) = 1.png (1.0) = 2.png (2.0) = 3.png (3.0) and 996 more labels"


def test_copies_move_to_the_split_before():
    splits = ["test", "train", "test", "val", "val", "train", "test", "val"]
    digests = [b"1", b"1", b"2", b"2", b"3", b"3", b"4", b"5"]
    moved = move_duplicates(parts_of(splits), digests)
    assert {split: part.tolist() for split, part in moved.items()} == {
        "train": [0, 1, 4, 5],
        "val": [2, 3, 7],
        "test": [6],
    }


def test_copies_within_a_split_and_unreadable_images_stay():
    splits = ["train", "test", "test", "val", "val", "test"]
    digests = [b"", b"1", b"1", b"", b"2", b""]
    parts = parts_of(splits)
    moved = move_duplicates(parts, digests)
    assert all(np.array_equal(parts[split], moved[split]) for split in SPLITS)


def test_a_split_of_nothing_but_copies_is_refused():
    with pytest.raises(DataError, match=r"data\.on_duplicates=move leaves nothing in test: all of its 2 images"):
        move_duplicates(parts_of(["train", "val", "test", "test"]), [b"1", b"2", b"1", b"2"])


@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from([b"", b"1", b"2", b"3"])), max_size=30))
def test_once_moved_no_split_holds_what_another_has_and_nothing_is_lost(drawn):
    # One image of its own keeps each split from being emptied.
    images = [*drawn, *((split, split.encode()) for split in SPLITS)]
    splits, digests = zip(*images, strict=True)
    names = [str(k) for k in range(len(images))]
    parts = parts_of(splits)
    moved = move_duplicates(parts, digests)
    assert sorted(np.concatenate(list(moved.values())).tolist()) == list(range(len(images)))
    assert find_duplicates(moved, digests, names, ["cat"] * len(images)).contents == 0
    # Train loses nothing, and a content that one split alone has stays where it is.
    where = {digest: {split for split, other in images if other == digest} for digest in digests}
    now = {k: split for split, part in moved.items() for k in part.tolist()}
    assert all(now[k] == splits[k] for k in range(len(images)) if len(where[digests[k]]) == 1 or not digests[k])
    assert set(parts["train"].tolist()) <= set(moved["train"].tolist())
    before = find_duplicates(parts, digests, names, ["cat"] * len(images))
    counts = Counter(digest for digest in digests if digest and len(where[digest]) > 1)
    assert (before.contents, before.images) == (len(counts), counts.total())
