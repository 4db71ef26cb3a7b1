"""Where images are, from the keys of a study's section ``data``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strategies import IGNORED
from trainers.data.found import Columns, Place


def place_of(
    *,
    task: str,
    source: str,
    root: str | None,
    dataset: str | None,
    manifest: str | Mapping[str, str] | None,
    annotations: str | Mapping[str, str] | None,
    shards: str | Mapping[str, str] | None,
    columns: Mapping[str, Any] | None,
    masks: str | None = None,
    palette: str | None = None,
    ignore_index: int | None = IGNORED,
) -> Place:
    """The place of images.

    Args:
        task: classification, multilabel, regression, segmentation or detection.
        source: Where the images come from.
        root: Folder of the images, or base of relative paths.
        dataset: Name of a torchvision or Hugging Face data set.
        manifest: CSV or Parquet file, or one a split.
        annotations: COCO json, or one a split.
        shards: WebDataset tars, or some a split.
        columns: Names of the columns ``image``, ``label`` (or a list), ``split`` and ``group``.
        masks: Folder of the masks, for source masks.
        palette: CSV file that names the masks' classes by index or colour; None for one class an index.
        ignore_index: The value of pixels in masks that do not count; None if every pixel counts.
    """
    return Place(
        task=task,
        root=Path(root) if root else None,
        masks=Path(masks) if masks else None,
        palette=Path(palette) if palette else None,
        ignore_index=ignore_index,
        dataset=dataset or None,
        files=_files({"manifest": manifest, "coco": annotations, "webdataset": shards}.get(source)),
        columns=_columns(columns or {}),
    )


def _files(given: str | Mapping[str, str] | None) -> Mapping[str, str]:
    return {"": given} if isinstance(given, str) else given or {}


def _columns(given: Mapping[str, Any]) -> Columns:
    label = given.get("label")
    return Columns(**{**given, "label": label if label is None or isinstance(label, str) else tuple(label)})
