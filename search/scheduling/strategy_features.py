"""What the learnt policy is told of a strategy: the fields that carry over, the study's own fields, and the cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.scheduling.learned import Candidate, ModelFeatures, StrategyFeatures
from strategies import Choice, Entry, Fixed, FloatRange, IntRange, Space, Strategy, trained_blocks

# Fields that StrategyFeatures tells; all other searched fields are the study's own.
_TOLD = frozenset(
    (
        *("depth", "probe_epochs", "layer_decay", "optimizer", "lr", "momentum", "beta1", "beta2", "weight_decay"),
        *("batch_size", "clip_grad", "schedule", "warmup_epochs", "label_smoothing", "mixup", "cutmix", "mix_prob"),
        *("dropout", "stochastic_norm", "l2_sp", "delta", "bss", "co_tuning", "policy", "policy_magnitude", "epochs"),
    )
)
_POLICIES = {"rand": "random"}
_STRONGEST_POLICY = 30.0
# A training step costs the forward pass, and about twice as much for the backward pass.
_TRAINING = 3.0
# An optimizer's step and Python take about as long as so many multiply-adds.
_STEP = 5e7
_VIEWS = {"none": 1, "flip": 2, "crops": 5}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model of a study.

    Args:
        features: What the policy is told of it.
        blocks: Multiply-adds of one image in each block, from the input on.
        space: The study's space for this model.
    """

    features: ModelFeatures
    blocks: tuple[float, ...]
    space: Space


@dataclass(frozen=True, slots=True)
class Work:
    """What an epoch goes through, and how fast.

    Args:
        train: Training images.
        val: Validation images.
        speed: Multiply-adds a second.
    """

    train: int
    val: int
    speed: float

    def epoch_seconds(self, strategy: Strategy, blocks: Sequence[float]) -> float:
        """Computed seconds of an epoch: of a machine of this speed, not of this one.

        Measured seconds differ from run to run, and a search would try other strategies each time.

        Args:
            strategy: In canonical form.
            blocks: Multiply-adds of one image in each block.
        """
        s = strategy
        frozen = trained_blocks(s, len(blocks)).start if s.depth else len(blocks)
        prefix, suffix = sum(blocks[:frozen]), sum(blocks[frozen:])
        varied = (s.augment, s.policy) != ("none", "none") and s.views == 0
        is_stored = not (varied or s.mixup or s.cutmix or s.delta or s.distill_weight or s.grow_from < 1)
        image = _TRAINING * suffix * (2 if s.sam_rho else 1)
        # Frozen blocks are computed once for all epochs where each epoch shows the same images.
        image += prefix / s.epochs if is_stored else prefix
        image += (prefix + suffix) * ((s.delta > 0) + (s.distill_weight > 0))
        grown = (1 + s.grow_from + s.grow_from**2) / 3
        looked = _VIEWS[s.tta] * suffix + (prefix / s.epochs if s.tta == "none" else _VIEWS[s.tta] * prefix)
        passes = s.image_scale**2 * (grown * self.train * image + self.val * looked)
        return (passes + math.ceil(self.train / s.batch_size) * _STEP) / self.speed


def candidate_of(strategy: Strategy, facts: ModelFacts, work: Work, own: tuple[float, ...], amp: bool) -> Candidate:
    """A strategy as the policy is told of it.

    Args:
        strategy: The strategy.
        facts: Its model.
        work: What an epoch goes through.
        own: From :func:`own_fields`.
        amp: Whether the forward pass is computed in half precision.
    """
    s = strategy.canonical(len(facts.blocks))
    seconds = work.epoch_seconds(s, facts.blocks)
    strength = s.policy_magnitude / _STRONGEST_POLICY if s.policy == "rand" else None
    features = StrategyFeatures(
        optimizer=s.optimizer,
        lr=s.lr,
        momentum=s.momentum if s.momentum is not None else s.beta1,
        beta2=s.beta2,
        weight_decay=s.weight_decay,
        layer_decay=s.layer_decay if s.lr_by == "decay" else None,
        trained=int(s.depth) / len(facts.blocks),
        probe_first=s.probe_epochs > 0,
        batch_size=s.batch_size,
        clip_grad=s.clip_grad,
        schedule=s.schedule,
        warmup=s.warmup_epochs / s.epochs if s.warmup_steps == 0 else None,
        smoothing=s.label_smoothing if s.loss == "label_smoothing" else 0.0,
        mixup=s.mixup,
        cutmix=s.cutmix,
        mix_probability=s.mix_prob if s.mixup or s.cutmix else 0.0,
        dropout=s.dropout,
        stochastic_norm=s.stochastic_norm > 0,
        sp=s.l2_sp,
        delta=s.delta,
        bss=s.bss,
        cotuning=s.co_tuning,
        augmentation=_POLICIES.get(s.policy, s.policy),
        augmentation_strength=strength,
        amp=amp,
    )
    return Candidate(features, facts.features, s.epochs, seconds, own)


def own_fields(strategy: Strategy, spaces: Sequence[Space]) -> tuple[float, ...]:
    """The searched fields that the policy does not know, each as numbers from 0 to 1.

    Args:
        strategy: The strategy.
        spaces: Spaces of all models of the study; the number of values depends on them alone.
    """
    entries: dict[str, Entry] = {name: entry for space in spaces for name, entry in space.items()}
    values: Mapping[str, Any] = strategy.to_dict()
    found: list[float] = []
    for name, entry in entries.items():
        if name not in _TOLD and not isinstance(entry, Fixed):
            found += _scaled(values[name], entry)
    return tuple(found)


def _scaled(value: Any, entry: Entry) -> list[float]:
    """A field's place between the ends of its range, or for choices 1 at the chosen."""
    match entry:
        case Choice(choices=choices):
            return [float(value == choice) for choice in choices[1:]]
        case IntRange(low=low, high=high, log=log) | FloatRange(low=low, high=high, log=log):
            start, end, at = (math.log(max(x, 1e-30)) if log else float(x) for x in (low, high, value))
            return [min(max((at - start) / (end - start), 0.0), 1.0) if end > start else 0.5]
        case _:
            return []
