"""Logged models run on a study's test images as these are now, whatever classes each model knows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.config import StudyConfig
from search.processes import temporary_files_in, temporary_folder, temporary_place
from strategies import ConfigError, Strategy
from trainers import TASKS, Device, Groups, InOrder, answers_for, in_order, normaliser, open_data, predict

_REPEATS = 3
_TIMED_IMAGES = 64
# A class that the data lacks is named as what a model takes a new class for, if this share of its images is called so.
_NAMED = 0.2


@dataclass(frozen=True, slots=True)
class Judged:
    """A model's outputs for the test images, and its costs.

    Args:
        outputs: (N, ...) outputs, as ``Task.scores`` takes them, by the classes of the data; then come those of models.
        targets: (N, ...) targets.
        seconds: Seconds an image.
        parameters: Number of parameters.
        is_new: (N,) bool, whether the image was neither trained nor validated with.
        digests: (N,) a number for the content of each image.
        groups: (N,) the group of each image; None if the data has no groups.
        changes: How the data's classes differ from the model's, in words; empty if they do not.
    """

    outputs: Tensor
    targets: Tensor
    seconds: float
    parameters: int
    is_new: Tensor
    digests: NDArray[np.uint64]
    groups: Groups | None
    changes: str

    def groups_of(self, counted: Tensor) -> Groups | None:
        """The groups of some images; None if the data has no groups."""
        return None if self.groups is None else self.groups[counted.numpy()]


def judge(model_uris: Sequence[str], config: StudyConfig, device: Device) -> list[Judged]:
    """Run logged models on a study's test images, each with the preprocessing that it was trained with.

    All outputs are in the order of the data's classes. A class that a model does not know is never its answer, which
    has a finite loss; an answer that the data lacks is wrong.

    Args:
        model_uris: Addresses of the models.
        config: Gives the images.
        device: Where to compute.

    Raises:
        UnfreezeError: A model is of another task, or the images cannot be opened.
    """
    # Of a server's model, MLflow leaves a copy where temporary files are.
    with temporary_folder(temporary_place(config.data.cache)) as folder, temporary_files_in(folder):
        served = [mlflow.pyfunc.load_model(uri).unwrap_python_model() for uri in model_uris]
    for uri, one in zip(model_uris, served, strict=True):
        if one.task.name != config.task:
            raise ConfigError(f"{uri} is a model for {one.task.name}, and the study is for {config.task}")
    known = [one.classes for one in served]
    return [_judged(one, known, config, device) for one in served]


def _judged(served: Any, known: Sequence[Sequence[str]], config: StudyConfig, device: Device) -> Judged:
    how, task = served.preprocessing, TASKS[config.task]
    data = config.data.model_copy(update={"image_size": how.image_size, "max_value": how.max_value})
    opened = open_data(task=config.task, in_chans=how.in_chans, **data.model_dump())
    split, answers = opened.test, answers_for(task.name, opened.classes, *known)
    strategy = Strategy.from_dict(served.card["strategy"])
    model = served.model.to(device.torch)
    normalise = normaliser(served.card["mean"], served.card["std"], device)
    # Masks are counted by class as they are predicted; all other outputs are put in order afterwards.
    is_mask = task.name == "segmentation"
    ordered = InOrder(model, task.name, served.classes, answers) if is_mask else model
    outputs, targets = predict(ordered, split, strategy, normalise, task, served.scale, device)
    if served.temperature is not None:
        outputs = outputs / served.temperature
    if not is_mask:
        usual = opened.train.targets.mean(0) if task.name == "regression" else torch.empty(0)
        outputs = in_order(task.name, outputs, served.classes, answers, usual)
    places = torch.arange(min(len(split), _TIMED_IMAGES))
    seconds = min(
        _timed(lambda: predict(model, split, strategy, normalise, task, served.scale, device, places=places))
        for _ in range(_REPEATS)
    )
    digests = opened.digests["test"]
    is_new = torch.from_numpy(~np.isin(digests, served.seen))
    changes = class_changes(served.classes, opened.classes, _calls(task.name, outputs, targets, answers))
    groups = opened.groups.get("test")
    return Judged(outputs, targets, seconds / len(places), _count(model), is_new, digests, groups, changes)


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _count(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def _calls(task: str, outputs: Tensor, targets: Tensor, answers: Sequence[str]) -> dict[str, dict[str, int]]:
    """By class, how many of its images a classifier calls by each name; empty for other tasks."""
    if task != "classification":
        return {}
    found: dict[str, dict[str, int]] = {}
    for target, answer in zip(targets.tolist(), outputs.argmax(1).tolist(), strict=True):
        names = found.setdefault(answers[target], {})
        names[answers[answer]] = names.get(answers[answer], 0) + 1
    return found


def class_changes(known: Sequence[str], classes: Sequence[str], calls: dict[str, dict[str, int]]) -> str:
    """How the classes of data differ from those that a model knows, in words; empty if they do not.

    A class may only have got another name, or several may have become one: then the model calls its images by names
    that are gone.

    Args:
        known: The model's classes.
        classes: The data's classes.
        calls: By class, how many of its images the model calls by each name.
    """
    gone = [name for name in known if name not in classes]
    new = []
    for name in classes:
        if name not in known:
            called = calls.get(name, {})
            images = sum(called.values())
            taken = {old: called[old] for old in gone if called.get(old, 0) >= _NAMED * images and images}
            said = f"'{name}'"
            if 2 * sum(taken.values()) > images:
                names = " or ".join(f"'{old}'" for old in taken)
                how = "renamed" if len(taken) == 1 else "merged"
                said += f" (it calls {sum(taken.values()):,} of {images:,} such images {names}: {how}?)"
            new.append(said)
    parts = [f"it does not know {', '.join(new)}, which counts as wrong"] if new else []
    parts += [f"{', '.join(map(repr, gone))} {'is' if len(gone) == 1 else 'are'} no longer in the data"] if gone else []
    return "; ".join(parts)
