"""One split of the data in batches: from the cache, or decoded anew in each pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from strategies import DataError
from trainers.data.found import ImageRef, fetch
from trainers.data.pixels import Preprocessing, to_square

# A split is kept on a GPU if it takes at most this share of the free memory there: activations need the rest.
_DEVICE_SHARE = 1 / 3
_UPLOAD_BYTES = 64 * 2**20


class Split(ABC):
    """Images and targets of train, val or test.

    Args:
        targets: (N,) int64 class indices; or (N, C) or (N, K) float32; of segmentation (N, S, S) uint8 class indices,
            ``IGNORED`` for pixels without a class; of detection (N, M, 5) float32, for each box left, top, right,
            bottom in pixels of the square and its class index, and (0, 0, 0, 0, -1) in rows that are not used.
        names: (N,) a path or an index for each image, for reports.
    """

    #: Whether the images are decoded already, in memory or in a file mapped to it.
    resident: bool

    def __init__(self, targets: torch.Tensor, names: Sequence[str]) -> None:
        self.targets = targets
        self.names = names

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, order: torch.Tensor, batch_size: int, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The images at ``order``, in that order; the last batch may be shorter.

        Args:
            order: (M,) int64 positions in the split, any number of them, repeats allowed.
            batch_size: Images a batch, B.
            device: Where the batches go.

        Yields:
            images: (B, C, S, S) uint8 and targets: (B, ...) of the split's type, both on ``device``.

        Raises:
            DataError: A file that was readable at opening is no longer readable.
        """
        places = order.to(dtype=torch.int64, device="cpu")
        targets = chunks(self.targets[places].to(device), batch_size)
        return zip(self._images(places, batch_size, device), targets, strict=True) if len(places) else iter(())

    @abstractmethod
    def _images(self, places: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Batches (B, C, S, S) uint8 on ``device``; ``places`` is (M,) int64 on the CPU, M > 0."""


class ResidentSplit(Split):
    """A split whose images are decoded: rows of an array, which is usually a file mapped to memory.

    On a CUDA device the split's rows are kept if they take a small part of the free memory; otherwise each batch is
    gathered on the host.

    Args:
        targets: As of :class:`Split`.
        names: (N,) names.
        pixels: (R, C, S, S) uint8, never written to.
        rows: (N,) int64, the row of each image in ``pixels``.
        check: Called with rows, (M,), before their pixels are used; None if there is nothing to check.
    """

    resident = True

    def __init__(
        self,
        targets: torch.Tensor,
        names: Sequence[str],
        pixels: NDArray[np.uint8],
        rows: NDArray[np.int64],
        check: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        super().__init__(targets, names)
        self._pixels = np.asarray(pixels)
        self._rows = np.asarray(rows)
        self._check = check
        self._kept: dict[torch.device, torch.Tensor | None] = {}

    def _images(self, places: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
        if device not in self._kept:
            self._kept[device] = self._upload(device) if self._should_keep(device) else None
        kept = self._kept[device]
        if kept is None:
            return (self._gather(part, device) for part in chunks(places, batch_size))
        return (kept.index_select(0, part) for part in chunks(places.to(device), batch_size))

    def _gather(self, places: torch.Tensor, device: torch.device) -> torch.Tensor:
        # Each batch gets new pinned memory: torch reuses it only after its copy to the GPU has ended.
        pinned = device.type == "cuda"
        images = torch.empty((len(places), *self._pixels.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        rows = self._rows[places.numpy()]
        if self._check is not None:
            self._check(rows)
        # Gathered by NumPy: torch warns of read-only arrays. Any mode but "raise" writes directly to ``out``; the rows
        # were indexed before, which has refused positions that are out of range.
        np.take(self._pixels, rows, axis=0, out=images.numpy(), mode="clip")
        return images.to(device, non_blocking=True)

    def _should_keep(self, device: torch.device) -> bool:
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return len(self) * self._row_bytes <= free * _DEVICE_SHARE

    def _upload(self, device: torch.device) -> torch.Tensor:
        kept = torch.empty((len(self), *self._pixels.shape[1:]), dtype=torch.uint8, device=device)
        for part in chunks(torch.arange(len(self)), max(1, _UPLOAD_BYTES // self._row_bytes)):
            kept[int(part[0]) : int(part[-1]) + 1] = self._gather(part, device)
        return kept

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self._pixels.shape[1:]))


class StreamedSplit(Split):
    """A split that is decoded anew in every pass, by worker processes that live as long as the split.

    Args:
        targets: As of :class:`Split`.
        names: (N,) names.
        images: (N,) the images to decode.
        how: The preprocessing.
        workers: Worker processes; 0 decodes in this one.
    """

    resident = False

    def __init__(
        self,
        targets: torch.Tensor,
        names: Sequence[str],
        images: Sequence[ImageRef],
        how: Preprocessing,
        workers: int,
    ) -> None:
        super().__init__(targets, names)
        self._dataset = _Decoding(images, names, how)
        self._workers = workers
        self._plan: list[list[int]] = []
        self._loader: DataLoader[torch.Tensor | str] | None = None
        self._pass = 0

    def _images(self, places: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
        if self._loader is None:
            self._loader = self._new_loader(pin_memory=device.type == "cuda")
        self._pass += 1
        current = self._pass
        # The loader keeps this list object as its batch sampler, and its workers from pass to pass.
        self._plan[:] = [part.tolist() for part in chunks(places, batch_size)]
        for batch in self._loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch.to(device, non_blocking=True)
            if current != self._pass:
                raise RuntimeError("a new pass over a streamed split began before the last one ended")

    def _new_loader(self, pin_memory: bool) -> "DataLoader[torch.Tensor | str]":
        return DataLoader(
            self._dataset,
            batch_sampler=self._plan,
            collate_fn=_collated,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=pin_memory,
            # Without its own generator each pass draws from the global one, and a streamed run would differ
            # from a resident one.
            generator=torch.Generator(),
        )


def chunks(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Consecutive pieces of at most ``size`` rows."""
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]


class _Decoding(Dataset[torch.Tensor | str]):
    """Decoded images, or the reason why an image is bad: an error raised in a worker would come with a traceback."""

    def __init__(self, images: Sequence[ImageRef], names: Sequence[str], how: Preprocessing) -> None:
        self._images = images
        self._names = names
        self._how = how

    def __getitem__(self, index: Any) -> torch.Tensor | str:
        try:
            pixels = to_square(fetch(self._images[index]), self._how)
        except DataError as error:
            return f"{self._names[index]}: {error}; it was readable when the data was opened"
        return torch.from_numpy(pixels)


def _collated(items: Sequence[torch.Tensor | str]) -> torch.Tensor | str:
    bad = next((item for item in items if isinstance(item, str)), None)
    return bad if bad is not None else default_collate(list(items))
