"""Test images that a model has seen before: its weights were trained on them or chosen by them."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.data.found import listing

log = logging.getLogger(__name__)

_WHAT = "by which model.weights or teacher were trained or chosen"


def unseen(
    digests: NDArray[np.uint64], names: Sequence[str], seen: NDArray[np.uint64] | tuple[()], on_seen: str
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """The test images that no weights were made with, and the names of the others.

    Args:
        digests: (N,) a number for the content of each test image.
        names: (N,) what a report calls each test image.
        seen: (M,) numbers of the images that were used to make the weights that a study starts or learns from.
        on_seen: "drop" such images, or "refuse" the data set.

    Returns:
        (N,) bool, whether an image is kept; and the names of the images that are not.

    Raises:
        DataError: There are such images and they are refused, or no other test image is left.
    """
    kept = ~np.isin(digests, seen)
    left_out = tuple(name for name, is_kept in zip(names, kept.tolist(), strict=True) if not is_kept)
    if not left_out:
        return kept, ()
    count = f"{len(left_out):,} of {len(digests):,} test images are images {_WHAT}"
    if on_seen == "refuse":
        raise DataError(f"{count}; data.on_seen=drop leaves them out of the test score{listing(left_out)}")
    if not kept.any():
        raise DataError(
            f"data.on_seen=drop leaves nothing in test: all of its {len(digests):,} images are images {_WHAT}; take "
            "other weights or other test images"
        )
    log.warning("%s and were left out%s", count, listing(left_out))
    return kept, left_out
