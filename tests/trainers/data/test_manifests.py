"""Images and labels listed in CSV and Parquet manifests."""

import csv
import datetime
import os
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from strategies import DataError
from trainers.data.found import Columns, Place, fetch
from trainers.data.labels import make_targets
from trainers.data.sources.manifests import find_manifest

HEADER = ("path", "label", "split")


def fill(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(np.full((9, 7, 3), k, np.uint8)).save(folder / f"{k}.png")


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])
    return str(path)


def write_parquet(path, header, rows):
    pd.DataFrame([list(row) for row in rows], columns=list(header)).to_parquet(path)
    return str(path)


WRITERS = {"csv": write_csv, "parquet": write_parquet, "pq": write_parquet}


def find(manifest, task="classification", root=None, **columns):
    files = manifest if isinstance(manifest, dict) else {"": manifest}
    return find_manifest(Place(task=task, root=root, files=files, columns=Columns(**columns)))


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_manifest_lists_paths_labels_and_splits(tmp_path, suffix):
    fill(tmp_path / "images", 12)
    words = ["train"] * 6 + ["Val", "valid", "validation"] + ["test"] * 3
    rows = [(f"images/{k}.png", f"kind {k % 3}", words[k]) for k in range(12)]
    found = find(WRITERS[suffix](tmp_path / f"list.{suffix}", HEADER, rows))
    assert make_targets(found, "classification").classes == ("kind 0", "kind 1", "kind 2")
    assert list(found.images) == [tmp_path / "images" / f"{k}.png" for k in range(12)]
    assert list(found.names) == list(map(str, found.images))
    assert list(found.splits) == ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    assert found.groups is None
    assert all(fetch(image).startswith(b"\x89PNG") for image in found.images)


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_order_of_the_rows_makes_no_difference(tmp_path, suffix):
    rows = [(f"{k}.png", k % 2, f"patient {k // 4}") for k in range(16)]
    header = ("path", "label", "patient")
    found = [
        find(WRITERS[suffix](tmp_path / f"{k}.{suffix}", header, ordered), root=tmp_path, group="patient")
        for k, ordered in enumerate((rows, rows[::-1]))
    ]
    assert found[0] == found[1]
    assert list(found[0].groups) == [f"patient {k // 4}" for k in range(16)]
    assert list(found[0].splits) == ["train"] * 16


def test_paths_are_relative_to_the_root_else_to_the_manifest_and_may_be_absolute(tmp_path):
    rows = [("a.png", "x"), (str(tmp_path / "b.png"), "y")]
    path = write_csv(tmp_path / "lists" / "list.csv", HEADER[:2], rows)
    assert set(find(path).images) == {tmp_path / "lists" / "a.png", tmp_path / "b.png"}
    (tmp_path / "root").mkdir()
    assert set(find(path, root=tmp_path / "root").images) == {tmp_path / "root" / "a.png", tmp_path / "b.png"}


def test_columns_may_have_other_names(tmp_path):
    rows = [("a.png", "x", "train", 1, "?"), ("b.png", "y", "test", 2.0, "?")]
    path = write_csv(tmp_path / "list.csv", ("file", "kind", "part", "patient", "label"), rows)
    found = find(path, image="file", label="kind", split="part", group="patient")
    assert (list(found.labels), list(found.splits), list(found.groups)) == (["x", "y"], ["train", "test"], ["1", "2.0"])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_manifest_for_each_split_has_its_own_folder(tmp_path, suffix):
    files = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        rows = [(f"{k}.png", "ab"[k % 2]) for k in range(4)]
        files[split] = WRITERS[suffix](tmp_path / split / f"list.{suffix}", HEADER[:2], rows)
    found = find(files)
    assert list(found.splits) == ["train", "val"] * 4
    assert all(path.parent.name == split for path, split in zip(found.images, found.splits, strict=True))


def test_a_split_column_may_repeat_the_split_of_its_manifest_and_not_contradict_it(tmp_path):
    train = write_csv(tmp_path / "train.csv", HEADER, [("0.png", "a", "train"), ("1.png", "b", "train")])
    val = write_csv(tmp_path / "val.csv", HEADER, [("2.png", "a", "valid"), ("3.png", "b", "")])
    with pytest.raises(
        DataError, match=r"data\.manifest: 1 of 4 rows.*\n  .*val\.csv line 3, 3\.png: unknown split ''"
    ):
        find({"train": train, "val": val})
    val = write_csv(tmp_path / "val.csv", HEADER, [("2.png", "a", "valid"), ("3.png", "b", "test")])
    with pytest.raises(DataError, match=r"line 3, 3\.png: split 'test' in the manifest of val"):
        find({"train": train, "val": val})
    val = write_csv(tmp_path / "val.csv", HEADER, [("2.png", "a", "valid"), ("3.png", "b", "val")])
    assert list(find({"train": train, "val": val}).splits) == ["train", "train", "val", "val"]


def test_an_empty_split_column_divides_nothing(tmp_path):
    rows = [("0.png", "a", ""), ("1.png", "b", " ")]
    assert list(find(write_csv(tmp_path / "list.csv", HEADER, rows)).splits) == ["train", "train"]
    assert list(find({"test": write_csv(tmp_path / "list.csv", HEADER, rows)}).splits) == ["test", "test"]


def test_an_image_in_two_manifests_is_refused(tmp_path):
    files = {split: write_csv(tmp_path / f"{split}.csv", HEADER[:2], [("0.png", "a")]) for split in ("train", "test")}
    with pytest.raises(DataError, match=r"test\.csv line 2, 0\.png: already listed on .*train\.csv line 2"):
        find(files)


@pytest.mark.parametrize("suffix", WRITERS)
def test_cells_of_numbers_are_classes_of_their_text(tmp_path, suffix):
    found = find(WRITERS[suffix](tmp_path / f"list.{suffix}", HEADER[:2], [(f"{k}.png", 10 * k) for k in range(3)]))
    assert make_targets(found, "classification").classes == ("0", "10", "20")


def test_cells_of_parquet_that_are_no_text_are_classes_of_their_text(tmp_path):
    cells = {
        "a whole float": ([1.0, 2.0], ["1", "2"]),
        "a float": ([0.5, 2.0], ["0.5", "2"]),
        "a bool": ([True, False], ["True", "False"]),
        "a decimal": ([Decimal("1.5"), Decimal("2.5")], ["1.5", "2.5"]),
        "a day": ([datetime.date(2026, 1, 2), datetime.date(2026, 1, 3)], ["2026-01-02", "2026-01-03"]),
        "a category": (pd.Categorical(["x ", "y"]), ["x", "y"]),
    }
    for name, (labels, texts) in cells.items():
        pd.DataFrame({"path": ["0.png", "1.png"], "label": labels}).to_parquet(tmp_path / "list.parquet")
        assert (name, list(find(str(tmp_path / "list.parquet")).labels)) == (name, texts)


def test_columns_of_parquet_that_are_not_asked_for_are_not_read(tmp_path):
    (tmp_path / "label=dog").mkdir()
    path = tmp_path / "label=dog" / "list.parquet"
    table = pa.table({"path": ["0.png", "1.png"], "label": ["a", "b"], "label.x": [1, 2], "image": [b"x", b"\xff"]})
    pq.write_table(table, path)
    assert list(find(str(path)).labels) == ["a", "b"]
    assert list(find(str(path), label="label.x").labels) == ["1", "2"]


MULTILABEL = {
    "semicolons": ("csv", ["cat; dog", "", "dog;cat;dog;"], None),
    "bars": ("csv", ["cat|dog", " ", "dog|cat"], None),
    "text of Parquet": ("parquet", ["cat;dog", None, "dog;cat"], None),
    "lists of Parquet": ("parquet", [["cat", "dog"], [], ["dog", "cat"]], None),
    "a list that is missing": ("parquet", [["cat", "dog"], None, ["dog", "cat"]], None),
    "0 and 1": ("csv", [(1, 1), (0, 0), (1, 1)], ("dog", "cat")),
    "words": ("csv", [("true", "TRUE"), ("False", "false"), ("True", "true")], ("dog", "cat")),
    "bools of Parquet": ("parquet", [(True, True), (False, False), (True, True)], ("dog", "cat")),
    "floats of Parquet": ("parquet", [(1.0, 1), (0.0, 0), (1.0, 1)], ("dog", "cat")),
}


@pytest.mark.parametrize("case", MULTILABEL)
def test_every_form_of_a_multilabel_set_is_read(tmp_path, case):
    suffix, cells, columns = MULTILABEL[case]
    rows = [(f"{k}.png", *(cell if columns else (cell,))) for k, cell in enumerate(cells)]
    path = WRITERS[suffix](tmp_path / f"list.{suffix}", ("path", *(columns or ("label",))), rows)
    found = find(path, "multilabel", label=columns)
    assert [set(label) for label in found.labels] == [{"cat", "dog"}, set(), {"cat", "dog"}]
    assert all(isinstance(label, tuple) and len(set(label)) == len(label) for label in found.labels)
    # Columns are classes in their own order.
    assert found.classes == (columns or ())
    assert make_targets(found, "multilabel").classes == (columns or ("cat", "dog"))


def test_numbers_may_be_classes_of_a_multilabel_set(tmp_path):
    path = write_parquet(tmp_path / "list.parquet", HEADER[:2], [("0.png", [1, 10]), ("1.png", [2])])
    assert list(find(path, "multilabel").labels) == [("1", "10"), ("2",)]
    path = write_parquet(tmp_path / "list.parquet", HEADER[:2], [("0.png", 1.0), ("1.png", np.nan), ("2.png", 2.0)])
    assert list(find(path, "multilabel").labels) == [("1",), (), ("2",)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_regression_takes_a_column_of_numbers_or_several(tmp_path, suffix):
    rows = [("0.png", 1, -0.5), ("1.png", 2, 1e3)]
    path = WRITERS[suffix](tmp_path / f"list.{suffix}", ("path", "age", "dose"), rows)
    found = find(path, "regression", label="age")
    assert (list(found.labels), found.classes) == ([(1.0,), (2.0,)], ("age",))
    found = find(path, "regression", label=("dose", "age"))
    assert (list(found.labels), found.classes) == ([(-0.5, 1.0), (1000.0, 2.0)], ("dose", "age"))
    assert make_targets(found, "regression").values.tolist() == [[-0.5, 1.0], [1000.0, 2.0]]


def test_decimals_of_parquet_are_numbers(tmp_path):
    path = write_parquet(tmp_path / "list.parquet", HEADER[:2], [("0.png", Decimal("1.5")), ("1.png", Decimal("2"))])
    assert list(find(path, "regression").labels) == [(1.5,), (2.0,)]


ROWS = [("0.png", "a", "train"), ("1.png", "b", "train"), ("2.png", "a", "val"), ("3.png", "b", "test")]
MANIFESTS = {
    "label column": ([], ("path", "labels"), r"no column 'label' .did you mean 'labels'\?.; data\.columns\.label"),
    "path column": ([], ("file", "label"), r"no column 'path' .known: file, label.; data\.columns\.image"),
    "column twice": ([], ("path", "label", "label"), "the column 'label' twice"),
    "no rows": ([], ("path", "label"), "lists no images"),
    "empty label": ([*ROWS, ("4.png", " ", "train")], HEADER, "1 of 5 images.*\n.*line 6, 4.png: no label"),
    "empty path": ([*ROWS, ("", "a", "train")], HEADER, "1 of 5 rows.*\n.*line 6: empty path"),
    "NUL": ([*ROWS, ("a\0b", "a", "train")], HEADER, "line 6: a NUL character in the path"),
    "split": ([*ROWS, ("4.png", "a", "trian")], HEADER, r"6, 4.png: unknown split 'trian' .did you mean 'train'\?."),
    "empty split": ([*ROWS, ("4.png", "a", "")], HEADER, "line 6, 4.png: unknown split ''"),
    "twice": ([*ROWS, ("./0.png", "a", "test")], HEADER, r"line 6, ./0.png: already listed on line 2"),
    "no train": (ROWS[2:], HEADER, "no train images"),
    "unknown in test": ([*ROWS, ("4.png", "c", "test")], HEADER, "test has classes without any image in train: 'c'"),
    "one class": ([row for row in ROWS if row[1] == "a"], HEADER, "one class only"),
    "cells": ([*ROWS, ("4.png", "a", "b", "train")], HEADER, "line 6 has 4 cells where the first line has 3"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, case):
    rows, header, message = MANIFESTS[case]
    with pytest.raises(DataError, match=message):
        make_targets(find(write_csv(tmp_path / "list.csv", header, rows)), "classification")


CELLS = {
    "list as text": ("multilabel", "csv", None, "['a', 'b']", r"2, 1.png: a list as text, \['a', 'b'\]; separate"),
    "no flag": ("multilabel", "csv", ("x", "y"), (2, 1), "2, 1.png: x: expected 0 or 1, found '2'"),
    "empty flag": ("multilabel", "csv", ("x", "y"), (1, ""), "2, 1.png: y: no label"),
    "no number": ("regression", "csv", None, "3,5", "2, 1.png: expected a number, found '3,5'"),
    "empty number": ("regression", "csv", ("x", "y"), (1, ""), "2, 1.png: .*no label"),
    "NaN": ("regression", "parquet", None, np.nan, "row 1, 1.png: no label"),
    "bytes": ("classification", "parquet", None, b"a", "row 1, 1.png: expected text or an integer, found b'a'"),
    "list": ("classification", "parquet", None, ["a"], r"row 1, 1.png: expected text or an integer, found \['a'\]"),
    "missing": ("classification", "parquet", None, None, "row 1, 1.png: no label"),
    "gap in a list": ("multilabel", "parquet", None, ["a", None], "row 1, 1.png: no label"),
    "bytes as classes": ("multilabel", "parquet", None, b"a", "row 1, 1.png: expected a list of classes, found b'a'"),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_label_that_is_of_no_use_is_named_by_its_place(tmp_path, case):
    task, suffix, columns, cell, message = CELLS[case]
    header, row = ("path", *(columns or ("label",))), ("1.png", *(cell if columns else (cell,)))
    with pytest.raises(DataError, match=rf"list\.{suffix}: 1 of 1 (?s:.)*{message}"):
        find(WRITERS[suffix](tmp_path / f"list.{suffix}", header, [row]), task, label=columns)


def test_many_faults_are_named_at_once(tmp_path):
    rows = [(f"{k}.png", k if k % 2 else "x", "train" if k % 3 else "training") for k in range(60)]
    path = write_csv(tmp_path / "list.csv", HEADER, rows)
    with pytest.raises(DataError, match=r"20 of 60 rows cannot be used\n  line 2, 0\.png(?s:.)*\.\.\. and 10 more"):
        find(path, "regression")
    with pytest.raises(DataError, match=r"30 of 60 images have no usable label\n  line 2, 0\.png(?s:.)* and 20 more"):
        find(write_csv(tmp_path / "list.csv", HEADER[:2], [row[:2] for row in rows]), "regression")


COLUMNS = {
    "image": ({"image": "pth"}, r"no column 'pth' \(did you mean 'path'\?\); data\.columns\.image"),
    "label": ({"label": "labl"}, r"no column 'labl' \(did you mean 'label'\?\); data\.columns\.label"),
    "labels": ({"label": ("label", "x")}, r"no column 'x' \(known: label, path, patient\); data\.columns\.label"),
    "split": ({"split": "split"}, r"no column 'split' .*; data\.columns\.split"),
    "group": ({"group": "patients"}, r"no column 'patients' \(did you mean 'patient'\?\); data\.columns\.group"),
    "several": ({"label": ("label", "patient")}, r"names 2 columns; task=classification takes one"),
    "one twice": ({"label": ("label", "label")}, r"data\.columns\.label names 'label' twice"),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("case", COLUMNS)
def test_columns_that_cannot_be_used_are_refused(tmp_path, case, suffix):
    columns, message = COLUMNS[case]
    path = WRITERS[suffix](tmp_path / f"list.{suffix}", ("path", "label", "patient"), [("0.png", "a", "p")])
    with pytest.raises(DataError, match=message):
        find(path, **columns)


def test_a_list_of_one_multilabel_column_is_refused(tmp_path):
    path = write_csv(tmp_path / "list.csv", ("path", "sick"), [("0.png", 1), ("1.png", 0)])
    with pytest.raises(DataError, match=r"data\.columns\.label lists one column, 'sick'"):
        find(path, "multilabel", label=("sick",))


def test_a_group_that_is_empty_is_refused(tmp_path):
    path = write_csv(tmp_path / "list.csv", ("path", "label", "patient"), [("0.png", "a", 1), ("1.png", "b", "")])
    with pytest.raises(DataError, match=r"line 3, 1\.png: no group in the column 'patient'"):
        find(path, group="patient")


def test_encoded_images_in_parquet_are_no_paths(tmp_path):
    path = write_parquet(tmp_path / "list.parquet", HEADER[:2], [(b"\x89PNG", "a")])
    with pytest.raises(DataError, match="row 1: path: expected text or a number, found bytes"):
        find(path)


def test_names_that_are_not_ascii_are_kept(tmp_path):
    fill(tmp_path / "Schäfer 犬", 1)
    found = find(write_csv(tmp_path / "list.csv", HEADER[:2], [("Schäfer 犬/0.png", "犬")]))
    assert list(found.labels) == ["犬"]
    assert fetch(found.images[0]).startswith(b"\x89PNG")


def test_a_folder_whose_name_is_no_text_gives_names_that_can_be_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    fill(folder, 1)
    found = find(write_csv(folder / "list.csv", HEADER[:2], [("0.png", "a")]))
    assert fetch(found.images[0]).startswith(b"\x89PNG")
    assert found.names == [f"{tmp_path}/caf\\udce9/0.png"]
    with pytest.raises(DataError, match="no column 'x'") as caught:
        find(str(folder / "list.csv"), label="x")
    assert str(caught.value).encode("utf-8")


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path):
    (tmp_path / "list.csv").write_text("\ufeffpath , label\n\n0.png, a b\n,\n1.png,b\n", encoding="utf-8")
    assert list(find(str(tmp_path / "list.csv")).labels) == ["a b", "b"]


UNREADABLE = {
    "bytes.csv": (b"\x89PNG\r\n\xff", "cannot be read as a UTF-8 CSV file"),
    "quote.csv": (b'path,label\n"0.png,a\n', "cannot be read as a UTF-8 CSV file"),
    "empty.csv": (b"", "has no columns: the file is empty"),
    "empty.parquet": (b"", "cannot be read as a Parquet file"),
    "text.parquet": (b"path,label\n0.png,a\n", "cannot be read as a Parquet file"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, name):
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} {message}"):
        find(str(tmp_path / name))


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 1200), flips=st.lists(st.tuples(st.integers(0, 1200), st.integers(1, 255)), max_size=3))
def test_damaged_parquet_is_refused_or_read_and_never_crashes(tmp_path_factory, cut, flips):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "list.parquet"
    pq.write_table(pa.table({"path": ["0.png", "1.png"], "label": ["ä", "b"]}), path)
    content = bytearray(path.read_bytes())
    for position, change in flips:
        content[position % len(content)] ^= change
    path.write_bytes(content[: cut + len(content) // 2])
    try:
        found = find(str(path))
    except DataError as error:
        assert "list.parquet" in str(error)
    else:
        assert len(found.labels) == len(found.images)


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.source=manifest needs data\.manifest, a CSV or Parquet file"):
        find({})
    with pytest.raises(DataError, match=r"data\.manifest=.*gone\.csv does not exist"):
        find(str(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match=r"data\.manifest\.test=.* is not a file"):
        find({"test": str(tmp_path)})
    with pytest.raises(DataError, match=r"data\.manifest\.trian is of no split"):
        find({"trian": str(tmp_path)})
    with pytest.raises(DataError, match=r"data\.root=.*gone does not exist"):
        find(write_csv(tmp_path / "list.csv", HEADER[:2], [("0.png", "a")]), root=tmp_path / "gone")
