"""The content of a chosen study's file, and its name."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search.auto.rule import Choice, Facts
from search.config import load_study, study_folders, without_password
from trainers import Survey

# Studies that come with Unfreeze, whose spaces suit the tasks.
_STUDIES = {"segmentation": "unet_seg", "detection": "frcnn_det"}
_USUAL_STUDY = "quickstart"
# From so many pixels on, images are worth varying, and from so many trials on the learnt policy can plan.
_VARIED_SIZE, _PLANNED_TRIALS = 48, 20
# One good strategy, for images of which nothing else is known: the preset that wins most often, with mild settings.
_ONE_STRATEGY = {"depth": 1.0, "lr": 2e-3, "layer_decay": 0.85, "weight_decay": 0.02}


def name_of(data: Mapping[str, Any], effort: str) -> str:
    """The study's name, if none is given: that of the folder or file of the images, with an unusual effort."""
    places = [data.get(name) for name in ("root", "manifest", "annotations", "dataset", "shards")]
    place = next((place for place in places if isinstance(place, str)), None) or data.get("source", "images")
    words = re.sub(r"[^A-Za-z0-9_]+", "-", Path(place).expanduser().absolute().name.partition(".")[0])
    words = words.strip("-_")[:80] or "images"
    return words if effort == "good" else f"{words}-{effort}"


def content_of(content: Mapping[str, Any], choice: Choice, facts: Facts, found: Survey) -> dict[str, Any]:
    """The content of the study file, before the words of the command line.

    Args:
        content: Name, task, places of the images and budget.
        choice: What was chosen.
        facts: The facts behind it.
        found: The images.
    """
    task = content["task"]
    shipped = load_study(study_folders()[-1] / f"{_STUDIES.get(task, _USUAL_STUDY)}.yaml")
    space = {**shipped["strategy"], "epochs": choice.epochs, "batch_size": choice.batch_size}
    if task in ("multilabel", "regression"):
        del space["loss"]
    if not facts.dense and (found.short_side or 0) >= _VARIED_SIZE:
        space["augment"] = {"choices": ["none", "light"]}
    data = {**content["data"], "image_size": choice.model.size}
    for split, count in (("train", choice.train), ("val", choice.val), ("test", facts.test)):
        if count < facts.counts[split]:
            data[f"limit_{split}"] = count
    model: dict[str, Any] = {"name": choice.model.name, "weights": _form_of(choice.model.weights)}
    if found.channels not in (1, 3):
        model["in_chans"] = found.channels
    study = {**content, "data": data, "model": model, "strategy": space}
    if "presets" in shipped:
        study["presets"] = shipped["presets"]
    if not facts.dense and task == "classification" and choice.trials >= _PLANNED_TRIALS:
        study["sampler"] = {"name": "learned"}
    return study | _EFFORTS[facts.effort](study)


def _quick(study: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: _one(name, spec) for name, spec in study["strategy"].items() if isinstance(spec, dict)}
    return {
        "presets": {"fine_tuning": fields},
        "probe_sweep": 0,
        "sampler": {"name": "tpe"},
        "budget": {**study["budget"], "trials": study["budget"]["trials"] or 1},
    }


def _one(name: str, spec: Mapping[str, Any]) -> Any:
    """One value of a field: the first choice, or the usual value, as far as it lies in the range."""
    if "choices" in spec:
        return spec["choices"][0]
    return min(max(_ONE_STRATEGY[name], spec["low"]), spec["high"])


def _good(study: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _best(study: Mapping[str, Any]) -> dict[str, Any]:
    return {"confirm": {"seeds": 2, "top": 3}, "after": {"wise_ft": True, "soups": True}}


_EFFORTS = {"quick": _quick, "good": _good, "best": _best}


def _form_of(source: str) -> str:
    """The form in which a study file names weights that were found: ``hub:timm/x`` is ``hub``."""
    kind, _, rest = source.partition(":")
    if kind in ("hub", "embedded"):
        return kind
    return rest if kind == "file" else source


def write_study(file: Path, study: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write a study file, with what was found as comments; addresses of stores with passwords are left out."""
    stores = {"store": "url", "tracking": "uri"}
    secret = {
        name for name, key in stores.items() if (url := study.get(name, {}).get(key, "")) != without_password(url)
    }
    shown = {key: value for key, value in study.items() if key not in secret}
    comments = "".join(f"# {line}\n" for line in ("Chosen by study=auto", *lines))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(comments + yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), encoding="utf-8")
