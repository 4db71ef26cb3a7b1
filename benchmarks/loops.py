"""Loops that train one model on the same batches: the bare loop, a trial of ours, and that of timm's train script."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import timm.utils
import torch
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from strategies import Strategy
from trainers import Compiler, Device, ImageData, ModelSource, Trainer, create_classifier

CLASSES = 10
LR = 1e-4
# Batches that wait on the device for the bare loop; all of an epoch's might not fit.
WAITING = 4

Epoch = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all loops have in common; one call of a loop makes ``steps`` updates of the model."""

    source: ModelSource
    data: ImageData
    batch_size: int
    steps: int
    epochs: int
    device: Device

    def model(self) -> nn.Module:
        """A new model, in train mode."""
        model = create_classifier(self.source.name, CLASSES, self.source.image_size)
        return model.to(self.device.torch, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of pixels in 0 ... 255, (1, 3, 1, 1) each."""
        return tuple(  # type: ignore[return-value]
            torch.tensor(values, device=self.device.torch).view(1, -1, 1, 1) * 255
            for values in (self.source.mean, self.source.std)
        )

    def loader(self, split: str = "train") -> "DataLoader[Any]":
        """Batches of (B, 3, H, W) uint8 and (B,) int64 on the CPU, gathered from memory a batch at a time."""
        part = getattr(self.data, split)
        tensors = next(part.batches(torch.arange(len(part)), len(part), torch.device("cpu")))
        dataset = TensorDataset(*tensors)
        order = RandomSampler(dataset) if split == "train" else SequentialSampler(dataset)
        batches = BatchSampler(order, self.batch_size, drop_last=split == "train")
        return DataLoader(dataset, batch_size=None, sampler=batches, pin_memory=self.device.torch.type == "cuda")


def ours(setting: Setting, compiler: Compiler | None = None, **fields: Any) -> Epoch:
    """One epoch of a trial; ``fields`` are the strategy's, such as its augmentation."""
    strategy = Strategy(depth=1.0, lr=LR, batch_size=setting.batch_size, epochs=setting.epochs).replace(**fields)
    trainer = Trainer(setting.source, setting.data, strategy, 0, setting.device, compiler=compiler)

    def epoch() -> None:
        next(trainer)
        if compiler is not None and trainer.forward.reason != f"compile: {compiler.mode}":
            raise SystemExit(f"--compile: {trainer.forward.reason}")

    return epoch


def bare(setting: Setting, prepare: Callable[[nn.Module], None] | None = None, tuned: bool = False) -> Epoch:
    """The limit: forward, loss, backward and step, on batches that are on the device and normalised already.

    Args:
        setting: What all loops have in common.
        prepare: Changes the model.
        tuned: Whether cuDNN tries its algorithms and keeps the fastest.
    """
    device, model, criterion = setting.device, setting.model(), nn.CrossEntropyLoss()
    if prepare is not None:
        prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    mean, std = setting.statistics()
    waiting = []
    for images, targets in islice(setting.loader(), WAITING):
        inputs = (images.to(device.torch).float() - mean) / std
        waiting.append((inputs.contiguous(memory_format=torch.channels_last), targets.to(device.torch)))

    def epoch() -> None:
        torch.backends.cudnn.benchmark = tuned
        for inputs, targets in islice(cycle(waiting), setting.steps):
            with device.autocast():
                loss = criterion(model(inputs), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


def timm_loop(setting: Setting) -> Epoch:
    """What timm's train script does in an epoch, made of timm's own parts, on images in memory."""
    device, model, criterion = setting.device, setting.model(), nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=0.01)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=setting.epochs, updates_per_epoch=setting.steps, step_on_epochs=False
    )
    loader = PrefetchLoader(setting.loader(), setting.source.mean, setting.source.std, device=device.torch)
    done = 0

    def epoch() -> None:
        nonlocal done
        # As the script sets it.
        torch.backends.cudnn.benchmark = True
        losses, seconds = timm.utils.AverageMeter(), timm.utils.AverageMeter()
        model.train()
        began = time.time()
        for images, targets in loader:
            inputs = images.contiguous(memory_format=torch.channels_last)
            with device.autocast():
                loss = criterion(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # The script reads the loss of every update, which waits for the device.
            losses.update(loss.item(), len(inputs))
            done += 1
            scheduler.step_update(num_updates=done, metric=losses.avg)
            seconds.update(time.time() - began)
            began = time.time()

    return epoch


def matrix_peak(device: Device) -> float:
    """Operations a second of the best of ten products of large square matrices, in the precision of the training."""
    size = 8192 if device.torch.type == "cuda" else 1024
    left, right = torch.rand(2, size, size, dtype=torch.bfloat16 if device.bf16 else torch.float32, device=device.torch)
    return 2 * size**3 / min(seconds_of(lambda: left @ right, device.torch) for _ in range(10))


def image_flops(setting: Setting) -> float:
    """Operations of matrix products and convolutions in training on one image, forwards and backwards."""
    model = setting.model()
    images = torch.zeros(2, 3, setting.source.image_size, setting.source.image_size, device=setting.device.torch)
    with FlopCounterMode(display=False) as counter:
        model(images)
    # Backwards there are two products for each one forwards. They are not counted, because torch 2.14 counts those of a
    # depthwise convolution as if every channel met every other.
    return 3 * float(counter.get_total_flops()) / len(images)


def seconds_of(epoch: Epoch, device: torch.device) -> float:
    """Seconds of an epoch, until the device is done."""
    began = time.perf_counter()
    epoch()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
