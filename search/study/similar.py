"""Earlier studies of similar images, and their best strategies."""

import math
from collections.abc import Mapping
from typing import Any

import optuna
import torch
from optuna import Study
from optuna.storages import BaseStorage

from search.scheduling import ranked
from search.storage import BLOCKS, DEPTH, FEATURES, IDENTITY, MODEL, STRATEGY, storage_of
from search.trials import OpenStudy
from strategies import Strategy, project
from trainers import ImageData

# Images that features are computed from.
_SEEN = 256
# The largest distance at which strategies are taken over: ten times the images, or half the classes and another look.
_FAR = 3.0
_MOST_STUDIES = 3
# Strategies of other studies that a new study begins with.
_WARM = 4


def features_of(data: ImageData) -> dict[str, Any]:
    """Features of a data set: its sizes, the evenness of its classes, and statistics of its pixels.

    Args:
        data: Data of any task; dense targets are ignored.
    """
    places = torch.linspace(0, len(data.train) - 1, min(_SEEN, len(data.train))).long()
    images, _ = next(data.train.batches(places, len(places), torch.device("cpu")))
    pixels = images.double() / 255
    return {
        "task": data.task,
        "images": len(data.train),
        "classes": len(data.classes),
        "image_size": data.preprocessing.image_size,
        "in_chans": data.preprocessing.in_chans,
        "evenness": _evenness(data),
        "mean": pixels.mean().item(),
        "contrast": pixels.std((2, 3)).mean().item(),
        "variety": pixels.mean((1, 2, 3)).std(unbiased=False).item(),
    }


def _evenness(data: ImageData) -> float:
    """Entropy of the classes as a share of the largest possible; 1 for other tasks than classification."""
    if data.task != "classification" or len(data.classes) < 2:
        return 1.0
    shares = torch.bincount(data.train.targets, minlength=len(data.classes)).double() / len(data.train)
    return float(-(shares * shares.clamp_min(1e-12).log()).sum() / math.log(len(data.classes)))


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Distance of two data sets; infinite for different tasks or numbers of channels."""
    if (one["task"], one["in_chans"]) != (other["task"], other["in_chans"]):
        return math.inf
    logs = sum(abs(math.log(one[name] / other[name])) for name in ("images", "classes", "image_size"))
    looks = sum(abs(one[name] - other[name]) for name in ("evenness", "mean", "contrast", "variety"))
    return float(logs + 4 * looks)


def similar_params(open_study: OpenStudy) -> dict[str, dict[str, Any]]:
    """The best strategies of earlier studies of similar images, moved into the first model's space, as parameters."""
    study, source = open_study.study, open_study.first_source
    space = open_study.spaces[source.name]
    found = strategies_of_similar(storage_of(study), study.study_name, study.user_attrs[FEATURES])
    return {name: project(Strategy.from_dict(one), space, source.num_blocks) for name, one in found.items()}


def strategies_of_similar(
    storage: BaseStorage, name: str, features: Mapping[str, Any], count: int = _WARM
) -> dict[str, dict[str, Any]]:
    """The best strategies of earlier studies of the most similar images, as presets by study and rank.

    Depth is given as a share of the model's blocks, since another model may have another number of blocks.

    Args:
        storage: Optuna's storage.
        name: The study that is to begin.
        features: Features of its images.
        count: Number of strategies at most.
    """
    near = []
    for other in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=other, storage=storage)
        others = study.user_attrs.get(FEATURES)
        if other != name and others is not None and IDENTITY in study.user_attrs:
            gap = distance(features, others)
            if gap <= _FAR:
                near.append((gap, other, study))
    found: dict[str, dict[str, Any]] = {}
    lists = [_best_of(study) for _, _, study in sorted(near, key=lambda one: one[:2])[:_MOST_STUDIES]]
    names = [other for _, other, _ in sorted(near, key=lambda one: one[:2])[:_MOST_STUDIES]]
    # The best of each before the second best of any.
    for rank in range(count):
        for other, best in zip(names, lists, strict=True):
            if rank < len(best) and len(found) < count:
                found[f"{other}_{rank + 1}"] = best[rank]
    return found


def _best_of(study: Study) -> list[dict[str, Any]]:
    blocks = study.user_attrs.get(BLOCKS, {})
    found = []
    for trial in ranked(study):
        strategy = Strategy.from_dict(trial.user_attrs[STRATEGY]).to_dict()
        depth, total = trial.user_attrs[DEPTH], blocks.get(trial.params.get(MODEL) or next(iter(blocks), ""))
        if total:
            strategy["depth"] = depth / total if depth else 0
        found.append(strategy)
    return found
