"""Training one strategy on one data set."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from strategies import (
    LOSSES,
    ConfigError,
    Strategy,
    TrialError,
    check_applied,
    entries_of_last_blocks,
    freeze,
    make_optimizer,
    make_plan,
    make_scheduler,
    mix_batch,
    set_train_mode,
    tta_views,
    vary,
)
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.models import ModelSource
from trainers.probe import classifier_of, probe_head
from trainers.tasks import TASKS


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch gave.

    Args:
        step: Epochs done so far, from 1.
        metrics: ``train_loss``, ``lr`` (before any factor, at the epoch's end), and ``val_`` before each of the task's.
        seconds: Wall-clock seconds of training and validating.
    """

    step: int
    metrics: dict[str, float]
    seconds: float


class Trainer:
    """An iterator over a trial's epochs: each ``next()`` trains one epoch and yields its :class:`EpochResult`.

    It may be dropped between two epochs, and saved and taken up again there by :meth:`state_dict` and
    :meth:`load_state_dict` with the same results as without the break.

    Args:
        source: Builds the model.
        data: Gives training and validation images, and says which task they are for.
        strategy: How to fine-tune.
        seed: Draws the new head, the order of images, augmentation and dropout.
        device: Where to compute.

    Raises:
        ConfigError: The strategy cannot be applied to this model, or its loss not to this task.
        TrialError: From ``next()``: the loss is no longer finite, or the strategy was not applied as planned.
    """

    def __init__(self, source: ModelSource, data: ImageData, strategy: Strategy, seed: int, device: Device) -> None:
        self.strategy = strategy
        self.device = device
        self.epoch = 0
        self._data = data
        self._task = TASKS[data.task]
        if strategy.loss not in LOSSES[data.task]:
            names = ", ".join(LOSSES[data.task])
            raise ConfigError(f"strategy.loss: {strategy.loss!r} cannot train task {data.task}, only {names} can")
        self._loss = LOSSES[data.task][strategy.loss]
        self._scale = self._task.scale(data.train.targets)
        self._order_rng = torch.Generator().manual_seed(seed)
        self._augment_rng = torch.Generator().manual_seed(seed + 1)
        torch.manual_seed(seed)
        model = source.build(seed)
        # What stays frozen must not be random.
        anew = min(strategy.reinit_blocks, make_plan(model, strategy).depth)
        if anew > 0:
            source.draw_anew(model, entries_of_last_blocks(model, anew), seed)
        self.model = model.to(device.torch)
        self.model.to(memory_format=torch.channels_last)
        self._mean = torch.tensor(source.mean, device=device.torch).view(1, -1, 1, 1)
        self._std = torch.tensor(source.std, device=device.torch).view(1, -1, 1, 1)
        if strategy.probe_epochs > 0:
            self._start_from_a_probe(source, seed)
        self.plan = make_plan(self.model, strategy)
        freeze(self.model, self.plan)
        # The last, smaller batch is dropped: BatchNorm cannot train on a single image.
        self._updates_per_epoch = max(1, len(data.train) // strategy.batch_size)
        self.optimizer = make_optimizer(self.model, self.plan, strategy)
        self.scheduler = make_scheduler(self.optimizer, strategy, self._updates_per_epoch)

    def _start_from_a_probe(self, source: ModelSource, seed: int) -> None:
        """Fit the head first; trials that agree on all that it depends on share it."""
        fields = ("probe_epochs", "probe_lr", "batch_size", "loss", "label_smoothing", "focal_gamma", "reinit_blocks")
        key = (self._data.fingerprint, self.device.description, seed, *(getattr(self.strategy, f) for f in fields))
        head = classifier_of(self.model)
        if key not in source.probes:
            probe_head(self.model, self.strategy, self._task, self._data.train, self._normalise, seed, self.device)
            source.probes[key] = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
        head.load_state_dict(source.probes[key])

    def __iter__(self) -> Iterator[EpochResult]:
        return self

    def __next__(self) -> EpochResult:
        if self.epoch >= self.strategy.epochs:
            raise StopIteration
        start = time.perf_counter()
        train_loss = self._train_epoch()
        self.epoch += 1
        scale = self.strategy.head_lr_scale
        lr = next(group["lr"] / scale for group in self.optimizer.param_groups if group["lr_scale"] == scale)
        metrics = {"train_loss": train_loss, "lr": lr}
        metrics |= {f"val_{name}": value for name, value in self._task.scores(*self.predict(self._data.val)).items()}
        if not math.isfinite(metrics["val_loss"]):
            raise TrialError(f"validation loss is {metrics['val_loss']} after epoch {self.epoch}")
        return EpochResult(self.epoch, metrics, time.perf_counter() - start)

    def _train_epoch(self) -> float:
        if self.epoch in self.plan.turns:
            freeze(self.model, self.plan, self.epoch)
        set_train_mode(self.model, self.plan, self.epoch)
        order = torch.randperm(len(self._data.train), generator=self._order_rng)
        order = order[: self._updates_per_epoch * self.strategy.batch_size]
        loss_sum = torch.zeros((), device=self.device.torch)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        batches = self._data.train.batches(order, self.strategy.batch_size, self.device.torch)
        for i, (images, targets) in enumerate(batches):
            self.scheduler.step_update(self.epoch * self._updates_per_epoch + i)
            if i == 0:
                check_applied(self.model, self.plan, self.optimizer, self.epoch)
            pixels = vary(images.float().div_(255), self.strategy, self._augment_rng)
            wanted = targets if self._scale is None else self._scale.standardise(targets)
            pixels, wanted = mix_batch(pixels, wanted, len(self._data.classes), self.strategy, self._augment_rng)
            with self.device.autocast():
                outputs = self.model(self._normalise(pixels))
            loss = self._loss(outputs.float(), wanted, self.strategy)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.strategy.clip_grad > 0:
                nn.utils.clip_grad_norm_(trained, self.strategy.clip_grad)
            self.optimizer.step()
            loss_sum += loss.detach()
        mean_loss = loss_sum.item() / self._updates_per_epoch
        if not math.isfinite(mean_loss):
            raise TrialError(f"training loss became {mean_loss} in epoch {self.epoch + 1}")
        return mean_loss

    def _normalise(self, pixels: Tensor) -> Tensor:
        return ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(self, split: Split) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a split, both on the CPU, in its order.

        Returns:
            Logits (N, C) float32 and class indices (N,) int64; for multilabel logits and targets (N, C) float32; for
            regression numbers (N, K) float32, both in the units of the targets.
        """
        self.model.eval()
        outputs = []
        # Without gradients a batch takes a fraction of the memory of a training batch.
        for images, _ in split.batches(torch.arange(len(split)), 4 * self.strategy.batch_size, self.device.torch):
            with self.device.autocast():
                views = tta_views(self._normalise(images.float().div_(255)), self.strategy.tta)
                outputs.append(torch.stack([self.model(view).float() for view in views]).mean(0))
        found = torch.cat(outputs)
        return (found if self._scale is None else self._scale.restore(found)).cpu(), split.targets.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after the epoch just done: tensors and plain values only, no pickled objects."""
        state = {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order_rng": self._order_rng.get_state(),
            "augment_rng": self._augment_rng.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.torch.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device.torch)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that :meth:`state_dict` gave for the same strategy, model and data."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        # Of what is unfrozen since an epoch before this one.
        freeze(self.model, self.plan, self.epoch)
        self.optimizer.load_state_dict(state["optimizer"])
        self._order_rng.set_state(state["order_rng"])
        self._augment_rng.set_state(state["augment_rng"])
        torch.set_rng_state(state["torch_rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device.torch)
