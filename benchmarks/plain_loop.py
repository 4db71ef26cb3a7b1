"""A plain search, to compare with: Optuna, timm and MLflow in one loop, every trial trained on its own from the start.

``python -m benchmarks.plain_loop study.yaml`` reads a study file as our own command does. Images and weights come from
the same readers, so both sides train on the same bytes; everything from there on is written as one would write it for
one project, with what makes such a loop fast: images decoded once and held in memory (on the GPU if there is one),
channels_last, bf16 on GPUs, frozen parameters without gradient and their BatchNorm in eval mode, validation in larger
batches, no waiting for the device inside an epoch, MLflow written once an epoch.
"""

import argparse
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from search import StudyConfig, compose_study
from strategies import ConfigError, Strategy, split_blocks
from trainers import Split, find_weights, open_data

# What the loop knows of a strategy; every other field must be at its default.
FIELDS = (
    "depth",
    "lr",
    "layer_decay",
    "weight_decay",
    "optimizer",
    "loss",
    "label_smoothing",
    "batch_norm",
    "batch_size",
    "epochs",
    "warmup_epochs",
)
_LOSSES = ("cross_entropy", "label_smoothing")
_PRUNERS = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
}


@dataclass(frozen=True, slots=True)
class Images:
    """A split in memory: pixels (N, C, H, W) uint8 and targets (N,) int64, both on the device."""

    pixels: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Lesson:
    """What all trials share; ``template`` is the pretrained model on the CPU."""

    template: Any
    num_classes: int
    train: Images
    val: Images
    device: torch.device


def run(config: StudyConfig) -> None:
    """Try the presets as they are, then what TPE proposes, until ``budget.trials`` trials are done."""
    lesson = prepare(config)
    mlflow.set_tracking_uri(config.tracking.uri)
    if mlflow.get_experiment_by_name(str(config.name)) is None:
        mlflow.create_experiment(str(config.name), artifact_location=config.tracking.artifacts)
    mlflow.set_experiment(str(config.name))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=config.name,
        storage=config.store.url,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(
            n_startup_trials=config.sampler.startup_trials, multivariate=True, group=True, seed=config.seed
        ),
        pruner=_PRUNERS[config.pruner.name],
    )
    for preset in config.presets.values():
        study.enqueue_trial(preset)
    best_weights = Path(config.tracking.artifacts) / "best.pt"
    best_weights.parent.mkdir(parents=True, exist_ok=True)
    best_of_all = 0.0

    def objective(trial: optuna.Trial) -> float:
        nonlocal best_of_all
        strategy = strategy_of({name: suggest(trial, name, entry) for name, entry in config.strategy.items()})
        best = 0.0
        with mlflow.start_run(run_name=f"trial {trial.number}"):
            mlflow.log_params({name: getattr(strategy, name) for name in FIELDS})
            for epoch, (model, loss, accuracy) in enumerate(fine_tune(lesson, strategy, config.seed), start=1):
                mlflow.log_metrics({"train_loss": loss, "val_accuracy": accuracy}, step=epoch)
                best = max(best, accuracy)
                if accuracy > best_of_all:
                    # Without the winner's weights a search would be of no use.
                    torch.save(model.state_dict(), best_weights)
                    best_of_all = accuracy
                trial.report(accuracy, epoch)
                if epoch < strategy.epochs and trial.should_prune():
                    raise optuna.TrialPruned
        return best

    study.optimize(objective, n_trials=config.budget.trials)
    print(f"best validation accuracy {study.best_value:.4f}: {study.best_params}")


def prepare(config: StudyConfig) -> Lesson:
    """Read images and weights, once."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    data = open_data(task=config.task, in_chans=config.model.in_chans, **config.data.model_dump())
    name = config.model.names[0]
    torch.manual_seed(config.seed)
    model: Any = timm.create_model(name, num_classes=len(data.classes), in_chans=config.model.in_chans)
    state, own = find_weights(name, config.model.weights).state_dict or {}, model.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if k in own and own[k].shape == v.shape}, strict=False)
    train, val = (in_memory(split, device) for split in (data.train, data.val))
    return Lesson(model, len(data.classes), train, val, device)


def in_memory(split: Split, device: torch.device) -> Images:
    """All of a split on the device."""
    return Images(*next(split.batches(torch.arange(len(split)), len(split), device)))


def suggest(trial: optuna.Trial, name: str, entry: Any) -> Any:
    """A value for an entry of the study's ``strategy`` section."""
    match entry:
        case {"choices": choices}:
            return trial.suggest_categorical(name, choices)
        case {"low": int(low), "high": int(high)}:
            return trial.suggest_int(name, low, high)
        case {"low": low, "high": high, **rest}:
            return trial.suggest_float(name, low, high, log=bool(rest.get("log")))
        case _:
            return entry


def strategy_of(values: dict[str, Any]) -> Strategy:
    """The strategy with these values.

    Raises:
        ConfigError: The loop does not know a field, or what it is to be.
    """
    for name in values:
        if name not in FIELDS:
            raise ConfigError(f"strategy.{name}: the plain loop knows only {', '.join(FIELDS)}")
    strategy = Strategy.from_dict(values)
    if strategy.loss not in _LOSSES:
        raise ConfigError(f"strategy.loss: {strategy.loss!r}; the plain loop knows only {', '.join(_LOSSES)}")
    return strategy


def fine_tune(lesson: Lesson, strategy: Strategy, seed: int) -> Iterator[tuple[nn.Module, float, float]]:
    """Train one strategy; gives after each epoch the model, its mean training loss and its validation accuracy."""
    model = deepcopy(lesson.template)
    torch.manual_seed(seed)
    model.reset_classifier(lesson.num_classes)
    model.to(lesson.device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        freeze(model, strategy), opt=strategy.optimizer, lr=strategy.lr, weight_decay=strategy.weight_decay
    )
    show = shower(model.pretrained_cfg, lesson.device)
    smoothing = strategy.label_smoothing if strategy.loss == "label_smoothing" else 0.0
    updates = max(1, len(lesson.train.targets) // strategy.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine(strategy, updates))
    order_rng = torch.Generator().manual_seed(seed)
    for _ in range(strategy.epochs):
        set_train_mode(model, strategy)
        order = torch.randperm(len(lesson.train.targets), generator=order_rng)[: updates * strategy.batch_size]
        total = torch.zeros((), device=lesson.device)
        for rows in order.to(lesson.device).split(strategy.batch_size):
            with autocast(lesson.device):
                logits = model(show(lesson.train.pixels[rows])).float()
            loss = F.cross_entropy(logits, lesson.train.targets[rows], label_smoothing=smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach()
        yield model, (total / updates).item(), accuracy_of(model, lesson.val, show, 4 * strategy.batch_size)


def freeze(model: Any, strategy: Strategy) -> list[dict[str, Any]]:
    """Freeze what the strategy does not train, and give the rest as parameter groups with their learning rates."""
    blocks = split_blocks(model)
    trained = blocks.body[len(blocks) - strategy.blocks_trained(len(blocks)) :]
    distance = {name: len(trained) - k for k, block in enumerate(trained) for name in block.params}
    distance |= dict.fromkeys(blocks.head.params, 0)
    if strategy.batch_norm == "frozen":
        norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        distance = {name: far for name, far in distance.items() if name.rpartition(".")[0] not in norms}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        param.requires_grad_(name in distance)
        if name in distance:
            key = strategy.lr * strategy.layer_decay ** distance[name], strategy.weight_decay * (param.ndim > 1)
            groups.setdefault(key, []).append(param)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def set_train_mode(model: nn.Module, strategy: Strategy) -> None:
    """Train mode, but for BatchNorm that is frozen or keeps its statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and (strategy.batch_norm != "train" or not module.weight.requires_grad):
            module.eval()


def warm_up_and_cosine(strategy: Strategy, updates_per_epoch: int) -> Any:
    """The learning rate's share of its peak at each update."""
    updates = strategy.epochs * updates_per_epoch
    warmup = round(strategy.warmup_epochs * updates_per_epoch)
    start = 1 / (warmup + 1)

    def share(update: int) -> float:
        if update < warmup:
            return start + (1 - start) * update / warmup
        return 0.5 * (1 + math.cos(math.pi * update / updates))

    return share


def shower(config: Any, device: torch.device) -> Any:
    """A function from pixels (N, C, H, W) uint8 to what the model is shown."""
    mean, std = (torch.tensor(config[name], device=device).view(1, -1, 1, 1) for name in ("mean", "std"))
    return lambda pixels: ((pixels.float().div_(255) - mean) / std).contiguous(memory_format=torch.channels_last)


def autocast(device: torch.device) -> Any:
    """bf16 on a GPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@torch.inference_mode()
def accuracy_of(model: nn.Module, images: Images, show: Any, batch_size: int) -> float:
    """Share of the images that are classified rightly."""
    model.eval()
    right = torch.zeros((), device=images.targets.device)
    for pixels, targets in zip(images.pixels.split(batch_size), images.targets.split(batch_size), strict=True):
        with autocast(images.targets.device):
            right += (model(show(pixels)).argmax(1) == targets).sum()
    return right.item() / len(images.targets)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file; of its keys the loop knows what this module uses")
    run(compose_study([f"study={parser.parse_args().study}"]))


if __name__ == "__main__":
    main()
