"""What each source finds, and what it refuses."""

import csv
import gzip
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from strategies import DataError
from trainers.data import open_data

OPTIONS = {
    "source": "folder",
    "root": None,
    "dataset": None,
    "csv": None,
    "image_size": 8,
    "val_fraction": 0.25,
    "test_fraction": 0.25,
    "split_seed": 0,
    "limit_train": None,
    "limit_val": None,
    "limit_test": None,
    "on_bad_image": "refuse",
    "memory_gib": 1.0,
    "workers": 0,
}


def opened(**changes):
    return open_data(**OPTIONS | {key: str(v) if key in {"root", "csv"} and v else v for key, v in changes.items()})


def fill(folder, count=4, first=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        image = np.random.default_rng(zlib.crc32(folder.name.encode()) + first + k).integers(0, 256, (9, 7, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{first + k}{suffix}")


def manifest(path, rows, header=("path", "label", "split")):
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])
    return path


def write_idx(path, array):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, suffix="", train=60, test=20):
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)


def test_digits_need_no_files():
    data = opened(source="digits", limit_train=100)
    assert data.classes == tuple("0123456789")
    assert [len(split) for split in (data.train, data.val, data.test)] == [100, 449, 449]
    images, targets = next(data.train.batches(torch.arange(100), 100, torch.device("cpu")))
    assert images.dtype == torch.uint8
    assert images.min() == 0
    assert images.max() == 255
    assert targets.bincount().tolist() == [10] * 10


def test_class_folders_are_split_and_classes_are_in_natural_order(tmp_path):
    for name in ("class10", "class2", "class1"):
        fill(tmp_path / name, 8)
    data = opened(root=tmp_path)
    assert data.classes == ("class1", "class2", "class10")
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 6, 6]
    names = [name for split in (data.train, data.val, data.test) for name in split.names]
    assert sorted(names) == sorted(map(str, tmp_path.rglob("*.png")))
    for name, target in zip(data.train.names, data.train.targets.tolist(), strict=True):
        assert f"/{data.classes[target]}/" in name


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_kept_as_they_are(tmp_path, val):
    for split, count in (("train", 5), (val, 3), ("test", 2)):
        for name in ("a", "b"):
            fill(tmp_path / split / name, count)
    data = opened(root=tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [10, 6, 4]
    assert all(f"/{val}/" in name for name in data.val.names)


def test_a_missing_val_folder_is_cut_from_train(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            fill(tmp_path / split / name, 8)
    data = opened(root=tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 4, 16]
    assert all("/train/" in name for name in data.val.names)


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path / "train", 8)
    fill(tmp_path / "bus", 8)
    assert opened(root=tmp_path).classes == ("bus", "train")


def test_folders_within_a_class_belong_to_it_and_hidden_files_to_nobody(tmp_path):
    fill(tmp_path / "a" / "deep" / "deeper", 4)
    fill(tmp_path / "a", 4, suffix=".JPG")
    fill(tmp_path / "b", 8)
    (tmp_path / "b" / "._0.png").write_text("left by another system")
    (tmp_path / ".cache").mkdir()
    data = opened(root=tmp_path)
    assert len(data.train) + len(data.val) + len(data.test) == 16


def test_files_that_are_no_images_by_their_suffix_are_ignored_and_counted(tmp_path, caplog):
    for name in ("a", "b"):
        fill(tmp_path / name, 8)
        (tmp_path / name / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        opened(root=tmp_path)
    assert "2 files are not images by their suffix and were ignored" in caplog.text


FOLDERS = {
    "missing": (None, "data.root=.*nowhere does not exist"),
    "no class folders": (["root/"], "has no class folders"),
    "loose images": (["root/*"], "has no class folders"),
    "an empty class": (["root/a/*", "root/b/"], "class folder .*/b has no images"),
    "one class only": (["root/a/*"], "one class only .'a'."),
    "no train": (["root/val/a/*", "root/test/a/*"], "no folder 'train'"),
    "train without classes": (["root/train/*", "root/val/a/*"], "train has no class folders"),
    "two vals": (["root/train/a/*", "root/val/a/*", "root/valid/a/*"], "two folders for one split: 'val', 'valid'"),
    "unknown in val": (["root/train/a/*", "root/train/b/*", "root/val/c/*"], "val has classes without.*train: 'c'"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, case):
    tree, message = FOLDERS[case]
    for entry in tree or []:
        folder = tmp_path / entry.removesuffix("*")
        folder.mkdir(parents=True, exist_ok=True)
        if entry.endswith("*"):
            fill(folder)
    with pytest.raises(DataError, match=message):
        opened(root=tmp_path / ("root" if tree else "nowhere"))


def test_a_root_that_is_a_file_or_not_given_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.root=.*file is a file; expected a folder"):
        opened(root=tmp_path / "file")
    with pytest.raises(DataError, match=r"data\.source=folder needs data\.root"):
        opened()


def test_a_manifest_lists_paths_labels_and_splits(tmp_path):
    fill(tmp_path / "images", 12)
    words = ["train"] * 6 + ["Val"] * 3 + ["test"] * 3
    rows = [(f"images/{k}.png", f"kind {k % 3}", words[k]) for k in range(12)]
    data = opened(source="csv", csv=manifest(tmp_path / "list.csv", rows))
    assert data.classes == ("kind 0", "kind 1", "kind 2")
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 3, 3]
    assert sorted(data.val.names) == [str(tmp_path / "images" / f"{k}.png") for k in (6, 7, 8)]


def test_a_manifest_without_split_is_split_whatever_the_order_of_its_rows(tmp_path):
    fill(tmp_path / "elsewhere", 16)
    rows = [(f"{k}.png", k % 2) for k in range(16)]
    header = ("path", "label")
    one = opened(source="csv", csv=manifest(tmp_path / "1.csv", rows, header), root=tmp_path / "elsewhere")
    other = opened(source="csv", csv=manifest(tmp_path / "2.csv", rows[::-1], header), root=tmp_path / "elsewhere")
    assert (len(one.train), one.classes) == (8, ("0", "1"))
    assert one.train.names == other.train.names
    assert one.fingerprint == other.fingerprint


ROWS = [("0.png", "a", "train"), ("1.png", "b", "train"), ("2.png", "a", "val"), ("3.png", "b", "test")]
MANIFESTS = {
    "label column": ([], ("path", "labels"), r"no column 'label'.*did you mean 'labels'\?"),
    "path column": ([], ("file", "label"), "no column 'path'.*known: file, label"),
    "column twice": ([], ("path", "label", "label"), "the column 'label' twice"),
    "no rows": ([], ("path", "label"), "lists no images"),
    "empty label": ([*ROWS, ("4.png", " ", "train")], None, "1 of 5 rows.*\n.*line 6: empty label for 4.png"),
    "empty path": ([*ROWS, ("", "a", "train")], None, "line 6: empty path"),
    "split": ([*ROWS, ("4.png", "a", "trian")], None, r"unknown split 'trian' for 4.png .did you mean 'train'\?"),
    "empty split": ([*ROWS, ("4.png", "a", "")], None, "unknown split ''"),
    "twice": ([*ROWS, ("./0.png", "a", "test")], None, "was already listed on line 2"),
    "no train": (ROWS[2:], None, "no train images"),
    "unknown in test": ([*ROWS, ("4.png", "c", "test")], None, "test has classes without any image in train: 'c'"),
    "one class": ([row for row in ROWS if row[1] == "a"], None, "one class only"),
    "cells": ([*ROWS, ("4.png", "a", "b", "train")], None, "line 6 has 4 cells where the first line has 3"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, case):
    rows, header, message = MANIFESTS[case]
    fill(tmp_path, 5)
    with pytest.raises(DataError, match=message):
        opened(source="csv", csv=manifest(tmp_path / "list.csv", rows, header or ("path", "label", "split")))


def test_a_manifest_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.source=csv needs data\.csv"):
        opened(source="csv")
    with pytest.raises(DataError, match=r"data\.csv=.*gone\.csv does not exist"):
        opened(source="csv", csv=tmp_path / "gone.csv")
    with pytest.raises(DataError, match="is not a file"):
        opened(source="csv", csv=tmp_path)
    fill(tmp_path, 1)
    with pytest.raises(DataError, match="cannot be read as a UTF-8 CSV file"):
        opened(source="csv", csv=tmp_path / "0.png")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="the file is empty"):
        opened(source="csv", csv=tmp_path / "empty.csv")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("where", [".", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files_wherever_they_lie(tmp_path, where, suffix):
    write_mnist(tmp_path / where, suffix)
    data = opened(source="torchvision", dataset="FashionMNIST", root=tmp_path)
    assert data.classes[0] == "T-shirt/top"
    assert [len(split) for split in (data.train, data.val, data.test)] == [45, 15, 20]
    assert all(name.startswith("FashionMNIST/test/") for name in data.test.names)
    for name, target in zip(data.test.names, data.test.targets.tolist(), strict=True):
        assert int(name.rsplit("/", 1)[1]) % 10 == target


def test_a_torchvision_set_without_parts_is_split(tmp_path):
    for name in ("Forest", "River"):
        fill(tmp_path / "eurosat" / "2750" / name, 8, suffix=".jpg")
    data = opened(source="torchvision", dataset="EuroSAT", root=tmp_path)
    assert data.classes == ("Forest", "River")
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 4, 4]


def test_a_torchvision_set_with_a_val_part_keeps_it(tmp_path):
    for part, count in (("train", 4), ("valid", 3), ("test", 2)):
        for name in ("CH", "PE"):
            fill(tmp_path / "country211" / part / name, count)
    data = opened(source="torchvision", dataset="Country211", root=tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 6, 4]


def test_a_bad_file_of_a_torchvision_set_is_a_bad_image(tmp_path):
    for name in ("Forest", "River"):
        fill(tmp_path / "eurosat" / "2750" / name, 8, suffix=".jpg")
    (tmp_path / "eurosat" / "2750" / "River" / "3.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"1 of 16 images cannot be read[^$]*EuroSAT/train/11: UnidentifiedImageError"):
        opened(source="torchvision", dataset="EuroSAT", root=tmp_path)


def test_a_torchvision_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"needs data\.dataset, one of .*CIFAR10"):
        opened(source="torchvision", root=tmp_path)
    with pytest.raises(DataError, match=r"FashionMNST.*did you mean 'FashionMNIST'\?"):
        opened(source="torchvision", dataset="FashionMNST", root=tmp_path)
    with pytest.raises(DataError, match=r"needs data\.root.*dataset-fashion-mnist"):
        opened(source="torchvision", dataset="FashionMNIST")
    with pytest.raises(
        DataError, match=r"looked in .*/FashionMNIST/raw, .*/raw, .*apt-get install dataset-fashion-mnist"
    ):
        opened(source="torchvision", dataset="FashionMNIST", root=tmp_path)
    with pytest.raises(DataError, match=r"CIFAR10 was not found under .*nothing is downloaded"):
        opened(source="torchvision", dataset="CIFAR10", root=tmp_path)


IDX = {
    "cut off": (lambda content: content[:-5], "holds .* values where its header"),
    "no header": (lambda content: b"\0\0", "is not an IDX file"),
    "floats": (lambda content: content[:2] + b"\x0d" + content[3:], "is not an IDX file of unsigned bytes"),
    "a label beyond the classes": (lambda content: content[:-1] + b"\x0b", "has the label 11; expected 0 to 9"),
    "no gzip": (lambda content: b"plain", "cannot be read"),
    "half a gzip": (lambda content: gzip.compress(content)[:-12], "cannot be read"),
    "other count": (lambda content: content[:7] + bytes([59]) + content[8:-1], r"labels \(59,\)"),
}


@pytest.mark.parametrize("case", IDX)
def test_damaged_idx_files_are_refused_by_name(tmp_path, case):
    damage, message = IDX[case]
    write_mnist(tmp_path)
    plain = tmp_path / "train-labels-idx1-ubyte"
    content = plain.read_bytes()
    plain.unlink()
    suffix = ".gz" if "gzip" in case else ""
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(damage(content))
    with pytest.raises(DataError, match=message):
        opened(source="torchvision", dataset="MNIST", root=tmp_path)
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").unlink()
    with pytest.raises(DataError, match="neither train-labels-idx1-ubyte nor"):
        opened(source="torchvision", dataset="MNIST", root=tmp_path)
