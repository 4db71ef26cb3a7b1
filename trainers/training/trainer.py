"""Training one strategy on one data set."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from strategies import (
    ConfigError,
    Sam,
    Strategy,
    TotalPenalty,
    TrialError,
    check_applied,
    freeze,
    make_optimizer,
    make_plan,
    make_scheduler,
    rescale,
    set_train_mode,
)
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.forward import Compiler, Forward
from trainers.memory import Fitting
from trainers.models import ModelSource, normaliser
from trainers.reuse import NOTHING_REUSED, Reuse, Setting
from trainers.tasks import TASKS
from trainers.training.batches import Batches, RawBatch, ShortEpochs
from trainers.training.gradients import Gradients
from trainers.training.losses import Criterion, loss_of, weights_of_classes
from trainers.training.range_test import RangeTest, range_test
from trainers.training.ranks import ALONE, Ranks
from trainers.training.result import EpochResult
from trainers.training.scorer import Scorer
from trainers.training.start import prepare_model, source_classes
from trainers.training.synced_norm import sync_batch_norm
from trainers.training.teacher import Teacher


@dataclass(slots=True)
class _OpenEpoch:
    """An epoch that is being trained.

    Args:
        order: (M,) int64, the images of all its batches.
        batches: The batches that are left.
        updates: Updates done.
        loss_sum: Sum of their losses, a scalar on the device.
    """

    order: Tensor
    batches: Iterator[RawBatch]
    updates: int
    loss_sum: Tensor


class Trainer:
    """An iterator over a trial's epochs: each ``next()`` trains one epoch and returns its :class:`EpochResult`.

    A trainer may be dropped between two results. Another one that is given its :meth:`state_dict` by
    :meth:`load_state_dict` resumes there, with the same results as without the break. Epochs may be divided into parts,
    to see sooner how a long epoch goes: that changes nothing in the training.

    Several processes may train together. Each has its own trainer, made alike but for its device and rank. In each
    ``next()`` every rank sees its part of every batch and of the validation images, and all ranks come to the same
    weights and results. No other call waits for the other ranks. A TrialError is raised on all ranks alike.

    Args:
        source: Builds the model.
        data: Gives training and validation images, and says which task they are for.
        strategy: How to fine-tune.
        seed: Draws the new head, the order of images, augmentation and dropout.
        device: Where to compute.
        teacher: Gives the answers to learn from, where the strategy gives them a weight.
        reuse: Finds the stored outputs of the model's frozen part; None computes them anew.
        parts: Results an epoch, spread evenly over its updates; a result that would bring no new update is left out.
        short: Epochs at the beginning that see only a share of the images, drawn anew in each.
        compiler: Compiles the forward passes, and with them the backward passes; None compiles nothing.
        ranks: The processes that train together.

    Raises:
        ConfigError: The strategy cannot be applied to this model, or its loss not to this task; or a batch has fewer
            images than there are ranks.
        TrialError: From ``next()``: the loss is no longer finite, or the strategy was not applied as planned.
    """

    def __init__(
        self,
        source: ModelSource,
        data: ImageData,
        strategy: Strategy,
        seed: int,
        device: Device,
        teacher: Teacher | None = None,
        reuse: Reuse | None = None,
        parts: int = 1,
        short: ShortEpochs | None = None,
        compiler: Compiler | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        # A field that has no effect must have none, whoever made the strategy.
        strategy = strategy.canonical(source.num_blocks)
        self.strategy, self.device, self.epoch = strategy, device, 0
        self._seed, self._parts, self._ranks, self._task = seed, parts, ranks, TASKS[data.task]
        self._open: _OpenEpoch | None = None
        loss = loss_of(data.task, strategy)
        teacher = _teacher_of(teacher, strategy)
        class_weights = weights_of_classes(data, strategy, device)
        torch.manual_seed(seed)
        normalise = normaliser(source.mean, source.std, device)
        model = self.model = prepare_model(source, data, strategy, seed, device, class_weights)
        plan = self.plan = make_plan(model, strategy)
        freeze(model, plan)
        self.forward = Forward(compiler, source.name, strategy)
        self.reused = NOTHING_REUSED
        if reuse is not None:
            self.reused = reuse.look_up(Setting(source, model, plan, strategy, seed, data, normalise, device))
        short = short or ShortEpochs(0, 1.0)
        self._batches = Batches(data, strategy, seed, device, normalise, teacher, self.reused, short, ranks)
        self.optimizer = make_optimizer(model, plan, strategy)
        self.scheduler = make_scheduler(self.optimizer, strategy, self._batches.updates_per_epoch)
        sam = Sam(self.optimizer, strategy.sam_rho) if strategy.sam_rho > 0 else None
        self._stepper: Sam | torch.optim.Optimizer = sam or self.optimizer
        self._scorer = Scorer(model, plan, data, strategy, device, normalise, self.forward, self.reused, ranks)
        total_penalty: TotalPenalty | None = None
        if TotalPenalty.is_asked_for(strategy):
            classes = source_classes(source, data, seed, device) if strategy.co_tuning > 0 else None
            total_penalty = TotalPenalty(model, plan, strategy, classes, device.autocast)
        criterion = Criterion(model, data.task, strategy, loss, class_weights, total_penalty, ranks)
        fitting = Fitting(self._batches.own_size // 2, ranks.is_any)
        self._gradients = Gradients(
            model, self.forward, criterion, strategy, device, self.optimizer, sam, ranks, fitting
        )
        never_train = {name for name, first in plan.awake.items() if first is None}
        sync_batch_norm(model, ranks, never_train)

    def __iter__(self) -> Iterator[EpochResult]:
        return self

    def __next__(self) -> EpochResult:
        """Train until the next result is due: batch, forward, loss, backward, step, report."""
        if self.epoch >= self.strategy.epochs:
            raise StopIteration
        if self._open is None:
            self._batches.turn_to(self.epoch)
        started = time.perf_counter()
        opened = self._open or self._open_epoch()
        part, until = self._begin_part(opened.updates)
        whole = self._batches.updates_per_epoch

        for update in range(opened.updates, until):
            # The schedule goes by how much of an epoch is done, however few updates the epoch has.
            self.scheduler.step_update(self.epoch * whole + update * whole // self._batches.updates)
            if update == 0:
                check_applied(self.model, self.plan, self.optimizer, self.epoch)
            batch = self._batches.show(next(opened.batches))
            loss = self._gradients.compute(batch)  # Forward, loss, backward.
            if self._gradients.are_finite:
                self._stepper.step()
            self._scorer.add_update()
            opened.loss_sum += loss

        opened.updates = until
        train_loss = opened.loss_sum.item() / until
        if not math.isfinite(train_loss):
            raise TrialError(f"training loss became {train_loss} in epoch {self.epoch + 1}")
        self._open = opened
        step = self.epoch * self._parts + part
        if part == self._parts:
            self._end_epoch(opened)

        scores = self._scorer.scores()
        metrics = {"train_loss": train_loss, "lr": self._lr}
        metrics |= {f"val_{name}": value for name, value in scores.items()}
        result = EpochResult(step, metrics, time.perf_counter() - started, self._parts)
        watched = self._task.watched
        if not math.isfinite(scores[watched]):
            raise TrialError(f"validation {watched} is {scores[watched]} after epoch {result.epoch:g}")
        if result.ends_epoch:
            self.scheduler.step(self.epoch, self._task.goodness(watched, scores[watched]))
        return result

    def _open_epoch(self) -> _OpenEpoch:
        """Unfreeze, set modes and rates, and draw the images of the next epoch."""
        if self.epoch in self.plan.turns:
            freeze(self.model, self.plan, self.epoch)
        set_train_mode(self.model, self.plan, self.epoch)
        if self.strategy.lr_by == "gradient":
            factors = self._gradients.relative(self.plan, self.epoch, self._batches.rated())
            self.plan = rescale(self.plan, self.optimizer, factors)
        order = self._batches.draw_order()
        return _OpenEpoch(order, self._batches.read(order), 0, torch.zeros((), device=self.device.torch))

    def _begin_part(self, done: int) -> tuple[int, int]:
        """The number of the next part of the epoch, from 1, and the number of updates that are done at its end.

        Args:
            done: Updates of the epoch that are done.
        """
        updates = self._batches.updates
        ends = {part: updates * part // self._parts for part in range(1, self._parts + 1)}
        part = next(part for part, end in ends.items() if end > done)
        self.device.tune_convolutions(self.strategy.grow_from == 1)
        if done > 0:
            # Validation has put every module into eval mode.
            set_train_mode(self.model, self.plan, self.epoch)
        if self._ranks.rank > 0:
            # Dropout must differ between ranks. The seed is made of the step, so that there is no state to save.
            torch.manual_seed(hash((self._seed, self._ranks.rank, self.epoch, done)))
        return part, ends[part]

    def _end_epoch(self, opened: _OpenEpoch) -> None:
        # A streamed pass has ended only once it was asked for more than there is.
        next(opened.batches, None)
        self._open = None
        self.epoch += 1
        self._scorer.add_epoch(self.plan, self.epoch, self._batches.plain_images)

    @property
    def _lr(self) -> float:
        """The learning rate of the latest update, before any factor."""
        scale = self.strategy.head_lr_scale
        groups = self.optimizer.param_groups
        lr: float = next(group["lr"] / scale for group in groups if group["lr_scale"] == scale)
        return lr

    @property
    def micro_batches(self) -> int:
        """In how many parts a batch is seen, their gradients added up; above 1 where it does not fit into memory."""
        return self._gradients.fitting.parts

    def try_rates(self, low: float, high: float, updates: int) -> RangeTest:
        """Train with learning rates that rise from ``low`` to ``high``, and record the losses.

        The trainer cannot be used for anything else afterwards.

        Raises:
            ConfigError: A number is out of its range.
        """
        self._batches.turn_to(self.epoch)
        set_train_mode(self.model, self.plan)
        batches = (raw for _ in count() for raw in self._batches.read(self._batches.draw_order()))

        def step(lr: float) -> float:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            loss = self._gradients.compute(self._batches.show(next(batches)))
            if self._gradients.are_finite:
                self._stepper.step()
            return loss.item()

        return range_test(step, low, high, updates)

    def predict(self, split: Split) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a split, by this process alone; see :func:`trainers.scoring.prediction.predict`."""
        return self._scorer.predict(split)

    def look(self) -> Tensor | None:
        """Predictions for the validation images that are shown, (K, ...) on the CPU; None for classifiers."""
        return self._scorer.look()

    def weights(self, stay: bool = False) -> dict[str, Tensor]:
        """Copies of the weights that were scored; see :meth:`trainers.training.scorer.Scorer.weights`."""
        return self._scorer.weights(stay)

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from after the last result: tensors and plain values only, no pickled objects."""
        state = {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loss_scale": self._gradients.scale.state_dict(),
            **self._batches.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        if self._open is not None:
            opened = self._open
            state["begun"] = {"order": opened.order, "updates": opened.updates, "loss_sum": opened.loss_sum}
        if self._scorer.average is not None:
            state["average"] = self._scorer.average.state_dict()
        if self.device.torch.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device.torch)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state that :meth:`state_dict` gave for the same strategy, model and data."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        # Some blocks may have been unfrozen in an epoch before this one.
        freeze(self.model, self.plan, self.epoch)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        # Earlier versions had none.
        self._gradients.scale.load_state_dict(state.get("loss_scale", {}))
        if self._scorer.average is not None:
            self._scorer.average.load_state_dict(state["average"])
        self._batches.load_state_dict(state)
        torch.set_rng_state(state["torch_rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device.torch)
        self._open = self._reopened(state["begun"]) if "begun" in state else None

    def _reopened(self, state: dict[str, Any]) -> _OpenEpoch:
        """The epoch in which :meth:`state_dict` was called."""
        self._batches.turn_to(self.epoch)
        order: Tensor = state["order"].cpu()
        left = self._batches.read(order[state["updates"] * self.strategy.batch_size :])
        return _OpenEpoch(order, left, state["updates"], state["loss_sum"].to(self.device.torch))


def _teacher_of(teacher: Teacher | None, strategy: Strategy) -> Teacher | None:
    if strategy.distill_weight > 0 and teacher is None:
        raise ConfigError("strategy.distill_weight: the study has no teacher")
    return teacher if strategy.distill_weight > 0 else None
