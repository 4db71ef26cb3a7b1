"""Outputs of frozen prefixes in memory-mapped files, shared by trials, processes and nights.

One file holds the outputs of a prefix for a split, or for one view of it::

    <folder>/activations/<key>.safetensors    tensors "0", "1", ... (N, ...): a row for each image, in the split's order

The file is written as ``<key>.part`` and renamed once it is whole and on the disk, so that every file not called
``.part`` is whole. It holds checksums, by which each process checks the rows before it uses them. A part that a killed
process left behind is never read. The next builder writes it anew, and it is removed first when room is needed.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from strategies import UnfreezeError
from trainers.atomic_files import FULL, PART, make_room, reserve, sync, write_at
from trainers.checked_files import BLANK, CHECKS, DIGEST, blank_checks, seal_rows
from trainers.reuse.entry import Activations, open_entry
from trainers.reuse.rows import RowLayout, Rows

log = logging.getLogger(__name__)

#: The version of how rows are computed and laid out; raise it when old entries must no longer be read.
_VERSION = 3

_SUFFIX = ".safetensors"
_POLL_SECONDS = 0.1
_ALIGNED = 4096

# The types' names in the safetensors format.
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class NoRoomError(UnfreezeError):
    """Activations cannot be stored: no room within the bound or on the disk, or no folder that can be used."""


@dataclass(frozen=True, slots=True)
class Content:
    """All that the rows of an entry depend on.

    Args:
        weights: :func:`weights_digest` of the prefix.
        architecture: The model's name.
        in_chans: Channels of the images.
        image_size: Height and width in pixels.
        cut: The values that cross (:attr:`Cut.description`).
        data: The digest of the split's images (:attr:`ImageData.contents`).
        split: ``train``, ``val`` or ``test``.
        transform: How pixels become the model's input: normalisation, and the augmentation of a view with its seed.
        view: The number of the augmented copy.
        arithmetic: Kind of device and number format, such as ``cuda bf16``, on which rounding depends.
    """

    weights: str
    architecture: str
    in_chans: int
    image_size: int
    cut: str
    data: str
    split: str
    transform: str
    view: int
    arithmetic: str

    @property
    def key(self) -> str:
        """A digest of all fields, and of the versions of the libraries that compute the rows."""
        text = json.dumps(asdict(self) | _versions(), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _versions() -> dict[str, Any]:
    return {"version": _VERSION, "torch": torch.__version__, "timm": version("timm")}


def weights_digest(model: nn.Module, names: Iterable[str], known: MutableMapping[str, bytes] | None = None) -> str:
    """A digest of parameters and buffers, such as those that a prefix depends on (:attr:`Cut.state_names`).

    Args:
        model: Holds the parameters and buffers.
        names: Names as in ``named_parameters()`` and ``named_buffers()``.
        known: Digests of single tensors by name, which are used without a check; new digests are added.
    """
    known = {} if known is None else known
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    digest = blake2b(digest_size=16)
    for name in sorted(names):
        if name not in known:
            tensor = tensors[name].detach()
            single = blake2b(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode(), digest_size=16)
            single.update(_bytes_of(tensor))
            known[name] = single.digest()
        digest.update(known[name])
    return digest.hexdigest()


class ActivationStore:
    """The entries below one folder, bounded in bytes; the entries not used for longest are removed first.

    Args:
        folder: The cache's folder.
        max_bytes: Bound of all entries together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._entries = folder / "activations"
        self._locks = folder / "locks"
        self._max_bytes = max_bytes
        # Entries opened by this process, with inode and size of their files: trials share the rows on a device.
        self._opened: dict[Path, tuple[tuple[int, int], Activations]] = {}

    def find(self, content: Content, layouts: Sequence[RowLayout], images: int) -> Activations | None:
        """The entry of this content if it exists, whole and fitting; the same object for as long as it exists.

        Args:
            content: All that the entry depends on.
            layouts: The layouts of its tensors.
            images: The expected number of rows.
        """
        return self._find(content, layouts, images)

    def _find(
        self, content: Content, layouts: Sequence[RowLayout], images: int, is_checked: bool = False
    ) -> Activations | None:
        """:meth:`find`; an entry that this process has just written is not read once more (``is_checked``)."""
        path = self._path(content)
        try:
            stat = path.stat()
        except OSError:
            self._opened.pop(path, None)
            return None
        stamp = stat.st_ino, stat.st_size
        with suppress(OSError):
            os.utime(path)
        known = self._opened.pop(path, None)
        if known is None or known[0] != stamp:
            found = open_entry(path, layouts, images, is_checked)
            if found is None:
                return None
            known = stamp, found
        elif known[1].is_damaged:
            path.unlink(missing_ok=True)
            return None
        self._opened[path] = known
        return known[1]

    def build(
        self,
        content: Content,
        layouts: Sequence[RowLayout],
        images: int,
        batches: Callable[[], Iterable[Rows]],
    ) -> Activations:
        """The entry of this content, computed unless it exists; waits if another process is computing it.

        Args:
            content: All that the entry depends on.
            layouts: The layouts of its tensors.
            images: Number of rows, more than 0.
            batches: Computes the rows, in order: tensors (B, *shape), one for each of ``layouts``, on any device.

        Raises:
            NoRoomError: The entry is larger than the bound, or than the room beside entries under construction; or the
                disk is full, or the folder cannot be used. No file is left behind; the caller can compute without the
                store.
        """
        found = self.find(content, layouts, images)
        if found is not None:
            return found
        need = images * sum(layout.bytes for layout in layouts)
        lock = FileLock(self._locks / f"{content.key}.lock")
        try:
            self._entries.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
            self._wait_for(lock)
            try:
                return self.find(content, layouts, images) or self._build(content, layouts, images, batches)
            finally:
                lock.release()
        except OSError as error:
            raise self._refusal(error, need) from error

    def release(self, device: torch.device, max_bytes: int) -> None:
        """Free the rows on a device that were used longest ago, until the rest takes at most ``max_bytes`` there."""
        kept = 0
        for _, rows in reversed(self._opened.values()):
            kept += rows.bytes_on(device)
            if kept > max_bytes:
                rows.release()

    def room_for(self, need: int) -> bool:
        """Whether an entry of ``need`` bytes is within the bound, and the disk has room for it."""
        try:
            self._entries.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._entries).free
        except OSError:
            return False
        return need <= min(self._max_bytes, free)

    def _build(
        self,
        content: Content,
        layouts: Sequence[RowLayout],
        images: int,
        batches: Callable[[], Iterable[Rows]],
    ) -> Activations:
        path, part = self._path(content), self._path(content).with_suffix(PART)
        if path.exists():
            log.warning("%s is damaged and is made anew", path)
            path.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        header, offsets, size = _header(content, layouts, images)
        with FileLock(self._locks / "activations.lock"):
            if not make_room(self.sizes(), size, self._max_bytes, self.removed):
                raise NoRoomError(
                    f"the activation cache in {self._entries} is bounded to {self._max_bytes:,} bytes, which leaves no "
                    f"room for {size:,} bytes more"
                )
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                reserve(file, size)
            except OSError:
                os.close(file)
                part.unlink(missing_ok=True)
                raise
        try:
            write_at(file, memoryview(header), 0)
            _fill(file, offsets, layouts, images, batches())
            seal_rows(file)
            os.fsync(file)
            part.rename(path)
            sync(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        found = self._find(content, layouts, images, is_checked=True)
        if found is None:
            raise OSError(f"{path} was removed by another process")
        return found

    def _wait_for(self, lock: FileLock) -> None:
        for attempt in count():
            try:
                lock.acquire(timeout=_POLL_SECONDS)
                return
            except Timeout:
                if attempt == 0:
                    log.info("another process computes these activations; waiting for it")

    def _path(self, content: Content) -> Path:
        return self._entries / f"{content.key}{_SUFFIX}"

    def sizes(self) -> dict[Path, int]:
        """Bytes of every entry, and of every entry that is being built."""
        sizes = {}
        for path in self._entries.iterdir() if self._entries.is_dir() else ():
            with suppress(OSError):
                sizes[path] = path.stat().st_size
        return sizes

    def removed(self, path: Path) -> bool:
        """Remove an entry, or a part unless a process is building it, and return whether it was removed."""
        if path.suffix != PART:
            path.unlink(missing_ok=True)
            return True
        try:
            with FileLock(self._locks / f"{path.stem}.lock", timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _refusal(self, error: OSError, need: int) -> NoRoomError:
        if error.errno not in FULL:
            return NoRoomError(f"the activation cache in {self._entries} cannot be used: {error}")
        free = shutil.disk_usage(self._folder).free
        return NoRoomError(
            f"the disk has no room for the activation cache in {self._entries} ({error.strerror}): {need:,} bytes are "
            f"needed, {free:,} are free"
        )


def _header(content: Content, layouts: Sequence[RowLayout], images: int) -> tuple[bytes, list[int], int]:
    """The header of a safetensors file, the offset of each tensor, and the size of the file.

    The format's own library writes whole tensors only, but these tensors are computed batch by batch.
    """
    metadata = {DIGEST: BLANK.decode()} | {name: str(value) for name, value in asdict(content).items()}
    about: dict[str, Any] = {"__metadata__": metadata}
    begins, end = dict.fromkeys(range(len(layouts)), 0), 0
    # The widest numbers first: the format allows no gaps, and a tensor must begin at a multiple of its numbers' size.
    for index, layout in sorted(enumerate(layouts), key=lambda item: -item[1].dtype.itemsize):
        begins[index], end = end, end + images * layout.bytes
        about[str(index)] = {
            "dtype": _DTYPE_NAMES[layout.dtype],
            "shape": [images, *layout.shape],
            "data_offsets": [begins[index], end],
        }
    metadata[CHECKS] = blank_checks(end)
    text = json.dumps(about).encode()
    # Spaces up to a page, so that rows of whole pages lie on whole pages.
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + begin for begin in begins.values()], len(header) + end


def _fill(
    file: int, offsets: Sequence[int], layouts: Sequence[RowLayout], images: int, batches: Iterable[Rows]
) -> None:
    done = 0
    for rows in batches:
        if done + len(rows[0]) > images:
            raise ValueError(f"more rows were computed than the {images} images")
        for offset, layout, tensor in zip(offsets, layouts, rows, strict=True):
            if tensor.dtype != layout.dtype or tuple(tensor.shape[1:]) != layout.shape:
                raise ValueError(f"rows {tuple(tensor.shape)} {tensor.dtype} are not laid out as {layout}")
            write_at(file, _bytes_of(tensor), offset + done * layout.bytes)
        done += len(rows[0])
    if done != images:
        raise ValueError(f"{done} rows were computed for {images} images")


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    # Through uint8, because NumPy has no bfloat16.
    return flat.view(torch.uint8).numpy().data
