"""A study's splits as MLflow's data sets, by which its pages group and filter runs."""

import json

from search.config import DataConfig
from search.tracking.writes import Dataset
from trainers import ImageData

# Names of the splits in MLflow's tag of a data set's use.
_CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
# Keys of the section ``data`` that say where images are, not how they are read.
_PLACES = ("source", "root", "dataset", "manifest", "annotations", "shards", "masks")


def datasets_of(config: DataConfig, data: ImageData, splits: tuple[str, ...] = ("train", "val")) -> list[Dataset]:
    """Describe splits of a data set; equal images have equal digests, wherever they lie.

    Args:
        config: The section ``data``.
        data: The images.
        splits: Names of the splits.
    """
    source = {key: value for key in _PLACES if (value := getattr(config, key)) is not None}
    found = []
    for split in splits:
        profile = {
            "images": len(getattr(data, split)),
            "classes": len(data.classes),
            "image_size": data.preprocessing.image_size,
        }
        found.append(
            Dataset(
                name=f"{config.source} {split}",
                digest=data.fingerprint,
                source=json.dumps(source),
                profile=json.dumps(profile),
                context=_CONTEXTS[split],
            )
        )
    return found
