"""The MNIST family's IDX files, plain or gzipped, in any of the usual folders."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies import DataError

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file.

    Raises:
        DataError: The file is damaged or not an IDX file of unsigned bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rank = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * rank
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTE]) or not rank or len(content) < start:
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, offset=4))
    size = int(np.prod(shape, dtype=object))
    if len(content) - start != size:
        raise DataError(f"{path} holds {len(content) - start:,} values where its header {shape} says {size:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx_folder(root: Path, name: str) -> Path | None:
    """The first of root/<name>/raw, root/raw and root that contains an IDX file."""
    first = _FILES["train"][0]
    return next((folder for folder in idx_folders(root, name) if _file(folder, first)), None)


def idx_folders(root: Path, name: str) -> tuple[Path, ...]:
    """The folders in which :func:`idx_folder` looks."""
    return root / name / "raw", root / "raw", root


def read_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) uint8 and labels (N,) uint8 of ``part``, "train" or "test".

    Raises:
        DataError: A file is missing or damaged, or the two do not belong together.
    """
    images, labels = (_read(folder, name) for name in _FILES[part])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{folder}: {part} has images {images.shape} and labels {labels.shape}; expected (N, H, W) and (N,)"
        )
    return images, labels


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    path = _file(folder, name)
    if path is None:
        raise DataError(f"{folder} has neither {name} nor {name}.gz")
    return read_idx(path)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
