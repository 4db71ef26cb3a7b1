"""The training loss of a strategy on a data set."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from strategies import (
    IGNORED,
    LOSSES,
    PIXEL_LOSSES,
    TASK_LOSSES,
    ConfigError,
    Strategy,
    TotalPenalty,
    class_weights,
    distillation,
)
from trainers.data import ImageData
from trainers.device import Device
from trainers.reuse import Rows
from trainers.tasks import TASKS
from trainers.training.ranks import Ranks


def loss_of(task: str, strategy: Strategy) -> Any:
    """The strategy's loss function; None for detection, whose models bring their own.

    Raises:
        ConfigError: The task cannot be trained with it.
    """
    if strategy.loss not in TASK_LOSSES[task]:
        names = ", ".join(TASK_LOSSES[task])
        raise ConfigError(f"strategy.loss: {strategy.loss!r} cannot train task {task}, only {names} can")
    return LOSSES.get(task, {}).get(strategy.loss)


def weights_of_classes(data: ImageData, strategy: Strategy, device: Device) -> Tensor | None:
    """The weight of each class in the strategy's loss, (C,) float32 on the device; None if all weigh alike.

    Raises:
        ConfigError: The task has no classes.
    """
    if strategy.class_weights == "none":
        return None
    if data.task == "regression":
        raise ConfigError("strategy.class_weights: task regression has no classes")
    how, beta = strategy.class_weights, strategy.class_weights_beta
    return class_weights(data.train.targets, len(data.classes), how, beta).to(device.torch)


class Criterion:
    """The loss of a forward pass with all that the strategy adds: distillation and penalties.

    Args:
        model: The model that makes the outputs.
        task: The data's task.
        strategy: In canonical form.
        loss: From :func:`loss_of`.
        class_weights: (C,) float on the device; None if all classes weigh alike.
        total_penalty: The penalties that the strategy asks for; None without any.
        ranks: The processes that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        task: str,
        strategy: Strategy,
        loss: Any,
        class_weights: Tensor | None,
        total_penalty: TotalPenalty | None,
        ranks: Ranks,
    ) -> None:
        self._model, self._strategy, self._loss = model, strategy, loss
        self._class_weights, self._total_penalty, self._ranks = class_weights, total_penalty, ranks
        self._dense = TASKS[task].dense
        of_pixels = strategy.loss in PIXEL_LOSSES
        self._is_mean_over_pixels = task == "segmentation" and of_pixels
        # Such a loss is neither a mean over images nor over pixels, nor a detector's own.
        self._needs_all_outputs = task == "segmentation" and not of_pixels
        #: Fields because of which the loss is no mean over images or pixels: it is computed from all ranks' outputs or
        #: features, and a batch that is divided would have another.
        self.of_whole_batch = [f"strategy.loss={strategy.loss}"] if self._needs_all_outputs else []
        if strategy.bss > 0:
            self.of_whole_batch.append(f"strategy.bss={strategy.bss:g}")

    def __call__(
        self,
        inputs: Tensor | Rows,
        outputs: Any,
        targets: Tensor,
        teacher_logits: Tensor | None,
        sizes: Sequence[int],
    ) -> Tensor:
        """The loss, a scalar, of the model's latest forward pass.

        Args:
            inputs: (B, C, H, W) float images, or the outputs of the frozen part for them.
            outputs: The model's outputs for them.
            targets: (B, ...).
            teacher_logits: (B, num_classes) float; None without a teacher.
            sizes: Images of each rank in this pass, for a loss that is computed from the outputs of all ranks.
        """

        def of_all_ranks(outputs: Tensor) -> Tensor:
            return self._ranks.gather_outputs(outputs, sizes)

        if self._needs_all_outputs:
            loss = self._task_loss(of_all_ranks(outputs), self._ranks.gather(targets, sizes))
        else:
            loss = self._task_loss(outputs, targets)
        if teacher_logits is not None:
            distance = distillation(outputs.float(), teacher_logits, self._strategy.distill_temperature)
            loss = loss.lerp(distance, self._strategy.distill_weight)
        if self._total_penalty is not None:
            images = inputs if isinstance(inputs, Tensor) else None
            loss = loss + self._total_penalty.penalty(images, targets, of_all_ranks)
        return loss

    def _task_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        if self._dense is not None and self._dense.loss is not None:
            return self._dense.loss(self._model, outputs, targets)
        loss: Tensor = self._loss(outputs.float(), targets, self._strategy, self._class_weights)
        return loss

    def share(self, targets: Tensor, all_targets: Tensor) -> float | Tensor:
        """The weight of some images' loss in that of their batch, which is a mean over images or over pixels.

        Args:
            targets: (B, ...), of these images.
            all_targets: (N, ...), of the whole batch.
        """
        if self._is_mean_over_pixels:
            return (targets != IGNORED).sum() / (all_targets != IGNORED).sum().clamp_min(1)
        return len(targets) / len(all_targets)
