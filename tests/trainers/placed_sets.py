"""Opening small sets."""

import numpy as np
from PIL import Image

from trainers.data import open_data

OPTIONS = {
    "root": None,
    "dataset": None,
    "manifest": None,
    "annotations": None,
    "shards": None,
    "columns": None,
    "image_size": 16,
    "in_chans": 3,
    "max_value": None,
    "val_fraction": 0.25,
    "test_fraction": 0.25,
    "split_seed": 0,
    "folds": None,
    "fold": 0,
    "limit_train": None,
    "limit_val": None,
    "limit_test": None,
    "on_bad_image": "refuse",
    "on_duplicates": "report",
    "cache": "cache",
    "cache_gib": 1.0,
    "workers": 0,
}


def opened(task, source, **changes):
    """A set opened with its cache below the current folder."""
    return open_data(**OPTIONS | {"task": task, "source": source} | changes)


def noise(seed, width=16, height=12):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_name(data):
    """Targets of all images by the name of the file."""
    splits = (data.train, data.val, data.test)
    return {
        name.rsplit("/", 1)[-1]: targets
        for split in splits
        for name, targets in zip(split.names, split.targets.numpy(), strict=True)
    }
