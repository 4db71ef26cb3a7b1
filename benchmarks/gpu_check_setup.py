"""What the steps of ``benchmarks.gpu_check`` have in common: the device, small data sets, models and rows."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strategies import Strategy
from trainers import Device, ImageData, ModelSource, Preprocessing, Trainer, Weights, choose_device
from trainers.data.split import ResidentSplit

CLASSES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; ``ok`` is None where nothing is expected."""

    what: str
    found: str
    expected: str = ""
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What was asked for.

    Args:
        name: The device, as of ``--device``.
        small: Whether to take the smallest models and few images.
        folder: For files of the steps.
    """

    name: str
    small: bool
    folder: Path

    def device(self, precision: str = "auto", deterministic: bool = False) -> Device:
        """The device in a number format."""
        return choose_device(self.name, precision, deterministic)

    @property
    def has_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device().torch.type == "cuda"

    @property
    def model(self) -> str:
        """A model with BatchNorm that trains in a moment."""
        return "test_resnet" if self.small else "resnet18"

    @property
    def side(self) -> int:
        """Pixels of a side of the images."""
        return 32 if self.small else 64

    @property
    def images(self) -> int:
        """Training images."""
        return 32 if self.small else 256

    def data(self, images: int | None = None) -> ImageData:
        """Noise that is brighter in one stripe for each class."""
        count = images or self.images
        return data_of(count, max(16, count // 2), self.side)

    def source(self, name: str | None = None, side: int | None = None, top: Any = None) -> ModelSource:
        """A model with random weights."""
        return ModelSource(name or self.model, RANDOM, CLASSES, side or self.side, top=top)

    def trainer(self, device: Device, seed: int = 0, **how: Any) -> Trainer:
        """A trainer of a few updates; ``how`` holds fields of the strategy, and arguments of the trainer."""
        own = {name: how.pop(name) for name in ("reuse", "compiler", "teacher", "ranks") if name in how}
        fields = {"batch_size": self.images // 4, "epochs": 1, "lr": 1e-2, "optimizer": "sgd", **how}
        return Trainer(self.source(), self.data(), Strategy(**fields), seed, device, **own)


RANDOM = Weights("none", "random", None)


def data_of(train: int, held_out: int, side: int, kind: type[ResidentSplit] = ResidentSplit) -> ImageData:
    """Noise of so many images that is brighter in one stripe for each class; ``kind`` makes the splits."""

    def split(count: int, seed: int) -> ResidentSplit:
        random = np.random.default_rng(seed)
        targets = torch.arange(count) % CLASSES
        pixels = random.integers(0, 128, (count, 3, side, side), np.uint8)
        height = side // CLASSES
        for image, target in zip(pixels, targets.tolist(), strict=True):
            image[:, target * height : (target + 1) * height] += 100
        return kind(targets, [str(k) for k in range(count)], pixels, np.arange(count))

    return image_data("classification", split(train, 0), split(held_out, 1), split(held_out, 2), side)


def image_data(task: str, train: ResidentSplit, val: ResidentSplit, test: ResidentSplit, side: int) -> ImageData:
    """Splits as a data set of a task."""
    splits = {"train": train, "val": val, "test": test}
    return ImageData(
        task=task,
        classes=tuple("abcd"),
        **splits,
        fingerprint=f"{task} {len(train)} {side}",
        contents={name: f"{task} {name} {len(part)} {side}" for name, part in splits.items()},
        skipped=(),
        duplicates=(),
        source="noise",
        preprocessing=Preprocessing(side),
    )


def scenes(task: str, side: int) -> ImageData:
    """Grey images with a bright square each, of a class by its pixels or by its box."""
    count, low, high = 8, side // 4, 3 * side // 4
    pixels = np.full((count, 3, side, side), 60, np.uint8)
    pixels[:, :, low:high, low:high] = 200
    if task == "segmentation":
        targets = torch.zeros(count, side, side, dtype=torch.uint8)
        targets[:, low:high, low:high] = 1
    else:
        targets = torch.tensor([[[low, low, high, high, 1.0]]]).expand(count, 1, 5).clone()
    names = [str(k) for k in range(count)]
    parts = [ResidentSplit(targets, names, pixels, np.arange(count)) for _ in range(3)]
    return image_data(task, *parts, side)


def losses(trainer: Trainer) -> list[float]:
    """Training and validation loss of each epoch that is left."""
    return [result.metrics[name] for result in trainer for name in ("train_loss", "val_loss")]


def apart(found: list[float], expected: list[float]) -> float:
    """The largest distance of two numbers, as a share of the second."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))


@contextmanager
def without_collector() -> Iterator[None]:
    """A context in which only the last reference frees memory."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
