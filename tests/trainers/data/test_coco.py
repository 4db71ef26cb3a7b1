"""Images and labels in COCO's json format."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from strategies import DataError
from trainers.data.found import Place, fetch
from trainers.data.labels import make_targets
from trainers.data.sources.coco import find_coco

CATEGORIES = {90: "zebra", 3: "ant", 17: "cat"}


def coco(shows, categories=CATEGORIES, first=1):
    """COCO content of images ``0.png`` and so on, each showing the categories of the given ids."""
    pairs = [(first + k, number) for k, numbers in enumerate(shows) for number in numbers]
    return {
        "images": [{"id": first + k, "file_name": f"{k}.png", "height": 9, "width": 7} for k in range(len(shows))],
        "annotations": [
            {"id": k, "image_id": image, "category_id": number, "iscrowd": k % 2, "bbox": [0, 0, 2, 2]}
            for k, (image, number) in enumerate(pairs)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        (path.parent / entry["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(path.parent / entry["file_name"])
    path.write_text(json.dumps(content))
    return str(path)


def find(task="classification", root=None, **files):
    return find_coco(
        Place(task=task, root=root, files={"" if split == "one" else split: files[split] for split in files})
    )


def test_images_of_one_category_are_classified_in_the_order_of_category_ids(tmp_path):
    found = find(one=write(tmp_path / "set.json", coco([[3], [90, 90], [17], [3]])))
    assert found.classes == ("ant", "cat", "zebra")
    assert list(found.labels) == ["ant", "zebra", "cat", "ant"]
    assert list(found.splits) == ["train"] * 4
    assert make_targets(found, "classification").values.tolist() == [0, 2, 1, 0]
    assert all(fetch(image).startswith(b"\x89PNG") for image in found.images)


def test_an_image_of_a_multilabel_set_shows_any_number_of_categories(tmp_path):
    found = find("multilabel", one=write(tmp_path / "set.json", coco([[90, 3, 90], [], [17]])))
    assert list(found.labels) == [("ant", "zebra"), (), ("cat",)]
    assert make_targets(found, "multilabel").values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_file_for_each_split_brings_its_own_folder_and_image_ids(tmp_path):
    train = write(tmp_path / "train" / "set.json", coco([[3], [90]]))
    val = write(tmp_path / "val" / "set.json", coco([[90], [3]], {3: "ant", 90: "zebra"}))
    found = find(train=train, val=val)
    assert list(zip(found.names, found.labels, found.splits, strict=True)) == [
        (str(tmp_path / "train" / "0.png"), "ant", "train"),
        (str(tmp_path / "val" / "0.png"), "zebra", "val"),
        (str(tmp_path / "train" / "1.png"), "zebra", "train"),
        (str(tmp_path / "val" / "1.png"), "ant", "val"),
    ]
    assert found.classes == ("ant", "zebra")


def test_the_folders_that_coco_names_its_splits_by_are_found(tmp_path):
    for split in ("train2017", "val2017"):
        write(tmp_path / split / "set.json", coco([[3], [90]]))
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / split / "set.json").rename(tmp_path / "annotations" / f"instances_{split}.json")
    files = {split: str(tmp_path / "annotations" / f"instances_{split}2017.json") for split in ("train", "val")}
    found = find(root=tmp_path, **files)
    assert {(image, split) for image, split in zip(found.images, found.splits, strict=True)} == {
        (tmp_path / f"{split}2017" / f"{k}.png", split) for split in ("train", "val") for k in range(2)
    }
    assert all(fetch(image) for image in found.images)


def test_file_names_lie_below_the_root_and_may_have_folders(tmp_path):
    content = coco([[3], [90]])
    content["images"][0]["file_name"] = "deep/é/0.png"
    path = write(tmp_path / "images" / "set.json", content)
    Path(path).rename(tmp_path / "set.json")
    found = find(one=str(tmp_path / "set.json"), root=tmp_path / "images")
    assert list(found.images) == [tmp_path / "images" / "1.png", tmp_path / "images" / "deep/é/0.png"]


def test_an_image_that_does_not_exist_is_a_bad_image(tmp_path):
    path = write(tmp_path / "set.json", coco([[3], [90]]))
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="No such file"):
        fetch(find(one=path).images[1])


def test_the_order_of_the_lists_makes_no_difference(tmp_path):
    content = coco([[3, 17], [90], [], [17]] * 4)
    one = find("multilabel", one=write(tmp_path / "set.json", content))
    other = find(
        "multilabel", one=write(tmp_path / "set.json", {key: entries[::-1] for key, entries in content.items()})
    )
    assert one == other


def test_ids_of_images_may_be_text(tmp_path):
    content = coco([[3], [90]])
    for entry in content["images"]:
        entry["id"] = f"image {entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image {entry['image_id']}"
    assert list(find(one=write(tmp_path / "set.json", content)).labels) == ["ant", "zebra"]


def test_categories_that_no_image_has_are_left_out_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = find(one=write(tmp_path / "set.json", coco([[3], [90]])))
    assert found.classes == ("ant", "zebra")
    assert "no image has the categories 'cat'" in caplog.text


def test_images_without_one_category_are_counted_and_named_for_classification(tmp_path):
    with pytest.raises(DataError, match="2 of 3 images have no category or several") as caught:
        find(one=write(tmp_path / "set.json", coco([[3, 90], [], [17]])))
    assert "task=multilabel" in str(caught.value)
    assert "0.png: 'ant', 'zebra'" in str(caught.value)
    assert "1.png: none" in str(caught.value)


def test_regression_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.source=coco has labels for classification, multilabel, seg"):
        find("regression", one=write(tmp_path / "set.json", coco([[3]])))


def changed(key, k, **fields):
    """Content whose entry ``k`` of a list has other fields; one that is None is gone."""
    content = coco([[3], [90], [17]])
    content[key][k] = {name: value for name, value in (content[key][k] | fields).items() if value is not None}
    return content


CONTENTS = {
    "a list": ([], "is not in COCO's format: expected an object, found a list"),
    "no lists": ({"images": [], "categories": {}}, "lacks the lists 'annotations', 'categories'"),
    "no images": ({"images": [], "annotations": [], "categories": []}, "lists no images"),
    "an image of text": (coco([[3]]) | {"images": ["0.png"]}, r"images\[0\]: expected an object, found a str"),
    "no file name": (
        changed("images", 1, file_name=None),
        r"1 of 3 images cannot be used\n  images\[1\]: no file_name",
    ),
    "an empty file name": (changed("images", 1, file_name=" "), r"images\[1\]: empty path"),
    "a file name with NUL": (changed("images", 1, file_name="a\0b"), "a NUL character in the path"),
    "half a character": (changed("images", 1, file_name="\ud83d.png"), r"characters in the path '\\ud83d.png'"),
    "a number for a file name": (changed("images", 1, file_name=7), "file_name is 7, expected text"),
    "an image id twice": (changed("images", 1, id=1), r"images\[1\]: id 1 is that of 0.png as well"),
    "a file name twice": (changed("images", 1, file_name="./0.png"), r"1 images are listed more than once\n  .*/0.png"),
    "an image id of a list": (changed("images", 1, id=[1]), r"id is \[1\], expected a whole number or text"),
    "no image": (changed("annotations", 2, image_id=None), r"annotations\[2\]: no image_id"),
    "no such image": (changed("annotations", 2, image_id=9), r"annotations\[2\]: no image has the id 9"),
    "no category": (changed("annotations", 2, category_id=None), r"annotations\[2\]: no category_id"),
    "no such category": (changed("annotations", 2, category_id=9), r"annotations\[2\]: no category has the id 9"),
    "a category by name": (
        changed("annotations", 2, category_id="ant"),
        "category_id is 'ant', expected a whole number",
    ),
    "no category id": (changed("categories", 0, id=None), r"categories\[0\]: no id"),
    "no category name": (changed("categories", 0, name=" "), r"categories\[0\]: the name is empty"),
    "a category id twice": (changed("categories", 1, id=90), r"categories\[1\]: id 90 is that of 'zebra' as well"),
    "a category name twice": (changed("categories", 1, name="zebra"), r"\[1\]: 'zebra' is the name of id 90 as well"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_content_that_cannot_be_used_is_refused(tmp_path, case):
    content, message = CONTENTS[case]
    (tmp_path / "set.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        find(one=str(tmp_path / "set.json"))
    assert str(caught.value).encode("utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"\x89PNG"])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.json cannot be read as a json file"):
        find(one=str(tmp_path / "set.json"))


def test_many_faults_are_named_at_once(tmp_path):
    content = coco([[3]] * 30)
    for entry in content["annotations"][:25]:
        entry["category_id"] = 4
    with pytest.raises(DataError, match=r"25 of 30 annotations cannot be used(?s:.)*\.\.\. and 15 more"):
        find(one=write(tmp_path / "set.json", content))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({3: "ant", 90: "horse"}, r"val\.json calls category 90 'horse', another file calls it 'zebra'"),
        ({4: "ant", 90: "zebra"}, r"val\.json has 'ant' as category 4, another file as 3"),
    ],
)
def test_files_that_disagree_on_categories_are_refused(tmp_path, categories, message):
    train = write(tmp_path / "train.json", coco([[3], [90], [17]]))
    with pytest.raises(DataError, match=message):
        find(train=train, val=write(tmp_path / "val.json", coco([[90]], categories)))


def test_an_image_in_two_splits_is_refused(tmp_path):
    files = {split: write(tmp_path / f"{split}.json", coco([[3], [90]])) for split in ("train", "test")}
    with pytest.raises(DataError, match=r"2 images are listed more than once\n  .*/0\.png"):
        find(**files)


def test_annotations_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.source=coco needs data\.annotations, a COCO json file"):
        find()
    with pytest.raises(DataError, match=r"data\.annotations=.*gone\.json does not exist"):
        find(one=str(tmp_path / "gone.json"))
    with pytest.raises(DataError, match=r"data\.annotations\.val=.* is not a file"):
        find(val=str(tmp_path))
    with pytest.raises(DataError, match=r"data\.annotations\.trian is of no split \(did you mean 'train'\?\)"):
        find(trian=str(tmp_path))
