"""The teacher of a study: a classifier that an earlier study logged."""

import json
from collections.abc import Sequence
from pathlib import Path

from search.storage import fetch_uri
from search.trials import CARD_FILE, Lineage, lineage_of
from strategies import ConfigError, WeightsError
from trainers import DamagedFileError, Device, Teacher, create_classifier, load_weights, normaliser


def fetch_teacher(uri: str, tracking_uri: str) -> tuple[Path, Lineage]:
    """The files of a teacher, and the images that it was made with.

    Args:
        uri: ``models:/...`` or ``runs:/...``, as a search prints it at its end.
        tracking_uri: The MLflow store that has it.

    Raises:
        ConfigError: There is no such model.
    """
    try:
        place = fetch_uri(uri, tracking_uri)
        return place, lineage_of(uri, place)
    except WeightsError as error:
        raise ConfigError(f"teacher: {uri}: {error}") from error


def load_teacher(uri: str, folder: Path, classes: Sequence[str], in_chans: int, device: Device) -> Teacher:
    """Load a teacher: a classifier that a study logged.

    Args:
        uri: The teacher's address, for messages.
        folder: Its files, from :func:`fetch_teacher`.
        classes: Names of the study's classes, in its order.
        in_chans: Channels of the study's images.
        device: Where the teacher computes.

    Raises:
        ConfigError: No search logged it, or its classes or channels are others.
    """
    try:
        card, weights = (_only(folder, pattern) for pattern in (CARD_FILE, "*.safetensors"))
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
