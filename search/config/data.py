"""The configuration's section ``data``: which images, and how they are split."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from search.config.limits import at_home, check_path
from search.config.section import MANY, Section, Text, problems, unknown_key

_PLACE_KEYS = ("root", "dataset", "manifest", "annotations", "shards", "columns", "masks", "palette")


# Keys that each source needs, and keys that it can use too.
_SOURCE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "digits": ((), ()),
    "folder": (("root",), ()),
    "manifest": (("manifest",), ("root", "columns")),
    "coco": (("annotations",), ("root",)),
    "huggingface": (("dataset",), ("columns",)),
    "masks": (("root", "masks"), ("palette",)),
    "scenes": ((), ()),
    "torchvision": (("dataset", "root"), ()),
    "voc": (("root",), ()),
    "webdataset": (("shards",), ("root", "columns")),
}


_COLUMNS = ("image", "label", "split", "group")


_IMAGES = 1_000_000_000


_SPLITS = ("train", "val", "test")


Files = Text | dict[str, Text] | None


class DataConfig(Section):
    """Which images, and how they are split."""

    source: Literal[
        "coco",
        "digits",
        "folder",
        "huggingface",
        "manifest",
        "masks",
        "scenes",
        "torchvision",
        "voc",
        "webdataset",
    ] = Field("digits", description="where images come from; by default it follows from the keys below")
    root: Text | None = Field(
        None, description="folder of the images (folder, masks, torchvision, voc), or base of relative paths"
    )
    dataset: Text | None = Field(
        None,
        description="torchvision data set such as FashionMNIST (with root), or Hugging Face's: a folder or owner/name",
    )
    manifest: Files = Field(
        None, description="CSV or Parquet file with path, label, maybe split; or a file for each split"
    )
    annotations: Files = Field(
        None, description="COCO JSON file; or a file for each split: {train: a.json, val: b.json}"
    )
    shards: Files = Field(
        None, description="WebDataset tars, such as 'train-{000..012}.tar' in quotes; or tars for each split"
    )
    columns: dict[str, Any] = Field(
        default_factory=dict, description="names of the columns image, label (or a list), split and group"
    )
    masks: Text | None = Field(None, description="folder of the masks: root's a/b.jpg has the mask a/b.png here")
    palette: Text | None = Field(
        None, description="CSV that names the masks' classes: name,index or name,red,green,blue; null for 0 to K"
    )
    ignore_index: int | None = Field(
        255, ge=0, le=255, description="value in masks of pixels that do not count; null if every pixel counts"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="height and width the model sees, in pixels; null: those of the weights' training, at most the "
        "images' median short side, at least 64",
    )
    max_value: float | None = Field(
        None,
        gt=0,
        le=1e18,
        description="value of white in images of more than 8 bits; null for the range of their type",
    )
    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of validation images where the data has no split")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of test images where the data has no split")
    split_seed: int = Field(0, ge=0, lt=2**32, description="seed of that split")
    folds: int | None = Field(
        None, ge=2, le=1000, description="cross-validation: number of parts of train; null for none"
    )
    fold: int = Field(0, ge=0, lt=1000, description="the fold that is validation, counted from 0")
    limit_train: int | None = Field(
        None, ge=1, le=_IMAGES, description="at most this many training images; null for all"
    )
    limit_val: int | None = Field(
        None, ge=1, le=_IMAGES, description="at most this many validation images; null for all"
    )
    limit_test: int | None = Field(None, ge=1, le=_IMAGES, description="at most this many test images; null for all")
    on_bad_image: Literal["refuse", "skip"] = Field(
        "refuse", description="refuse the data set, or skip an image that cannot be read"
    )
    on_duplicates: Literal["report", "move"] = Field(
        "report", description="images of val or test that train holds too: report them, or move them to train"
    )
    on_seen: Literal["drop", "refuse"] = Field(
        "drop",
        description="test images that model.weights or teacher, from MLflow, were made with: leave them out, or refuse "
        "the data set",
    )
    on_small_class: Literal["refuse", "skip"] = Field(
        "refuse", description="refuse a data set with classes of too few images for every split, or skip those classes"
    )
    cache: Text = Field("mlruns/cache", description="folder of the decoded images, shared by studies and processes")
    cache_gib: float = Field(
        20.0, ge=0, le=MANY, description="limit of that folder's size; a data set beyond it is decoded in every epoch"
    )
    workers: int = Field(2, ge=0, le=256, description="processes that decode a data set beyond the cache's limit")

    @model_validator(mode="before")
    @classmethod
    def _source_follows(cls, values: Any) -> Any:
        """A source that is not given follows from the keys that are."""
        if not isinstance(values, Mapping) or "source" in values:
            return values
        dataset = "huggingface" if values.get("root") is None else "torchvision"
        clues = {"manifest": "manifest", "annotations": "coco", "shards": "webdataset"}
        clues |= {"masks": "masks", "dataset": dataset, "root": "folder"}
        source = next((source for key, source in clues.items() if values.get(key) is not None), "digits")
        return {"source": source, **values}

    @field_validator("manifest", "annotations", "shards")
    @classmethod
    def _by_split(cls, value: Files, info: ValidationInfo) -> Files:
        if isinstance(value, dict):
            unknown = [key for key in value if key not in _SPLITS]
            found = [f"data.{info.field_name}.{key}: {unknown_key(key, _SPLITS)}" for key in unknown]
            if "train" not in value:
                found.append(f"data.{info.field_name}.train: missing; it is what models are trained on")
            if found:
                raise problems(*found)
        return value

    @field_validator("root", "dataset", "manifest", "annotations", "masks", "palette", "cache")
    @classmethod
    def _are_paths(cls, value: Files, info: ValidationInfo) -> Files:
        for path in value.values() if isinstance(value, dict) else [value or ""]:
            check_path(f"data.{info.field_name}", path)
        # The shell leaves key=~/folder as it is.
        if isinstance(value, dict):
            return {split: at_home(path) for split, path in value.items()}
        return value and at_home(value)

    @field_validator("columns")
    @classmethod
    def _are_columns(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = [f"data.columns.{key}: {unknown_key(key, _COLUMNS)}" for key in value if key not in _COLUMNS]
        for key, name in value.items():
            names = name if key == "label" and isinstance(name, list) else [name]
            if key in _COLUMNS and not (names and all(isinstance(one, str) and one for one in names)):
                expected = "the name of a column" + (", or a list of such" if key == "label" else "")
                found.append(f"data.columns.{key}: {name!r} is not {expected}")
        if found:
            raise problems(*found)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "DataConfig":
        needed, usable = _SOURCE_KEYS[self.source]
        found = [
            f"data.{key}: missing; data.source: {self.source} needs it" for key in needed if getattr(self, key) is None
        ]
        found += [
            f"data.{key}: {getattr(self, key)!r} would not be used by data.source: {self.source}; change that"
            for key in _PLACE_KEYS
            if key not in needed + usable and getattr(self, key)
        ]
        if self.fold >= (self.folds or 1):
            of = f"data.folds: {self.folds}" if self.folds else "data.folds is not given"
            found.append(f"data.fold: {self.fold} is not a fold, {of}; they are counted from 0")
        if self.val_fraction + self.test_fraction >= 1:
            found.append(
                f"data.val_fraction: {self.val_fraction:g} and data.test_fraction: {self.test_fraction:g} "
                "leave nothing to train on; their sum must be below 1"
            )
        if found:
            raise problems(*found)
        return self


def dense_source(task: str, data: Mapping[str, Any]) -> str | None:
    """The source of masks or boxes where none is given; None where it follows from the other keys."""
    given = [key for key in _PLACE_KEYS if data.get(key)]
    if "source" in data or set(given) - {"root"}:
        return None
    if not given:
        return "scenes"
    return "voc" if task == "detection" else None
