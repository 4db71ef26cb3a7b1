"""Opening: bad images, duplicates, the fingerprint, and batches that are the same from the cache and from disk."""

import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import placed_sets
import pytest
import torch
from PIL import Image

from strategies import DataError
from trainers.data import Preprocessing, Split, decode, open_data
from trainers.data.split import ResidentSplit

CPU = torch.device("cpu")
HOW = Preprocessing(8)
OPTIONS = placed_sets.OPTIONS | {"task": "classification", "source": "folder", "image_size": 8}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The cache is a folder below the current one."""
    monkeypatch.chdir(tmp_path)


def opened(root, **changes):
    return open_data(**OPTIONS | {"root": root and str(root)} | changes)


def noise(seed):
    shape = (9 + seed % 5, 12, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Two classes of 12 images and no split folders."""
    for c, name in enumerate("ab"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(12):
            noise(100 * c + k).save(tmp_path / "set" / name / f"{k}.png")
    return tmp_path / "set"


def text(path):
    path.write_text("no image")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    noise(1).resize((90, 90)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def dangling(path):
    path.symlink_to("gone.png")


def link_to_itself(path):
    path.symlink_to(path.name)


def folder_loop(path):
    path.symlink_to("..", target_is_directory=True)


def pipe(path):
    os.mkfifo(path)


BAD = {
    text: "not an image in a known format",
    empty: r"empty file \(0 bytes\)",
    truncated: "truncated",
    dangling: "No such file",
    link_to_itself: "symbolic links",
    folder_loop: "a folder, or a link that leads back to one",
    pipe: "not a regular file",
}


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_a_bad_image_is_refused_by_name_or_left_out_by_choice(root, make, cache_gib, caplog):
    make(root / "a" / "bad.jpg")
    with pytest.raises(DataError, match=r"1 of 25 images cannot be read; data.on_bad_image=skip leaves them out"):
        opened(root, cache_gib=cache_gib)
    with pytest.raises(DataError, match=rf"\n  {root}/a/bad.jpg: .*{BAD[make]}"):
        opened(root, cache_gib=cache_gib)
    with caplog.at_level(logging.WARNING):
        data = opened(root, on_bad_image="skip", cache_gib=cache_gib)
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith(f"{root}/a/bad.jpg: ")
    assert "1 of 25 images cannot be read and were left out" in caplog.text
    names = [*data.train.names, *data.val.names, *data.test.names]
    assert len(names) == 24 == len(data.train) + len(data.val) + len(data.test)
    assert not any("bad.jpg" in name for name in names)
    assert "1 bad images left out" in data.summary()
    check_against_decode(data.train, data.classes)


def check_against_decode(split, classes):
    for (images, targets), name in zip(split.batches(torch.arange(len(split)), 1, CPU), split.names, strict=True):
        assert np.array_equal(images[0].numpy(), decode(name, HOW))
        assert name.split("/")[-2] == classes[int(targets)]


def test_ten_bad_images_are_shown_and_the_rest_counted(root):
    for k in range(13):
        (root / "b" / f"bad{k}.png").write_text("x")
    with pytest.raises(DataError) as caught:
        opened(root)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("13 of 37 images cannot be read")
    assert len(lines) == 12
    assert lines[-1] == "  ... and 3 more"


def test_a_class_left_without_readable_images_is_refused(root):
    for path in (root / "b").iterdir():
        path.write_text("x")
    with pytest.raises(DataError, match="12 of 24 images cannot be read, and train has none left of the classes 'b'"):
        opened(root, on_bad_image="skip")


def test_a_file_missing_from_disk_is_a_bad_image_of_a_manifest(root):
    lines = [f"a/{k}.png,a" for k in range(13)] + [f"b/{k}.png,b" for k in range(12)]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]))
    data = opened(None, source="manifest", manifest=str(root / "list.csv"), on_bad_image="skip")
    assert data.skipped == (f"{root}/a/12.png: No such file or directory",)


def test_the_fingerprint_is_the_same_wherever_the_images_lie_and_whatever_their_size(root, tmp_path):
    shutil.copytree(root, tmp_path / "elsewhere")
    fingerprint = opened(root).fingerprint
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert opened(tmp_path / "elsewhere").fingerprint == fingerprint
    assert opened(root, image_size=16, cache_gib=0.0, workers=1).fingerprint == fingerprint


@pytest.fixture
def divided(tmp_path):
    """Folders train, val and test of two classes, 12 images a class in all."""
    for c, name in enumerate("ab"):
        for k in range(12):
            path = tmp_path / "divided" / ("train", "train", "val", "test")[k % 4] / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(100 * c + k).save(path)
    return tmp_path / "divided"


def rows(divided):
    """Path, label and split of every image."""
    paths = sorted(divided.rglob("*.png"))
    return pd.DataFrame(
        [(str(path), *path.relative_to(divided).parts[:2]) for path in paths], columns=["path", "split", "label"]
    )


def as_csv(divided):
    rows(divided).to_csv("set.csv", index=False)
    return {"source": "manifest", "manifest": "set.csv"}


def as_parquet(divided):
    rows(divided).to_parquet("set.parquet")
    return {"source": "manifest", "manifest": "set.parquet"}


def as_coco(divided):
    files = {}
    for split, part in rows(divided).groupby("split"):
        content = {
            "categories": [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}],
            "images": [{"id": k, "file_name": path} for k, path in enumerate(part.path)],
            "annotations": [
                {"id": k, "image_id": k, "category_id": {"a": 1, "b": 5}[label], "bbox": [0, 0, 1, 1]}
                for k, label in enumerate(part.label)
            ],
        }
        files[split] = f"{split}.json"
        Path(files[split]).write_text(json.dumps(content))
    return {"source": "coco", "annotations": files}


def as_huggingface(divided):
    parts = {
        split: datasets.Dataset.from_dict({"image": list(part.path), "label": list(part.label)})
        for split, part in rows(divided).groupby("split")
    }
    images = datasets.DatasetDict(parts).cast_column("image", datasets.Image())
    images.save_to_disk("saved")
    return {"source": "huggingface", "dataset": "saved"}


def as_webdataset(divided):
    for split, part in rows(divided).groupby("split"):
        with tarfile.open(f"{split}-0000.tar", "w") as archive:
            for k, row in enumerate(part.itertuples()):
                archive.add(row.path, f"{k:04}.png")
                label = tarfile.TarInfo(f"{k:04}.cls")
                label.size = len(row.label)
                archive.addfile(label, io.BytesIO(row.label.encode()))
    return {"source": "webdataset", "shards": "*-0000.tar"}


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
@pytest.mark.parametrize("given_as", [as_csv, as_parquet, as_coco, as_huggingface, as_webdataset])
def test_the_same_images_are_the_same_data_set_from_whichever_source(divided, given_as, cache_gib):
    folder = opened(divided)
    data = opened(None, cache_gib=cache_gib, **given_as(divided))
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 6, 6]
    assert data.fingerprint == folder.fingerprint
    assert data.classes == folder.classes
    for (images, targets), (same, same_targets) in zip(whole(data), whole(folder), strict=True):
        assert torch.equal(images, same)
        assert torch.equal(targets, same_targets)


def test_the_fingerprint_changes_with_an_image_a_label_the_seed_or_a_limit(root):
    seen = [opened(root).fingerprint, opened(root, split_seed=1).fingerprint, opened(root, limit_train=6).fingerprint]
    noise(999).save(root / "a" / "3.png")
    seen.append(opened(root).fingerprint)
    one, other = root / "a" / "5.png", root / "b" / "5.png"
    one.rename(root / "swap.png")
    other.rename(one)
    (root / "swap.png").rename(other)
    seen.append(opened(root).fingerprint)
    (root / "a").rename(root / "c")
    seen.append(opened(root).fingerprint)
    assert len(set(seen)) == len(seen)


def test_sets_of_one_fingerprint_agree_on_the_order_of_their_images(root, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(root, tmp_path / "one" / split)
        for name in "ab":
            (tmp_path / "other" / split / name).mkdir(parents=True)
            for k in range(12):
                shutil.copy(root / name / f"{k}.png", tmp_path / "other" / split / name / f"renamed{99 - k}.png")
    one, other = opened(tmp_path / "one"), opened(tmp_path / "other")
    assert one.fingerprint == other.fingerprint
    for (images, targets), (same, same_targets) in zip(whole(one), whole(other), strict=True):
        assert torch.equal(images, same)
        assert torch.equal(targets, same_targets)


def whole(data):
    return [batch for split in (data.train, data.val, data.test) for batch in batches(split, torch.arange(len(split)))]


def batches(split, order, size=5):
    return list(split.batches(order, size, CPU))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_memory_and_from_disk_are_bit_identical(root, workers):
    resident, streamed = opened(root), opened(root, cache_gib=0.0, workers=workers)
    assert isinstance(resident.train, Split)
    assert resident.train.resident
    assert not streamed.train.resident
    # A second pass uses the same workers; an order may be a part of the split, or repeat itself.
    for order in (torch.randperm(12), torch.randperm(12), torch.tensor([3, 3, 0]), torch.arange(0)):
        one, other = batches(resident.train, order), batches(streamed.train, order)
        assert [len(targets) for _, targets in one] == [len(part) for part in order.split(5) if len(part)]
        for (images, targets), (same, same_targets) in zip(one, other, strict=True):
            assert images.dtype == same.dtype == torch.uint8
            assert images.shape[1:] == (3, 8, 8)
            assert torch.equal(images, same)
            assert torch.equal(targets, same_targets)
        if len(order):
            assert torch.equal(torch.cat([targets for _, targets in one]), resident.train.targets[order])
    check_against_decode(streamed.train, streamed.classes)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_given_up_half_way_does_not_disturb_the_next(root, workers):
    split = opened(root, cache_gib=0.0, workers=workers).train
    given_up = split.batches(torch.arange(12), 2, CPU)
    next(given_up)
    order = torch.arange(11, -1, -1)
    assert torch.equal(torch.cat([targets for _, targets in batches(split, order)]), split.targets[order])
    with pytest.raises(RuntimeError, match="a new pass over a streamed split began"):
        next(given_up)


def test_streaming_leaves_the_global_random_state_alone(root):
    split = opened(root, cache_gib=0.0, workers=1).train
    before = torch.get_rng_state()
    batches(split, torch.arange(12))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_vanished_after_opening_is_named(root):
    split = opened(root, cache_gib=0.0, workers=1).train
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"^\S+\.png: No such file or directory; it was readable .* was opened$"):
        batches(split, torch.arange(12))


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_progress_counts_every_image_and_ends_at_the_total(root, cache_gib):
    seen = []
    opened(root, cache_gib=cache_gib, progress=lambda *call: seen.append(call))
    for what in ("reading files", "decoding images"):
        counts = [done for said, done, total in seen if said == what]
        assert counts == sorted(counts)
        assert counts[-1] == 24
    assert {total for *_, total in seen} == {24}


def test_the_summary_is_one_line_with_counts_and_fingerprint(root):
    data = opened(root)
    assert ", streamed (" in opened(root, cache_gib=0).summary()
    assert data.summary() == (
        f"folder {root}: 12 train, 6 val, 6 test images of 2 classes at 8 px, cached (0.0 MiB decoded), "
        f"fingerprint {data.fingerprint}"
    )


def table(root, header, labels):
    """A manifest of the 24 images."""
    names = [f"{name}/{k}.png" for name in "ab" for k in range(12)]
    rows = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    (root / "table.csv").write_text("\n".join([header, *rows]))
    return {"source": "manifest", "manifest": str(root / "table.csv")}


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_several_targets_an_image_come_in_the_same_rows_as_their_images(root, cache_gib):
    labels = [f"{k},{-k / 2}" for k in range(24)]
    where = table(root, "path,width,height", labels) | {"columns": {"label": ["width", "height"]}}
    data = opened(None, task="regression", cache_gib=cache_gib, **where)
    assert data.task == "regression"
    assert data.classes == ("width", "height")
    assert "images of 2 targets" in data.summary()
    for split in (data.train, data.val, data.test):
        images, targets = (torch.cat(parts) for parts in zip(*batches(split, torch.arange(len(split))), strict=True))
        assert targets.dtype == torch.float32
        for image, (width, height), name in zip(images, targets.tolist(), split.names, strict=True):
            assert np.array_equal(image.numpy(), decode(name, HOW))
            assert width == 12 * (name.split("/")[-2] == "b") + int(name.split("/")[-1][:-4])
            assert height == -width / 2


def test_the_fingerprint_does_not_depend_on_the_order_in_which_an_image_names_its_classes(root):
    def fingerprint(labels):
        return opened(None, task="multilabel", **table(root, "path,label", labels)).fingerprint

    labels = [("red;wet", "red", "wet")[k % 3] for k in range(24)]
    one = fingerprint(labels)
    assert fingerprint(["wet;red" if label == "red;wet" else label for label in labels]) == one
    assert fingerprint([*labels[1:], labels[0]]) != one


def test_images_in_two_splits_are_reported_or_moved(root, tmp_path, caplog):
    for split in ("train", "val", "test"):
        shutil.copytree(root, tmp_path / "whole" / split)
    for split, first in (("train", 0), ("val", 4), ("test", 7)):
        for name in "ab":
            for k in range(12):
                if not first <= k < first + 5:
                    (tmp_path / "whole" / split / name / f"{k}.png").unlink()
    reported = opened(tmp_path / "whole")
    assert len(reported.duplicates) == 6
    assert any("train/a/4.png (train) = " in line and "val/a/4.png (val)" in line for line in reported.duplicates)
    assert "6 images appear in several splits (2 in train and val, 4 in val and test), so scores may be" in caplog.text
    assert ", 6 images in more than one split, " in reported.summary()
    assert [len(split) for split in (reported.train, reported.val, reported.test)] == [10, 10, 10]
    moved = opened(tmp_path / "whole", on_duplicates="move")
    assert "6 images appear in several splits (2 in train and val, 4 in val and test), and data" in caplog.text
    assert [len(split) for split in (moved.train, moved.val, moved.test)] == [12, 12, 6]
    assert moved.fingerprint != reported.fingerprint


def test_an_array_that_may_not_be_written_to_leads_to_no_warning(recwarn):
    pixels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 3, 2, 2)
    pixels.setflags(write=False)
    split = ResidentSplit(torch.arange(3), ["a", "b", "c"], pixels, np.array([3, 0, 3]))
    images = torch.cat([images for images, _ in split.batches(torch.tensor([0, 2, 1]), 2, CPU)])
    assert np.array_equal(images.numpy(), pixels[[3, 3, 0]])
    images[:] = 0
    assert pixels.any()
    assert not list(recwarn)


ARGUMENTS = {
    "source": ("foldr", r"data.source=foldr is unknown .did you mean 'folder'\?"),
    "on_seen": ("dorp", r"data.on_seen=dorp is unknown .did you mean 'drop'\?"),
    "on_duplicates": ("mov", r"data.on_duplicates=mov is unknown .did you mean 'move'\?"),
    "on_bad_image": ("skp", r"data.on_bad_image=skp is unknown .did you mean 'skip'\?"),
    "image_size": (0, "data.image_size=0 must be at least 1"),
    "cache_gib": (-1.0, "data.cache_gib=-1.0 must be at least 0"),
    "workers": (-1, "data.workers=-1 must be at least 0"),
    "limit_val": (0, "data.limit_val=0 must be at least 1"),
    "val_fraction": (1.5, "data.val_fraction=1.5 must be above 0 and below 1"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_out_of_range_is_refused_by_its_key(root, name):
    value, message = ARGUMENTS[name]
    with pytest.raises(DataError, match=message):
        opened(root, **{name: value})


def test_test_images_that_were_seen_are_no_longer_there(root, caplog):
    whole = opened(root)
    seen = np.concatenate([whole.digests["train"], whole.digests["test"][:2]])
    data = opened(root, seen=seen)
    assert (len(data.train), len(data.val)) == (len(whole.train), len(whole.val))
    assert data.test.names == whole.test.names[2:]
    assert data.digests["test"].tolist() == whole.digests["test"][2:].tolist()
    assert data.seen == whole.test.names[:2]
    assert f"2 of {len(whole.test)} test images" in caplog.text
    # Trials are comparable; what is stored for the test images is not the same.
    assert data.fingerprint == whole.fingerprint
    assert data.contents["test"] != whole.contents["test"]
