"""Images and their categories in COCO's json format."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias

from strategies import DataError
from trainers.data.found import SPLITS, Found, Label, Place, listing, natural, quoted
from trainers.data.places import check_task, checked_files, checked_root, name_fault, shown

log = logging.getLogger(__name__)

_Kind: TypeAlias = type | UnionType

_LISTS = ("images", "annotations", "categories")
_CATEGORY: Mapping[str, _Kind] = {"id": int, "name": str}
_IMAGE: Mapping[str, _Kind] = {"id": int | str, "file_name": str}
_ANNOTATION: Mapping[str, _Kind] = {"image_id": int | str, "category_id": int}
_KINDS: Mapping[_Kind, str] = {int: "a whole number", str: "text", int | str: "a whole number or text"}


@dataclass(frozen=True, slots=True)
class _Image:
    """One image, with the ids of its annotations' categories."""

    name: str
    path: Path
    split: str
    categories: set[int] = field(default_factory=set)


def find_coco(place: Place) -> Found:
    """Images in ``data.annotations``, a json file in COCO's format, or one for each split.

    An image's labels are the categories of its annotations, ``iscrowd`` or not; boxes and masks are not used. A
    ``file_name`` is relative to ``data.root`` if that is given, else to the json file's folder, or to the folder in it
    that the json's name ends with, as ``instances_val2017.json`` belongs to ``val2017``; a file that does not exist
    counts as a bad image. Classification needs one category an image; in a multi-label set an image may have
    none. Classes are in the order of the category ids; those that no image has are left out with a warning.

    Raises:
        DataError: A file is no COCO json, or contradicts itself or another; or images have not one category each
            where they should.
    """
    check_task(place, "coco", "multilabel")
    files = checked_files(place.files, "coco", "data.annotations", "a COCO json file")
    root = None if place.root is None else checked_root(place.root, "coco")
    names: dict[int, str] = {}
    images: list[_Image] = []
    for split, path in files.items():
        content = _content(path)
        categories = _categories(content["categories"], path)
        _merge(categories, names, path)
        folder = _image_folder(content["images"], path.parent if root is None else root, path)
        by_id = _images(content["images"], split or "train", folder, path)
        _annotate(by_id, content["annotations"], categories, path)
        images += by_id.values()
    _refuse_twice(images)
    images.sort(key=lambda image: (natural(image.name), SPLITS.index(image.split)))
    return Found(
        images=[image.path for image in images],
        labels=_LABELS[place.task](images, names),
        names=[shown(image.path) for image in images],
        splits=[image.split for image in images],
        classes=_classes(images, names),
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
    """Put the categories of one file to those of the files before it."""
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


def _images(entries: Sequence[Any], split: str, root: Path, path: Path) -> dict[int | str, _Image]:
    """Images by id, as yet without categories."""
    images: dict[int | str, _Image] = {}

    def take(entry: Any) -> None:
        _check_fields(entry, _IMAGE)
        number, name = entry["id"], entry["file_name"]
        if reason := name_fault(name):
            raise ValueError(reason)
        if number in images:
            raise ValueError(f"id {number!r} is that of {shown(images[number].name)} as well")
        images[number] = _Image(name, root / name, split)

    _take_all(entries, take, "images", path)
    return images


def _annotate(
    images: Mapping[int | str, _Image], entries: Sequence[Any], categories: Mapping[int, str], path: Path
) -> None:
    def take(entry: Any) -> None:
        _check_fields(entry, _ANNOTATION)
        image, category = entry["image_id"], entry["category_id"]
        if image not in images:
            raise ValueError(f"no image has the id {image!r}")
        if category not in categories:
            raise ValueError(f"no category has the id {category}")
        images[image].categories.add(category)

    _take_all(entries, take, "annotations", path)


def _take_all(entries: Sequence[Any], take: Callable[[Any], None], key: str, path: Path) -> None:
    """Take every entry, and refuse all that cannot be used at once."""
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
    """Listed twice, an image could stand in train and in test."""
    seen: set[Path] = set()
    twice: list[str] = []
    for image in images:
        if image.path in seen:
            twice.append(shown(image.path))
        seen.add(image.path)
    if twice:
        raise DataError(f"data.annotations: {len(twice):,} images are listed more than once{listing(twice)}")


def _one_class(images: Sequence[_Image], names: Mapping[int, str]) -> list[Label]:
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


def _several_classes(images: Sequence[_Image], names: Mapping[int, str]) -> list[Label]:
    return [tuple(names[number] for number in sorted(image.categories)) for image in images]


_LABELS: Mapping[str, Callable[[Sequence[_Image], Mapping[int, str]], list[Label]]] = {
    "classification": _one_class,
    "multilabel": _several_classes,
}


def _classes(images: Sequence[_Image], names: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the categories that some image has, in the order of their ids."""
    used = {number for image in images for number in image.categories}
    unused = [name for number, name in names.items() if number not in used]
    if unused:
        log.warning("data.annotations: no image has the categories %s, which were left out", quoted(unused))
    return tuple(names[number] for number in sorted(used))
