"""The ancestors of a study's models: which images they were made with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies import WeightsError, first_line

#: Files of a logged model.
CARD_FILE, SEEN_FILE = "card.json", "seen.npy"


@dataclass(frozen=True, slots=True)
class Lineage:
    """Models of MLflow that a study starts from or learns from, and those that these were made of in turn.

    Args:
        models: Addresses of the models.
        unknown: Those of them of whose images nothing is known.
        seen: (N,) digests of the images that the others were trained on or chosen by, each once.
    """

    models: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    seen: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def __or__(self, other: "Lineage") -> "Lineage":
        """Both together."""
        return Lineage(
            tuple(dict.fromkeys(self.models + other.models)),
            tuple(dict.fromkeys(self.unknown + other.unknown)),
            np.union1d(self.seen, other.seen),
        )

    def on_card(self) -> dict[str, Any]:
        """What the card of a model says of its ancestors; empty of a model without any."""
        return {"ancestors": {"models": self.models, "unknown": self.unknown}} if self.models else {}


def lineage_of(uri: str, place: Path) -> Lineage:
    """A model with its ancestors.

    Args:
        uri: The model's address, ``models:/...`` or ``runs:/...``.
        place: The model's files, or one file of weights.

    Raises:
        WeightsError: The record of its images is damaged.
    """
    cards = sorted(place.rglob(CARD_FILE)) if place.is_dir() else []
    file = cards[0].with_name(SEEN_FILE) if len(cards) == 1 else None
    if file is None or not file.is_file():
        return Lineage((uri,), (uri,))
    try:
        before = _before(uri, json.loads(cards[0].read_text()))
        return before | Lineage((uri,), seen=np.load(file))
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(f"the record of its images, {SEEN_FILE}, cannot be read: {first_line(error)}") from error


def _before(uri: str, card: Mapping[str, Any]) -> Lineage:
    """A model's own ancestors; their images are among its own."""
    if "ancestors" in card:
        return Lineage(tuple(card["ancestors"]["models"]), tuple(card["ancestors"]["unknown"]))
    # Models of earlier versions recorded the images of their own study alone.
    found = [card.get("weights", "")] if card.get("weights", "").startswith(("models:/", "runs:/")) else []
    if card.get("strategy", {}).get("distill_weight"):
        found.append(f"the teacher of {uri}")
    return Lineage(tuple(found), tuple(found))
