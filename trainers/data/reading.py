"""Reading the images of a set: from the cache if they are stored there, else verified once and left in their files."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from strategies import DataError
from trainers.checked_files import cores
from trainers.data.cache import (
    DECODING,
    AccessError,
    Digests,
    FileIndex,
    PixelArray,
    PixelCache,
    Progress,
    Squares,
    content_digests,
    decoded_bytes,
    digests_of,
    squared,
    take_stamps,
)
from trainers.data.found import ImageRef, fetch
from trainers.data.pixels import Pixels

READING = "reading files"

_CHUNK = 64
# Results are saved after this many images, so that a kill loses no more than these.
_SAVED = 4096

_CHANGED = "the file is changing while it is being read"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """The images of a set after reading.

    Args:
        samples: (N,) sample digests (:mod:`trainers.data.cache.file_index`); empty for an image that cannot be read.
        contents: (N,) content digests, which are equal only for equal images; empty for an image that cannot be read.
        reasons: The reason why an image is bad, by the image's position.
        array: The decoded images; None if they are not stored.
    """

    samples: Sequence[bytes]
    contents: Sequence[bytes]
    reasons: dict[int, str]
    array: PixelArray | None


def read_images(images: Sequence[ImageRef], how: Squares, *, cache: Path, max_bytes: float, progress: Progress) -> Read:
    """Read and check ``images``; a known file that has not changed is not opened.

    Args:
        images: (N,) the images to read.
        how: The preprocessing, of images or of masks.
        cache: Folder of the file index and the decoded images.
        max_bytes: Bound of all decoded images that are stored; a larger set is not stored.
        progress: Called with the name of the work, the number of finished images and the number of all images.

    Raises:
        DataError: The decoded images cannot be stored in ``cache``.
    """
    with closing(FileIndex(cache / "files.sqlite")) as index:
        reading = _Reading(images, how, index, progress)
        if 0 < decoded_bytes(len(images), how) <= max_bytes:
            reading.identify(whole=True)
            array = reading.stored(PixelCache(cache, int(max_bytes)))
            if array is not None:
                return reading.result(array)
        reading.identify(whole=False)
        # Verifying reads most files as a whole; the rest is read afterwards, so that no file is read twice.
        reading.verify()
        reading.identify(whole=True)
        return reading.result(None)


class _Reading:
    """The state of reading: digests, and reasons why images are bad."""

    def __init__(self, images: Sequence[ImageRef], how: Squares, index: FileIndex, progress: Progress) -> None:
        self._images = images
        self._how = how
        self._index = index
        self._progress = progress
        self._stamps = take_stamps(images)
        self._digests: list[Digests | None] = index.digests(self._stamps)
        self._reasons: dict[int, str] = {}
        self._changed: set[int] = set()

    def result(self, array: PixelArray | None) -> Read:
        """The images after reading."""
        known = [None if k in self._reasons else digests for k, digests in enumerate(self._digests)]
        samples = [b"" if digests is None else digests.sample for digests in known]
        contents = [b"" if digests is None or digests.content is None else digests.content for digests in known]
        return Read(samples, contents, self._reasons, array)

    def identify(self, *, whole: bool) -> None:
        """Compute the missing digests; digests of contents only if ``whole``."""

        def work(k: int) -> Digests | str:
            try:
                return digests_of(self._images[k], self._stamps[k], whole=whole)
            except DataError as error:
                return str(error)

        missing = []
        for k in self._good():
            known = self._digests[k]
            if known is None or (whole and known.content is None):
                missing.append(k)
        for part in _batches(missing, work, self._progress, READING):
            self._reasons |= {k: found for k, found in part if isinstance(found, str)}
            self._learn({k: found for k, found in part if isinstance(found, Digests)})

    def stored(self, cache: PixelCache) -> PixelArray | None:
        """The decoded images of a set whose content digests are all known; None without room for them."""
        while good := self._good():
            contents = [self._content(k) for k in good]
            decoded = _decoding([self._images[k] for k in good], contents, self._how)
            array = cache.open(contents, self._how, decoded, self._progress)
            if array is None:
                return None
            if not array.unread:
                self._reasons |= {good[k]: reason for k, reason in array.reasons.items()}
                rows = np.zeros(len(self._images), dtype=np.int64)
                rows[good] = array.rows
                return replace(array, rows=rows)
            self._drop({good[k]: reason for k, reason in array.unread.items()})
        return None

    def verify(self) -> None:
        """Decode each image that was never decoded, to find the bad images."""
        # Whether an image is bad does not depend on the size that it is resized to.
        scope = replace(self._how, image_size=1).key()
        unverified = self._unverified(scope)
        for part in _batches(unverified, self._verified, self._progress, DECODING):
            self._reasons |= {k: reason for k, (_, reason) in part if reason}
            fresh = {k: (digests, reason) for k, (digests, reason) in part if digests is not None}
            self._learn({k: digests for k, (digests, _) in fresh.items()})
            # Good images are remembered by their sample, so that a copy is not decoded again. Bad ones are not: a file
            # that was repaired may have the same sample as before.
            self._index.save_verdicts(
                scope,
                {(digests.content or b"") if reason else digests.sample: reason for digests, reason in fresh.values()},
            )

    def _unverified(self, scope: str) -> list[int]:
        known = [digests for digests in self._digests if digests is not None]
        keys = {digests.sample for digests in known} | {digests.content for digests in known if digests.content}
        verdicts = self._index.verdicts(scope, keys)
        unverified = []
        for k in self._good():
            digests = self._digests[k]
            assert digests is not None, "what is good was identified"
            verdict = verdicts.get(digests.content or b"", verdicts.get(digests.sample))
            if verdict is None:
                unverified.append(k)
            elif verdict:
                self._reasons[k] = verdict
        return unverified

    def _verified(self, k: int) -> tuple[Digests | None, str]:
        """The digests, if the image could be read, and the reason why the image is bad."""
        try:
            content = fetch(self._images[k])
            digests = content_digests(content)
        except DataError as error:
            return None, str(error)
        try:
            squared(content, self._how)
        except DataError as error:
            return digests, str(error)
        return digests, ""

    def _drop(self, unread: dict[int, str]) -> None:
        """Leave out images that cannot be read; compute digests again, once, of images whose content has changed."""
        changed = {k for k, reason in unread.items() if reason == _CHANGED} - self._changed
        self._changed |= changed
        self._reasons |= {k: reason for k, reason in unread.items() if k not in changed}
        for k in changed:
            self._digests[k] = None
        self.identify(whole=True)

    def _learn(self, found: dict[int, Digests]) -> None:
        for k, digests in found.items():
            self._digests[k] = digests
        stamped = ((self._stamps[k], digests) for k, digests in found.items())
        self._index.save_digests((stamp, digests) for stamp, digests in stamped if stamp is not None)

    def _content(self, k: int) -> bytes:
        digests = self._digests[k]
        assert digests is not None and digests.content is not None, "what is stored was identified wholly"
        return digests.content

    def _good(self) -> list[int]:
        return [k for k in range(len(self._images)) if k not in self._reasons]


def _decoding(images: Sequence[ImageRef], contents: Sequence[bytes], how: Squares) -> Callable[[int], Pixels]:
    """Decodes the image at a position; what it holds is kept for as long as the decoded images are used."""

    def decoded(position: int) -> Pixels:
        try:
            content = fetch(images[position])
            # Pixels are stored under the content that they were decoded from, even if the index says otherwise.
            changed = content_digests(content).content != contents[position]
        except DataError as error:
            raise AccessError(str(error)) from error
        if changed:
            raise AccessError(_CHANGED)
        return squared(content, how)

    return decoded


def _batches(
    images: Sequence[int], work: Callable[[int], T], progress: Progress, what: str
) -> Iterator[list[tuple[int, T]]]:
    """The results of ``work`` for each image, from a pool of threads, in lists to be saved one at a time."""
    tasks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    batch: list[tuple[int, T]] = []
    done = 0
    pool = ThreadPoolExecutor(max_workers=cores())
    try:
        for task, found in zip(tasks, pool.map(lambda task: [work(k) for k in task], tasks), strict=True):
            batch += zip(task, found, strict=True)
            done += len(task)
            progress(what, done, len(images))
            if len(batch) >= _SAVED:
                yield batch
                batch = []
    finally:
        pool.shutdown(cancel_futures=True)
    yield batch
