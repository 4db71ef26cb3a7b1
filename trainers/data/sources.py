"""The table of sources: the value of ``data.source`` and the function that finds its images."""

from collections.abc import Callable, Mapping

import numpy as np

from trainers.data.folders import find_folder
from trainers.data.found import Found, Place
from trainers.data.manifests import find_csv
from trainers.data.torchvision_sets import find_torchvision


def find_digits(place: Place) -> Found:
    """scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, in the package itself."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Its grey values go from 0 to 16.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Found(
        images=list(images),
        labels=[str(target) for target in digits.target],
        names=[f"digits/{k}" for k in range(len(images))],
        splits=["train"] * len(images),
        classes=tuple(str(name) for name in digits.target_names),
    )


SOURCES: Mapping[str, Callable[[Place], Found]] = {
    "csv": find_csv,
    "digits": find_digits,
    "folder": find_folder,
    "torchvision": find_torchvision,
}
