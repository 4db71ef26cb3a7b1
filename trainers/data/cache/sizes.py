"""Width and height of images, saved by content so that each file is looked into once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from strategies import DataError
from trainers.checked_files import cores
from trainers.data.cache.file_index import FileIndex
from trainers.data.found import Content, ImageRef, fetch

Size = tuple[int, int]

#: Names how images, not masks, are measured.
SIZE_SCOPE = "upright size 1"


def read_sizes(
    images: Sequence[ImageRef],
    digests: Sequence[bytes],
    measure: Callable[[Content], Size],
    scope: str,
    index: FileIndex,
) -> list[Size | str]:
    """Width and height of each image in pixels, or the reason why it cannot be read.

    Args:
        images: (N,) the images to look into.
        digests: (N,) of their contents.
        measure: Gives width and height of a content. Raises DataError for a content that is no image.
        scope: Names the way of measuring.
        index: Where sizes are saved.
    """
    known = index.verdicts(scope, set(digests))
    new = [k for k, digest in enumerate(digests) if digest not in known]

    def work(k: int) -> Size | str:
        try:
            return measure(fetch(images[k]))
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=cores()) as pool:
        found = dict(zip(new, pool.map(work, new), strict=True))
    sizes = {digests[k]: size for k, size in found.items() if not isinstance(size, str)}
    index.save_verdicts(scope, {digest: f"{width} {height}" for digest, (width, height) in sizes.items()})
    return [found[k] if k in found else _size(known[digest]) for k, digest in enumerate(digests)]


def _size(text: str) -> Size:
    width, height = text.split()
    return int(width), int(height)
