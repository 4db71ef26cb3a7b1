"""Training many linear probes at once: trials that train the head alone, with their heads stacked.

Many linear classifiers are fitted at once to features that are computed once, as in the linear evaluation of DINOv2
(Oquab et al., TMLR 2024). The idea that models of one shape with different hyperparameters can share their operators is
from HFTA (Wang et al., MLSys 2021).
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strategies import (
    HEAD,
    ConfigError,
    Plan,
    Strategy,
    TrialError,
    ema_weight,
    make_plan,
    make_scheduler,
    sampling_order,
    shown_size,
    swa_weight,
)
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.models import ModelSource
from trainers.probes.features import Features, stored_features
from trainers.probes.grouping import probe_groups
from trainers.probes.steppers import Head, make_steppers, optimizer_key
from trainers.tasks import TASKS
from trainers.training import EpochResult, classifier_of, loss_of, start_from_a_probe, weights_of_classes

_OF_LOSSES = ("label_smoothing", "focal_gamma", "poly1_epsilon", "mse_weight", "mse_target")


class Probes:
    """An iterator over the epochs of many linear probes: each ``next()`` trains all of them for one epoch.

    Each probe gives the results of :class:`trainers.Trainer` for its strategy, up to rounding of float32. It has its
    own rate, schedule, weight decay, optimizer, loss, class weights, clipping and average. A probe whose loss is no
    longer finite ends with the same error as alone, and the others continue. Optimizers that treat every number alike
    step once for all probes that differ only in rate and weight decay; any other optimizer steps for each probe.

    Args:
        source: Builds the model; it must have a linear head (:func:`has_linear_head`).
        data: Gives training and validation images, and says which task they are for.
        strategies: Strategies of one group (:func:`probe_groups`); at least one.
        seed: Draws the head, the same for all, and the order of images.
        device: Where to compute.
        features: Gives the features of splits; :func:`stored_features` by default, which groups should share.

    Raises:
        ConfigError: The strategies are not of one group, the model has no linear head, or a strategy cannot be applied.
    """

    def __init__(
        self,
        source: ModelSource,
        data: ImageData,
        strategies: Sequence[Strategy],
        seed: int,
        device: Device,
        features: Features | None = None,
    ) -> None:
        self.strategies = tuple(strategy.canonical(source.num_blocks) for strategy in strategies)
        if probe_groups(self.strategies) != [list(range(len(self.strategies)))]:
            raise ConfigError("strategy: these strategies cannot be trained together as linear probes")
        # Probes that share an optimizer are side by side.
        ranked = sorted(range(len(self.strategies)), key=lambda index: optimizer_key(self.strategies[index]))
        self._row = {index: row for row, index in enumerate(ranked)}
        stacked = [self.strategies[index] for index in ranked]
        self.epoch = 0
        self.device = device
        self._common = self.strategies[0]
        self._data = data
        self._task = TASKS[data.task]
        self._features = features or stored_features(source, seed, device)
        self._scale = self._task.scale(data.train.targets)
        self._order_rng = torch.Generator().manual_seed(seed)
        self._updates_per_epoch = max(1, len(data.train) // self._common.batch_size)
        class_weights = [weights_of_classes(data, strategy, device) for strategy in stacked]
        self._losses = _Losses(data, stacked, class_weights, device)
        self.model = source.build(seed).to(device.torch)
        classifier = classifier_of(self.model)
        if not isinstance(classifier, nn.Linear) or classifier.bias is None:
            raise ConfigError(f"model.name: {source.name} has no linear head, so its probes cannot be trained together")
        self._head_name = next(name for name, module in self.model.named_modules() if module is classifier)
        self._head = self._start(source, classifier, stacked, class_weights, seed)
        self._rates = [_Rate(strategy, self._updates_per_epoch) for strategy in stacked]
        plan = make_plan(self.model, Strategy(depth=0, weight_decay=1.0))
        decayed = any(param.weight_decay > 0 for param in plan.params if param.block == HEAD)
        self._steppers = make_steppers(self._head, stacked, decayed)
        self._averages = _Averages(self._head, stacked)
        self._clip = _column([strategy.clip_grad for strategy in stacked], device)
        self._clips = any(strategy.clip_grad > 0 for strategy in stacked)
        self._rho = _column([strategy.sam_rho for strategy in stacked], device)
        self._live = list(range(len(stacked)))

    def _start(
        self,
        source: ModelSource,
        classifier: nn.Linear,
        strategies: Sequence[Strategy],
        class_weights: Sequence[Tensor | None],
        seed: int,
    ) -> Head:
        """Every probe's head at the start: drawn from the seed, or fitted before (``probe_epochs``)."""
        drawn = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
        starts = []
        for strategy, weights in zip(strategies, class_weights, strict=True):
            if strategy.probe_epochs > 0:
                classifier.load_state_dict(drawn)
                features = self._features(self._data.train, self._data.preprocessing.image_size, "none")[0]
                features = features.to(self.device.torch, torch.float32)
                start_from_a_probe(self.model, source, self._data, strategy, seed, self.device, weights, features)
                starts.append({name: tensor.clone() for name, tensor in classifier.state_dict().items()})
            else:
                starts.append(drawn)
        classifier.load_state_dict(drawn)
        return Head(*(torch.stack([start[name] for start in starts]) for name in ("weight", "bias")))

    def __iter__(self) -> Iterator[dict[int, EpochResult | TrialError]]:
        return self

    def __next__(self) -> dict[int, EpochResult | TrialError]:
        """Train an epoch, and return each probe's result or error, by position in ``strategies``.

        Probes that ended or were dropped before are left out; if no probe is left, the iteration ends.
        """
        if self.epoch >= self._common.epochs or not self._live:
            raise StopIteration
        start = time.perf_counter()
        train_losses = self._train_epoch()
        self.epoch += 1
        found = {index: self._metrics(index, train_losses[self._row[index]]) for index in self._live}
        # The probes' shares of the time cannot be told apart, so each gets an equal part.
        seconds = (time.perf_counter() - start) / len(found)
        self._live = [index for index in found if isinstance(found[index], dict)]
        return {
            index: EpochResult(self.epoch, metrics, seconds) if isinstance(metrics, dict) else metrics
            for index, metrics in found.items()
        }

    def drop(self, index: int) -> None:
        """Return no more results of a probe, for example after it was pruned."""
        self._live = [live for live in self._live if live != index]

    def _train_epoch(self) -> list[float]:
        """Mean training loss of each probe, finite or not."""
        size = shown_size(self._data.preprocessing.image_size, self._common)
        features = self._features(self._data.train, size, "none")[0]
        order = sampling_order(self._data.train.targets, self._common.sampling, self._order_rng)
        order = order[: self._updates_per_epoch * self._common.batch_size]
        targets = self._data.train.targets if self._scale is None else self._scale.standardise(self._data.train.targets)
        first = self.epoch * self._updates_per_epoch
        rates = [[rate.at(first + u) for rate in self._rates] for u in range(self._updates_per_epoch)]
        for stepper in self._steppers:
            stepper.set_rates(rates)
        sums = torch.zeros(len(self.strategies), device=self.device.torch)
        batches = zip(
            torch.split(order.to(features.device), self._common.batch_size),
            torch.split(targets[order].to(self.device.torch), self._common.batch_size),
            strict=True,
        )
        for update, (rows, wanted) in enumerate(batches):
            sums += self._update(features[rows].to(self.device.torch, torch.float32), wanted, update)
        self._averages.end_epoch(self.epoch)
        return (sums.cpu().double() / self._updates_per_epoch).tolist()

    def _update(self, features: Tensor, targets: Tensor, update: int) -> Tensor:
        """One step of all probes on a batch of features, (B, D); returns their losses before it, (P,)."""
        losses, grads = self._loss_and_grads(features, targets)
        if self._common.sam_rho > 0:
            _, grads = self._loss_and_grads(features, targets, self._climbed(grads))
        if self._clips:
            # As nn.utils.clip_grad_norm_, for each probe alone.
            shares = torch.where(self._clip > 0, (self._clip / (_norms(grads) + 1e-6)).clamp_max(1.0), 1.0)
            grads = Head(grads.weight * shares[:, None, None], grads.bias * shares[:, None])
        for stepper in self._steppers:
            stepper.step(grads, update)
        self._averages.end_update()
        return losses

    def _loss_and_grads(self, features: Tensor, targets: Tensor, head: Head | None = None) -> tuple[Tensor, Head]:
        weight, bias = (tensor.detach().requires_grad_() for tensor in head or self._head)
        # In fp16 the gradients would need a scaled loss.
        with self.device.autocast() if self.device.precision != "fp16" else nullcontext():
            # One product for all probes, not a batched product with one for each: the probes share the features.
            outputs = F.linear(features, weight.flatten(0, 1), bias.flatten()).float()
        losses = self._losses(outputs.view(-1, *bias.shape).transpose(0, 1), targets)
        return losses.detach(), Head(*torch.autograd.grad(losses.sum(), (weight, bias)))

    def _climbed(self, grads: Head) -> Head:
        """Each probe's weights at about the worst loss near by (SAM; see :class:`strategies.optim.sam.Sam`)."""
        scale = self._rho / _norms(grads).clamp_min(1e-12)
        weight, bias = self._head
        return Head(weight + grads.weight * scale[:, None, None], bias + grads.bias * scale[:, None])

    def _metrics(self, index: int, train_loss: float) -> dict[str, float] | TrialError:
        if not math.isfinite(train_loss):
            return TrialError(f"training loss became {train_loss} in epoch {self.epoch}")
        rate = self._rates[self._row[index]]
        metrics = {"train_loss": train_loss, "lr": rate.before_scale}
        scores = self._task.scores(*self.predict(index, self._data.val))
        metrics |= {f"val_{name}": value for name, value in scores.items()}
        if not math.isfinite(metrics["val_loss"]):
            return TrialError(f"validation loss is {metrics['val_loss']} after epoch {self.epoch}")
        rate.end_epoch(self.epoch, -metrics["val_loss"])
        return metrics

    @torch.inference_mode()
    def predict(self, index: int, split: Split) -> tuple[Tensor, Tensor]:
        """A probe's outputs and the targets of a split; see :func:`trainers.scoring.prediction.predict`."""
        size = shown_size(self._data.preprocessing.image_size, self._common)
        weight, bias = (tensor[self._row[index]] for tensor in self._averages.scored)
        features = self._features(split, size, self._common.tta).to(self.device.torch, torch.float32)
        with self.device.autocast():
            outputs = F.linear(features, weight, bias).float().mean(0)
        return (outputs if self._scale is None else self._scale.restore(outputs)).cpu(), split.targets.cpu()

    def weights(self, index: int) -> dict[str, Tensor]:
        """The weights of a probe that were scored, on the CPU, named as in a plain timm model.

        The head's are copies; the body's are the same tensors for every probe and not to be written to.
        """
        weight, bias = (tensor[self._row[index]].cpu().clone() for tensor in self._averages.scored)
        return self._start_on_cpu | {f"{self._head_name}.weight": weight, f"{self._head_name}.bias": bias}

    @cached_property
    def _start_on_cpu(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}

    def plan(self, index: int) -> Plan:
        """The plan of a probe's strategy for every parameter of the model."""
        return make_plan(self.model, self.strategies[index])


class _Rate:
    """A probe's learning rate, by the strategy's own schedule."""

    def __init__(self, strategy: Strategy, updates_per_epoch: int) -> None:
        # Schedules write to an optimizer's groups, so this makes an optimizer that trains nothing.
        group = {"params": [torch.zeros(())], "lr_scale": strategy.head_lr_scale}
        optimizer = torch.optim.SGD([group], lr=strategy.lr)
        self._schedule = make_scheduler(optimizer, strategy, updates_per_epoch)
        self._group = optimizer.param_groups[0]

    def at(self, update: int) -> float:
        """The head's rate at an update, counted from 0."""
        self._schedule.step_update(update)
        return float(self._group["lr"])

    @property
    def before_scale(self) -> float:
        """The latest rate before any factor."""
        return float(self._group["lr"] / self._group["lr_scale"])

    def end_epoch(self, epoch: int, score: float) -> None:
        """Give the schedule a validation score, where more is better."""
        self._schedule.step(epoch, score)


class _Losses:
    """Each probe's training loss; losses of the same name are computed together."""

    def __init__(
        self, data: ImageData, strategies: Sequence[Strategy], weights: Sequence[Tensor | None], device: Device
    ) -> None:
        rows: dict[str, list[int]] = {}
        for index, strategy in enumerate(strategies):
            rows.setdefault(strategy.loss, []).append(index)
        alike = torch.ones(len(data.classes), device=device.torch)
        self._parts = []
        for members in rows.values():
            numbers = {name: _column([getattr(strategies[i], name) for i in members], device) for name in _OF_LOSSES}
            stacked = torch.stack([alike if (found := weights[i]) is None else found for i in members])
            loss = loss_of(data.task, strategies[members[0]])
            self._parts.append((torch.tensor(members, device=device.torch), loss, numbers, stacked))
        self._places = torch.cat([members for members, *_ in self._parts]).argsort()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The losses, (P,), of outputs (P, B, C) and targets (B,) int64 or (B, C) float."""
        found = [
            torch.vmap(partial(_loss_of_one, loss, targets))(outputs[members], numbers, weights)
            for members, loss, numbers, weights in self._parts
        ]
        return torch.cat(found)[self._places]


def _loss_of_one(loss: Any, targets: Tensor, outputs: Tensor, numbers: dict[str, Tensor], weights: Tensor) -> Tensor:
    # A loss reads only numbers of the strategy, which may also be tensors.
    found: Tensor = loss(outputs, targets, SimpleNamespace(**numbers), weights)
    return found


class _Averages:
    """The weights that are scored: a probe's own, or their moving average (EMA), or that of its last epochs (SWA)."""

    def __init__(self, head: Head, strategies: Sequence[Strategy]) -> None:
        self._head = head
        self._strategies = strategies
        self._updates = 0
        self._with_ema = any(strategy.ema > 0 for strategy in strategies)
        self._any = self._with_ema or any(strategy.swa_epochs > 0 for strategy in strategies)
        self.scored = Head(*(tensor.clone() for tensor in head)) if self._any else head

    def end_update(self) -> None:
        """Take every probe's weights into its moving average."""
        if self._with_ema:
            self._move([ema_weight(self._updates, s.ema) if s.ema > 0 else 0.0 for s in self._strategies])
            self._updates += 1

    def end_epoch(self, epoch: int) -> None:
        """Take the weights after an epoch, counted from 0, into the averages of the last epochs."""
        if self._any:
            self._move([_share_of_epoch(strategy, epoch) for strategy in self._strategies])

    def _move(self, shares: list[float]) -> None:
        column = torch.tensor(shares).to(self._head.bias.device, non_blocking=True)
        self.scored.weight.lerp_(self._head.weight, column[:, None, None])
        self.scored.bias.lerp_(self._head.bias, column[:, None])


def _share_of_epoch(strategy: Strategy, epoch: int) -> float:
    """Share of the weights after an epoch in the scored weights; 1 means these weights themselves."""
    if strategy.ema > 0:
        return 0.0
    return swa_weight(max(0, epoch - (strategy.epochs - strategy.swa_epochs)))


def _column(numbers: Sequence[float], device: Device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device.torch)


def _norms(grads: Head) -> Tensor:
    """The norm of each probe's whole gradient, (P,)."""
    return torch.hypot(torch.linalg.vector_norm(grads.weight, dim=(1, 2)), torch.linalg.vector_norm(grads.bias, dim=1))
