"""Images of equal content: those that leak from one split into another, and those whose labels contradict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.data.found import SPLITS

_LABELS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Images of equal content.

    Args:
        contents: How many contents are in more than one split.
        images: How many images have one of these contents.
        lines: One line a content, such as ``a.png (train) = b.png (test)``, with the first image of each split.
        pairs: How many contents two splits have in common, such as ``{("train", "test"): 3}``; pairs with none are
            left out.
        contradictions: One line a content that has different labels, in whichever splits, such as
            ``a.png (cat) = b.png (dog)``.
    """

    contents: int
    images: int
    lines: tuple[str, ...]
    pairs: Mapping[tuple[str, str], int]
    contradictions: tuple[str, ...]


def find_duplicates(
    parts: Mapping[str, NDArray[np.int64]], digests: Sequence[bytes], names: Sequence[str], labels: Sequence[Any]
) -> Duplicates:
    """Find equal contents among the images of all splits.

    Copies within one split that have the same label do no harm and are not reported.

    Args:
        parts: The members of each split.
        digests: (N,) hash of each image's content; ``b""`` for an unreadable image, which equals no other.
        names: (N,) what a report calls each image.
        labels: (N,) label of each image; names of classes are compared without regard to their order.
    """
    lines: list[str] = []
    contradictions: list[str] = []
    pairs: Counter[tuple[str, str]] = Counter()
    images = 0
    for copies in _copies(parts, digests):
        by_split: dict[str, int] = {}
        by_label: dict[Any, int] = {}
        for split, k in copies:
            by_split.setdefault(split, k)
            by_label.setdefault(_comparable(labels[k]), k)
        if len(by_split) > 1:
            images += len(copies)
            pairs.update(combinations(by_split, 2))
            lines.append(" = ".join(f"{names[k]} ({split})" for split, k in by_split.items()))
        if len(by_label) > 1:
            shown = [f"{names[k]} ({_text(labels[k])})" for k in by_label.values()]
            more = len(shown) - _LABELS_SHOWN
            contradictions.append(
                " = ".join(shown[:_LABELS_SHOWN]) + (f" and {more:,} more labels" if more > 0 else "")
            )
    return Duplicates(len(lines), images, tuple(lines), dict(pairs), tuple(contradictions))


def move_duplicates(parts: Mapping[str, NDArray[np.int64]], digests: Sequence[bytes]) -> dict[str, NDArray[np.int64]]:
    """Move images between splits, until val and test hold only images that no split before them has.

    Images of val or test whose content is also in train go to train. Images of test whose content is also in val go to
    val. No image is left out, and each split stays sorted. An image moves without the rest of its group, so a group may
    afterwards be in two splits; but the other split already had the content of the image that moved there.

    Args:
        parts: The members of train, val and test.
        digests: (N,) hash of each image's content; ``b""`` for an unreadable image, which stays where it is.

    Raises:
        DataError: Nothing would be left in val or test.
    """
    first: dict[bytes, str] = {}
    moved: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for k in parts[split].tolist():
            moved[first.setdefault(digests[k], split) if digests[k] else split].append(k)
    for split in SPLITS:
        if len(parts[split]) and not moved[split]:
            raise DataError(
                f"data.on_duplicates=move leaves nothing in {split}: all of its {len(parts[split]):,} images are "
                "copies of images in the splits before it"
            )
    return {split: np.asarray(sorted(members), dtype=np.int64) for split, members in moved.items()}


def _copies(parts: Mapping[str, NDArray[np.int64]], digests: Sequence[bytes]) -> list[list[tuple[str, int]]]:
    """Split and index of the images of each content that more than one image has, in the order of the splits."""
    images: dict[bytes, list[tuple[str, int]]] = {}
    for split in SPLITS:
        for k in parts[split].tolist():
            if digests[k]:
                images.setdefault(digests[k], []).append((split, k))
    return [copies for copies in images.values() if len(copies) > 1]


def _comparable(label: Any) -> Any:
    return frozenset(label) if isinstance(label, tuple) and label and isinstance(label[0], str) else label


def _text(label: Any) -> str:
    if not isinstance(label, tuple):
        return str(label)
    if label and isinstance(label[0], tuple):
        return f"{len(label)} boxes"
    return ", ".join(map(str, label)) or "no class"
