"""Training one strategy on one data set."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from strategies import (
    HEAD,
    IGNORED,
    PIXEL_LOSSES,
    ConfigError,
    RelativeGradients,
    Sam,
    Strategy,
    TotalPenalty,
    TrialError,
    View,
    WeightAverage,
    check_applied,
    distillation,
    ema_weight,
    fixed_batch_stats,
    freeze,
    make_optimizer,
    make_plan,
    make_scheduler,
    mix_batch,
    refit_batch_norm,
    rescale,
    resize,
    sampling_order,
    set_train_mode,
    shown_size,
    swa_weight,
    vary,
)
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.forward import Compiler, Forward
from trainers.models import ModelSource, normaliser
from trainers.reuse import NOTHING_REUSED, FrozenOutputs, Reuse, Rows, Setting
from trainers.scoring import predict, shown_places
from trainers.tasks import TASKS
from trainers.training.losses import loss_of, weights_of_classes
from trainers.training.memory import Fitting, in_parts
from trainers.training.range_test import RangeTest, range_test
from trainers.training.ranks import ALONE, Ranks
from trainers.training.result import EpochResult
from trainers.training.start import prepare_model, source_classes
from trainers.training.synced_norm import has_synced_norms, sync_batch_norm
from trainers.training.teacher import Teacher

# Batches from which relative gradients are measured before an epoch, as in the code of Lee et al. (ICLR 2023).
_RATED_BATCHES = 5


@dataclass(frozen=True, slots=True)
class ShortEpochs:
    """Epochs at the beginning of a training that see only a share of the images.

    Args:
        epochs: How many.
        images: The share, above 0 and at most 1.
    """

    epochs: int
    images: float


@dataclass(slots=True)
class _Begun:
    """An epoch that is being trained.

    Args:
        order: (M,) int64, the images of all its batches.
        batches: Those that are left.
        updates: Steps done.
        loss_sum: Of the losses before each.
    """

    order: Tensor
    batches: Iterator[tuple[Tensor | Rows, Tensor, Tensor]]
    updates: int
    loss_sum: Tensor


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a step is made of: the own images of this rank, all of them where there is one.

    Args:
        inputs: (B, C, H, W) float as the model takes them, or what its frozen part gives for them.
        wanted: (B, ...), what is to be learnt of each.
        taught: (B, num_classes) float, a teacher's answers; None without one.
        everyones: (N, ...), what is to be learnt of each image of the whole batch.
    """

    inputs: Tensor | Rows
    wanted: Tensor
    taught: Tensor | None
    everyones: Tensor


class Trainer:
    """An iterator over a trial's epochs: each ``next()`` trains one epoch and yields its :class:`EpochResult`.

    It may be dropped between two results, and saved and taken up again there by :meth:`state_dict` and
    :meth:`load_state_dict` with the same results as without the break. Epochs may be divided, to see sooner how a long
    one goes: that changes nothing in the training.

    Several processes may train together, each with a trainer of its own made alike but for its device and rank: in each
    ``next()`` they see their parts of every batch and of the validation images, and all come to the same weights and
    results. Nothing else waits for the others. A TrialError is raised on all ranks alike.

    Args:
        source: Builds the model.
        data: Gives training and validation images, and says which task they are for.
        strategy: How to fine-tune.
        seed: Draws the new head, the order of images, augmentation and dropout.
        device: Where to compute.
        teacher: Whose answers are learnt from where the strategy gives them a weight.
        reuse: Finds what the frozen part of the model gives, so that it is not computed again; None computes it anew.
        parts: Results an epoch, spread evenly over its updates; one that would bring no new update is left out.
        short: Epochs at the beginning that see only a share of the images, drawn anew in each.
        compiler: Compiles the forward passes, whose backward passes follow; None leaves them as they are.
        ranks: The processes that train together.
        micro_batches: In how many parts a batch is seen to begin with.

    Raises:
        ConfigError: The strategy cannot be applied to this model, or its loss not to this task; or there are fewer
            images in a batch than ranks.
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
        micro_batches: int = 1,
    ) -> None:
        # What has no effect must have none, whoever made the strategy.
        strategy = strategy.canonical(source.num_blocks)
        self.strategy = strategy
        self.device = device
        self.epoch = 0
        self._seed = seed
        self._ranks = ranks
        self._begun: _Begun | None = None
        self._parts = parts
        self._short = short or ShortEpochs(0, 1.0)
        self._data = data
        self._task = TASKS[data.task]
        self._loss = loss_of(data.task, strategy)
        self._teacher = _teacher_of(teacher, strategy)
        self._scale = self._task.scale(data.train.targets)
        self._class_weights = weights_of_classes(data, strategy, device)
        self._order_rng = torch.Generator().manual_seed(seed)
        self._augment_rng = torch.Generator().manual_seed(seed + 1)
        torch.manual_seed(seed)
        self._normalise = normaliser(source.mean, source.std, device)
        self.model = prepare_model(source, data, strategy, seed, device, self._class_weights)
        self.plan = make_plan(self.model, strategy)
        freeze(self.model, self.plan)
        self.forward = Forward(compiler, source.name, strategy)
        self.reused = NOTHING_REUSED
        if reuse is not None:
            setting = Setting(source, self.model, self.plan, strategy, seed, data, self._normalise, device)
            self.reused = reuse.look_up(setting)
        self._known: FrozenOutputs | None = None
        self._view: View | None = None
        # The last, smaller batch is dropped: BatchNorm cannot train on a single image.
        self._updates_per_epoch = max(1, len(data.train) // strategy.batch_size)
        self.optimizer = make_optimizer(self.model, self.plan, strategy)
        own = min(strategy.batch_size, len(data.train)) // ranks.count
        if own == 0:
            raise ConfigError(
                f"executor.gpus_per_trial: a batch of {min(strategy.batch_size, len(data.train))} images cannot be "
                f"divided among {ranks.count} processes"
            )
        # BatchNorm needs two images.
        self._fitting = Fitting(own // 2, self._is_short_anywhere)
        self._fitting.parts = micro_batches
        self._validation_fitting = Fitting(4 * strategy.batch_size, self._is_short_anywhere)
        self._trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scheduler = make_scheduler(self.optimizer, strategy, self._updates_per_epoch)
        self._sam = Sam(self.optimizer, strategy.sam_rho) if strategy.sam_rho > 0 else None
        averages = strategy.ema > 0 or strategy.swa_epochs > 0
        self._average = WeightAverage(self.model, self.plan.trainable) if averages else None
        self._holding: TotalPenalty | None = None
        if TotalPenalty.is_asked_for(strategy):
            classes = source_classes(source, data, seed, device) if strategy.co_tuning > 0 else None
            self._holding = TotalPenalty(self.model, self.plan, strategy, classes)
        never_train = {name for name, first in self.plan.awake.items() if first is None}
        sync_batch_norm(self.model, ranks, never_train)

    def __iter__(self) -> Iterator[EpochResult]:
        return self

    def __next__(self) -> EpochResult:
        if self.epoch >= self.strategy.epochs:
            raise StopIteration
        if self._begun is None:
            self._choose_images()
        start = time.perf_counter()
        begun = self._begun or self._begin_epoch()
        step = self.epoch * self._parts + self._train_part(begun)
        train_loss = begun.loss_sum.item() / begun.updates
        if not math.isfinite(train_loss):
            raise TrialError(f"training loss became {train_loss} in epoch {self.epoch + 1}")
        self._begun = begun
        if step % self._parts == 0:
            # A streamed pass has ended only once it was asked for more than there is.
            next(begun.batches, None)
            self._begun = None
            self.epoch += 1
            self._average_epoch()
        scale = self.strategy.head_lr_scale
        lr = next(group["lr"] / scale for group in self.optimizer.param_groups if group["lr_scale"] == scale)
        metrics = {"train_loss": train_loss, "lr": lr}
        scores = self._task.scores(*self._predict_together(self._data.val))
        metrics |= {f"val_{name}": value for name, value in scores.items()}
        result = EpochResult(step, metrics, time.perf_counter() - start, self._parts)
        watched = self._task.watched
        if not math.isfinite(scores[watched]):
            raise TrialError(f"validation {watched} is {scores[watched]} after epoch {result.epoch:g}")
        if result.ends_epoch:
            self.scheduler.step(self.epoch, self._task.goodness(watched, scores[watched]))
        return result

    def _choose_images(self) -> None:
        """Find what is known of the images that the next epoch shows, and which view of them it shows."""
        self._known = self.reused.training(self.epoch)
        if self.strategy.views > 0 and self._known is None:
            self._view = View(self.strategy, len(self._data.train), self._seed, self.epoch)

    def _begin_epoch(self) -> _Begun:
        if self.epoch in self.plan.turns:
            freeze(self.model, self.plan, self.epoch)
        set_train_mode(self.model, self.plan, self.epoch)
        if self.strategy.lr_by == "gradient":
            self.plan = rescale(self.plan, self.optimizer, self._relative_gradients())
        order = self._epoch_order()
        return _Begun(order, self._training_batches(order), 0, torch.zeros((), device=self.device.torch))

    def _train_part(self, begun: _Begun) -> int:
        """Train until the next result is due, and return which of the epoch's parts has been done, from 1."""
        updates = self._updates_in(self.epoch)
        part = next(k for k in range(1, self._parts + 1) if updates * k // self._parts > begun.updates)
        if begun.updates > 0:
            # Validation has put everything into eval mode.
            set_train_mode(self.model, self.plan, self.epoch)
        if self._ranks.rank > 0:
            # Images of two ranks must not be dropped from alike; drawn from the step, there is nothing to save for it.
            torch.manual_seed(hash((self._seed, self._ranks.rank, self.epoch, begun.updates)))
        for i in range(begun.updates, updates * part // self._parts):
            batch = next(begun.batches)
            # The schedule goes by how much of an epoch is done, however few updates it has.
            self.scheduler.step_update(self.epoch * self._updates_per_epoch + i * self._updates_per_epoch // updates)
            if i == 0:
                check_applied(self.model, self.plan, self.optimizer, self.epoch)
            begun.loss_sum += self._update(*batch)
        begun.updates = updates * part // self._parts
        return part

    def _updates_in(self, epoch: int) -> int:
        if epoch >= self._short.epochs:
            return self._updates_per_epoch
        return max(1, int(self._updates_per_epoch * self._short.images))

    def _update(self, batch: Tensor | Rows, targets: Tensor, places: Tensor) -> Tensor:
        """One step on a batch; returns the loss before it, which is not waited for."""
        shown = self._shown(batch, targets, places)
        loss = self._gradients(shown)
        if self._sam is not None:
            self._sam.climb()
            with fixed_batch_stats(self.model):
                self._gradients(shown)
        if self.strategy.clip_grad > 0:
            nn.utils.clip_grad_norm_(self._trained, self.strategy.clip_grad)
        (self._sam or self.optimizer).step()
        if self._average is not None and self.strategy.ema > 0:
            self._average.update(ema_weight(self._average.updates, self.strategy.ema))
        return loss

    def _gradients(self, shown: _Shown) -> Tensor:
        """Compute the gradients of a whole batch, in parts where it does not fit into memory, and return its loss."""

        def attempt(parts: int) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            if parts == 1 and self._ranks.is_alone:
                loss = self._loss_on(shown.inputs, shown.wanted, shown.taught)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach()
            total = torch.zeros((), device=self.device.torch)
            sizes = [torch.arange(size).tensor_split(parts) for size in self._ranks.sizes(len(shown.everyones))]
            for k, part in enumerate(in_parts(shown.inputs, shown.wanted, shown.taught, parts)):
                loss = self._loss_on(*part, [len(of_rank[k]) for of_rank in sizes])
                loss = loss * self._weight(part[1], shown.everyones)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            return total

        if self._ranks.is_alone:
            return self._fitting.do(attempt)
        with self._ranks.stepping():
            # What waits for other ranks on its way cannot be begun again by one of them.
            loss = attempt(self._fitting.parts) if self._is_in_step() else self._fitting.do(attempt)
        trained = [p for p in self._trained if p.requires_grad]
        # Of a branch that none of its images takes, a rank has no gradient.
        for p, has in zip(trained, self._ranks.any([p.grad is not None for p in trained]), strict=True):
            if has and p.grad is None:
                p.grad = torch.zeros_like(p)
        self._ranks.add_up([loss, *(p.grad for p in trained if p.grad is not None)])
        return loss

    def _weight(self, wanted: Tensor, everyones: Tensor) -> float | Tensor:
        """What the loss of some images counts in that of their batch, which is a mean over images, or over pixels."""
        if self._data.task == "segmentation" and self.strategy.loss in PIXEL_LOSSES:
            return (wanted != IGNORED).sum() / (everyones != IGNORED).sum().clamp_min(1)
        return len(wanted) / len(everyones)

    def _is_in_step(self) -> bool:
        """Whether ranks wait for each other within forward and backward passes."""
        return self._gathers_outputs or self.strategy.bss > 0 or has_synced_norms(self.model)

    @property
    def _draws(self) -> bool:
        """Whether something is drawn for each batch that changes its images."""
        s = self.strategy
        return any((s.mixup, s.cutmix)) or (s.views == 0 and (s.augment, s.policy) != ("none", "none"))

    @property
    def _gathers_outputs(self) -> bool:
        """Whether the loss is neither a mean over images nor over pixels, nor a detector's own."""
        return self._data.task == "segmentation" and self.strategy.loss not in PIXEL_LOSSES

    def _is_short_anywhere(self, short: bool) -> bool:
        return self._ranks.any([short])[0]

    @property
    def micro_batches(self) -> int:
        """In how many parts a batch is seen, its gradients added up; above 1 where it does not fit into memory."""
        return self._fitting.parts

    def try_rates(self, low: float, high: float, updates: int) -> RangeTest:
        """Train with learning rates that rise from ``low`` to ``high``, and see what the loss says of them.

        The trainer is of no use for anything else afterwards.

        Raises:
            ConfigError: A number is out of its range.
        """
        self._choose_images()
        set_train_mode(self.model, self.plan)
        batches = (batch for _ in count() for batch in self._batches())

        def step(lr: float) -> float:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            return self._update(*next(batches)).item()

        return range_test(step, low, high, updates)

    def _batches(self) -> Iterator[tuple[Tensor | Rows, Tensor, Tensor]]:
        """An epoch's batches, of full size unless there are too few images for one."""
        return self._training_batches(self._epoch_order())

    def _epoch_order(self) -> Tensor:
        """The images of an epoch's batches, (M,) int64."""
        order = sampling_order(self._data.train.targets, self.strategy.sampling, self._order_rng)
        return order[: self._updates_in(self.epoch) * self.strategy.batch_size]

    def _training_batches(self, order: Tensor) -> Iterator[tuple[Tensor | Rows, Tensor, Tensor]]:
        """Images (B, C, H, W) uint8, or what is known of them, targets, and places in the split, (N,) on the CPU.

        Images are this rank's, targets and places those of all ranks.
        """
        train, batch_size, device = self._data.train, self.strategy.batch_size, self.device.torch
        places = torch.split(order, batch_size)
        targets = torch.split(train.targets[order].to(device), batch_size)
        own = self._ranks.mine_of(order, batch_size)
        if self._known is None:
            images = (batch for batch, _ in train.batches(*own, device))
            return zip(images, targets, places, strict=True)
        return zip(self._known.rows.batches(*own, device), targets, places, strict=True)

    def _relative_gradients(self) -> dict[int, float]:
        """Factors on the learning rates of the blocks trained in this epoch, from a few batches."""
        names: dict[int, list[str]] = {}
        for param in self.plan.params:
            if param.block != HEAD and param.trained_in(self.epoch):
                names.setdefault(param.block, []).append(param.name)
        if not names:
            return {}
        ratios = RelativeGradients(self.model, list(names.values()))
        # Drawn by chance, but not from the order's generator: the epoch is the same as with other rates.
        rng = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(len(self._data.train), generator=rng)[: _RATED_BATCHES * self.strategy.batch_size]
        left = len(order) % self.strategy.batch_size
        if left < max(2, self._ranks.count) and left < len(order):
            # A last single image, on which BatchNorm cannot train, or fewer than ranks.
            order = order[: len(order) - left]
        with fixed_batch_stats(self.model):
            for batch, targets, places in self._training_batches(order):
                self._gradients(self._shown(batch, targets, places, as_they_are=True))
                ratios.add()
        return dict(zip(names, ratios.factors(), strict=True))

    def _shown(self, batch: Tensor | Rows, targets: Tensor, places: Tensor, as_they_are: bool = False) -> _Shown:
        """What the model is given, what it is to learn of it, and the teacher's answers if there is a teacher.

        Images are varied and mixed as the strategy says, unless ``as_they_are``, which shows views where there are any;
        what is known of the images is given on. What is drawn for a batch is drawn for all of it, whoever sees which
        part: so each rank varies and mixes the images of all.
        """
        own = self._ranks.mine(len(targets))
        wanted = targets if self._scale is None else self._scale.standardise(targets)
        if not isinstance(batch, Tensor):
            return _Shown(batch, wanted[own], None, wanted)
        is_whole = not as_they_are and (self._ranks.is_alone or self._draws)
        if is_whole:
            batch = self._ranks.gather(batch, self._ranks.sizes(len(targets)))
        else:
            places = places[own]
        pixels = batch.float().div_(255)
        if self._view is not None:
            pixels = self._view.show(pixels, places)
        elif is_whole and self._task.dense is not None:
            pixels, wanted = self._task.dense.vary(pixels, wanted, self.strategy, self._augment_rng)
        elif is_whole:
            pixels = vary(pixels, self.strategy, self._augment_rng)
        if is_whole:
            pixels, wanted = mix_batch(pixels, wanted, len(self._data.classes), self.strategy, self._augment_rng)
            pixels = pixels[own]
        pixels = resize(pixels, shown_size(batch.shape[-1], self.strategy, self.epoch))
        taught = None if self._teacher is None else self._teacher.logits(pixels)
        return _Shown(self._normalise(pixels), wanted[own], taught, wanted)

    def _loss_on(
        self, inputs: Tensor | Rows, wanted: Tensor, taught: Tensor | None, sizes: Sequence[int] = ()
    ) -> Tensor:
        """The training loss with all that the strategy adds to it, from a new forward pass.

        What is no mean over images is computed of the images of all ranks, which see ``sizes`` of them at once.
        """

        def everyones(outputs: Tensor) -> Tensor:
            return self._ranks.gather_outputs(outputs, sizes)

        with self.device.autocast():
            outputs = self._forward(inputs)
        if self._gathers_outputs:
            loss = self._task_loss(everyones(outputs), self._ranks.gather(wanted, sizes))
        else:
            loss = self._task_loss(outputs, wanted)
        if taught is not None:
            distance = distillation(outputs.float(), taught, self.strategy.distill_temperature)
            loss = loss.lerp(distance, self.strategy.distill_weight)
        if self._holding is not None:
            loss = loss + self._holding.penalty(inputs if isinstance(inputs, Tensor) else None, wanted, everyones)
        return loss

    def _task_loss(self, outputs: Any, wanted: Tensor) -> Tensor:
        if self._task.dense is not None and self._task.dense.loss is not None:
            return self._task.dense.loss(self.model, outputs, wanted)
        loss: Tensor = self._loss(outputs.float(), wanted, self.strategy, self._class_weights)
        return loss

    def _forward(self, inputs: Tensor | Rows) -> Any:
        return self.forward(self.model, inputs, None if self._known is None else self._known.cut)

    def _average_epoch(self) -> None:
        """Take the weights after one of the last epochs into their average (SWA)."""
        if self._average is None or self.epoch <= self.strategy.epochs - self.strategy.swa_epochs:
            return
        self._average.update(swa_weight(self._average.updates))
        with self._average.swapped():
            set_train_mode(self.model, self.plan, self.epoch - 1)
            order = torch.arange(self._updates_per_epoch * self.strategy.batch_size) % len(self._data.train)
            own = self._ranks.mine_of(order, self.strategy.batch_size)
            batches = self._data.train.batches(*own, self.device.torch)
            size = shown_size(self._data.preprocessing.image_size, self.strategy)
            with self._ranks.stepping():
                refit_batch_norm(self.model, (self._normalise(resize(x.float().div_(255), size)) for x, _ in batches))

    def _as_scored(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are scored and kept: their average, if there is one."""
        return self._average.swapped() if self._average is not None and self._average.updates else nullcontext()

    def predict(self, split: Split) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a split, by this process alone; see :func:`trainers.scoring.prediction.predict`."""
        fitting = self._validation_fitting if self._ranks.is_alone else Fitting(4 * self.strategy.batch_size)
        return self._predict(split, torch.arange(len(split)), fitting)

    def _predict_together(self, split: Split) -> tuple[Tensor, Tensor]:
        """The same, each rank a part of the images."""
        places = torch.arange(len(split))
        if self._ranks.is_alone or len(split) < self._ranks.count:
            return self._predict(split, places, self._validation_fitting)
        rows, _ = self._predict(split, places[self._ranks.mine(len(split))], self._validation_fitting)
        return self._ranks.gather(rows, self._ranks.sizes(len(split))), split.targets.cpu()

    def _predict(self, split: Split, places: Tensor, fitting: Fitting) -> tuple[Tensor, Tensor]:
        known = self.reused.known.get("val") if split is self._data.val else None

        def attempt(parts: int) -> tuple[Tensor, Tensor]:
            return predict(
                self.model,
                split,
                self.strategy,
                self._normalise,
                self._task,
                self._scale,
                self.device,
                known,
                self.forward,
                parts,
                places,
            )

        with self._as_scored():
            return fitting.do(attempt)

    @torch.inference_mode()
    def look(self) -> Tensor | None:
        """What the model says of the validation images that are shown, (K, ...) on the CPU; None for classifiers."""
        if self._task.dense is None:
            return None
        places = shown_places(self._data.val)
        images, _ = next(self._data.val.batches(places, len(places), self.device.torch))
        with self._as_scored(), self.device.autocast():
            self.model.eval()
            outputs = self.forward(self.model, self._normalise(images.float().div_(255)))
            return self._task.dense.predicted(self.model, outputs).cpu()

    def weights(self) -> dict[str, Tensor]:
        """The weights that were scored, on the CPU, named as in a plain timm model: low-rank updates are added in."""
        with self._as_scored():
            state = self.model.state_dict()
            if self.strategy.parameters == "lora":
                # Only here: peft takes seconds to import.
                from strategies import merged_state_dict

                state = merged_state_dict(self.model)
            return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after the last result: tensors and plain values only, no pickled objects."""
        state = {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order_rng": self._order_rng.get_state(),
            "augment_rng": self._augment_rng.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        if self._begun is not None:
            begun = self._begun
            state["begun"] = {"order": begun.order, "updates": begun.updates, "loss_sum": begun.loss_sum}
        if self._average is not None:
            state["average"] = self._average.state_dict()
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
        self.scheduler.load_state_dict(state["scheduler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._order_rng.set_state(state["order_rng"])
        self._augment_rng.set_state(state["augment_rng"])
        torch.set_rng_state(state["torch_rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device.torch)
        self._begun = self._taken_up(state["begun"]) if "begun" in state else None

    def _taken_up(self, state: dict[str, Any]) -> _Begun:
        """The epoch that :meth:`state_dict` was taken in."""
        self._choose_images()
        order: Tensor = state["order"].cpu()
        left = self._training_batches(order[state["updates"] * self.strategy.batch_size :])
        return _Begun(order, left, state["updates"], state["loss_sum"].to(self.device.torch))


def _teacher_of(teacher: Teacher | None, strategy: Strategy) -> Teacher | None:
    if strategy.distill_weight > 0 and teacher is None:
        raise ConfigError("strategy.distill_weight: the study has no teacher")
    return teacher if strategy.distill_weight > 0 else None
