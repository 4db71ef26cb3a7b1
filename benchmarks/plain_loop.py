"""A plain search, to compare with: Optuna, timm and MLflow in one loop, every trial trained on its own from the start.

``python -m benchmarks.plain_loop study.yaml`` reads a study file as our own command does; with ``--processes 2`` two
processes share the trials and the cores. Images and weights come from the same readers, so both sides train on the same
bytes; everything from there on is written as one would write it for one project, with what makes such a loop fast:
images decoded once and held in memory (on the GPU if there is one), features of linear probes computed once,
channels_last, bf16 on GPUs, frozen parameters without gradient and their BatchNorm in eval mode, torch's fused
optimizers, validation in larger batches, no waiting for the device inside an epoch, MLflow written once an epoch.
"""

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
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
# Those that torch has fused steps for.
_FUSED = ("adam", "adamw", "sgd")
_PRUNERS = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
}


@dataclass(frozen=True, slots=True)
class Images:
    """A split in memory: pixels (N, C, H, W) uint8, or features (N, D), and targets (N,) int64, all on the device."""

    pixels: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Lesson:
    """What all trials of a process share; ``template`` is the pretrained model on the CPU.

    ``features`` holds the classifier's inputs of training and validation images once a linear probe was trained.
    """

    template: Any
    num_classes: int
    train: Images
    val: Images
    device: torch.device
    features: list[Images] = field(default_factory=list)


def run(config: StudyConfig, processes: int = 1) -> None:
    """Try the presets as they are, then what TPE proposes, until ``budget.trials`` trials are done.

    Args:
        config: The study.
        processes: How many processes share the trials, each with its share of the cores.

    Raises:
        RuntimeError: Another process failed.
    """
    # Forked before torch has threads and before any store is open; what was imported need not be imported again.
    context = multiprocessing.get_context("fork")
    left, stores_exist = context.Value("i", config.budget.trials), context.Event()

    def work(number: int) -> None:
        if processes > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
        lesson = prepare(config)
        stores_exist.wait()
        search(config, lesson, left, number)

    others = [context.Process(target=work, args=(number,)) for number in range(1, processes)]
    for other in others:
        other.start()
    try:
        make_stores(config)
        stores_exist.set()
        work(0)
    except BaseException:
        for other in others:
            other.kill()
        raise
    for other in others:
        other.join()
    if any(other.exitcode != 0 for other in others):
        raise RuntimeError("a process of the plain loop failed")
    study = optuna.load_study(study_name=config.name, storage=config.store.url)
    print(f"best validation accuracy {study.best_value:.4f}: {study.best_params}")


def make_stores(config: StudyConfig) -> None:
    """Make the study with its presets, and the experiment."""
    mlflow.set_tracking_uri(config.tracking.uri)
    if mlflow.get_experiment_by_name(str(config.name)) is None:
        mlflow.create_experiment(str(config.name), artifact_location=config.tracking.artifacts)
    Path(config.tracking.artifacts).mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=config.name, storage=config.store.url, direction="maximize")
    for preset in config.presets.values():
        study.enqueue_trial(preset)


def search(config: StudyConfig, lesson: Lesson, left: Any, number: int) -> None:
    """Train trials as long as some are left, in one of the processes.

    Args:
        config: The study.
        lesson: What the trials share.
        left: The number of trials that no process has taken yet, shared with the other processes.
        number: Of this process, from 0.
    """
    mlflow.set_tracking_uri(config.tracking.uri)
    mlflow.set_experiment(str(config.name))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name=config.name,
        storage=config.store.url,
        sampler=optuna.samplers.TPESampler(
            n_startup_trials=config.sampler.startup_trials, multivariate=True, group=True, seed=config.seed + number
        ),
        pruner=_PRUNERS[config.pruner.name],
    )
    best_weights = Path(config.tracking.artifacts) / f"best {number}.pt"
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

    def take() -> optuna.Trial | None:
        # In turn: of two processes that ask SQLite at once, Optuna may give both the same queued trial.
        with left.get_lock():
            left.value -= 1
            return study.ask() if left.value >= 0 else None

    while (trial := take()) is not None:
        try:
            study.tell(trial, objective(trial))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)


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
    groups, how = freeze(model, strategy), {"fused": True} if strategy.optimizer in _FUSED else {}
    optimizer = create_optimizer_v2(
        groups, opt=strategy.optimizer, lr=strategy.lr, weight_decay=strategy.weight_decay, **how
    )
    train, val, forward = what_is_trained(lesson, model)
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
                logits = forward(train.pixels[rows]).float()
            loss = F.cross_entropy(logits, train.targets[rows], label_smoothing=smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach()
        model.eval()
        yield model, (total / updates).item(), accuracy_of(forward, val, 4 * strategy.batch_size)


def what_is_trained(lesson: Lesson, model: Any) -> tuple[Images, Images, Callable[[Tensor], Tensor]]:
    """Training and validation images, and what gives their logits; for a linear probe features, and the classifier."""
    show, classifier = shower(model.pretrained_cfg, lesson.device), model.get_classifier()
    of_classifier = {id(param) for param in classifier.parameters()}
    if any(param.requires_grad and id(param) not in of_classifier for param in model.parameters()):
        return lesson.train, lesson.val, lambda pixels: model(show(pixels))
    if not lesson.features:
        model.eval()
        lesson.features.extend(featured(model, images, show) for images in (lesson.train, lesson.val))
    train, val = lesson.features
    return train, val, classifier


@torch.no_grad()
def featured(model: Any, images: Images, show: Any) -> Images:
    """The classifier's inputs in place of the pixels."""
    with autocast(images.targets.device):
        parts = [model.forward_head(model.forward_features(show(p)), pre_logits=True) for p in images.pixels.split(256)]
    return Images(torch.cat(parts), images.targets)


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
def accuracy_of(forward: Callable[[Tensor], Tensor], images: Images, batch_size: int) -> float:
    """Share of the images that are classified rightly."""
    right = torch.zeros((), device=images.targets.device)
    for pixels, targets in zip(images.pixels.split(batch_size), images.targets.split(batch_size), strict=True):
        with autocast(images.targets.device):
            right += (forward(pixels).argmax(1) == targets).sum()
    return right.item() / len(images.targets)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file; of its keys the loop knows what this module uses")
    parser.add_argument("--processes", type=int, default=1, help="that share the trials and the cores")
    options = parser.parse_args()
    run(compose_study([f"study={options.study}"]), options.processes)


if __name__ == "__main__":
    main()
