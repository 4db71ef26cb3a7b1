"""One split of the data, handed out in batches: from memory, or decoded again as it goes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from strategies import DataError
from trainers.data.found import ImageRef, pixels_and_digest


class Split(ABC):
    """Images and targets of train, val or test.

    Args:
        targets: (N,) int64 class indices.
        names: (N,) a path or an index for each image, for reports.
    """

    #: Whether the decoded images are kept in memory.
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
            images: (B, 3, S, S) uint8 and targets: (B,) int64, both on ``device``.

        Raises:
            DataError: A file that was readable at opening is not any more.
        """
        places = order.to(dtype=torch.int64, device="cpu")
        targets = chunks(self.targets[places].to(device), batch_size)
        return zip(self._images(places, batch_size, device), targets, strict=True) if len(places) else iter(())

    @abstractmethod
    def _images(self, places: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Batches (B, 3, S, S) uint8 on ``device``; ``places`` is (M,) int64 on the CPU, M > 0."""


class ResidentSplit(Split):
    """A split whose decoded images are in memory, and on each device it was asked for.

    Args:
        targets: (N,) int64 class indices.
        names: (N,) names.
        pixels: (R, 3, S, S) uint8 on the CPU.
        rows: (N,) int64, the row of ``pixels`` that each image is.
    """

    resident = True

    def __init__(self, targets: torch.Tensor, names: Sequence[str], pixels: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__(targets, names)
        self._rows = rows
        self._pixels = {torch.device("cpu"): pixels}

    def _images(self, places: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
        if device not in self._pixels:
            self._pixels[device] = self._pixels[torch.device("cpu")].to(device)
        pixels = self._pixels[device]
        rows = self._rows[places].to(device)
        return (pixels.index_select(0, part) for part in chunks(rows, batch_size))


class StreamedSplit(Split):
    """A split that is decoded anew in every pass, by worker processes that live as long as the split.

    Args:
        targets: (N,) int64 class indices.
        names: (N,) names.
        images: (N,) what to decode.
        image_size: Side S of the decoded images.
        workers: Worker processes; 0 decodes in this one.
    """

    resident = False

    def __init__(
        self,
        targets: torch.Tensor,
        names: Sequence[str],
        images: Sequence[ImageRef],
        image_size: int,
        workers: int,
    ) -> None:
        super().__init__(targets, names)
        self._dataset = _Decoding(images, names, image_size)
        self._workers = workers
        self._plan: list[list[int]] = []
        self._loader: DataLoader[torch.Tensor | str] | None = None
        self._pass = 0

    def _images(self, places: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
        if self._loader is None:
            self._loader = self._new_loader(pin_memory=device.type == "cuda")
        self._pass += 1
        current = self._pass
        # The loader keeps this very list as its batch sampler, and its workers from pass to pass.
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
    """Decoded images, or why one is bad: raised in a worker, the reason would reach people with a traceback."""

    def __init__(self, images: Sequence[ImageRef], names: Sequence[str], image_size: int) -> None:
        self._images = images
        self._names = names
        self._image_size = image_size

    def __getitem__(self, index: Any) -> torch.Tensor | str:
        try:
            pixels, _ = pixels_and_digest(self._images[index], self._image_size)
        except DataError as error:
            return f"{self._names[index]}: {error}; it was readable when the data was opened"
        return torch.from_numpy(pixels)


def _collated(items: Sequence[torch.Tensor | str]) -> torch.Tensor | str:
    bad = next((item for item in items if isinstance(item, str)), None)
    return bad if bad is not None else default_collate(list(items))
