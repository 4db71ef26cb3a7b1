"""What is to be learnt is told from what lies in a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from strategies import DataError
from trainers.data import guess_data, survey

NOWHERE = {"manifest": None, "annotations": None, "shards": None, "columns": None}


def picture(path, side=12, channels=(3,)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 3, (side, side, *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco(path, files, **annotation):
    content = {
        "images": [{"id": k, "file_name": name, "width": 12, "height": 12} for k, name in enumerate(files)],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": [{"id": k, "image_id": k, "category_id": k % 2, **annotation} for k in range(len(files))],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def guessed(root, **given):
    found = guess_data({"root": str(root), **given})
    return found.task, {key: str(value).replace(f"{root}", "") for key, value in found.data.items()}


def test_class_folders(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        picture(tmp_path / name, 20, ())
    (tmp_path / "notes.csv").write_text("name,age\nx,1\n")
    assert guessed(tmp_path) == ("classification", {})
    found = survey("classification", source="folder", root=str(tmp_path), dataset=None, **NOWHERE)
    assert (found.counts["train"], found.classes, found.short_side, found.channels) == (3, 2, 20, 1)


def test_class_folders_of_splits(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        picture(tmp_path / name)
    assert guessed(tmp_path) == ("classification", {})


def test_folders_of_images_and_masks(tmp_path):
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "masks/a.png", channels=())
    assert guessed(tmp_path) == ("segmentation", {"root": "/images", "masks": "/masks"})


def test_pascal_voc(tmp_path):
    picture(tmp_path / "JPEGImages/a.png")
    (tmp_path / "Annotations").mkdir()
    assert guessed(tmp_path) == ("detection", {"source": "voc"})


@pytest.mark.parametrize(
    ("annotation", "task"),
    [
        ({"bbox": [0, 0, 4, 4]}, "detection"),
        ({"segmentation": [[0, 0, 4, 0, 4, 4]]}, "segmentation"),
        ({}, "classification"),
    ],
)
def test_coco(tmp_path, annotation, task):
    picture(tmp_path / "images/0.png")
    picture(tmp_path / "images/1.png")
    coco(tmp_path / "annotations/instances.json", ["0.png", "1.png"], **annotation)
    assert guessed(tmp_path) == (task, {"root": "/images", "annotations": "/annotations/instances.json"})


def test_coco_of_splits(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / f"{split}2017/0.png")
        coco(tmp_path / f"instances_{split}2017.json", ["0.png"], bbox=[0, 0, 4, 4])
        (tmp_path / f"captions_{split}2017.json").write_text("{}")
    task, data = guessed(tmp_path)
    assert task == "detection"
    assert data["annotations"] == "{'train': '/instances_train2017.json', 'val': '/instances_val2017.json'}"


@pytest.mark.parametrize(
    ("header", "cells", "task", "columns"),
    [
        ("path,label", ["cat", "dog"], "classification", None),
        ("path,label", ["1", "2"], "classification", None),
        ("image,tags", ["a;b", "b"], "multilabel", "{'image': 'image', 'label': 'tags'}"),
        ("path,label", ["1.5", "2.5"], "regression", None),
        ("path,sun,rain", ["0,1", "1,1"], "multilabel", "{'label': ['sun', 'rain']}"),
        (
            "filename,weight,height",
            ["5,1.5", "6,2"],
            "regression",
            "{'image': 'filename', 'label': ['weight', 'height']}",
        ),
    ],
)
def test_tables(tmp_path, header, cells, task, columns):
    for k in range(2):
        picture(tmp_path / f"photos/{k}.png")
    (tmp_path / "labels.csv").write_text("\n".join([header, *(f"{k}.png,{cell}" for k, cell in enumerate(cells))]))
    expected = {"manifest": "/labels.csv", "root": "/photos"} | ({"columns": columns} if columns else {})
    assert guessed(tmp_path) == (task, expected)


def test_images_without_labels_are_refused_with_what_would_do(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"does not say what is to be learnt: expected a folder a class"):
        guess_data({"root": str(tmp_path)})
    with pytest.raises(DataError, match="does not exist"):
        guess_data({"root": str(tmp_path / "none")})


def test_keys_that_are_given_are_followed(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,age\na.png,cat,1.5\n")
    assert guess_data({"root": "x", "masks": "y"}).task == "segmentation"
    assert guess_data({"manifest": str(tmp_path / "t.csv")}).task == "classification"
    assert guess_data({"manifest": str(tmp_path / "t.csv"), "columns": {"label": "age"}}).task == "regression"
    assert guess_data({"source": "scenes"}).task == "segmentation"
    assert guess_data({}).task == "classification"
