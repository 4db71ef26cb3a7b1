"""A strategy's loss on this data."""

from typing import Any

from torch import Tensor

from strategies import LOSSES, TASK_LOSSES, ConfigError, Strategy, class_weights
from trainers.data import ImageData
from trainers.device import Device


def loss_of(task: str, strategy: Strategy) -> Any:
    """The strategy's loss.

    Raises:
        ConfigError: The task cannot be trained with it.
    """
    if strategy.loss not in TASK_LOSSES[task]:
        names = ", ".join(TASK_LOSSES[task])
        raise ConfigError(f"strategy.loss: {strategy.loss!r} cannot train task {task}, only {names} can")
    # A detector brings its own.
    return LOSSES.get(task, {}).get(strategy.loss)


def weights_of_classes(data: ImageData, strategy: Strategy, device: Device) -> Tensor | None:
    """How much each class counts in the strategy's loss, (C,) float32 on the device; None for all alike.

    Raises:
        ConfigError: The task has no classes.
    """
    if strategy.class_weights == "none":
        return None
    if data.task == "regression":
        raise ConfigError("strategy.class_weights: task regression has no classes")
    how, beta = strategy.class_weights, strategy.class_weights_beta
    return class_weights(data.train.targets, len(data.classes), how, beta).to(device.torch)
