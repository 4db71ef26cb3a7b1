"""The speed of training and scoring a strategy, measured for some batches of random images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strategies import TASK_LOSSES, Strategy
from trainers.data import ImageData, Preprocessing, ResidentSplit
from trainers.device import Device
from trainers.models import ModelSource, normaliser
from trainers.scoring import predict
from trainers.tasks import TASKS
from trainers.training.trainer import Trainer

# Validation images whose scoring is timed.
_SCORED = 32
# An object in each image, a third as wide as the image.
_OBJECT = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """What a strategy costs on a device, without stored outputs of frozen blocks.

    Args:
        depth: Number of blocks that are trained.
        train_seconds: Seconds to train on an image.
        score_seconds: Seconds to score an image.
        peak_bytes: The most memory that the process has held so far, with this strategy's batch size.
    """

    depth: int
    train_seconds: float
    score_seconds: float
    peak_bytes: int


def measure_speed(source: ModelSource, task: str, strategy: Strategy, device: Device, batches: int = 1) -> Speed:
    """Train and score random images, once to warm up and once with a clock.

    Args:
        source: Builds the model, and says how many classes and how large images are.
        task: The task, which decides the loss and the form of targets.
        strategy: Gives depth and batch size.
        device: Where to compute.
        batches: Batches of each pass.

    Raises:
        RuntimeError, MemoryError: The batch does not fit into memory.
    """
    count = max(2, strategy.batch_size * batches)
    data = _random_data(source, task, count)
    if device.torch.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch)
    losses = TASK_LOSSES[task]
    loss = strategy.loss if strategy.loss in losses else losses[0]
    trainer = Trainer(source, data, strategy.replace(epochs=2, warmup_epochs=0, loss=loss), 0, device)
    next(trainer)
    training = next(trainer).seconds
    trainer.predict(data.test)
    scoring = _seconds(lambda: trainer.predict(data.test))
    depth, peak = int(trainer.strategy.depth), device.peak_bytes
    # The one validation image of the epoch is not taken off: an epoch has validation images too.
    return Speed(depth, training / count, scoring / count, peak)


def seconds_to_score(source: ModelSource, data: ImageData, device: Device) -> float:
    """Seconds to score an image of a data set, measured for some of its validation images.

    Args:
        source: Builds the model.
        data: The images.
        device: Where to compute.
    """
    model = source.build(0).to(device.torch)
    model.to(memory_format=torch.channels_last)
    task, places = TASKS[data.task], torch.arange(min(_SCORED, len(data.val)))
    normalise = normaliser(source.mean, source.std, device)
    strategy = Strategy(batch_size=max(1, len(places) // 4))

    def score() -> object:
        return predict(model, data.val, strategy, normalise, task, None, device, places=places)

    score()
    return _seconds(score) / len(places)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of a computation whose result comes to the CPU, and is complete therefore."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _random_data(source: ModelSource, task: str, count: int) -> ImageData:
    """A data set of noise: ``count`` images to train on and to test on, and two for validation."""
    classes = tuple(str(k) for k in range(source.num_classes))
    rng = np.random.default_rng(0)
    side = source.image_size
    pixels = rng.integers(0, 256, (count, source.in_chans, side, side), dtype=np.uint8)

    def split(images: int) -> ResidentSplit:
        targets = _TARGETS[task](images, len(classes), side)
        return ResidentSplit(targets, [str(k) for k in range(images)], pixels, np.arange(images))

    return ImageData(
        task=task,
        classes=classes,
        train=split(count),
        val=split(2),
        test=split(count),
        fingerprint="",
        contents={},
        skipped=(),
        duplicates=(),
        source="noise",
        preprocessing=Preprocessing(side, source.in_chans),
    )


def _one_class(images: int, classes: int, side: int) -> Tensor:
    return torch.arange(images) % classes


def _some_classes(images: int, classes: int, side: int) -> Tensor:
    return (torch.arange(images)[:, None] % classes == torch.arange(classes)).float()


def _numbers(images: int, classes: int, side: int) -> Tensor:
    return torch.linspace(0, 1, images)[:, None].repeat(1, classes)


def _masks(images: int, classes: int, side: int) -> Tensor:
    return (torch.arange(side * side) % classes).to(torch.uint8).reshape(1, side, side).repeat(images, 1, 1)


def _boxes(images: int, classes: int, side: int) -> Tensor:
    ends = [side / _OBJECT, side / _OBJECT, 2 * side / _OBJECT, 2 * side / _OBJECT]
    return torch.tensor([[[*ends, k % classes]] for k in range(images)], dtype=torch.float32)


_TARGETS: dict[str, Callable[[int, int, int], Tensor]] = {
    "classification": _one_class,
    "multilabel": _some_classes,
    "regression": _numbers,
    "segmentation": _masks,
    "detection": _boxes,
}
