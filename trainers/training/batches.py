"""The batches of a trial: which images each step sees, and how the images are shown to the model."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies import ConfigError, Strategy, View, mix_batch, resize, sampling_order, shown_size, vary
from trainers.data import ImageData
from trainers.device import Device
from trainers.models import Normalise
from trainers.reuse import Cut, FrozenOutputs, Reused, Rows
from trainers.tasks import TASKS
from trainers.training.ranks import Ranks
from trainers.training.teacher import Teacher

#: A batch before it is shown: this rank's images (B, C, H, W) uint8, or the outputs of the frozen part for them; then
#: the targets (N, ...) of all ranks on the device, and the places (N,) of their images in the split, on the CPU.
RawBatch = tuple[Tensor | Rows, Tensor, Tensor]

# Batches from which relative gradients are measured before an epoch, as in the code of Lee et al. (ICLR 2023).
_RATED_BATCHES = 5


@dataclass(frozen=True, slots=True)
class ShortEpochs:
    """Epochs at the beginning of a training that see only a share of the images.

    Args:
        epochs: Number of such epochs.
        images: The share, above 0 and at most 1.
    """

    epochs: int
    images: float


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of a training step. With several ranks, each rank has its own part of the images.

    Args:
        inputs: (B, C, H, W) float images as the model takes them, or the outputs of the frozen part for them.
        targets: (B, ...), the targets of these images.
        teacher_logits: (B, num_classes) float, the teacher's answers; None without a teacher.
        all_targets: (N, ...), the targets of the whole batch, over all ranks.
        cut: Where the frozen part ends, if ``inputs`` are outputs of that part; else None.
    """

    inputs: Tensor | Rows
    targets: Tensor
    teacher_logits: Tensor | None
    all_targets: Tensor
    cut: Cut | None


class Batches:
    """Draws the order of the training images, and varies and mixes the images as the strategy says.

    It holds the two random generators of a trial. It stands in one epoch; :meth:`turn_to` turns it to another.

    Args:
        data: Gives the training images and their targets.
        strategy: In canonical form.
        seed: Draws the order of images and the augmentation.
        device: Where to compute.
        normalise: Makes the model's input.
        teacher: Answers for the images that are shown; None if the strategy has no distillation.
        reused: What is known of the training images.
        short: Epochs at the beginning that see only a share of the images.
        ranks: The processes that train together.

    Raises:
        ConfigError: A batch has fewer images than there are ranks.
    """

    def __init__(
        self,
        data: ImageData,
        strategy: Strategy,
        seed: int,
        device: Device,
        normalise: Normalise,
        teacher: Teacher | None,
        reused: Reused,
        short: ShortEpochs,
        ranks: Ranks,
    ) -> None:
        self._data, self._strategy, self._seed, self._device = data, strategy, seed, device
        self._normalise, self._teacher, self._reused, self._ranks = normalise, teacher, reused, ranks
        self._short = short
        self._task = TASKS[data.task]
        self._scale = self._task.scale(data.train.targets)
        self._order_rng = torch.Generator().manual_seed(seed)
        self._augment_rng = torch.Generator().manual_seed(seed + 1)
        self._epoch = 0
        self._known: FrozenOutputs | None = None
        self._view: View | None = None
        #: The last, smaller batch is dropped, because BatchNorm cannot train on a single image.
        self.updates_per_epoch = max(1, len(data.train) // strategy.batch_size)
        whole = min(strategy.batch_size, len(data.train))
        #: Images of this rank in a full batch.
        self.own_size = whole // ranks.count
        if self.own_size == 0:
            raise ConfigError(
                f"executor.gpus_per_trial: a batch of {whole} images cannot be divided among {ranks.count} processes"
            )

    def turn_to(self, epoch: int) -> None:
        """Find the stored outputs for the images that an epoch shows, or the view of the images that it shows.

        Args:
            epoch: From 0.
        """
        self._epoch = epoch
        self._known = self._reused.training(epoch)
        has_view = self._strategy.views > 0 and self._known is None
        self._view = View(self._strategy, len(self._data.train), self._seed, epoch) if has_view else None

    @property
    def updates(self) -> int:
        """Number of updates in this epoch."""
        if self._epoch >= self._short.epochs:
            return self.updates_per_epoch
        return max(1, int(self.updates_per_epoch * self._short.images))

    def draw_order(self) -> Tensor:
        """Draw the images of this epoch's batches, (M,) int64 places in the split."""
        order = sampling_order(self._data.train.targets, self._strategy.sampling, self._order_rng)
        return order[: self.updates * self._strategy.batch_size]

    def read(self, order: Tensor) -> Iterator[RawBatch]:
        """The batches of images in an order, of full size unless there are too few images for a full one.

        Args:
            order: (M,) int64, places in the split.
        """
        train, batch_size, device = self._data.train, self._strategy.batch_size, self._device.torch
        places = torch.split(order, batch_size)
        targets = torch.split(train.targets[order].to(device), batch_size)
        own = self._ranks.mine_of(order, batch_size)
        if self._known is None:
            images = (batch for batch, _ in train.batches(*own, device))
            return zip(images, targets, places, strict=True)
        return zip(self._known.batches(*own, device), targets, places, strict=True)

    def show(self, raw: RawBatch, as_they_are: bool = False) -> Batch:
        """Make a batch as the model sees it, with the teacher's answers if there is a teacher.

        Random numbers are drawn for the whole batch, whichever rank sees which part. So each rank varies and mixes the
        images of all ranks, and then takes its own.

        Args:
            raw: From :meth:`read`. Outputs of the frozen part are passed on unchanged.
            as_they_are: Neither vary nor mix the images; views are shown all the same.
        """
        images, targets, places = raw
        own = self._ranks.mine(len(targets))
        if self._scale is not None:
            targets = self._scale.standardise(targets)
        if not isinstance(images, Tensor):
            return Batch(images, targets[own], None, targets, self._known.cut if self._known is not None else None)
        is_whole = not as_they_are and (self._ranks.is_alone or self._draws)
        if is_whole:
            images = self._ranks.gather(images, self._ranks.sizes(len(targets)))
        else:
            places = places[own]
        pixels = images.float().div_(255)
        if self._view is not None:
            pixels = self._view.show(pixels, places)
        elif is_whole and self._task.dense is not None:
            pixels, targets = self._task.dense.vary(pixels, targets, self._strategy, self._augment_rng)
        elif is_whole:
            pixels = vary(pixels, self._strategy, self._augment_rng)
        if is_whole:
            pixels, targets = mix_batch(pixels, targets, len(self._data.classes), self._strategy, self._augment_rng)
            pixels = pixels[own]
        pixels = resize(pixels, shown_size(images.shape[-1], self._strategy, self._epoch))
        teacher_logits = None if self._teacher is None else self._teacher.logits(pixels)
        return Batch(self._normalise(pixels), targets[own], teacher_logits, targets, None)

    @property
    def _draws(self) -> bool:
        """Whether something random changes the images of each batch."""
        s = self._strategy
        return any((s.mixup, s.cutmix)) or (s.views == 0 and (s.augment, s.policy) != ("none", "none"))

    def rated(self) -> Iterator[Batch]:
        """A few batches of random images, unvaried, from which relative gradients are measured."""
        batch_size = self._strategy.batch_size
        # Not drawn from the order's generator, so that the epoch sees the same images as with other rates.
        rng = torch.Generator().manual_seed(self._epoch)
        order = torch.randperm(len(self._data.train), generator=rng)[: _RATED_BATCHES * batch_size]
        left = len(order) % batch_size
        if left < max(2, self._ranks.count) and left < len(order):
            # BatchNorm cannot train on a last single image, and each rank needs an image.
            order = order[: len(order) - left]
        for raw in self.read(order):
            yield self.show(raw, as_they_are=True)

    def plain_images(self) -> Iterator[Tensor]:
        """An epoch's training images in the data's order, (B, C, H, W) float as the model takes them, unvaried."""
        train, batch_size = self._data.train, self._strategy.batch_size
        order = torch.arange(self.updates_per_epoch * batch_size) % len(train)
        size = shown_size(self._data.preprocessing.image_size, self._strategy)
        for images, _ in train.batches(*self._ranks.mine_of(order, batch_size), self._device.torch):
            yield self._normalise(resize(images.float().div_(255), size))

    def state_dict(self) -> dict[str, Tensor]:
        """The states of the random generators."""
        return {"order_rng": self._order_rng.get_state(), "augment_rng": self._augment_rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from the states that :meth:`state_dict` gave; other entries are ignored."""
        self._order_rng.set_state(state["order_rng"])
        self._augment_rng.set_state(state["augment_rng"])
