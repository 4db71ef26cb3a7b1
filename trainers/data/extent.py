"""How large images are."""

import inspect
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.data.cache import SIZE_SCOPE, FileIndex, read_sizes
from trainers.data.found import Found, ImageRef, fetch
from trainers.data.pixels import Preprocessing, channels_of, to_square, upright_size
from trainers.data.places import place_of
from trainers.data.sources import SOURCES

# Side in pixels to which a sample is decoded to see how long that takes.
_SHOWN_SIZE = 224
# So many headers are read, spread over the set.
_SAMPLE = 100


@dataclass(frozen=True, slots=True)
class Survey:
    """What a set looks like before it is opened.

    Args:
        counts: Number of images by split, as the source has them; a split without images is cut from train.
        classes: Number of classes or regression targets; None where only the masks tell.
        short_side: The median short side in pixels of a sample; None if none can be read.
        channels: The commonest number of channels of the sample; 3 if none can be read.
        decode_seconds: Seconds to read and decode an image, with one thread.
    """

    counts: Mapping[str, int]
    classes: int | None
    short_side: int | None
    channels: int
    decode_seconds: float


def survey(task: str, **data: Any) -> Survey:
    """Look at a set without opening it: the labels of all images, and the headers of some.

    Args:
        task: The task.
        data: The arguments of :func:`trainers.data.opening.open_data`, of which those of the place are read.

    Raises:
        DataError: The set cannot be found.
    """
    found = _found(task, data)
    sides, channels, seconds = [], [], []
    for k in _spread(len(found.images)):
        began = time.perf_counter()
        try:
            content = fetch(found.images[k])
            sides.append(min(upright_size(content)))
            channels.append(channels_of(content))
            to_square(content, Preprocessing(_SHOWN_SIZE, channels[-1]))
        except DataError:
            continue
        seconds.append(time.perf_counter() - began)
    return Survey(
        counts=Counter(found.splits),
        classes=_classes(found),
        short_side=int(np.median(sides)) if sides else None,
        channels=Counter(channels).most_common(1)[0][0] if channels else 3,
        decode_seconds=float(np.mean(seconds)) if seconds else 0.0,
    )


def _classes(found: Found) -> int | None:
    if found.classes or found.codes is not None:
        return len(found.classes) or None
    first = found.labels[0]
    if isinstance(first, str):
        return len(set(map(str, found.labels)))
    return len({name for label in found.labels if isinstance(label, tuple) for name in label})


def short_side_of(task: str, **data: Any) -> int | None:
    """The median short side, in pixels, of a sample of a set that is not opened yet; None if none can be read.

    Args:
        task: The task.
        data: The arguments of :func:`trainers.data.opening.open_data`, of which those of the place are read.

    Raises:
        DataError: The set cannot be found.
    """
    images = _found(task, data).images
    sides: list[int] = []
    for k in _spread(len(images)):
        try:
            sides.append(min(upright_size(fetch(images[k]))))
        except DataError:
            # Opening the set names the images that cannot be read.
            continue
    return int(np.median(sides)) if sides else None


def _found(task: str, data: Mapping[str, Any]) -> Found:
    keys = inspect.signature(place_of).parameters
    place = place_of(task=task, **{key: value for key, value in data.items() if key in keys})
    # Opening the set says it all again.
    logger = logging.getLogger("trainers.data.sources")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return SOURCES[data["source"]](place)
    finally:
        logger.setLevel(before)


def short_side_read(
    images: Sequence[ImageRef], members: NDArray[np.int64], samples: Sequence[bytes], cache: Path
) -> int | None:
    """The median short side, in pixels, of a sample of images that were read; None if none can be read.

    Args:
        images: (N,) all images.
        members: The images to sample from.
        samples: (N,) sample digests, under which sizes are saved; empty for an image that cannot be read.
        cache: Folder of the file index.
    """
    readable = [int(members[k]) for k in _spread(len(members)) if samples[int(members[k])]]
    with closing(FileIndex(cache / "files.sqlite")) as index:
        chosen, digests = [images[k] for k in readable], [samples[k] for k in readable]
        found = read_sizes(chosen, digests, upright_size, SIZE_SCOPE, index)
    sides = [min(size) for size in found if not isinstance(size, str)]
    return int(np.median(sides)) if sides else None


def _spread(count: int) -> list[int]:
    places: list[int] = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist() if count else []
    return places
