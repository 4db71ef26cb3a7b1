"""An index of image files from earlier openings, so that an unchanged file is not opened again.

Two digests stand for an image's content. ``content`` is of every byte; pixels are stored under it. ``sample`` is of the
length and, beyond 64 KiB, of the first, middle and last 4 KiB alone: it costs three short reads for a file of any size,
and fingerprints are made of it.
"""

import hashlib
import logging
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from strategies import DataError
from trainers.data.found import Content, ImageRef, Part, fetch

log = logging.getLogger(__name__)

T = TypeVar("T")

DIGEST_BYTES = 16
_WHOLE = 64 * 2**10
_PIECE = 4 * 2**10
_EXIF_ORIENTATION = 0x0112

# A file may change twice within one tick of its file system's clock (2 s on FAT) and keep its time. git calls such a
# file racy; here the file is read again at each opening, until it has not changed for this long.
_SETTLED_NS = 2 * 10**9
_BUSY_SECONDS = 30
# A table with other columns leads to SQLITE_ERROR.
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checked_files (
    place BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sample BLOB, content BLOB, crc INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checked_verdicts (
    scope TEXT, digest BLOB, verdict TEXT, crc INTEGER, PRIMARY KEY (scope, digest)
) WITHOUT ROWID;
CREATE TEMP TABLE wanted (item BLOB);
"""


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of an image's content; ``content`` is None if only a sample was read."""

    sample: bytes
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Stamp:
    """The facts by which an unchanged file is recognised.

    Args:
        place: Absolute path; for a part of an archive also its offset and size.
        size: Of the file, or of the archive.
        mtime_ns: Time of its last change.
        settled: Whether its last change is so long ago that another change would show in ``mtime_ns``.
    """

    place: bytes
    size: int
    mtime_ns: int
    settled: bool


def take_stamps(images: Iterable[ImageRef]) -> list[Stamp | None]:
    """The stamp of each image; None for an image that is no file, or whose file cannot be looked at."""
    archives: dict[Path, Stamp | None] = {}
    stamps: list[Stamp | None] = []
    for image in images:
        if isinstance(image, Path):
            stamps.append(_stamp(image))
        elif isinstance(image, Part):
            if image.path not in archives:
                archives[image.path] = _stamp(image.path)
            archive = archives[image.path]
            # No path contains a zero byte, so no file can be taken for a part of an archive.
            part = f"\0{image.offset}+{image.size}".encode()
            stamps.append(
                archive and Stamp(archive.place + part, archive.size, archive.mtime_ns, archive.settled),
            )
        else:
            stamps.append(None)
    return stamps


def _stamp(path: Path) -> Stamp | None:
    now = time.time_ns()
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    # Only joined, not normalised: behind a link, "link/.." is not the folder that holds the link.
    place = os.fsencode(path.absolute())
    return Stamp(place, about.st_size, about.st_mtime_ns, now - about.st_mtime_ns > _SETTLED_NS)


def digests_of(image: ImageRef, stamp: Stamp | None, *, whole: bool) -> Digests:
    """The digests of an image; of a large file only the sample, unless ``whole``.

    Raises:
        DataError: The image cannot be read; the message is the bare reason.
    """
    size = image.size if isinstance(image, Part) else stamp.size if stamp is not None else 0
    if whole or stamp is None or size <= _WHOLE:
        return content_digests(fetch(image))
    if isinstance(image, Part):
        return Digests(_file_sample(image.path, image.offset, size), None)
    assert isinstance(image, Path), "only files have stamps"
    return Digests(_file_sample(image, 0, size), None)


def content_digests(content: Content) -> Digests:
    """Both digests of an encoded image.

    Raises:
        DataError: The picture was opened by its data set, but cannot be loaded.
    """
    if not isinstance(content, bytes):
        digest = _digest(*_raw(content))
        return Digests(digest, digest)
    size = len(content)
    whole = _digest(_length(size), content)
    if size <= _WHOLE:
        return Digests(whole, whole)
    return Digests(_digest(_length(size), *(content[start : start + _PIECE] for start in _starts(size))), whole)


def _file_sample(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            pieces = [os.pread(file.fileno(), _PIECE, offset + start) for start in _starts(size)]
    except OSError as error:
        raise DataError(error.strerror or type(error).__name__) from error
    if any(len(piece) != _PIECE for piece in pieces):
        raise DataError(f"the file ends before its {size:,} bytes")
    return _digest(_length(size), *pieces)


def _starts(size: int) -> tuple[int, int, int]:
    return 0, (size - _PIECE) // 2, size - _PIECE


def _length(size: int) -> bytes:
    return size.to_bytes(8, "little")


def _digest(*pieces: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _raw(content: NDArray[np.uint8] | Image.Image) -> tuple[bytes, bytes]:
    """All bytes that the pixels of an array or a picture depend on."""
    if isinstance(content, np.ndarray):
        return repr((content.shape, content.dtype.str)).encode(), content.tobytes()
    try:
        content.load()
        about = (
            content.mode,
            content.size,
            content.getpalette(),
            content.info.get("transparency"),
            content.getexif().get(_EXIF_ORIENTATION),
        )
        return repr(about).encode(), content.tobytes()
    except Exception as error:
        # A data set opened the picture, and Pillow's errors on a bad file, of any kind, come only now.
        raise DataError(f"{type(error).__name__}: {error}") from error


class FileIndex:
    """Digests and verdicts of images in an SQLite file that processes share.

    The index only saves work. A row that does not agree with its CRC-32 is not used. A damaged file is replaced, and a
    file that cannot be used (read-only, full disk, locked for too long) is not used, each with a warning.

    Args:
        path: The file; it is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._usable = True

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def digests(self, stamps: Sequence[Stamp | None]) -> list[Digests | None]:
        """The digests saved for each stamp; None if there are none, or the file has changed since."""
        wanted = {stamp.place for stamp in stamps if stamp is not None}
        if not wanted:
            return [None] * len(stamps)
        query = "SELECT checked_files.* FROM wanted CROSS JOIN checked_files ON place = item"
        rows = self._attempt(lambda connection: _joined(connection, wanted, query)) or []
        known = {place: facts for place, *facts, crc in rows if crc == _crc(place, *facts)}
        return [None if stamp is None else _unchanged(stamp, known.get(stamp.place)) for stamp in stamps]

    def save_digests(self, entries: Iterable[tuple[Stamp, Digests]]) -> None:
        """Save the digests of files, but not of files that are not settled."""
        rows = [
            (stamp.place, stamp.size, stamp.mtime_ns, digests.sample, digests.content)
            for stamp, digests in entries
            if stamp.settled
        ]
        self._write("INSERT OR REPLACE INTO checked_files VALUES (?, ?, ?, ?, ?, ?)", rows)

    def verdicts(self, scope: str, digests: Collection[bytes]) -> dict[bytes, str]:
        """Verdicts of decoding, by digest: ``""`` for a good image, else the reason why the image is bad.

        Args:
            scope: The way of decoding that verdicts hold for.
            digests: Digests to look up, samples or contents.
        """
        query = "SELECT checked_verdicts.* FROM wanted CROSS JOIN checked_verdicts ON digest = item WHERE scope = ?"
        rows = self._attempt(lambda connection: _joined(connection, digests, query, scope)) or []
        return {digest: verdict for _, digest, verdict, crc in rows if crc == _crc(scope, digest, verdict)}

    def save_verdicts(self, scope: str, verdicts: Mapping[bytes, str]) -> None:
        """Save verdicts of decoding; see :meth:`verdicts`."""
        rows = [(scope, digest, verdict) for digest, verdict in verdicts.items()]
        self._write("INSERT OR REPLACE INTO checked_verdicts VALUES (?, ?, ?, ?)", rows)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            checked = [(*row, _crc(*row)) for row in rows]
            self._attempt(lambda connection: connection.executemany(statement, checked))

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result of ``work``, on a new file if this file is damaged; None if no file can be used."""
        for _ in range(2):
            if not self._usable:
                break
            try:
                if self._connection is None:
                    self._connect()
                assert self._connection is not None
                with self._connection:
                    return work(self._connection)
            except (sqlite3.Error, OSError) as error:
                self.close()
                # Errors of Python's own, such as text that is not UTF-8, have no code and come from damage too.
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if isinstance(error, OSError) or code not in _DAMAGE:
                    self._give_up(error)
                else:
                    self._replace(error)
        return None

    def _connect(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # If two processes switch a new file to WAL at once, SQLite refuses one of them without waiting.
        with FileLock(f"{self._path}.lock"):
            self._connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS)
            self._inode = self._path.stat().st_ino
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "temp_store = MEMORY"):
                self._connection.execute(f"PRAGMA {setting}")
            self._connection.executescript(_SCHEMA)

    def _replace(self, damage: Exception) -> None:
        try:
            with FileLock(f"{self._path}.lock"):
                if self._path.stat().st_ino != self._inode:
                    return  # another process has replaced it
                log.warning("%s is damaged (%s) and is made anew; files are read once more", self._path, damage)
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        log.warning("%s cannot be used (%s); files are read again at each opening", self._path, error)


def _joined(connection: sqlite3.Connection, wanted: Iterable[bytes], query: str, *values: str) -> list[tuple[Any, ...]]:
    """The rows of a query that joins the table ``wanted``, after filling this table."""
    connection.execute("DELETE FROM wanted")
    connection.executemany("INSERT INTO wanted VALUES (?)", ((item,) for item in wanted))
    return connection.execute(query, values).fetchall()


def _crc(*row: object) -> int:
    return zlib.crc32(repr(row).encode(errors="surrogatepass"))


def _unchanged(stamp: Stamp, known: Sequence[Any] | None) -> Digests | None:
    if known is None or tuple(known[:2]) != (stamp.size, stamp.mtime_ns):
        return None
    _, _, sample, content = known
    if not _is_digest(sample) or not (content is None or _is_digest(content)):
        return None
    return Digests(sample, content)


def _is_digest(value: object) -> TypeGuard[bytes]:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES
