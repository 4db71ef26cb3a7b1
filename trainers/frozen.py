"""The frozen part of trials' models, computed once and shared by trials, processes and nights."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from strategies import Plan, Strategy, resize, shown_size
from trainers.activations import ActivationStore, Content, NoRoomError, weights_digest
from trainers.block_graph import BlockGraph, trace_blocks
from trainers.cut import Cut, check_cut, cut_at
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.models import ModelSource
from trainers.prediction import Known, Normalise
from trainers.reuse import Cost, frozen_blocks, measure, prefix_rows, weigh
from trainers.rows import CutError
from trainers.stored_rows import Activations

logger = logging.getLogger(__name__)

# Images of a batch from which rows are computed; without gradients they take little memory.
_BATCH = 256
# Graphs that are kept: a space with a continuous rate of dropout has a new one in every trial.
_MAX_GRAPHS = 32
# Images on which a cut is proved and timed.
_SAMPLE = 64


@dataclass(frozen=True, slots=True)
class Reused:
    """What a trial reads instead of computing it; a split that is not known is computed from its images.

    Args:
        known: By ``train`` and ``val``, as far as they are reused.
        reason: Why, or why not, in one line.
    """

    known: Mapping[str, Known]
    reason: str


#: For a trainer that computes everything.
NOTHING_REUSED = Reused({}, "no reuse: off")


@dataclass(frozen=True, slots=True)
class Setting:
    """A trial's circumstances, as far as its frozen prefix depends on them.

    Args:
        source: Built the model.
        model: The model on its device, as it will be trained.
        plan: Of that model.
        strategy: In canonical form.
        seed: Drew what is not pretrained.
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
        """What a traced graph depends on besides tensors: modules that are there, and rates that a forward reads."""
        s = self.strategy
        lora = (s.lora_rank, s.lora_alpha, s.depth, s.depth_from) if s.parameters == "lora" else None
        return self.source.name, s.dropout, s.drop_path, s.stochastic_norm, lora, self.size, self.device.description

    @property
    def size(self) -> int:
        """Height and width of what the model is shown."""
        return shown_size(self.data.preprocessing.image_size, self.strategy)

    def inputs(self, split: Split, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Batches as the model takes them, without augmentation."""
        for images, _ in split.batches(order, batch_size, self.device.torch):
            yield self.normalise(resize(images.float().div_(255), self.size))

    def content(self, cut: Cut, split: str, weights: str) -> Content:
        """What the rows of a split depend on; ``weights`` is the digest of the prefix's."""
        how = {"preprocessing": asdict(self.data.preprocessing), "shown": self.size}
        how |= {"mean": self.source.mean, "std": self.source.std}
        return Content(
            weights=weights,
            architecture=self.source.name,
            in_chans=self.source.in_chans,
            image_size=self.source.image_size,
            cut=cut.description,
            data=self.data.fingerprint,
            split=split,
            transform=repr(how),
            view=0,
            arithmetic=self.device.description,
        )


class Reuse:
    """Finds, for one trial after the other, what of its model is frozen and known.

    Args:
        store: Where rows are kept.
        always: Whether to reuse without weighing whether it pays.
        sharing: How many trials may be expected to read an entry, for weighing.
    """

    def __init__(self, store: ActivationStore, *, always: bool = False, sharing: float = 1.0) -> None:
        self._store = store
        self._always = always
        self._sharing = sharing
        self._graphs: dict[tuple[object, ...], BlockGraph] = {}
        self._cuts: dict[tuple[object, ...], Cut] = {}
        self._costs: dict[tuple[object, ...], Cost] = {}
        self._digests: dict[tuple[object, ...], str] = {}

    def look_up(self, setting: Setting) -> Reused:
        """The rows that a trial can read, computed now unless they are in the store."""
        k = frozen_blocks(setting.model, setting.plan)
        splits = _splits_shown_alike(setting)
        if k == 0 or not splits:
            return Reused({}, "no reuse: " + ("no block is frozen" if k == 0 else "images change every epoch"))
        try:
            with setting.device.autocast():
                cut = self._cut(setting, k)
                known, reasons = self._known(setting, cut, splits)
        except (CutError, NoRoomError) as error:
            return Reused({}, f"no reuse: {error}")
        return Reused(known, "; ".join(dict.fromkeys(reasons)))

    def stored(self, setting: Setting, split: str) -> Known | None:
        """The rows of a split, ``train`` or ``val``, if a trial could read them and they are in the store already."""
        k = frozen_blocks(setting.model, setting.plan)
        shown = _splits_shown_alike(setting)
        if k == 0 or split not in shown:
            return None
        try:
            with setting.device.autocast():
                cut = self._cut(setting, k)
        except CutError:
            return None
        rows = self._store.find(self._content(setting, cut, split), cut.rows, len(shown[split]))
        return None if rows is None else Known(cut, rows)

    def _cut(self, setting: Setting, k: int) -> Cut:
        """The cut in front of block ``k``, proved on images when it is first made."""
        key = (*setting.structure, k)
        if key not in self._cuts:
            graph = self._graph(setting)
            cut = cut_at(graph, setting.model, k)
            split = setting.data.val
            check_cut(setting.model, cut, next(setting.inputs(split, torch.arange(min(_SAMPLE, len(split))), _SAMPLE)))
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

    def _content(self, setting: Setting, cut: Cut, split: str) -> Content:
        # Pretrained weights are the same in all trials, random ones in those of the same seed.
        drawn = setting.seed if setting.source.weights.state_dict is None else None
        key = (setting.source.name, setting.source.weights.digest, drawn, cut.state_names)
        if key not in self._digests:
            self._digests[key] = weights_digest(setting.model, cut.state_names)
        return setting.content(cut, split, self._digests[key])

    def _known(self, setting: Setting, cut: Cut, splits: Mapping[str, Split]) -> tuple[dict[str, Known], list[str]]:
        found: dict[str, Known] = {}
        reasons = []
        shallower = [other for key, other in self._cuts.items() if key[:-1] == setting.structure and other.k < cut.k]
        for name, split in splits.items():
            stored = self._store.find(self._content(setting, cut, name), cut.rows, len(split))
            use, reason = True, "reuse: as asked"
            if not self._always:
                passes = setting.strategy.epochs * self._sharing
                cost = self._cost(setting, cut, name, split, stored)
                verdict = weigh(replace(cost, passes=passes, stored=stored is not None), self._store)
                use, reason = verdict.use, verdict.reason
            reasons.append(reason)
            if use:
                found[name] = Known(cut, stored or self._computed(setting, cut, name, split, shallower))
        return found, reasons

    def _cost(self, setting: Setting, cut: Cut, name: str, split: Split, stored: Activations | None) -> Cost:
        """What was measured when a split was first to be read at this cut."""
        key = (*setting.structure, cut.k, name)
        if key not in self._costs:
            batch = next(setting.inputs(split, torch.arange(min(_SAMPLE, len(split))), _SAMPLE))
            self._costs[key] = measure(setting.model, cut, batch, len(split), 1.0, stored)
        return self._costs[key]

    def _computed(self, setting: Setting, cut: Cut, name: str, split: Split, shallower: Iterable[Cut]) -> Activations:
        def images() -> Iterator[Tensor]:
            return setting.inputs(split, torch.arange(len(split)), _BATCH)

        return prefix_rows(
            self._store,
            self._graph(setting),
            setting.model,
            cut,
            lambda other: self._content(setting, other, name),
            images,
            len(split),
            _BATCH,
            list(shallower),
        )


def _splits_shown_alike(setting: Setting) -> dict[str, Split]:
    """The splits whose images are the same in every epoch."""
    s, data = setting.strategy, setting.data
    # The teacher and the start model of DELTA are shown the images themselves.
    changed = (s.augment, s.policy) != ("none", "none") or any((s.mixup, s.cutmix, s.distill_weight, s.delta))
    found = {} if changed or s.grow_from < 1 else {"train": data.train}
    return found | ({"val": data.val} if s.tta == "none" else {})
