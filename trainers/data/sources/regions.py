"""Regions of COCO's json format, drawn as a mask."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from strategies import IGNORED, DataError
from trainers.data.found import Content
from trainers.data.pixels import check_pixels

#: The class index (``IGNORED`` for a region that does not count) and the ``segmentation`` of an annotation.
Region: TypeAlias = tuple[int, Any]

# Pixels that a polygon may reach beyond its image, because annotation tools round.
_TOLERANCE = 1.0


@dataclass(frozen=True, slots=True)
class RegionCodes:
    """Masks that are drawn from the regions of an image.

    Args:
        known: Names of the classes; the first is the class of pixels outside every region.
    """

    known: tuple[str, ...]

    def key(self) -> str:
        """A key for all that the classes depend on besides the regions."""
        return "coco 1"

    def names(self, largest: int) -> tuple[str, ...]:
        """Names of all classes, even of those that do not occur."""
        return self.known

    def size(self, content: Content) -> tuple[int, int]:
        """Width and height of the regions' image."""
        width, height, _ = _unpacked(content)
        return width, height

    def read(self, content: Content) -> NDArray[np.uint8]:
        """Class indices (H, W). Where regions overlap, the smaller counts; an ignored region gives way to any other.

        Raises:
            DataError: A region reaches outside the image, or its run lengths do not fit an image of that size.
        """
        width, height, regions = _unpacked(content)
        check_pixels(width, height)
        drawn = [(number, _drawn(shape, width, height)) for number, shape in regions]
        # Among regions of equal size, the last one in sorted order: the order in the file must not matter.
        drawn.sort(key=lambda region: (region[0] != IGNORED, -int(region[1].sum())))
        mask = np.zeros((height, width), dtype=np.uint8)
        for number, covered in drawn:
            mask[covered] = number
        return mask


def packed(width: int, height: int, regions: Sequence[Region]) -> bytes:
    """The regions of an image as an encoded mask; equal regions give equal bytes."""
    ordered = sorted(json.dumps(region, sort_keys=True) for region in regions)
    return f"[{width},{height},[{','.join(ordered)}]]".encode()


def region_fault(shape: Any, width: int, height: int) -> str:
    """The reason why a value is no ``segmentation`` of an image of that size; empty if it is valid."""
    if isinstance(shape, dict):
        return _run_fault(shape, width, height)
    if not isinstance(shape, list) or not shape:
        return "segmentation is neither a list of polygons nor run lengths"
    for polygon in shape:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "segmentation has a polygon that is no list of three points or more, two numbers each"
        if not all(type(value) in {int, float} and math.isfinite(value) for value in polygon):
            return "segmentation has a polygon of something else than numbers"
    return ""


def _run_fault(shape: dict[str, Any], width: int, height: int) -> str:
    counts = shape.get("counts")
    whole = isinstance(counts, list) and all(type(run) is int for run in counts)
    if not whole and not isinstance(counts, str):
        return "segmentation has no counts, a list of whole numbers or a text"
    if shape.get("size") != [height, width]:
        return f"segmentation has the size {shape.get('size')}, its image [{height}, {width}]"
    return ""


def _unpacked(content: Content) -> tuple[int, int, list[list[Any]]]:
    assert isinstance(content, bytes), "regions are packed"
    width, height, regions = json.loads(content)
    return width, height, regions


def _drawn(shape: Any, width: int, height: int) -> NDArray[np.bool_]:
    """Which pixels (H, W) a region covers."""
    if isinstance(shape, list):
        return _polygons(shape, width, height)
    counts = shape["counts"]
    runs = _runs(counts) if isinstance(counts, str) else counts
    # Checked before, because pycocotools (2.0.11) does not initialise pixels that no run reaches.
    if min(runs, default=0) < 0 or sum(runs) != width * height:
        raise DataError(f"run lengths of a region are not those of {width} x {height} pixels")
    covered = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return covered.reshape(width, height).T


def _runs(text: str) -> list[int]:
    """The run lengths in COCO's compressed text.

    Each character holds five bits of a number, the lowest first, and a sixth that says that more follow; the highest
    bit is the sign. From the fourth number on, each is the difference from the number two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError("run lengths of a region are not in COCO's compressed form")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("run lengths of a region end within a number")
    return runs


def _polygons(polygons: list[list[float]], width: int, height: int) -> NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if (points < -_TOLERANCE).any() or (points > np.add((width, height), _TOLERANCE)).any():
            raise DataError(f"a polygon reaches outside the image of {width} x {height} pixels")
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return np.asarray(coco_mask.decode(merged), dtype=np.bool_)
