"""Regions and boxes of COCO, boxes of Pascal VOC, and composed scenes."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from placed_sets import by_name, noise, opened
from pycocotools import mask as coco_mask

from strategies import IGNORED, DataError
from trainers.data import centred
from trainers.data.found import Place
from trainers.data.learnt import placed_boxes
from trainers.data.sources.regions import RegionCodes, packed, region_fault
from trainers.data.sources.scenes import COUNT, SIDE, make_scenes
from trainers.data.sources.voc import find_voc

CODES = RegionCodes(("background", "a", "b"))
WIDTH, HEIGHT = 16, 12


@pytest.fixture(autouse=True, scope="module")
def in_a_folder_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("placed"))
        yield


def rectangle(left, top, width, height):
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def drawn(*regions, width=WIDTH, height=HEIGHT):
    return CODES.read(packed(width, height, regions))


def run_lengths(mask):
    flat = np.asfortranarray(mask).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_of_either_kind_are_drawn_exactly(seed, width, height, share):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    for counts in (text, run_lengths(mask)):
        shape = {"counts": counts, "size": [height, width]}
        assert region_fault(shape, width, height) == ""
        assert np.array_equal(drawn((1, shape), width=width, height=height), mask)


def test_of_regions_that_overlap_the_smaller_one_counts():
    large, small = (1, rectangle(0, 0, 10, 10)), (2, rectangle(4, 4, 4, 4))
    mask = drawn(large, small)
    assert np.array_equal(mask, drawn(small, large))
    assert (mask[4:8, 4:8] == 2).all()
    assert (mask == 1).sum() == 100 - 16
    assert (mask == 0).sum() == WIDTH * HEIGHT - 100


def test_crowds_do_not_count_but_objects_in_them_do():
    mask = drawn((1, rectangle(0, 0, 10, 10)), (IGNORED, rectangle(8, 8, 4, 4)))
    assert (mask[8:10, 8:10] == 1).all()
    assert (mask == IGNORED).sum() == 16 - 4


def test_a_region_of_several_polygons_is_one():
    mask = drawn((2, rectangle(0, 0, 2, 2) + rectangle(6, 6, 2, 2)))
    assert (mask == 2).sum() == 8


BAD_RUNS = {
    "too few": [[3, 4], "not those of 16 x 12 pixels"],
    "too many": [[3, 400], "not those of 16 x 12 pixels"],
    "below 0": [[-3, 195], "not those of 16 x 12 pixels"],
    "text of something else": ["a b", "not in COCO's compressed form"],
    "text that is cut off": ["P", "end within a number"],
}


@pytest.mark.parametrize("what", BAD_RUNS)
def test_run_lengths_of_another_image_are_refused(what):
    counts, message = BAD_RUNS[what]
    with pytest.raises(DataError, match=message):
        drawn((1, {"counts": counts, "size": [HEIGHT, WIDTH]}))


def test_a_polygon_outside_its_image_is_refused():
    with pytest.raises(DataError, match="a polygon reaches outside the image of 16 x 12 pixels"):
        drawn((1, rectangle(10, 5, 8, 4)))


def coco(count=8, **changes):
    """COCO content of images with a rectangle each, whose place depends on the image."""
    images = [{"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in range(count)]
    annotations = [
        {
            "id": k,
            "image_id": k,
            "category_id": 7 if k % 2 else 3,
            "bbox": [k, 2, 4, 5],
            "segmentation": rectangle(k, 2, 4, 5),
            "iscrowd": 0,
        }
        for k in range(count - 1)
    ]
    categories = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}, {"id": 9, "name": "never"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def write(folder, content):
    folder.mkdir(exist_ok=True)
    for k, entry in enumerate(content["images"]):
        noise(k, WIDTH, HEIGHT).save(folder / entry["file_name"])
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json")


def test_regions_of_coco_become_masks_on_a_background(tmp_path):
    data = opened("segmentation", "coco", annotations=write(tmp_path / "set", coco()))
    assert data.classes == ("background", "three", "seven", "never")
    for name, target in by_name(data).items():
        k = int(name[0])
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        if k < 7:
            mask[2:7, k : k + 4] = 1 + k % 2
        assert np.array_equal(target, centred(WIDTH, HEIGHT, 16).mask_to_square(mask))


def test_boxes_of_coco_lie_on_the_square_and_images_may_have_none(tmp_path, caplog):
    content = coco()
    content["annotations"] += [content["annotations"][0] | {"id": 99, "iscrowd": 1, "image_id": 5}]
    content["annotations"] += [content["annotations"][0] | {"id": 100, "image_id": 6, "bbox": [0, 0, 16, 12]}]
    with caplog.at_level(logging.WARNING):
        data = opened("detection", "coco", annotations=write(tmp_path / "set", content), image_size=32)
    assert "1 boxes of crowds (iscrowd) were left out" in caplog.text
    assert data.classes == ("three", "seven", "never")
    assert data.train.targets.dtype == torch.float32
    assert data.train.targets.shape == (len(data.train), 2, 5)
    assert "of 3 classes of boxes at 32 px" in data.summary()
    unused = [0, 0, 0, 0, -1]
    boxes = by_name(data)
    # Twice as large, below four black rows.
    assert boxes["1.png"].tolist() == [[2, 8, 10, 18, 1], unused]
    assert boxes["6.png"].tolist() == [[0, 4, 32, 28, 0], [12, 8, 20, 18, 0]]
    assert boxes["7.png"].tolist() == [unused, unused]


def spoilt(key, k, **fields):
    content = coco()
    content[key][k] = {name: value for name, value in (content[key][k] | fields).items() if value is not None}
    return content


BAD_IMAGES = {
    "a box outside": (
        "detection",
        spoilt("annotations", 1, bbox=[10, 2, 9, 4]),
        r"box \(10, 2, 19, 6\) reaches outside",
    ),
    "a box without area": ("detection", spoilt("annotations", 1, bbox=[3, 2, 0, 4]), r"box \(3, 2, 3, 6\) has no area"),
    "a box of less than none": ("detection", spoilt("annotations", 1, bbox=[3, 2, 4, -4]), "has no area"),
    "a box at the edge": ("detection", spoilt("annotations", 1, bbox=[16, 2, 0.5, 4]), "has no area within the image"),
    "another size": (
        "detection",
        spoilt("images", 1, width=17),
        "its labels are for 17 x 12 pixels, the file has 16 x 12 pixels",
    ),
    "another size than regions": (
        "segmentation",
        spoilt("images", 1, width=17),
        "its labels are for 17 x 12 pixels, the file has 16 x 12 pixels",
    ),
    "a polygon outside": (
        "segmentation",
        spoilt("annotations", 1, segmentation=rectangle(10, 2, 9, 4)),
        "its regions: a polygon reaches outside",
    ),
    "run lengths of another image": (
        "segmentation",
        spoilt("annotations", 1, segmentation={"counts": [5, 5], "size": [12, 16]}),
        "its regions: run lengths of a region are not those of 16 x 12 pixels",
    ),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_an_image_whose_labels_cannot_be_used_is_a_bad_image(tmp_path, what):
    task, content, message = BAD_IMAGES[what]
    path = write(tmp_path / "set", content)
    with pytest.raises(DataError, match=rf"1 of 8 images and their labels cannot be read.*\n  .*/1\.png: .*{message}"):
        opened(task, "coco", annotations=path)
    data = opened(task, "coco", annotations=path, on_bad_image="skip")
    assert sorted(by_name(data)) == [f"{k}.png" for k in (0, *range(2, 8))]


def test_images_that_do_not_exist_are_bad_images(tmp_path):
    path = write(tmp_path / "set", coco())
    (tmp_path / "set" / "3.png").unlink()
    for task in ("segmentation", "detection"):
        with pytest.raises(
            DataError, match=r"1 of 8 images and their labels cannot be read.*\n  .*/3\.png: No such file"
        ):
            opened(task, "coco", annotations=path)


STRUCTURE = {
    "no width": (spoilt("images", 2, width=None), r"images\[2\]: no width"),
    "a width of text": (spoilt("images", 2, width="16"), r"images\[2\]: width is '16', expected a whole number"),
    "no pixels": (spoilt("images", 2, height=0), r"images\[2\]: 16 x 0 pixels are no image"),
    "an annotation id twice": (spoilt("annotations", 2, id=1), r"annotations\[2\]: id 1 is that of another annotation"),
    "an image id twice": (spoilt("images", 2, id=1), r"images\[2\]: id 1 is that of 1\.png as well"),
    "no annotations": (coco(annotations=[]), r"set\.json has no annotations; task=detection learns from their bbox"),
    "no box": (spoilt("annotations", 2, bbox=None), r"annotations\[2\]: no bbox"),
    "three numbers": (
        spoilt("annotations", 2, bbox=[1, 2, 3]),
        r"annotations\[2\]: bbox is \[1, 2, 3\], expected four",
    ),
    "no number": (
        spoilt("annotations", 2, bbox=[1, 2, 3, float("nan")]),
        r"annotations\[2\]: bbox is \[1, 2, 3, nan\]",
    ),
    "half a crowd": (spoilt("annotations", 2, iscrowd=0.5), r"annotations\[2\]: iscrowd is 0\.5, expected 0 or 1"),
}
SHAPES = {
    "no polygon": ([], "segmentation is neither a list of polygons nor run lengths"),
    "two points": ([[0, 0, 3, 3]], "three points or more, two numbers each"),
    "half a point": ([[0, 0, 3, 3, 4, 4, 5]], "three points or more, two numbers each"),
    "text": ([[0, 0, 3, 3, 4, "4"]], "of something else than numbers"),
    "no counts": ({"size": [12, 16]}, "segmentation has no counts"),
    "a size of another image": (
        {"size": [16, 12], "counts": [192]},
        r"segmentation has the size \[16, 12\], its image",
    ),
}


@pytest.mark.parametrize("what", STRUCTURE)
def test_a_file_of_another_structure_is_refused_at_once(tmp_path, what):
    content, message = STRUCTURE[what]
    with pytest.raises(DataError, match=message):
        opened("detection", "coco", annotations=write(tmp_path / "set", content), on_bad_image="skip")


@pytest.mark.parametrize("what", SHAPES)
def test_regions_of_another_structure_are_refused_at_once(tmp_path, what):
    shape, message = SHAPES[what]
    content = spoilt("annotations", 2, segmentation=shape)
    with pytest.raises(DataError, match=rf"1 of 7 annotations cannot be used\n  annotations\[2\]: .*{message}"):
        opened("segmentation", "coco", annotations=write(tmp_path / "set", content), on_bad_image="skip")


BOXES = st.tuples(st.floats(0, 90), st.floats(0, 50), st.floats(0.1, 10), st.floats(0.1, 10))


@given(st.lists(BOXES, max_size=4), st.integers(8, 200))
def test_boxes_on_the_square_have_an_area_and_lie_within_the_picture(shapes, side):
    boxes = [(left, top, left + width, top + height, 3) for left, top, width, height in shapes]
    placed = placed_boxes(boxes, (100, 60), side)
    assert placed.shape == (len(boxes), 5)
    assert (placed[:, 4] == 3).all()
    assert (placed[:, :2] < placed[:, 2:4]).all()
    assert (placed[:, :4] >= 0).all()
    assert (placed[:, :4] <= side).all()
    back = centred(100, 60, side).boxes_to_picture(placed[:, :4].astype(np.float64))
    np.testing.assert_allclose(back, np.array(boxes).reshape(-1, 5)[:, :4], atol=1e-3)


def voc_xml(objects, size=(WIDTH, HEIGHT), before=""):
    shapes = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, difficult, left, top, right, bottom in objects
    )
    width, height = size
    return f"{before}<annotation><size><width>{width}</width><height>{height}</height></size>{shapes}</annotation>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for k in range(8):
        noise(k, WIDTH, HEIGHT).save(root / "JPEGImages" / f"{k}.jpg")
        objects = [("dog" if k % 2 else "cat", 0, k + 1, 3, k + 4, 7), ("cat", 1, 1, 1, 2, 2)]
        (root / "Annotations" / f"{k}.xml").write_text(voc_xml(objects if k else []))
    return root


def test_boxes_of_voc_count_pixels_from_one_and_leave_out_difficult_ones(voc, caplog):
    with caplog.at_level(logging.WARNING):
        data = opened("detection", "voc", root=str(voc))
    assert "7 boxes marked as difficult were left out" in caplog.text
    assert data.classes == ("cat", "dog")
    boxes = by_name(data)
    assert sorted(boxes) == [f"{k}.jpg" for k in range(8)]
    assert boxes["0.jpg"].tolist() == [[0, 0, 0, 0, -1]]
    # Pixels 4 to 7 of columns, 3 to 7 of rows; the picture begins after two black rows.
    assert boxes["3.jpg"].tolist() == [[3, 4, 7, 9, 1]]


def test_lists_of_voc_are_splits(voc):
    main = voc / "ImageSets" / "Main"
    for split, numbers in {"train": range(4), "val": (4, 5), "test": (6,)}.items():
        (main / f"{split}.txt").write_text("".join(f"{k}\n" for k in numbers))
    (main / "trainval.txt").write_text("7\n")
    data = opened("detection", "voc", root=str(voc))
    assert [len(split) for split in (data.train, data.val, data.test)] == [4, 2, 1]
    (main / "val.txt").write_text("4\n3\n")
    with pytest.raises(DataError, match=r"data\.root=.*: 1 lines cannot be used\n  .*val\.txt line 2: '3' is in train"):
        opened("detection", "voc", root=str(voc))


ENTITIES = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>'
VOC_FAULTS = {
    "no annotation": (None, r"Annotations/3\.xml: No such file"),
    "no xml": ("<annotation>", r"Annotations/3\.xml: no element found"),
    "entities": (voc_xml([], before=ENTITIES), "it declares a document type"),
    "a corner of text": (voc_xml([("cat", 0, "x", 1, 2, 2)]), "xmin is 'x', expected a number"),
    "no name": (voc_xml([("", 0, 1, 1, 2, 2)]), "an object has no name"),
    "no size that any image has": (voc_xml([], size=("nan", 3)), "width is nan, which no image has"),
    "another size": (voc_xml([], size=(99, 3)), "its labels are for 99 x 3 pixels, the file has 16 x 12 pixels"),
    "a box outside": (voc_xml([("cat", 0, 1, 1, 99, 2)]), r"box \(0, 0, 99, 2\) reaches outside"),
    "a box without area": (voc_xml([("cat", 0, 5, 1, 4, 2)]), r"box \(4, 0, 4, 2\) has no area"),
    "no box": ("<annotation><object><name>cat</name></object></annotation>", "'cat' has no bndbox"),
}


@pytest.mark.parametrize("what", VOC_FAULTS)
def test_an_annotation_of_voc_that_cannot_be_used_makes_a_bad_image(voc, what):
    content, message = VOC_FAULTS[what]
    path = voc / "Annotations" / "3.xml"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError) as caught:
        opened("detection", "voc", root=str(voc))
    assert re.search(rf"^1 of 8 images and their labels(?s:.)*\n  .*JPEGImages/3\.jpg: .*{message}", str(caught.value))
    assert "3.jpg" not in by_name(opened("detection", "voc", root=str(voc), on_bad_image="skip"))


def test_folders_that_are_not_those_of_voc_are_refused(voc):
    with pytest.raises(DataError, match=r"data\.root=.*JPEGImages has no folder JPEGImages, as Pascal VOC has"):
        find_voc(Place(task="detection", root=voc / "JPEGImages"))
    noise(50).save(voc / "JPEGImages" / "3.png")
    with pytest.raises(DataError, match="1 images have the name of another"):
        find_voc(Place(task="detection", root=voc))
    with pytest.raises(DataError, match=r"data\.source=voc has labels for detection only; for task=segmentation take"):
        find_voc(Place(task="segmentation", root=voc))


def test_boxes_of_scenes_enclose_what_masks_show():
    scenes = make_scenes()
    assert len(scenes.images) == len(scenes.masks) == len(scenes.boxes) == COUNT
    counts = [len(boxes) for boxes in scenes.boxes]
    assert set(counts) == {0, 1, 2, 3}
    for mask, boxes in zip(scenes.masks, scenes.boxes, strict=True):
        covered = np.zeros((SIDE, SIDE), bool)
        for left, top, right, bottom, digit in boxes:
            inner = mask[int(top) : int(bottom), int(left) : int(right)] == digit + 1
            covered[int(top) : int(bottom), int(left) : int(right)] |= inner
            # All four sides touch the digit.
            assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()
        assert np.array_equal(covered, mask > 0)


def test_every_digit_occurs_about_as_often_and_is_large_enough_to_be_read():
    scenes = make_scenes()
    objects = np.array([box for boxes in scenes.boxes for box in boxes])
    assert np.bincount(objects[:, 4].astype(int), minlength=10).min() > 150
    heights = objects[:, 3] - objects[:, 1]
    assert 18 <= np.median(heights) <= 36
    assert (heights < 12).mean() < 0.05


def test_scenes_are_always_alike():
    first = make_scenes()
    make_scenes.cache_clear()
    second = make_scenes()
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.masks, second.masks)
    assert first.boxes == second.boxes


def test_scenes_open_for_both_tasks_and_for_no_other(tmp_path):
    pixels = opened("segmentation", "scenes", image_size=64)
    boxes = opened("detection", "scenes", image_size=64)
    assert pixels.classes == ("background", *"0123456789")
    assert boxes.classes == tuple("0123456789")
    assert pixels.train.targets.shape == (1000, 64, 64)
    assert boxes.train.targets.shape == (1000, 3, 5)
    masks = dict(zip(pixels.train.names, pixels.train.targets.numpy(), strict=True))
    for name, rows in zip(boxes.train.names, boxes.train.targets.numpy(), strict=True):
        shown = {int(row[4]) + 1 for row in rows if row[4] >= 0}
        assert name not in masks or set(np.unique(masks[name]).tolist()) - {0} == shown
    with pytest.raises(DataError, match=r"data\.source=scenes has labels for segmentation and detection only"):
        opened("classification", "scenes")
    with pytest.raises(
        DataError, match=r"data\.source=digits has labels for classification only; .*=coco, masks or scenes"
    ):
        opened("segmentation", "digits")
