"""What is to be learnt from images, told from what lies in their folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strategies import DataError
from trainers.data.found import SPLIT_WORDS, SPLITS
from trainers.data.sources import IMAGE_SUFFIXES, checked_root, read_columns, read_header, shown, subfolders

_MASK_FOLDERS = ("masks", "mask", "SegmentationClass", "segmentation", "annotations", "labels", "gt")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "photos")
_TABLES = (".csv", ".tsv", ".parquet", ".pq")
_IMAGE_COLUMNS = ("path", "image", "filename", "file_name", "file", "filepath", "image_path")
_LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "tags", "y")
_OTHER_COLUMNS = ("split", "group", "id")
# Whole numbers of more different values are amounts, not classes.
_MOST_NUMBERED_CLASSES = 20
_TASKS_OF_SOURCES = {"scenes": "segmentation", "voc": "detection"}
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class Guess:
    """What a folder seems to be.

    Args:
        task: The task.
        data: Keys of a study's section ``data``.
        why: What was found, in a few words.
    """

    task: str
    data: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def guess_data(given: Mapping[str, Any]) -> Guess:
    """The task, and the keys of ``data`` that are missing, from the keys that are given and what lies there.

    Args:
        given: Keys of a study's section ``data``.

    Raises:
        DataError: A file or folder cannot be read, or nothing there says what is to be learnt.
    """
    if given.get("masks") is not None:
        return Guess("segmentation", why="data.masks")
    if given.get("annotations") is not None:
        return Guess(_task_of_coco(_first(given["annotations"])), why="data.annotations")
    if given.get("manifest") is not None:
        return _of_table(_first(given["manifest"]), given.get("columns") or {}, {})
    if given.get("source") in _TASKS_OF_SOURCES:
        return Guess(_TASKS_OF_SOURCES[given["source"]], why=f"data.source {given['source']}")
    if given.get("root") is None or any(given.get(key) is not None for key in ("source", "dataset", "shards")):
        return Guess("classification")
    root = checked_root(Path(given["root"]), "folder")
    found = next(filter(None, (look(root) for look in _LOOKS)), None)
    if found is None:
        raise DataError(
            f"data.root={shown(root)} does not say what is to be learnt: expected a folder a class, folders images and "
            "masks, a COCO json file, the folders of Pascal VOC, or a table with the columns path and label"
        )
    return found


def _first(files: str | Mapping[str, str]) -> Path:
    return Path(files if isinstance(files, str) else files.get("train") or next(iter(files.values())))


def _voc(root: Path) -> Guess | None:
    if not ((root / "JPEGImages").is_dir() and (root / "Annotations").is_dir()):
        return None
    return Guess("detection", {"source": "voc"}, "the folders of Pascal VOC")


def _coco(root: Path) -> Guess | None:
    """COCO's json files in the folder or in its folder ``annotations``: one, or one a split."""
    files = [file for place in (root, root / "annotations") for file in sorted(place.glob("*.json")) if _is_coco(file)]
    # Beside boxes, COCO has captions and key points of the same images.
    files = [file for file in files if file.name.startswith("instances")] or files
    if not files:
        return None
    by_split = _by_split(files)
    task = _task_of_coco(_first(by_split))
    folders = [root, *(root / name for name in _IMAGE_FOLDERS)]
    name = json.loads(_first(by_split).read_bytes())["images"][0].get("file_name", "")
    folder = next((folder for folder in folders if name and (folder / name).is_file()), root)
    places = {"annotations": _one_or_several(by_split), "root": str(folder)}
    return Guess(task, places, f"COCO's {', '.join(file.name for file in map(Path, by_split.values()))}")


def _is_coco(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) and content[key] for key in _LISTS)


def _task_of_coco(file: Path) -> str:
    """Boxes or outlines are to be found; categories alone are the labels of whole images."""
    try:
        entries = json.loads(file.read_bytes())["annotations"]
        keys: set[str] = set().union(*(entry.keys() for entry in entries[:100]))
        images = [entry["image_id"] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{shown(file)} is not in COCO's format: {error}") from error
    if "bbox" in keys:
        return "detection"
    if "segmentation" in keys:
        return "segmentation"
    return "classification" if len(set(images)) == len(images) else "multilabel"


def _masks(root: Path) -> Guess | None:
    folders = [root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()]
    for masks in (root / name for name in _MASK_FOLDERS):
        for images in folders if masks.is_dir() else []:
            pictures = (file for file in images.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            first = next(pictures, None)
            if first is not None and (masks / first.relative_to(images).with_suffix(".png")).is_file():
                places = {"root": str(images), "masks": str(masks)}
                return Guess("segmentation", places, f"folders {images.name} and {masks.name}")
    return None


def _folders(root: Path) -> Guess | None:
    inner = {path.name: path for path in subfolders(root)}
    held = inner["train"] if "train" in inner and subfolders(inner["train"]) else root
    classes = [path for path in subfolders(held) if path.name not in SPLIT_WORDS and _holds_images(path)]
    return Guess("classification", why="a folder a class") if len(classes) > 1 else None


def _holds_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*"))


def _table(root: Path) -> Guess | None:
    """A table beside the images, or one a split, whose first path is that of an image."""
    files = []
    for file in sorted(file for file in root.iterdir() if file.suffix.lower() in _TABLES):
        header = read_header(file)
        column = _known(header, _IMAGE_COLUMNS)
        if column is not None and _folder_of(file, column, root) is not None:
            files.append(file)
    if not files:
        return None
    by_split = _by_split(files)
    folder = _folder_of(files[0], _known(read_header(files[0]), _IMAGE_COLUMNS) or "", root)
    return _of_table(_first(by_split), {}, {"manifest": _one_or_several(by_split), "root": str(folder)})


def _folder_of(file: Path, column: str, root: Path) -> Path | None:
    """The folder in which a table's paths are those of images; None if there is none."""
    names = read_columns(file, [column]).columns[column][:1]
    folders = (root, *subfolders(root))
    return next((folder for folder in folders for name in names if name and (folder / str(name)).is_file()), None)


def _of_table(file: Path, columns: Mapping[str, Any], places: Mapping[str, Any]) -> Guess:
    """The task of a table's labels, and its columns where they have other names than the usual ones."""
    header = read_header(file)
    image = columns.get("image") or _known(header, _IMAGE_COLUMNS)
    label = columns.get("label") or _known(header, _LABEL_COLUMNS)
    taken = {image, columns.get("split"), columns.get("group"), *_OTHER_COLUMNS}
    # Without a column of labels, every other column is a class or an amount.
    labels = label or [name for name in header if name not in taken]
    listed = [labels] if isinstance(labels, str) else list(labels)
    if not listed or any(name not in header for name in listed):
        raise DataError(f"{shown(file)} has no column of labels; data.columns.label says which it is")
    cells = read_columns(file, listed).columns
    kind = _task_of_cells([cells[name] for name in listed])
    found = {key: value for key, value in (("image", image), ("label", labels)) if value not in (None, "path", "label")}
    data = {**places, **({"columns": {**found, **columns}} if found else {})}
    return Guess(kind, data, f"{file.name}, with labels in {', '.join(listed[:3])}{' ...' if len(listed) > 3 else ''}")


def _task_of_cells(columns: Sequence[Sequence[Any]]) -> str:
    values = [_number(cell) for column in columns for cell in column]
    numbers = {value for value in values if value is not None}
    are_numbers = len(numbers) > 0 and None not in values
    if len(columns) > 1:
        return "multilabel" if are_numbers and numbers <= {0.0, 1.0} else "regression"
    texts = [cell for cell in columns[0] if isinstance(cell, str | list)]
    if any(isinstance(text, list) or ";" in text or "|" in text for text in texts):
        return "multilabel"
    is_whole = all(number.is_integer() for number in numbers)
    if are_numbers and (not is_whole or len(numbers) > _MOST_NUMBERED_CLASSES):
        return "regression"
    return "classification"


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _known(header: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the names that is a column, however it is written."""
    written = {name.lower(): name for name in reversed(header)}
    return next((written[name] for name in names if name in written), None)


def _one_or_several(by_split: Mapping[str, str]) -> str | Mapping[str, str]:
    """Of a single file its name alone: it may say itself which image is of which split."""
    return by_split if len(by_split) > 1 else by_split["train"]


def _by_split(files: Sequence[Path]) -> dict[str, str]:
    """Files by the split that their name says; a single file is that of train, from which the others are cut.

    Raises:
        DataError: Several files may be of one split.
    """
    if len(files) == 1:
        return {"train": str(files[0])}
    found: dict[str, str] = {}
    for file in files:
        words = "".join(one if one.isalpha() else " " for one in file.stem.lower()).split()
        split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)
        if split is None or split in found:
            names = ", ".join(one.name for one in files)
            raise DataError(f"{shown(files[0].parent)} has several files of labels: {names}; name one, or one a split")
        found[split] = str(file)
    if "train" not in found:
        raise DataError(f"{shown(files[0].parent)} has labels of {', '.join(found)} but none of {SPLITS[0]}")
    return found


_LOOKS: Sequence[Callable[[Path], Guess | None]] = (_voc, _coco, _masks, _folders, _table)
