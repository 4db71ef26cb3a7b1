"""The teacher of a study: a classifier that an earlier study logged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from search.storage import fetch_uri
from search.trials import CARD_FILE, Lineage, lineage_of
from strategies import ConfigError, WeightsError
from trainers import DamagedFileError, Device, Teacher, create_classifier, load_weights, normaliser


@dataclass(frozen=True, slots=True)
class TeacherFiles:
    """What a logged classifier consists of.

    Args:
        uri: Its address, for messages.
        card: The facts of it that its search wrote down.
        state: Its weights, on the CPU.
        lineage: The images that it was made with.
        code: Its copy of the user's file that makes the model, where there is one.
    """

    uri: str
    card: dict[str, Any]
    state: dict[str, Tensor]
    lineage: Lineage
    code: Path | None = None


def fetch_teacher(uri: str, tracking_uri: str, in_chans: int) -> TeacherFiles:
    """Fetch a teacher, a classifier that a study logged, and check all that can be checked before images are read.

    Args:
        uri: ``models:/...`` or ``runs:/...``, as a search prints it at its end.
        tracking_uri: The MLflow store that has it.
        in_chans: Channels of the study's images.

    Raises:
        ConfigError: There is no such model, no search logged it, or its channels are others.
    """
    try:
        folder = fetch_uri(uri, tracking_uri)
        lineage = lineage_of(uri, folder)
        card, weights = (_only(folder, pattern) for pattern in (CARD_FILE, "*.safetensors"))
        told = json.loads(card.read_text())
        code = card.with_name(told["code"]) if "code" in told else None
        found = TeacherFiles(uri, told, load_weights(weights), lineage, code)
    except (WeightsError, OSError, ValueError, DamagedFileError) as error:
        raise ConfigError(f"teacher: {uri}: {error}") from error
    _check_alike(uri, "channels", found.card["preprocessing"]["in_chans"], in_chans)
    return found


def load_teacher(found: TeacherFiles, classes: Sequence[str], device: Device) -> Teacher:
    """The teacher of :func:`fetch_teacher`, for a study's classes.

    Args:
        found: The teacher's files.
        classes: Names of the study's classes, in its order.
        device: Where the teacher computes.

    Raises:
        ConfigError: Its classes are others.
    """
    card = found.card
    _check_alike(found.uri, "classes", card["classes"], list(classes))
    image_size, in_chans = card["preprocessing"]["image_size"], card["preprocessing"]["in_chans"]
    model = create_classifier(card["model"], len(classes), image_size, in_chans, found.code)
    model.load_state_dict(found.state)
    normalise = normaliser(card["mean"], card["std"], device)
    return Teacher(model, normalise, card.get("shown_size", image_size), device)


def _check_alike(uri: str, what: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise ConfigError(f"teacher: {uri} is of other {what} than the study: {theirs} against {ours}")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise WeightsError(f"holds {len(found)} files {pattern} where a logged model has one")
    return found[0]
