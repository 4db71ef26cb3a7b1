"""What the learnt policy is told: the task, the models, the strategies, and the trials seen so far.

Each field may be missing (None): the prediction then falls back to what the other fields say.
"""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class TaskFeatures:
    """The data of a study and its metric.

    Args:
        images: Training images.
        classes: Classes; None for other tasks than classification.
        image_size: Side of the images that the models see, in pixels.
        evenness: Entropy of the classes as a share of the largest possible, 0 to 1.
        lowest: Score of guessing; None for 1 / classes, or for the lowest score seen where there are no classes.
        highest: Score of a perfect model; None if the metric has no upper bound, for example an error with its sign
            changed. Scores are then compared by what the study has seen alone.
        switch_seconds: Seconds that it costs to start a trial or to resume a paused one, beside its epochs.
    """

    images: int
    classes: int | None = None
    image_size: int | None = None
    evenness: float | None = None
    lowest: float | None = None
    highest: float | None = 1.0
    switch_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelFeatures:
    """A pretrained model.

    Args:
        name: timm's name.
        parameters: Number of parameters.
        flops: Multiply-adds of one image at its usual size.
        accuracy: Top-1 accuracy on ImageNet, 0 to 1.
        image_size: Side of the images that the model is given, in pixels.
    """

    name: str
    parameters: float | None = None
    flops: float | None = None
    accuracy: float | None = None
    image_size: int | None = None


@dataclass(frozen=True, slots=True)
class StrategyFeatures:
    """The fields of a strategy that mean the same for every model and data set.

    Args:
        optimizer: timm's name of the optimizer.
        lr: Peak learning rate in the optimizer's own units; it is compared with the usual one of its optimizer.
        momentum: Momentum, or beta1.
        beta2: beta2.
        weight_decay: Weight decay.
        layer_decay: Factor of the learning rate from a block to the one below it; 1 for none.
        trained: Share of the model's blocks that is trained: 0 is a linear probe, 1 is all.
        probe_first: Whether the head is trained alone for a while first.
        batch_size: Images a batch.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        schedule: timm's name of the schedule, for example ``cosine``.
        warmup: Share of the epochs that is warm-up.
        smoothing: Label smoothing.
        mixup: alpha of mixup, 0 if it is not used.
        cutmix: alpha of CutMix, 0 if it is not used.
        mix_probability: Share of the batches that are mixed.
        dropout: Dropout before the head.
        stochastic_norm: Whether stochastic normalisation is used.
        sp: Weight of L2-SP.
        delta: Weight of DELTA.
        bss: Weight of batch spectral shrinkage.
        cotuning: Weight of co-tuning.
        augmentation: ``none``, ``auto``, ``random``, ``trivial``, or another policy's name.
        augmentation_strength: Its strength, 0 (none) to 1 (strongest).
        amp: Whether the forward pass is computed in half precision.
    """

    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    trained: float | None = None
    probe_first: bool | None = None
    batch_size: int | None = None
    clip_grad: float | None = None
    schedule: str | None = None
    warmup: float | None = None
    smoothing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    mix_probability: float | None = None
    dropout: float | None = None
    stochastic_norm: bool | None = None
    sp: float | None = None
    delta: float | None = None
    bss: float | None = None
    cotuning: float | None = None
    augmentation: str | None = None
    augmentation_strength: float | None = None
    amp: bool | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy that could be trained: what is trained, and how long at most.

    Args:
        strategy: The strategy.
        model: The model.
        epochs: Epochs of the whole trial.
        epoch_seconds: Seconds of an epoch where the caller knows them (a measured or computed cost); else predicted.
        own: Further fields of the study's space that the policy does not know, each scaled to 0 to 1 by the caller.
            They count only in what the study itself has seen.
    """

    strategy: StrategyFeatures
    model: ModelFeatures
    epochs: int
    epoch_seconds: float | None = None
    own: tuple[float, ...] = ()


class State(Enum):
    """Where a trial is."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Seen:
    """A trial of the study so far.

    Args:
        candidate: What was trained.
        scores: Score after each epoch, more is better; empty before the first.
        seconds: Seconds of each epoch.
        state: Where the trial is. Only paused trials can be resumed; a failed one counts as one with the lowest score.
        losses: Training loss of each epoch, where known.
    """

    candidate: Candidate
    scores: tuple[float, ...]
    seconds: tuple[float, ...]
    state: State
    losses: tuple[float, ...] = ()
