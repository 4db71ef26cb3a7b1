"""Images and their categories in COCO's json format."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias

from strategies import IGNORED, DataError
from trainers.data.found import SPLITS, Box, Found, Label, Place, listing, natural, quoted
from trainers.data.sources.checks import check_task, checked_files, checked_root, name_fault, shown
from trainers.data.sources.regions import RegionCodes, packed, region_fault

log = logging.getLogger(__name__)

_Kind: TypeAlias = type | UnionType

_LISTS = ("images", "annotations", "categories")
_CATEGORY: Mapping[str, _Kind] = {"id": int, "name": str}
_IMAGE: Mapping[str, _Kind] = {"id": int | str, "file_name": str}
_ANNOTATION: Mapping[str, _Kind] = {"image_id": int | str, "category_id": int}
_BACKGROUND = "background"
# The further fields that tasks with objects in an image need.
_PLACED_IMAGE: Mapping[str, _Kind] = {"width": int, "height": int}
_SHAPE_KEYS = {"segmentation": "segmentation", "detection": "bbox"}
_KINDS: Mapping[_Kind, str] = {int: "a whole number", str: "text", int | str: "a whole number or text"}


@dataclass(frozen=True, slots=True)
class _Shape:
    """An annotation's category and its ``bbox`` or ``segmentation``."""

    category: int
    shape: Any
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class _Image:
    """One image, with the category ids of its annotations and, if the task needs them, their shapes."""

    name: str
    path: Path
    split: str
    width: int
    height: int
    categories: set[int] = field(default_factory=set)
    shapes: list[_Shape] = field(default_factory=list)


def find_coco(place: Place) -> Found:
    """Images in ``data.annotations``, a json file in COCO's format, or one for each split.

    For classification and multi-label an image's labels are the categories of its annotations, ``iscrowd`` or not. For
    detection they are the boxes, without boxes of crowds. For segmentation they are the regions, with a further class
    for the background; regions of crowds are pixels that do not count. A ``file_name`` is relative to
    ``data.root`` if that is given, else to the json file's folder, or to the folder in it that the json's name ends
    with: ``instances_val2017.json`` belongs to ``val2017``. A file that does not exist counts as a bad image.
    Classification needs one category an image; for the other tasks an image may have none. Classes are in the order of
    the category ids. Classes without an image are left out with a warning, but kept for detection and segmentation.

    Raises:
        DataError: A file is no COCO json, or contradicts itself or another file; or an image of a classification has
            not exactly one category.
    """
    check_task(place, "coco", "classification", "multilabel", "segmentation", "detection")
    files = checked_files(place.files, "coco", "data.annotations", "a COCO json file")
    root = None if place.root is None else checked_root(place.root, "coco")
    names: dict[int, str] = {}
    images: list[_Image] = []
    folders: list[str] = []
    for split, path in files.items():
        content = _content(path)
        categories = _categories(content["categories"], path)
        _merge(categories, names, path)
        folder = _image_folder(content["images"], path.parent if root is None else root, path)
        folders.append(shown(folder.resolve()))
        by_id = _images(content["images"], split or "train", folder, path, place.task)
        _annotate(by_id, content["annotations"], categories, path, place.task)
        images += by_id.values()
    _refuse_twice(images)
    images.sort(key=lambda image: (natural(image.name), SPLITS.index(image.split)))
    classes = _CLASSES[place.task](images, names)
    is_placed = place.task in _SHAPE_KEYS
    return Found(
        images=[image.path for image in images],
        labels=_LABELS[place.task](images, names, classes),
        names=[shown(image.path) for image in images],
        splits=[image.split for image in images],
        classes=classes,
        codes=RegionCodes(classes) if place.task == "segmentation" else None,
        sizes=[(image.width, image.height) for image in images] if is_placed else None,
        looked_in=f"file names were looked for in {', '.join(dict.fromkeys(folders))}; data.root names another folder",
    )


def _content(path: Path) -> Mapping[str, Sequence[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)} cannot be read as a json file: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{shown(path)} is not in COCO's format: expected an object, found a {type(content).__name__}")
    missing = [key for key in _LISTS if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{shown(path)} is not in COCO's format: it lacks the lists {quoted(missing)}")
    if not content["images"]:
        raise DataError(f"{shown(path)} lists no images")
    return content


def _categories(entries: Sequence[Any], path: Path) -> dict[int, str]:
    """Names of the categories by id."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}

    def take(entry: Any) -> None:
        _check_fields(entry, _CATEGORY)
        number, name = entry["id"], shown(entry["name"].strip())
        if not name:
            raise ValueError("the name is empty")
        if number in names:
            raise ValueError(f"id {number} is that of '{names[number]}' as well")
        if name in ids:
            raise ValueError(f"'{name}' is the name of id {ids[name]} as well")
        names[number], ids[name] = name, number

    _take_all(entries, take, "categories", path)
    return names


def _merge(categories: Mapping[int, str], names: dict[int, str], path: Path) -> None:
    """Add the categories of one file to the categories of the files before it."""
    ids = {name: number for number, name in names.items()}
    for number, name in categories.items():
        other = names.get(number, name)
        if other != name:
            raise DataError(f"{shown(path)} calls category {number} '{name}', another file calls it '{other}'")
        if ids.get(name, number) != number:
            raise DataError(f"{shown(path)} has '{name}' as category {number}, another file as {ids[name]}")
        names[number] = name


def _image_folder(entries: Sequence[Any], root: Path, path: Path) -> Path:
    named = root / path.stem.rpartition("_")[2]
    first = entries[0].get("file_name") if isinstance(entries[0], dict) else None
    there = isinstance(first, str) and not name_fault(first) and (root / first).exists()
    return named if named.is_dir() and not there else root


def _images(entries: Sequence[Any], split: str, root: Path, path: Path, task: str) -> dict[int | str, _Image]:
    """Images by id, still without categories."""
    images: dict[int | str, _Image] = {}
    sized = _PLACED_IMAGE if task in _SHAPE_KEYS else {}

    def take(entry: Any) -> None:
        _check_fields(entry, {**_IMAGE, **sized})
        number, name = entry["id"], entry["file_name"]
        if reason := name_fault(name):
            raise ValueError(reason)
        if number in images:
            raise ValueError(f"id {number!r} is that of {shown(images[number].name)} as well")
        width, height = (entry[key] if sized else 0 for key in _PLACED_IMAGE)
        if sized and not (width > 0 and height > 0):
            raise ValueError(f"{width} x {height} pixels are no image")
        images[number] = _Image(name, root / name, split, width, height)

    _take_all(entries, take, "images", path)
    return images


def _annotate(
    images: Mapping[int | str, _Image], entries: Sequence[Any], categories: Mapping[int, str], path: Path, task: str
) -> None:
    crowds = 0
    ids: set[int | str] = set()

    def take(entry: Any) -> None:
        nonlocal crowds
        _check_fields(entry, _ANNOTATION)
        image, category = entry["image_id"], entry["category_id"]
        if image not in images:
            raise ValueError(f"no image has the id {image!r}")
        if category not in categories:
            raise ValueError(f"no category has the id {category}")
        images[image].categories.add(category)
        if task in _SHAPE_KEYS:
            _check_twice(entry.get("id"), ids)
            shape = _shape(entry, _SHAPE_KEYS[task], images[image])
            crowds += shape.is_crowd
            images[image].shapes.append(shape)

    if task in _SHAPE_KEYS and not entries:
        raise DataError(f"{shown(path)} has no annotations; task={task} learns from their {_SHAPE_KEYS[task]}")
    _take_all(entries, take, "annotations", path)
    if crowds and task == "detection":
        log.warning("%s: %d boxes of crowds (iscrowd) were left out", shown(path), crowds)


def _check_twice(number: Any, ids: set[int | str]) -> None:
    if number is not None and not isinstance(number, int | str):
        raise ValueError(f"id is {shown(repr(number)[:60])}, expected a whole number or text")
    if number in ids:
        raise ValueError(f"id {number!r} is that of another annotation as well")
    if number is not None:
        ids.add(number)


def _shape(entry: Mapping[str, Any], key: str, image: _Image) -> _Shape:
    if key not in entry:
        raise ValueError(f"no {key}")
    shape, crowd = entry[key], entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {shown(repr(crowd)[:60])}, expected 0 or 1")
    if key == "segmentation":
        fault = region_fault(shape, image.width, image.height)
    else:
        numbers = isinstance(shape, list) and all(type(value) in {int, float} for value in shape)
        usable = numbers and len(shape) == 4 and all(map(math.isfinite, shape))
        fault = "" if usable else f"bbox is {shown(repr(shape)[:60])}, expected four numbers: x, y, width, height"
    if fault:
        raise ValueError(fault)
    return _Shape(entry["category_id"], shape, bool(crowd))


def _take_all(entries: Sequence[Any], take: Callable[[Any], None], key: str, path: Path) -> None:
    """Take every entry, and refuse all unusable entries in one error."""
    faults: list[str] = []
    for k, entry in enumerate(entries):
        try:
            take(entry)
        except ValueError as reason:
            faults.append(f"{key}[{k}]: {reason}")
    if faults:
        raise DataError(f"{shown(path)}: {len(faults):,} of {len(entries):,} {key} cannot be used{listing(faults)}")


def _check_fields(entry: Any, kinds: Mapping[str, _Kind]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found a {type(entry).__name__}")
    for key, kind in kinds.items():
        if key not in entry:
            raise ValueError(f"no {key}")
        if not isinstance(entry[key], kind):
            raise ValueError(f"{key} is {shown(repr(entry[key])[:60])}, expected {_KINDS[kind]}")


def _refuse_twice(images: Sequence[_Image]) -> None:
    """Refuse images that are listed twice, because such an image could be in both train and test."""
    seen: set[Path] = set()
    twice: list[str] = []
    for image in images:
        if image.path in seen:
            twice.append(shown(image.path))
        seen.add(image.path)
    if twice:
        raise DataError(f"data.annotations: {len(twice):,} images are listed more than once{listing(twice)}")


def _one_class(images: Sequence[_Image], names: Mapping[int, str], classes: Sequence[str]) -> list[Label]:
    others = [
        f"{shown(image.name)}: {quoted(names[number] for number in image.categories) or 'none'}"
        for image in images
        if len(image.categories) != 1
    ]
    if others:
        raise DataError(
            f"data.annotations: {len(others):,} of {len(images):,} images have no category or several, where "
            f"classification needs one; task=multilabel takes them as they are{listing(others)}"
        )
    return [names[number] for image in images for number in image.categories]


def _several_classes(images: Sequence[_Image], names: Mapping[int, str], classes: Sequence[str]) -> list[Label]:
    return [tuple(names[number] for number in sorted(image.categories)) for image in images]


def _boxes(images: Sequence[_Image], names: Mapping[int, str], classes: Sequence[str]) -> list[Label]:
    index = {number: classes.index(name) for number, name in names.items()}

    def box(shape: _Shape) -> Box:
        left, top, width, height = map(float, shape.shape)
        return left, top, left + width, top + height, index[shape.category]

    return [tuple(sorted(box(shape) for shape in image.shapes if not shape.is_crowd)) for image in images]


def _regions(images: Sequence[_Image], names: Mapping[int, str], classes: Sequence[str]) -> list[Label]:
    index = {number: classes.index(name) for number, name in names.items()}
    return [
        packed(
            image.width,
            image.height,
            [(IGNORED if one.is_crowd else index[one.category], one.shape) for one in image.shapes],
        )
        for image in images
    ]


_LABELS: Mapping[str, Callable[[Sequence[_Image], Mapping[int, str], Sequence[str]], list[Label]]] = {
    "classification": _one_class,
    "multilabel": _several_classes,
    "segmentation": _regions,
    "detection": _boxes,
}


def _used_classes(images: Sequence[_Image], names: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the categories that at least one image has, in the order of their ids."""
    used = {number for image in images for number in image.categories}
    unused = [name for number, name in names.items() if number not in used]
    if unused:
        log.warning("data.annotations: no image has the categories %s, which were left out", quoted(unused))
    return tuple(names[number] for number in sorted(used))


def _all_classes(images: Sequence[_Image], names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[number] for number in sorted(names))


def _classes_and_background(images: Sequence[_Image], names: Mapping[int, str]) -> tuple[str, ...]:
    # Some files list the background as a category of its own.
    return _BACKGROUND, *(name for name in _all_classes(images, names) if name != _BACKGROUND)


_CLASSES: Mapping[str, Callable[[Sequence[_Image], Mapping[int, str]], tuple[str, ...]]] = {
    "classification": _used_classes,
    "multilabel": _used_classes,
    "segmentation": _classes_and_background,
    "detection": _all_classes,
}
