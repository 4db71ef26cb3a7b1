"""A candidate as a vector of numbers, NaN where a field is missing."""

import math
from collections.abc import Sequence

import numpy as np

from search.scheduling.learned.features import Candidate, TaskFeatures

# Learning rates from which good ones are found in both directions, for full fine-tuning.
_USUAL_LR = {"adaptive": 3e-4, "momentum": 1e-2, "sign": 5e-5}
_MOMENTUM = ("sgd", "momentum", "nesterov", "sgdp", "sgdw", "lars", "muon")
_SIGN = ("lion",)
_SCHEDULES = ("cosine", "step", "multistep", "plateau", "linear", "constant")
_AUGMENTATIONS = ("none", "auto", "random", "trivial")


def family_of(optimizer: str) -> str:
    """The family of an optimizer, within which learning rates are alike: ``adaptive``, ``momentum`` or ``sign``."""
    name = optimizer.lower()
    if any(name.startswith(one) for one in _MOMENTUM):
        return "momentum"
    return "sign" if any(one in name for one in _SIGN) else "adaptive"


def _log(value: float | None, floor: float) -> float:
    return math.nan if value is None else math.log10(max(float(value), floor))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _one_hot(value: str | None, names: Sequence[str]) -> list[float]:
    return [math.nan if value is None else float(value == name) for name in names]


def _names() -> list[str]:
    return [
        *("relative_lr", "adaptive", "momentum", "beta2", "weight_decay", "layer_decay", "trained", "probe_first"),
        *("batch_size", "updates", "clip_grad"),
        *(f"schedule_{name}" for name in _SCHEDULES),
        *("warmup", "smoothing", "mixup", "cutmix", "mixed", "dropout", "stochastic_norm", "sp", "delta", "bss"),
        "cotuning",
        *(f"augmentation_{name}" for name in _AUGMENTATIONS),
        *("augmentation_strength", "amp"),
        *("parameters", "flops", "accuracy", "model_size", "images", "classes", "image_size", "evenness"),
    ]


NAMES: tuple[str, ...] = tuple(_names())


def encode(candidate: Candidate, task: TaskFeatures) -> list[float]:
    """The candidate's numbers, in the order of :data:`NAMES`.

    Args:
        candidate: A strategy and a model.
        task: The data of the study.
    """
    strategy, model = candidate.strategy, candidate.model
    family = None if strategy.optimizer is None else family_of(strategy.optimizer)
    relative = math.nan
    if family is not None and strategy.lr is not None:
        relative = math.log10(strategy.lr / _USUAL_LR[family])
    updates = math.nan
    if strategy.batch_size is not None:
        updates = math.log10(max(1.0, candidate.epochs * task.images / strategy.batch_size))
    limits = None if strategy.clip_grad is None else (strategy.clip_grad or 100.0)
    return [
        relative,
        math.nan if family is None else float(family != "momentum"),
        _number(strategy.momentum),
        _log(None if strategy.beta2 is None else 1 - strategy.beta2, 1e-4),
        _log(strategy.weight_decay, 1e-6),
        _number(strategy.layer_decay),
        _number(strategy.trained),
        _number(strategy.probe_first),
        _log(strategy.batch_size, 1),
        updates,
        _log(limits, 1e-2),
        *_one_hot(strategy.schedule, _SCHEDULES),
        _number(strategy.warmup),
        _number(strategy.smoothing),
        _number(strategy.mixup),
        _number(strategy.cutmix),
        _number(strategy.mix_probability),
        _number(strategy.dropout),
        _number(strategy.stochastic_norm),
        _log(strategy.sp, 1e-5),
        _log(strategy.delta, 1e-5),
        _log(strategy.bss, 1e-5),
        _number(strategy.cotuning),
        *_one_hot(strategy.augmentation, _AUGMENTATIONS),
        _number(strategy.augmentation_strength),
        _number(strategy.amp),
        _log(model.parameters, 1e4),
        _log(model.flops, 1e6),
        _number(model.accuracy),
        _log(model.image_size, 1),
        math.log10(max(1, task.images)),
        _log(task.classes, 1),
        _log(task.image_size, 1),
        _number(task.evenness),
    ]


def encode_all(candidates: Sequence[Candidate], task: TaskFeatures) -> np.ndarray:
    """The candidates' numbers, (candidates, fields) float64."""
    return np.array([encode(one, task) for one in candidates], np.float64).reshape(len(candidates), len(NAMES))
