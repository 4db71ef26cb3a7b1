"""The table of sources: the value of ``data.source`` and the function that finds its images."""

from collections.abc import Callable, Mapping

import numpy as np

from trainers.data.found import Found, Place
from trainers.data.sources.checks import check_task
from trainers.data.sources.coco import find_coco
from trainers.data.sources.folders import find_folder
from trainers.data.sources.huggingface import find_huggingface
from trainers.data.sources.manifests import find_manifest
from trainers.data.sources.masks import find_masks
from trainers.data.sources.scenes import find_scenes
from trainers.data.sources.torchvision_sets import find_torchvision
from trainers.data.sources.voc import find_voc
from trainers.data.sources.webdataset import find_webdataset


def find_digits(place: Place) -> Found:
    """scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, in the package itself.

    Raises:
        DataError: The task is not classification.
    """
    check_task(place, "digits", "classification")
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
    "coco": find_coco,
    "digits": find_digits,
    "folder": find_folder,
    "huggingface": find_huggingface,
    "manifest": find_manifest,
    "masks": find_masks,
    "scenes": find_scenes,
    "torchvision": find_torchvision,
    "voc": find_voc,
    "webdataset": find_webdataset,
}
