"""What a fine-tuning strategy is: one frozen record of every choice, checked, printable as YAML.

The file is long because the record is one table: a field for each choice, with its bounds, help and source.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from strategies.choices import Choices, choice
from strategies.conditions import has_effect
from strategies.errors import ConfigError, nearest
from strategies.loss_facts import TASK_LOSSES

_MANY = 100_000


@dataclass(frozen=True, slots=True)
class Strategy:
    """Every choice of how to fine-tune one model.

    A field that another choice makes meaningless (``focal_gamma`` without the focal loss) has no effect, whatever its
    value; see :data:`strategies.conditions.CONDITIONS`.

    Example:
        >>> Strategy(depth=0, lr=0.01).replace(optimizer="sgd").optimizer
        'sgd'

    Raises:
        ConfigError: A value is of the wrong type or out of bounds.
    """

    # What is trained.
    depth: int | float = choice(
        1.0,
        "blocks that are trained, counted from the head: a whole number, or a fraction of the model (1.0 is all)",
        int,
        float,
        low=0,
        high=_MANY,
        source="Yosinski et al., NeurIPS 2014",
        helps="always; lower for few images or images like the pretraining's",
    )
    depth_from: str = choice(
        "head",
        "where the trained blocks lie: next to the head, next to the input (surgical fine-tuning), or in the middle",
        str,
        options=("head", "input", "middle"),
        source="Lee et al., Surgical Fine-Tuning, ICLR 2023",
        helps="images look different from the pretraining's, but classes mean the same",
    )
    parameters: str = choice(
        "all",
        "which parameters of the trained blocks are trained: all, only normalisations or biases, or low-rank updates "
        "(lora) of linear layers and convolutions; the head is always trained whole",
        str,
        options=("all", "norms", "biases", "norms_and_biases", "lora"),
        source="Frankle et al., ICLR 2021; Ben Zaken et al., BitFit, ACL 2022; Hu et al., LoRA, ICLR 2022",
        helps="few images, large models",
    )
    lora_rank: int = choice(
        8, "rank of the low-rank updates", int, low=1, high=4096, source="Hu et al., LoRA, ICLR 2022"
    )
    lora_alpha: float = choice(
        16.0,
        "scale of the low-rank updates; it is divided by the rank",
        float,
        low=0,
        above=True,
        high=10_000,
        source="Hu et al., LoRA, ICLR 2022",
    )
    unfreeze_epochs: float = choice(
        0.0,
        "epochs over which the trained blocks are unfrozen one by one, starting next to the head",
        float,
        low=0,
        high=_MANY,
        source="Howard and Ruder, ULMFiT, ACL 2018",
        helps="full fine-tuning forgets in its first epochs",
    )
    reinit_blocks: int = choice(
        0,
        "trained blocks next to the head that start from random instead of pretrained weights",
        int,
        low=0,
        high=_MANY,
        source="Zhang et al., Revisiting Few-sample BERT Fine-tuning, ICLR 2021",
        helps="the last features of the pretraining are far from the task",
    )
    probe_epochs: int = choice(
        0,
        "epochs of a linear probe on stored features before the fine-tuning (LP-FT)",
        int,
        low=0,
        high=_MANY,
        source="Kumar et al., ICLR 2022",
        helps="always cheap; helps most where images in use differ from the training images",
    )
    probe_lr: float = choice(0.01, "peak learning rate of the linear probe", float, low=0, above=True, high=100)

    # The loss, and how often each image is shown.
    loss: str = choice(
        "cross_entropy",
        "training loss; the task decides which losses there are",
        str,
        options=tuple(dict.fromkeys(name for names in TASK_LOSSES.values() for name in names)),
        source="bce: Beyer et al., 2020; huber: Huber 1964",
        helps="bce with mixup and CutMix, focal with many easy images",
    )
    label_smoothing: float = choice(
        0.1,
        "share of the target that is spread over all classes, with loss label_smoothing",
        float,
        low=0,
        high=0.9,
        source="Szegedy et al., CVPR 2016",
        helps="noisy labels, overconfident models",
    )
    focal_gamma: float = choice(
        2.0, "focusing exponent, with loss focal", float, low=0, high=10, source="Lin et al., ICCV 2017"
    )
    poly1_epsilon: float = choice(
        1.0,
        "change of the first coefficient of cross entropy, with loss poly1",
        float,
        low=-1,
        high=100,
        source="Leng et al., PolyLoss, ICLR 2022",
    )
    mse_weight: float = choice(
        1.0,
        "factor on the error of the true class, with loss mse of classes",
        float,
        low=0,
        above=True,
        high=10_000,
        source="Hui and Belkin, ICLR 2021",
        helps="more than some forty classes",
    )
    mse_target: float = choice(
        1.0,
        "target of the true class's logit, with loss mse of classes",
        float,
        low=0,
        above=True,
        high=10_000,
        source="Hui and Belkin, ICLR 2021",
        helps="more than some forty classes",
    )
    class_weights: str = choice(
        "none",
        "how much classes count in the loss: all alike, or in inverse proportion to their images or effective number",
        str,
        options=("none", "balanced", "effective_number"),
        source="Cui et al., CVPR 2019",
        helps="rare classes, with metric balanced_accuracy or macro_f1",
    )
    class_weights_beta: float = choice(
        0.999,
        "beta of the effective number: a class counts as at most 1 / (1 - beta) images, with class_weights "
        "effective_number",
        float,
        low=0,
        high=1,
        below=True,
        source="Cui et al., CVPR 2019",
    )
    sampling: str = choice(
        "natural",
        "which images an epoch shows: each once, all classes equally often, or each by the square root of its size",
        str,
        options=("natural", "balanced", "sqrt"),
        source="Kang et al., ICLR 2020; Mahajan et al., ECCV 2018",
        helps="rare classes",
    )
    distill_weight: float = choice(
        0.0,
        "share of the loss that is the distance from the study's teacher",
        float,
        low=0,
        high=1,
        source="Hinton et al., 2014; Beyer et al., CVPR 2022",
        helps="a small model is wanted and a good large model exists",
    )
    distill_temperature: float = choice(
        2.0,
        "temperature that softens the outputs of teacher and model",
        float,
        low=0,
        above=True,
        high=100,
        source="Hinton et al., 2014",
    )

    # The optimizer and its learning rates.
    optimizer: str = choice(
        "adamw",
        "any name of timm.optim.list_optimizers()",
        str,
        source="timm",
        helps="try sgd and adamw first",
    )
    momentum: float | None = choice(
        None,
        "share of the last step that is kept; null for the optimizer's default",
        float,
        low=0,
        high=1,
        below=True,
        optional=True,
    )
    beta1: float | None = choice(
        None,
        "share kept in the running mean of gradients; null for the optimizer's default",
        float,
        low=0,
        high=1,
        below=True,
        optional=True,
    )
    beta2: float | None = choice(
        None,
        "share kept in the running mean of squared gradients; null for the optimizer's default",
        float,
        low=0,
        high=1,
        below=True,
        optional=True,
    )
    nesterov: bool | None = choice(
        None,
        "whether gradients are taken one step ahead (Nesterov's momentum); null for the optimizer's default",
        bool,
        optional=True,
    )
    lr: float = choice(
        1e-3,
        "peak learning rate; blocks and head multiply it by their own factors",
        float,
        low=0,
        above=True,
        high=100,
        helps="always, and on a log scale",
    )
    head_lr_scale: float = choice(
        1.0,
        "factor on the head's learning rate",
        float,
        low=0,
        above=True,
        high=10_000,
        helps="the head is new, the body is not",
    )
    decoder_lr_scale: float = choice(
        1.0,
        "factor on the learning rate of the decoder between encoder and head",
        float,
        low=0,
        above=True,
        high=1000,
        helps="segmentation and detection: the decoder is new, the encoder is not",
    )
    lr_by: str = choice(
        "decay",
        "how each block's learning rate is set: by layer_decay, by thirds of the model, or by relative gradient norms",
        str,
        options=("decay", "thirds", "gradient"),
        source="gradient: Auto-RGN of Lee et al., ICLR 2023",
        helps="gradient where it is not known which blocks must change",
    )
    layer_decay: float = choice(
        1.0,
        "factor on the learning rate for each block further from the head",
        float,
        low=0,
        above=True,
        high=1,
        source="Bao et al., BEiT, ICLR 2022",
        helps="transformers, and deep unfreezing on few images",
    )
    lower_lr_scale: float = choice(
        0.1,
        "factor on the learning rate of the third of the blocks next to the input",
        float,
        low=0,
        above=True,
        high=100,
        source="Howard and Ruder, ULMFiT, ACL 2018; fastai",
    )
    middle_lr_scale: float = choice(
        0.3, "factor on the learning rate of the middle third", float, low=0, above=True, high=100, source="as above"
    )
    upper_lr_scale: float = choice(
        1.0,
        "factor on the learning rate of the third next to the head",
        float,
        low=0,
        above=True,
        high=100,
        source="as above",
    )
    weight_decay: float = choice(
        0.01,
        "weight decay; norms and biases have none",
        float,
        low=0,
        high=10,
        source="Loshchilov and Hutter, ICLR 2019",
        helps="few images",
    )
    schedule: str = choice(
        "cosine",
        "learning-rate schedule over the epochs",
        str,
        options=("cosine", "poly", "step", "multistep", "plateau", "one_cycle", "constant"),
        source="Loshchilov and Hutter, ICLR 2017; Smith and Topin, 2019 (one_cycle); timm",
        helps="rarely matters as much as lr",
    )
    decay_rate: float = choice(
        0.1,
        "factor on the learning rate at each cut, with schedules step, multistep and plateau",
        float,
        low=0,
        above=True,
        high=1,
    )
    decay_epochs: float = choice(
        0.0, "epochs between cuts, with schedule step; 0 for a third of all epochs", float, low=0, high=_MANY
    )
    patience_epochs: int = choice(
        1, "epochs without a better score before a cut, with schedule plateau", int, low=1, high=_MANY
    )
    poly_power: float = choice(
        1.0, "exponent of schedule poly; 1 is a straight line", float, low=0, above=True, high=10
    )
    warmup_steps: int = choice(
        0, "optimizer steps of linear warm-up; 0 leaves it to warmup_epochs", int, low=0, high=1_000_000_000
    )
    warmup_epochs: float = choice(
        0.0,
        "epochs of linear warm-up",
        float,
        low=0,
        high=_MANY,
        source="Goyal et al., 2017",
        helps="transformers, large batches, high rates",
    )
    warmup_lr: float = choice(
        0.0,
        "learning rate at which the warm-up starts, as a share of lr; 0 for as near zero as a step can be",
        float,
        low=0,
        high=1,
    )
    clip_grad: float = choice(
        0.0,
        "largest gradient norm, 0 for no clipping",
        float,
        low=0,
        high=1e9,
        source="Pascanu et al., ICML 2013",
        helps="loss spikes early in training, transformers",
    )
    sam_rho: float = choice(
        0.0,
        "radius of sharpness-aware minimisation, 0 for none; a step takes twice as long",
        float,
        low=0,
        high=10,
        source="Foret et al., ICLR 2021",
        helps="few images, noisy labels",
    )

    # Regularisation.
    l2_sp: float = choice(
        0.0,
        "weight of the squared distance from the pretrained weights",
        float,
        low=0,
        high=1000,
        source="Li et al., ICML 2018",
        helps="few images that look like the pretraining's",
    )
    delta: float = choice(
        0.0,
        "weight of the distance from the pretrained feature maps",
        float,
        low=0,
        high=1000,
        source="Li et al., DELTA, ICLR 2019",
        helps="few images; costs a second forward pass",
    )
    bss: float = choice(
        0.0,
        "weight of the squared smallest singular value of a batch's features",
        float,
        low=0,
        high=1000,
        source="Chen et al., BSS, NeurIPS 2019",
        helps="negative transfer",
    )
    co_tuning: float = choice(
        0.0,
        "weight of the pretrained classifier's loss against the source classes that belong to the targets",
        float,
        low=0,
        high=1000,
        source="You et al., Co-Tuning, NeurIPS 2020",
        helps="classes like those of the pretraining; needs weights with their classifier",
    )
    stochastic_norm: float = choice(
        0.0,
        "share of BatchNorm channels that a step normalises by the running statistics",
        float,
        low=0,
        high=1,
        source="Kou et al., StochNorm, NeurIPS 2020",
        helps="small batches and few images",
    )
    dropout: float = choice(
        0.0,
        "share of the features that the head does not see in training",
        float,
        low=0,
        high=1,
        below=True,
        source="Srivastava et al., JMLR 2014",
        helps="few images",
    )
    drop_path: float = choice(
        0.0,
        "largest share of images for which a residual branch is left out",
        float,
        low=0,
        high=1,
        below=True,
        source="Huang et al., ECCV 2016",
        helps="deep models, long training",
    )
    ema: float = choice(
        0.0,
        "decay of the moving average of weights that is scored and kept, 0 for none",
        float,
        low=0,
        high=1,
        below=True,
        source="Polyak and Juditsky 1992; timm",
        helps="noisy validation, high rates",
    )
    swa_epochs: int = choice(
        0,
        "number of last epochs whose weights are averaged, 0 for none",
        int,
        low=0,
        high=_MANY,
        source="Izmailov et al., UAI 2018",
        helps="with schedule constant or step",
    )
    batch_norm: str = choice(
        "train",
        "BatchNorm of trained blocks: train, frozen_stats (running statistics fixed) or frozen (affine fixed too)",
        str,
        options=("train", "frozen_stats", "frozen"),
        helps="small batches, or images like the pretraining's",
    )

    # How images are shown, and for how long.
    augment: str = choice(
        "none",
        "augmentation level; custom takes its limits from the fields crop_area to erase",
        str,
        options=("none", "light", "medium", "strong", "custom"),
        helps="few images, many epochs",
    )
    crop_area: float = choice(
        0.6,
        "least share of the area that a random crop keeps",
        float,
        low=0.01,
        high=1,
        source="Szegedy et al., CVPR 2015",
    )
    flip: float = choice(0.5, "share of images mirrored left to right", float, low=0, high=1)
    rotate: float = choice(0.0, "largest rotation in degrees", float, low=0, high=180)
    colour: float = choice(0.0, "largest relative change of brightness and contrast", float, low=0, high=1)
    saturation: float = choice(0.0, "largest relative change of saturation", float, low=0, high=1)
    hue: float = choice(0.0, "largest turn of hues in degrees", float, low=0, high=180)
    erase: float = choice(
        0.0, "share of images in which a rectangle is blanked", float, low=0, high=1, source="Zhong et al., AAAI 2020"
    )
    policy: str = choice(
        "none",
        "augmentation policy, applied before the level: AutoAugment, RandAugment or TrivialAugment",
        str,
        options=("none", "auto", "rand", "trivial"),
        source="Cubuk et al., CVPR 2019 and NeurIPS 2020; Müller and Hutter, ICCV 2021",
        helps="natural photographs, long training",
    )
    policy_ops: int = choice(2, "operations per image, with policy rand", int, low=1, high=4)
    policy_magnitude: float = choice(
        9.0, "strength of operations, with policy rand; 30 is the strongest", float, low=0, high=30
    )
    views: int = choice(
        0,
        "fixed augmented copies of each image; epochs show them in turn, and frozen blocks compute each copy once; "
        "0 for new copies every epoch",
        int,
        low=0,
        high=_MANY,
        helps="saves time where augmentation and frozen blocks are combined",
    )
    mixup: float = choice(
        0.0,
        "alpha of mixup, 0 for none",
        float,
        low=0,
        high=100,
        source="Zhang et al., ICLR 2018",
        helps="long training, noisy labels",
    )
    cutmix: float = choice(
        0.0,
        "alpha of CutMix, 0 for none",
        float,
        low=0,
        high=100,
        source="Yun et al., ICCV 2019",
        helps="long training of photographs",
    )
    mix_prob: float = choice(1.0, "share of images that mixup or CutMix mixes", float, low=0, high=1)
    image_scale: float = choice(
        1.0,
        "size at which images are shown, as a share of data.image_size",
        float,
        low=0.1,
        high=1,
        source="Touvron et al., FixRes, NeurIPS 2019",
        helps="shows what smaller images cost in score and save in time",
    )
    grow_from: float = choice(
        1.0,
        "size of training images in the first epoch, as a share of the last epoch's (progressive resizing)",
        float,
        low=0.1,
        high=1,
        source="Howard, fastai 2018; Tan and Le, EfficientNetV2, ICML 2021",
        helps="saves time; long training",
    )
    tta: str = choice(
        "none",
        "views whose outputs are averaged in validation, test and serving: the image, with its mirror image (flip) or "
        "its corners (crops)",
        str,
        options=("none", "flip", "crops"),
        source="Krizhevsky et al., NeurIPS 2012",
        helps="predictions may take several times as long",
    )
    batch_size: int = choice(64, "images per step", int, low=1, high=65536, helps="together with lr")
    epochs: int = choice(5, "passes over the training images", int, low=1, high=_MANY, helps="where time allows")

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not choices.accepts(value):
                raise ConfigError(f"strategy.{name}: {value!r} is not {choices.expected()}")
            if choices.kinds == (float,) and value is not None:
                # 1 and 1.0 train alike, so both must print and hash alike.
                object.__setattr__(self, name, float(value))
        if isinstance(self.depth, float) and self.depth > 1:
            raise ConfigError(
                f"strategy.depth: {self.depth!r} is not a fraction between 0 and 1; for a number of blocks write it "
                "without a decimal point"
            )
        for name in ("warmup_epochs", "unfreeze_epochs", "swa_epochs"):
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
        """Build a strategy from YAML as :meth:`to_yaml` prints it.

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
        values = self.to_dict() | {"depth": self.blocks_trained(num_blocks)}
        if values["depth"] == num_blocks:
            values["depth_from"] = CHOICES_DEFAULTS["depth_from"]
        # A view that no epoch shows makes no difference.
        values["views"] = min(self.views, self.epochs)
        idle = {name: CHOICES_DEFAULTS[name] for name in values if not has_effect(name, values)}
        return Strategy(**values | idle)

    def fingerprint(self, num_blocks: int) -> str:
        """Twelve hexadecimal digits, equal for strategies that train alike on a model of ``num_blocks``."""
        text = self.canonical(num_blocks).to_yaml()
        return hashlib.sha256(text.encode()).hexdigest()[:12]


CHOICES: dict[str, Choices] = {f.name: f.metadata["choices"] for f in dataclasses.fields(Strategy)}
CHOICES_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Strategy)}


def one_line(strategy: Strategy, model: str = "") -> str:
    """A strategy, and its model if one is given, in one short line: ``depth 4 · adamw 3e-04 · decay 0.7``."""
    parts = [model] if model else []
    parts += [f"depth {strategy.depth}", f"{strategy.optimizer} {strategy.lr:.0e}"]
    if strategy.layer_decay < 1:
        parts.append(f"decay {strategy.layer_decay:.2g}")
    if strategy.loss != "cross_entropy":
        parts.append(strategy.loss)
    if strategy.augment != "none":
        parts.append(f"augment {strategy.augment}")
    return " · ".join(parts)
