"""How large images are."""

import inspect
import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.data.cache import SIZE_SCOPE, FileIndex, read_sizes
from trainers.data.found import ImageRef, fetch
from trainers.data.pixels import upright_size
from trainers.data.places import place_of
from trainers.data.sources import SOURCES

# So many headers are read, spread over the set.
_SAMPLE = 100


def short_side_of(task: str, **data: Any) -> int | None:
    """The median short side, in pixels, of a sample of a set that is not opened yet; None if none can be read.

    Args:
        task: The task.
        data: The arguments of :func:`trainers.data.opening.open_data`, of which those of the place are read.

    Raises:
        DataError: The set cannot be found.
    """
    keys = inspect.signature(place_of).parameters
    place = place_of(task=task, **{key: value for key, value in data.items() if key in keys})
    # Opening the set says it all again.
    logger = logging.getLogger("trainers.data.sources")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        images = SOURCES[data["source"]](place).images
    finally:
        logger.setLevel(before)
    sides: list[int] = []
    for k in _spread(len(images)):
        try:
            sides.append(min(upright_size(fetch(images[k]))))
        except DataError:
            # Opening the set names the images that cannot be read.
            continue
    return int(np.median(sides)) if sides else None


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
