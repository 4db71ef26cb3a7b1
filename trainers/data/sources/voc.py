"""Images and boxes in the folders of Pascal VOC."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from strategies import DataError
from trainers.data.found import SPLITS, Box, Found, Place, listing, natural
from trainers.data.sources.checks import check_task, checked_root, name_fault, shown
from trainers.data.sources.folders import images_below

log = logging.getLogger(__name__)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class _Labels:
    """The content of an annotation.

    Args:
        size: Width and height of the image; None if the annotation does not say.
        boxes: Left, top, right, bottom and name of each object.
        difficult: Number of objects that were left out.
        fault: The reason why the annotation cannot be used; empty if it can.
    """

    size: tuple[int, int] | None = None
    boxes: tuple[tuple[float, float, float, float, str], ...] = ()
    difficult: int = 0
    fault: str = ""


def find_voc(place: Place) -> Found:
    """Images in ``data.root/JPEGImages``, each with its boxes in ``Annotations/<name>.xml``.

    The lists ``ImageSets/Main/train.txt``, ``val.txt`` and ``test.txt`` are the splits; without any of them all images
    are train. Objects that are marked as difficult are left out, and an image may have no box. A box's corners are its
    first and last pixels, counted from 1. An image without its file or annotation, or whose annotation cannot be used,
    counts as a bad image. Classes are in natural order.

    Raises:
        DataError: A folder is missing, there are no images, a list names an image twice, two images have one name, or
            the task is not detection.
    """
    check_task(place, "voc", "detection")
    root = checked_root(place.root, "voc")
    for name in ("JPEGImages", "Annotations"):
        if not (root / name).is_dir():
            raise DataError(f"data.root={shown(root)} has no folder {name}, as Pascal VOC has")
    files = _files(root)
    splits = _splits(root) or dict.fromkeys(sorted({*files, *_annotated(root)}, key=natural), "train")
    labels = [_read(root / "Annotations" / f"{stem}.xml") for stem in splits]
    difficult = sum(one.difficult for one in labels)
    if difficult:
        log.warning("data.root=%s: %d boxes marked as difficult were left out", shown(root), difficult)
    classes = tuple(sorted({name for one in labels for *_, name in one.boxes}, key=natural))
    index = {name: k for k, name in enumerate(classes)}
    images = [files.get(stem, root / "JPEGImages" / f"{stem}.jpg") for stem in splits]
    return Found(
        images=images,
        labels=[_label(one, index) for one in labels],
        names=[shown(path) for path in images],
        splits=list(splits.values()),
        classes=classes,
        sizes=[one.size for one in labels],
        faults={k: one.fault for k, one in enumerate(labels) if one.fault},
    )


def _label(one: _Labels, index: Mapping[str, int]) -> tuple[Box, ...]:
    return tuple(sorted((left, top, right, bottom, index[name]) for left, top, right, bottom, name in one.boxes))


def _files(root: Path) -> dict[str, Path]:
    """Image files by their names in lists: the path below JPEGImages without its suffix."""
    folder = root / "JPEGImages"
    files: dict[str, Path] = {}
    twice = []
    for path in images_below(folder)[0]:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if files.setdefault(name, path) != path:
            twice.append(f"{shown(files[name])} and {shown(path)}")
    if twice:
        raise DataError(f"data.root={shown(root)}: {len(twice):,} images have the name of another{listing(twice)}")
    return files


def _annotated(root: Path) -> list[str]:
    folder = root / "Annotations"
    return [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.xml")]


def _splits(root: Path) -> dict[str, str]:
    """The split of each name in the lists; empty without lists."""
    splits: dict[str, str] = {}
    faults: list[str] = []
    for split in SPLITS:
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            # Lists of a single class have a second column.
            name = line.split()[0]
            fault = name_fault(name) or (f"'{name}' is in {splits[name]}.txt as well" if name in splits else "")
            if fault:
                faults.append(f"{shown(path)} line {number}: {fault}")
            else:
                splits[name] = split
    if faults:
        raise DataError(f"data.root={shown(root)}: {len(faults):,} lines cannot be used{listing(faults)}")
    return splits


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise DataError(f"data.root: {shown(path)} cannot be read: {error}") from error


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses declarations of document types: a few lines of entities in them can fill the memory."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("it declares a document type")


def _read(path: Path) -> _Labels:
    try:
        content = path.read_bytes()
        tree = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDocumentType()))
        return _labels(tree)
    except OSError as error:
        return _Labels(fault=f"{shown(path)}: {error.strerror or type(error).__name__}")
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        # LookupError is for an encoding that Python does not know.
        return _Labels(fault=f"{shown(path)}: {error}")


def _labels(tree: ElementTree.Element) -> _Labels:
    objects = tree.findall("object")
    easy = [one for one in objects if (one.findtext("difficult") or "0").strip() != "1"]
    size = tree.find("size")
    return _Labels(
        size=None if size is None else (int(_number(size, "width")), int(_number(size, "height"))),
        boxes=tuple(map(_box, easy)),
        difficult=len(objects) - len(easy),
    )


def _box(entry: ElementTree.Element) -> tuple[float, float, float, float, str]:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    box = entry.find("bndbox")
    if box is None:
        raise ValueError(f"'{name}' has no bndbox")
    left, top, right, bottom = (_number(box, corner) for corner in _CORNERS)
    # The pixel with number 1 reaches from 0 to 1.
    return left - 1, top - 1, right, bottom, name


def _number(entry: ElementTree.Element, tag: str) -> float:
    text = (entry.findtext(tag) or "").strip()
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{tag} is {text!r}, expected a number") from None
    if not abs(number) < 1e9:
        raise ValueError(f"{tag} is {text}, which no image has")
    return number
