"""The teacher of a study: a classifier that an earlier study logged."""

import json
from collections.abc import Sequence
from pathlib import Path

from search.storage import fetch_uri
from strategies import ConfigError, WeightsError
from trainers import DamagedFileError, Device, Teacher, create_classifier, load_weights, normaliser


def load_teacher(uri: str, tracking_uri: str, classes: Sequence[str], in_chans: int, device: Device) -> Teacher:
    """Load a teacher: a classifier that a study logged.

    Args:
        uri: ``models:/...`` or ``runs:/...``, as a search prints it at its end.
        tracking_uri: The MLflow store that has it.
        classes: Names of the study's classes, in its order.
        in_chans: Channels of the study's images.
        device: Where the teacher computes.

    Raises:
        ConfigError: There is no such model, no search logged it, or its classes or channels are others.
    """
    try:
        folder = fetch_uri(uri, tracking_uri)
        card, weights = (_only(folder, pattern) for pattern in ("card.json", "*.safetensors"))
        content = json.loads(card.read_text())
        state = load_weights(weights)
    except (WeightsError, OSError, ValueError, DamagedFileError) as error:
        raise ConfigError(f"teacher: {uri}: {error}") from error
    preprocessing = content["preprocessing"]
    for what, theirs, ours in (
        ("classes", content["classes"], list(classes)),
        ("channels", preprocessing["in_chans"], in_chans),
    ):
        if theirs != ours:
            raise ConfigError(f"teacher: {uri} is of other {what} than the study: {theirs} against {ours}")
    image_size = preprocessing["image_size"]
    model = create_classifier(content["model"], len(content["classes"]), image_size, in_chans)
    model.load_state_dict(state)
    shown_size = content.get("shown_size", image_size)
    return Teacher(model, normaliser(content["mean"], content["std"], device), shown_size, device)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise WeightsError(f"holds {len(found)} files {pattern} where a logged model has one")
    return found[0]
