"""The scores of a model that is being trained, with its own weights or with their running average."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from strategies import (
    Plan,
    Strategy,
    WeightAverage,
    ema_weight,
    refit_batch_norm,
    set_train_mode,
    swa_weight,
)
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.forward import Forward
from trainers.memory import Fitting
from trainers.models import Normalise
from trainers.reuse import Reused
from trainers.scoring import predict, shown_places
from trainers.tasks import TASKS
from trainers.training.ranks import Ranks


class Scorer:
    """Predicts and scores in the course of a training, and keeps the average of the weights where one is asked for.

    Args:
        model: The model on its device, as it is trained.
        plan: Names the parameters that are trained.
        data: Gives the validation images.
        strategy: In canonical form; ``ema`` and ``swa_epochs`` ask for an average.
        device: Where to compute.
        normalise: Makes the model's input.
        forward: Calls the model.
        reused: What is known of the validation images.
        ranks: The processes that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        data: ImageData,
        strategy: Strategy,
        device: Device,
        normalise: Normalise,
        forward: Forward,
        reused: Reused,
        ranks: Ranks,
    ) -> None:
        self._model, self._data, self._strategy, self._device = model, data, strategy, device
        self._normalise, self._forward, self._reused, self._ranks = normalise, forward, reused, ranks
        self._task = TASKS[data.task]
        self._scale = self._task.scale(data.train.targets)
        self._fitting = Fitting(4 * strategy.batch_size, ranks.is_any)
        has_average = strategy.ema > 0 or strategy.swa_epochs > 0
        #: The average of the weights; None where the strategy keeps none.
        self.average = WeightAverage(model, plan.trainable) if has_average else None

    def add_update(self) -> None:
        """Take the weights after an update into their moving average (EMA)."""
        if self.average is not None and self._strategy.ema > 0:
            self.average.update(ema_weight(self.average.updates, self._strategy.ema))

    def add_epoch(self, plan: Plan, epoch: int, images: Callable[[], Iterable[Tensor]]) -> None:
        """Take the weights after one of the last epochs into their average (SWA), and refit its BatchNorm statistics.

        Args:
            plan: Of the model.
            epoch: Epochs that are done.
            images: Gives (B, C, H, W) float batches as the model takes them; only called if the average has changed.
        """
        if self.average is None or epoch <= self._strategy.epochs - self._strategy.swa_epochs:
            return
        self.average.update(swa_weight(self.average.updates))
        with self.average.swapped():
            set_train_mode(self._model, plan, epoch - 1)

            def refit(parts: int = 1) -> None:
                with self._ranks.stepping(), self._device.autocast():
                    refit_batch_norm(self._model, images())

            if self._ranks.is_alone:
                # In parts the statistics would be others; a batch without gradients takes less than in training.
                Fitting(1).do(refit)
            else:
                # Ranks wait for each other within the pass.
                refit()

    def _as_scored(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are scored and kept: their average, if there is one."""
        return self.average.swapped() if self.average is not None and self.average.updates else nullcontext()

    def scores(self) -> dict[str, float]:
        """The task's metrics on the validation images; each rank predicts a part of the images."""
        split = self._data.val
        places = torch.arange(len(split))
        if self._ranks.is_alone or len(split) < self._ranks.count:
            return self._task.scores(*self._predict(split, places, self._fitting))
        rows, _ = self._predict(split, places[self._ranks.mine(len(split))], self._fitting)
        return self._task.scores(self._ranks.gather(rows, self._ranks.sizes(len(split))), split.targets.cpu())

    def predict(self, split: Split) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a split, by this process alone; see :func:`trainers.scoring.prediction.predict`."""
        fitting = self._fitting if self._ranks.is_alone else Fitting(4 * self._strategy.batch_size)
        return self._predict(split, torch.arange(len(split)), fitting)

    def _predict(self, split: Split, places: Tensor, fitting: Fitting) -> tuple[Tensor, Tensor]:
        known = self._reused.known.get("val") if split is self._data.val else None
        with self._as_scored():
            return predict(
                self._model,
                split,
                self._strategy,
                self._normalise,
                self._task,
                self._scale,
                self._device,
                known,
                self._forward,
                fitting,
                places,
            )

    @torch.inference_mode()
    def look(self) -> Tensor | None:
        """Predictions for the validation images that are shown, (K, ...) on the CPU; None for classifiers."""
        if self._task.dense is None:
            return None
        places = shown_places(self._data.val)
        images, _ = next(self._data.val.batches(places, len(places), self._device.torch))
        dense = self._task.dense

        def predicted(images: Tensor) -> tuple[Tensor]:
            outputs = self._forward(self._model, self._normalise(images.float().div_(255)))
            return (dense.predicted(self._model, outputs).cpu(),)

        with self._as_scored(), self._device.autocast():
            self._model.eval()
            return Fitting(len(places)).rows_of(predicted, images)[0]

    def weights(self, stay: bool = False) -> dict[str, Tensor]:
        """Copies of the weights that were scored, named as in a plain timm model: low-rank updates are added in.

        Args:
            stay: Whether the copies may stay on the device, if it has room to spare; else they are on the CPU.
        """
        with self._as_scored():
            state = self._model.state_dict()
            if self._strategy.parameters == "lora":
                # Only here: peft takes seconds to import.
                from strategies import merged_state_dict

                state = merged_state_dict(self._model)
            size = sum(tensor.nbytes for tensor in state.values())
            # While new copies are made, those of an earlier epoch are still held.
            device = self._device.torch if stay and 2 * size <= self._device.spare_bytes else torch.device("cpu")
            return {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}
