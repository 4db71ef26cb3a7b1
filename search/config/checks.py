"""Checks of values that contradict each other across sections: each gives one line a problem."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search.config.executor import ExecutorConfig
from search.config.model import ModelConfig
from search.config.sections import AfterConfig, BudgetConfig, CheckpointsConfig, ConfirmConfig
from strategies import TASK_LOSSES, Choice, Entry, Fixed, FloatRange, IntRange, Strategy


def unkept_winners(confirm: ConfirmConfig, checkpoints: CheckpointsConfig) -> Iterator[str]:
    """More strategies are confirmed than have their checkpoints kept."""
    if confirm.seeds and confirm.top > checkpoints.keep:
        yield (
            f"confirm.top: {confirm.top} is more than checkpoints.keep: {checkpoints.keep}, so that a winner's weights "
            "might be gone; keep as many, or confirm fewer"
        )


def useless_thresholds(
    budget: BudgetConfig, costs: Sequence[str], model: ModelConfig, space: Mapping[str, Entry]
) -> Iterator[str]:
    """A search is to end by its expected improvement, which Optuna cannot estimate for it."""
    threshold = budget.min_improvement
    if threshold is None:
        return
    if costs:
        yield (
            f"budget.min_improvement: {threshold:g} cannot end a study with costs, Optuna estimates it for one "
            "objective only; leave it out"
        )
    elif len(model.names) == 1 and all(isinstance(entry, Fixed) for entry in space.values()):
        yield (
            f"budget.min_improvement: {threshold:g} needs something to search, and strategy has neither ranges nor "
            "choices; leave it out"
        )


def unusable_devices(executor: ExecutorConfig, device: str) -> Iterator[str]:
    """The executor and the device contradict each other."""
    if executor.devices != "auto" and device not in ("auto", "cuda"):
        yield (
            f"executor.devices: {executor.devices!r} would choose among GPUs, and device: {device} has chosen already; "
            "leave one of both out"
        )
    elif executor.name == "ray" and device not in ("auto", "cuda", "cpu"):
        yield f"device: {device!r} cannot be had of executor.name: ray, which chooses itself; say cuda or cpu"
    elif executor.gpus is not None and executor.gpus_per_trial > 1:
        yield (
            f"executor.gpus: {executor.gpus:g} and executor.gpus_per_trial: {executor.gpus_per_trial} do not go "
            "together; leave one of both out"
        )
    elif executor.gpus and device == "cpu":
        yield f"executor.gpus: {executor.gpus:g} would not be used by device: cpu; leave one of both out"


def crowded_gpus(executor: ExecutorConfig) -> Iterator[str]:
    """Several GPUs a trial and several trials a GPU are asked for."""
    if executor.gpus_per_trial > 1 and executor.trials_per_device != 1:
        yield (
            f"executor.gpus_per_trial: {executor.gpus_per_trial} GPUs a trial and executor.trials_per_device: "
            f"{executor.trials_per_device!r} trials a GPU do not go together; leave one of them at 1"
        )


def missing_soups(after: AfterConfig, checkpoints: CheckpointsConfig) -> Iterator[str]:
    """A soup is asked for of a single checkpoint."""
    if after.soups and checkpoints.keep < 2:
        yield f"after.soups: a soup needs checkpoints.keep of at least 2, it is {checkpoints.keep}"


def unfit_losses(key: str, losses: Sequence[str], task: str) -> list[str]:
    """A line for the first loss that cannot train the task."""
    wrong = [loss for loss in losses if loss not in TASK_LOSSES[task]]
    return [f"{key}: {wrong[0]!r} cannot train task {task}; expected {' or '.join(TASK_LOSSES[task])}"] if wrong else []


def values_of(space: Mapping[str, Entry], name: str) -> tuple[Any, ...]:
    """The values of a field in a space: the ends of a range, or the default of a field that the space leaves out."""
    match space.get(name, Fixed(getattr(Strategy(), name))):
        case Fixed(value=value):
            return (value,)
        case Choice(choices=choices):
            return choices
        case IntRange(low=low, high=high) | FloatRange(low=low, high=high):
            return (low, high)
