"""What a fine-tuning strategy is: one frozen record of every choice, checked, printable as YAML."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from strategies.errors import ConfigError, nearest

#: The losses that each task can be trained with; the first is its default.
TASK_LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("cross_entropy", "label_smoothing", "focal", "bce", "mse"),
    "multilabel": ("bce", "focal"),
    "regression": ("mse", "l1", "huber"),
}

_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a name"}


@dataclass(frozen=True, slots=True)
class Choices:
    """What a strategy's field may hold.

    Args:
        kinds: Types accepted; an int is accepted where a float is, a bool never is.
        low: Least value, itself allowed unless ``above`` is set.
        high: Greatest value, itself allowed.
        above: ``low`` itself is excluded.
        options: The only values accepted; empty for numbers.
        help: One line for ``--help`` and the docs.
    """

    kinds: tuple[type, ...]
    help: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    options: tuple[str, ...] = ()

    def expected(self) -> str:
        """The accepted values in words."""
        if self.options:
            return "one of " + ", ".join(self.options)
        kind = " or ".join(_KINDS[k] for k in self.kinds)
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"at most {self.high:g}")
        return kind + (" " + " and ".join(bounds) if bounds else "")

    def accepts(self, value: object) -> bool:
        """Whether ``value`` is of the right type, finite and within bounds."""
        if isinstance(value, bool):
            return False
        if isinstance(value, str):
            return str in self.kinds and (not self.options or value in self.options)
        if not isinstance(value, self.kinds) and not (isinstance(value, int) and float in self.kinds):
            return False
        assert isinstance(value, int | float)
        inside = self.low < value if self.above else self.low <= value
        # Not math.isfinite: it cannot take whole numbers beyond the floats. NaN fails either comparison.
        return inside and value <= self.high and abs(value) != math.inf


def _choice(default: Any, help: str, *kinds: type, **limits: Any) -> Any:
    return field(default=default, metadata={"choices": Choices(kinds, help, **limits)})


@dataclass(frozen=True, slots=True)
class Strategy:
    """Every choice of how to fine-tune one model.

    A field that another choice makes meaningless (``focal_gamma`` without the focal loss) keeps its default and has no
    effect; see :data:`CONDITIONS`.

    Example:
        >>> Strategy(depth=0, lr=0.01).replace(optimizer="sgd").optimizer
        'sgd'

    Raises:
        ConfigError: A value is of the wrong type or out of bounds.
    """

    depth: int | float = _choice(
        1.0,
        "blocks trained, counted from the head: a whole number, or a fraction (1.0 is all)",
        int,
        float,
        low=0,
        high=100_000,
    )
    depth_from: str = _choice(
        "head",
        "where the trained blocks lie: next to the head, next to the input (surgical fine-tuning), or in the middle",
        str,
        options=("head", "input", "middle"),
    )
    parameters: str = _choice(
        "all",
        "what of the trained blocks is trained: all, or normalisations or biases only; the head always whole",
        str,
        options=("all", "norms", "biases", "norms_and_biases"),
    )
    unfreeze_epochs: float = _choice(
        0.0,
        "epochs over which the trained blocks are unfrozen one by one, from the head on",
        float,
        low=0,
        high=100_000,
    )
    reinit_blocks: int = _choice(
        0, "trained blocks next to the head that are drawn anew instead of pretrained", int, low=0, high=100_000
    )
    probe_epochs: int = _choice(
        0, "epochs of a linear probe on stored features before the fine-tuning (LP-FT)", int, low=0, high=100_000
    )
    probe_lr: float = _choice(0.01, "peak learning rate of that probe", float, low=0, above=True, high=100)
    loss: str = _choice(
        "cross_entropy",
        "training loss; which of them there are depends on the task",
        str,
        options=tuple(dict.fromkeys(name for names in TASK_LOSSES.values() for name in names)),
    )
    label_smoothing: float = _choice(
        0.1, "mass moved to the other classes, with loss label_smoothing", float, low=0, high=0.9
    )
    focal_gamma: float = _choice(2.0, "focusing exponent, with loss focal", float, low=0, high=10)
    optimizer: str = _choice("adamw", "any name of timm.optim.list_optimizers()", str)
    lr: float = _choice(
        1e-3, "peak learning rate, of which the blocks and the head take shares", float, low=0, above=True, high=100
    )
    head_lr_scale: float = _choice(1.0, "factor on the head's learning rate", float, low=0, above=True, high=10_000)
    layer_decay: float = _choice(
        1.0, "factor on the learning rate for each block further from the head", float, low=0, above=True, high=1
    )
    weight_decay: float = _choice(0.01, "weight decay, never on norms and biases", float, low=0, high=10)
    schedule: str = _choice(
        "cosine", "learning-rate schedule over the epochs", str, options=("cosine", "poly", "step", "constant")
    )
    warmup_epochs: float = _choice(0.0, "epochs of linear warm-up from zero", float, low=0, high=100_000)
    clip_grad: float = _choice(0.0, "largest gradient norm, 0 for no clipping", float, low=0, high=1e9)
    batch_norm: str = _choice(
        "train",
        "BatchNorm of trained blocks: train, frozen_stats (running statistics fixed) or frozen (affine fixed too)",
        str,
        options=("train", "frozen_stats", "frozen"),
    )
    augment: str = _choice(
        "none",
        "augmentation level; custom is what the fields from crop_area to erase say",
        str,
        options=("none", "light", "medium", "strong", "custom"),
    )
    crop_area: float = _choice(0.6, "least share of the area that a random crop keeps", float, low=0.01, high=1)
    flip: float = _choice(0.5, "share of images mirrored left to right", float, low=0, high=1)
    rotate: float = _choice(0.0, "largest rotation in degrees", float, low=0, high=180)
    colour: float = _choice(0.0, "largest relative change of brightness and contrast", float, low=0, high=1)
    saturation: float = _choice(0.0, "largest relative change of saturation", float, low=0, high=1)
    hue: float = _choice(0.0, "largest turn of hues in degrees", float, low=0, high=180)
    erase: float = _choice(0.0, "share of images with a rectangle blanked", float, low=0, high=1)
    policy: str = _choice(
        "none",
        "augmentation policy before the level: AutoAugment, RandAugment or TrivialAugment",
        str,
        options=("none", "auto", "rand", "trivial"),
    )
    policy_ops: int = _choice(2, "operations an image, with policy rand", int, low=1, high=4)
    policy_magnitude: float = _choice(9.0, "strength of operations, with policy rand; 30 is all", float, low=0, high=30)
    mixup: float = _choice(0.0, "alpha of mixup, 0 for none", float, low=0, high=100)
    cutmix: float = _choice(0.0, "alpha of CutMix, 0 for none", float, low=0, high=100)
    mix_prob: float = _choice(1.0, "share of images that mixup or CutMix mixes", float, low=0, high=1)
    tta: str = _choice(
        "none",
        "views whose outputs are averaged in validation, test and serving: mirrored, or mirrored corners",
        str,
        options=("none", "flip", "crops"),
    )
    batch_size: int = _choice(64, "images a step", int, low=1, high=65536)
    epochs: int = _choice(5, "passes over the training images", int, low=1, high=100_000)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not choices.accepts(value):
                raise ConfigError(f"strategy.{name}: {value!r} is not {choices.expected()}")
            if choices.kinds == (float,):
                # 1 and 1.0 train alike, so they must print and hash alike.
                object.__setattr__(self, name, float(value))
        if isinstance(self.depth, float) and self.depth > 1:
            raise ConfigError(
                f"strategy.depth: {self.depth!r} is not a fraction between 0 and 1; for a number of blocks write it "
                "without a decimal point"
            )
        for name in ("warmup_epochs", "unfreeze_epochs"):
            if getattr(self, name) > self.epochs:
                raise ConfigError(f"strategy.{name}: {getattr(self, name):g} is longer than epochs: {self.epochs}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Strategy":
        """Build a strategy from field names and values; fields left out take their defaults.

        Raises:
            ConfigError: A name is unknown or a value is wrong.
        """
        for name in values:
            if name not in CHOICES:
                raise ConfigError(f"strategy.{name}: unknown key; {nearest(str(name), CHOICES)}")
        return cls(**values)

    @classmethod
    def from_yaml(cls, text: str) -> "Strategy":
        """Build a strategy from what :meth:`to_yaml` printed.

        Raises:
            ConfigError: The text is no YAML mapping, a name is unknown or a value is wrong.
        """
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"strategy: not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"strategy: expected a mapping of names to values, got {values!r}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Field names and values, in the order of the fields."""
        return {name: getattr(self, name) for name in CHOICES}

    def to_yaml(self) -> str:
        """The strategy as YAML that :meth:`from_yaml` reads back to an equal strategy."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False)
        return text

    def replace(self, **changes: Any) -> "Strategy":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def blocks_trained(self, num_blocks: int) -> int:
        """Depth as a number of blocks of a model that has ``num_blocks``.

        A fraction above zero is rounded, half away from zero, to at least one block.

        Raises:
            ConfigError: ``depth`` is a whole number larger than ``num_blocks``.
        """
        if isinstance(self.depth, float):
            return max(1, math.floor(self.depth * num_blocks + 0.5)) if self.depth > 0 else 0
        if self.depth > num_blocks:
            raise ConfigError(f"strategy.depth: {self.depth} blocks asked for, the model has {num_blocks}")
        return self.depth

    def canonical(self, num_blocks: int) -> "Strategy":
        """The same strategy with depth as a number of blocks and every field without effect at its default."""
        resolved = self.replace(depth=self.blocks_trained(num_blocks))
        if resolved.depth == num_blocks:
            resolved = resolved.replace(depth_from=CHOICES_DEFAULTS["depth_from"])
        values = resolved.to_dict()
        idle = {name: CHOICES_DEFAULTS[name] for name in values if not has_effect(name, values)}
        return resolved.replace(**idle)

    def fingerprint(self, num_blocks: int) -> str:
        """Twelve hexadecimal digits, equal for strategies that train alike on a model of ``num_blocks``."""
        text = self.canonical(num_blocks).to_yaml()
        return hashlib.sha256(text.encode()).hexdigest()[:12]


CHOICES: dict[str, Choices] = {f.name: f.metadata["choices"] for f in dataclasses.fields(Strategy)}
CHOICES_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Strategy)}

Condition = tuple[tuple[str, ...], Callable[..., bool]]

_DEEP: Condition = (("depth",), lambda depth: depth > 0)
_CUSTOM: Condition = (("augment",), lambda augment: augment == "custom")
_RAND: Condition = (("policy",), lambda policy: policy == "rand")

# What a field depends on: other fields, and whether it has an effect with their values. One absent here always has.
CONDITIONS: dict[str, Condition] = {
    "label_smoothing": (("loss",), lambda loss: loss == "label_smoothing"),
    "focal_gamma": (("loss",), lambda loss: loss == "focal"),
    "probe_lr": (("probe_epochs",), lambda epochs: epochs > 0),
    **dict.fromkeys(
        ("reinit_blocks", "depth_from", "parameters", "unfreeze_epochs", "layer_decay", "batch_norm"), _DEEP
    ),
    **dict.fromkeys(("crop_area", "flip", "rotate", "colour", "saturation", "hue", "erase"), _CUSTOM),
    **dict.fromkeys(("policy_ops", "policy_magnitude"), _RAND),
    "mix_prob": (("mixup", "cutmix"), lambda mixup, cutmix: mixup > 0 or cutmix > 0),
}


def has_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the field ``name`` changes training, given the ``values`` of the fields that control it."""
    if name not in CONDITIONS:
        return True
    controllers, condition = CONDITIONS[name]
    return condition(*(values[controller] for controller in controllers))
