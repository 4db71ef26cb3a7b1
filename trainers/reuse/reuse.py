"""The frozen part of trials' models, computed once and shared by trials, processes and nights."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from strategies import Plan, Strategy, View, resize, shown_size
from trainers.checked_files import DamagedFileError
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.memory import Fitting
from trainers.models import ModelSource, Normalise
from trainers.reuse.cost import Cost, Verdict, measure, weigh
from trainers.reuse.cut import Cut, check_cut, cut_at
from trainers.reuse.entry import Activations, FrozenOutputs, share_of
from trainers.reuse.graph import BlockGraph, trace_blocks
from trainers.reuse.prefix import frozen_blocks, prefix_rows
from trainers.reuse.rows import CutError
from trainers.reuse.store import ActivationStore, Content, NoRoomError, weights_digest

logger = logging.getLogger(__name__)

# Images in a batch from which rows are computed; without gradients they take little memory.
_BATCH = 256
# Graphs that are kept: with a continuous dropout rate in the space, every trial has a new graph.
_MAX_GRAPHS = 32
# Images on which a cut is checked and timed.
_SAMPLE = 64


@dataclass(frozen=True, slots=True)
class Reused:
    """The stored outputs that a trial reads; any other split is computed from its images.

    Args:
        known: The outputs for ``train`` and ``val``, if they are reused and the same in every epoch.
        reason: Why outputs are reused, or why not, in one line.
        spared: Measured seconds that reading saves in an epoch; 0 if not measured.
        view: Takes an epoch, and gives the outputs for the view of the training images in that epoch, computed now
            unless they are in the store; or None if the view must be computed from the images.
    """

    known: Mapping[str, FrozenOutputs]
    reason: str
    spared: float = 0.0
    view: Callable[[int], FrozenOutputs | None] | None = None

    def training(self, epoch: int) -> FrozenOutputs | None:
        """The stored outputs for the training images of an epoch, from 0."""
        return self.known.get("train") if self.view is None else self.view(epoch)


#: For a trainer that computes everything.
NOTHING_REUSED = Reused({}, "no reuse: off")


@dataclass(frozen=True, slots=True)
class Setting:
    """All that the frozen prefix of a trial depends on.

    Args:
        source: The source that built the model.
        model: The model on its device, as it will be trained.
        plan: The plan of that model.
        strategy: In canonical form.
        seed: The seed of the parts that are not pretrained.
        data: Gives the images.
        normalise: Makes the model's input.
        device: Where to compute.
    """

    source: ModelSource
    model: nn.Module
    plan: Plan
    strategy: Strategy
    seed: int
    data: ImageData
    normalise: Normalise
    device: Device

    @property
    def structure(self) -> tuple[object, ...]:
        """All that a traced graph depends on besides tensors: its modules, and rates that a forward pass reads."""
        s = self.strategy
        lora = (s.lora_rank, s.lora_alpha, s.depth, s.depth_from) if s.parameters == "lora" else None
        return self.source.name, s.dropout, s.drop_path, s.stochastic_norm, lora, self.size, self.device.description

    @property
    def size(self) -> int:
        """Height and width of the model's input images."""
        return shown_size(self.data.preprocessing.image_size, self.strategy)

    @property
    def views(self) -> list[View | None]:
        """The views of the training images that epochs show in turn; None stands for unvaried images."""
        s = self.strategy
        return [View(s, len(self.data.train), self.seed, number) for number in range(s.views)] or [None]

    def inputs(self, split: Split, order: Tensor, batch_size: int, view: View | None = None) -> Iterator[Tensor]:
        """Batches as the model takes them, unvaried or in a view."""
        places = torch.split(order, batch_size)
        for (images, _), part in zip(split.batches(order, batch_size, self.device.torch), places, strict=True):
            # In the number format in which a trainer varies images, which is not always the model's.
            with torch.autocast(self.device.torch.type, enabled=False):
                pixels = images.float().div_(255)
                shown = pixels if view is None else view.show(pixels, part)
                ready = self.normalise(resize(shown, self.size))
            yield ready

    def content(self, cut: Cut, split: str, weights: str, view: View | None = None) -> Content:
        """All that the rows of a split depend on; ``weights`` is the digest of the prefix's weights."""
        how: dict[str, object] = {"preprocessing": asdict(self.data.preprocessing), "shown": self.size}
        how |= {"mean": self.source.mean, "std": self.source.std}
        if view is not None:
            how["augmentation"] = view.description
        return Content(
            weights=weights,
            architecture=self.source.architecture,
            in_chans=self.source.in_chans,
            image_size=self.source.image_size,
            cut=cut.description,
            data=self.data.contents[split],
            split=split,
            transform=repr(how),
            view=0 if view is None else view.number,
            arithmetic=self.device.arithmetic,
        )


class Reuse:
    """Finds, for one trial after the other, the stored outputs of its frozen part.

    Args:
        store: The store of rows.
        always: Whether to reuse without weighing the cost.
        sharing: Number of trials that are expected to read an entry, for weighing.
    """

    def __init__(self, store: ActivationStore, *, always: bool = False, sharing: float = 1.0) -> None:
        self._store = store
        self._always = always
        self._sharing = sharing
        self._graphs: dict[tuple[object, ...], BlockGraph] = {}
        self._cuts: dict[tuple[object, ...], Cut] = {}
        self._costs: dict[tuple[object, ...], Cost] = {}
        self._digests: dict[tuple[object, ...], dict[str, bytes]] = {}

    def look_up(self, setting: Setting) -> Reused:
        """The rows that a trial can read; missing rows are computed now, but missing views when they are needed."""
        k = frozen_blocks(setting.model, setting.plan)
        splits = _splits_shown_alike(setting)
        if k == 0 or not splits:
            return Reused({}, "no reuse: " + ("no block is frozen" if k == 0 else "images change every epoch"))
        device = setting.device.torch
        if device.type == "cuda":
            # Views, or entries of many depths, soon take more memory than a device has beside a training.
            self._store.release(device, share_of(device))
        known: dict[str, FrozenOutputs] = {}
        reasons, spared, view = [], 0.0, None
        try:
            with setting.device.autocast():
                cut = self._cut(setting, k)
                for name, split in splits.items():
                    verdict = self._weighed(setting, cut, name, split)
                    reasons.append(verdict.reason)
                    # A pass is over all views, an epoch over one view.
                    spared += verdict.spared / max(1, setting.strategy.views if name == "train" else 1)
                    if verdict.use and name == "train" and setting.strategy.views > 0:
                        view = self._views(setting, cut)
                    elif verdict.use:
                        known[name] = self._outputs(setting, cut, name, split)
        except (CutError, NoRoomError) as error:
            return Reused({}, f"no reuse: {error}")
        return Reused(known, "; ".join(dict.fromkeys(reasons)), spared, view)

    def _views(self, setting: Setting, cut: Cut) -> Callable[[int], FrozenOutputs | None]:
        """A function that gives the rows of an epoch's view."""
        views = setting.views

        def known(epoch: int) -> FrozenOutputs | None:
            try:
                return self._outputs(setting, cut, "train", setting.data.train, views[epoch % len(views)])
            except NoRoomError as error:
                logger.warning("epoch %d computes what is frozen: %s", epoch + 1, error)
                return None

        return known

    def release(self, device: torch.device) -> None:
        """Free all rows that are kept on a device."""
        self._store.release(device, 0)

    def stored(self, setting: Setting, split: str) -> FrozenOutputs | None:
        """The rows of a split, ``train`` or ``val``, if a trial could read them and they are in the store already.

        There are none for a split that is shown in views.
        """
        k = frozen_blocks(setting.model, setting.plan)
        shown = _splits_shown_alike(setting)
        if k == 0 or split not in shown or (split == "train" and setting.strategy.views > 0):
            return None
        try:
            with setting.device.autocast():
                cut = self._cut(setting, k)
        except CutError:
            return None
        rows = self._store.find(self._content(setting, cut, split, None), cut.rows, len(shown[split]))
        if rows is None:
            return None
        return FrozenOutputs(cut, rows, lambda: self._rows(setting, cut, split, shown[split]))

    def _cut(self, setting: Setting, k: int) -> Cut:
        """The cut in front of block ``k``, checked on images when it is first made."""
        key = (*setting.structure, k)
        if key not in self._cuts:
            graph = self._graph(setting)
            cut = cut_at(graph, setting.model, k)
            split = setting.data.val
            images = next(setting.inputs(split, torch.arange(min(_SAMPLE, len(split))), _SAMPLE))
            Fitting(len(images)).do(lambda parts: check_cut(setting.model, cut, _some(images, parts)))
            self._cuts[key] = cut
        return self._cuts[key]

    def _graph(self, setting: Setting) -> BlockGraph:
        if setting.structure not in self._graphs:
            if len(self._graphs) >= _MAX_GRAPHS:
                for known in (self._graphs, self._cuts, self._costs):
                    known.clear()
            shape = (setting.source.in_chans, setting.size, setting.size)
            self._graphs[setting.structure] = trace_blocks(setting.model, shape)
        return self._graphs[setting.structure]

    def _content(self, setting: Setting, cut: Cut, split: str, view: View | None) -> Content:
        # Pretrained weights are the same in all trials, random weights only in trials of the same seed.
        drawn = setting.seed if setting.source.weights.state_dict is None else None
        known = self._digests.setdefault((setting.source.name, setting.source.weights.digest, drawn), {})
        return setting.content(cut, split, weights_digest(setting.model, cut.state_names, known), view)

    def _weighed(self, setting: Setting, cut: Cut, name: str, split: Split) -> Verdict:
        """Whether to read a split's rows, with the reason."""
        if self._always:
            return Verdict(True, "reuse: as asked")
        views = setting.views if name == "train" else [None]
        found = [self._store.find(self._content(setting, cut, name, view), cut.rows, len(split)) for view in views]
        key = (*setting.structure, cut.k, name, len(views))
        if key not in self._costs:
            batch = next(setting.inputs(split, torch.arange(min(_SAMPLE, len(split))), _SAMPLE))
            count = len(views) * len(split)
            try:
                self._costs[key] = Fitting(len(batch)).do(
                    lambda parts: measure(setting.model, cut, _some(batch, parts), count, 1.0, found[0])
                )
            except DamagedFileError as error:
                logger.warning("%s", error)
                # The store does not find it any more.
                return self._weighed(setting, cut, name, split)
        # Another trial probably varies images in another way, and then reads other views.
        sharing = self._sharing if views == [None] else 1.0
        passes = setting.strategy.epochs / len(views) * sharing
        cost = replace(self._costs[key], passes=passes, stored=all(rows is not None for rows in found))
        return weigh(cost, self._store)

    def _outputs(self, setting: Setting, cut: Cut, name: str, split: Split, view: View | None = None) -> FrozenOutputs:
        """The outputs for a split, or for a view of the split, computed unless they are in the store."""

        def rows() -> Activations:
            return self._rows(setting, cut, name, split, view)

        return FrozenOutputs(cut, rows(), rows)

    def _rows(self, setting: Setting, cut: Cut, name: str, split: Split, view: View | None = None) -> Activations:
        def images() -> Iterator[Tensor]:
            return setting.inputs(split, torch.arange(len(split)), _BATCH, view)

        with setting.device.autocast():
            return prefix_rows(
                self._store,
                self._graph(setting),
                setting.model,
                cut,
                lambda other: self._content(setting, other, name, view),
                images,
                len(split),
                _BATCH,
                self._shallower(setting, cut.k),
            )

    def _shallower(self, setting: Setting, k: int) -> Iterator[Cut]:
        """All cuts in front of ``k``, whose rows any process may have stored; each is made when it is asked for."""
        graph = self._graph(setting)
        for other in range(1, k):
            with suppress(CutError):
                yield cut_at(graph, setting.model, other)


def _some(images: Tensor, parts: int) -> Tensor:
    """The first of so many parts of images."""
    return images[: max(1, len(images) // parts)]


def _splits_shown_alike(setting: Setting) -> dict[str, Split]:
    """The splits whose images are the same in every epoch, or the same few views in turn."""
    s, data = setting.strategy, setting.data
    varied = (s.augment, s.policy) != ("none", "none") and s.views == 0
    # Mixing takes pixels of two images. The teacher and the start model of DELTA are shown the images themselves.
    changed = varied or any((s.mixup, s.cutmix, s.distill_weight, s.delta))
    found = {} if changed or s.grow_from < 1 else {"train": data.train}
    return found | ({"val": data.val} if s.tta == "none" else {})
