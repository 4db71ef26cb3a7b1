"""Data sets of the Hugging Face ``datasets`` library: saved to disk, in a readable folder, or on the hub."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies import DataError, nearest
from trainers.data.found import SPLIT_WORDS, SPLITS, Found, ImageRef, Place, TableItem, listing, quoted
from trainers.data.sources.cells import Row, read_labels
from trainers.data.sources.checks import check_task, shown

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one table: images, cells of the label columns, and cells of the other columns."""

    images: Sequence[ImageRef]
    names: Sequence[str]
    rows: Sequence[Row]
    splits: Sequence[str]
    groups: Sequence[str] | None


def find_huggingface(place: Place) -> Found:
    """The Hugging Face data set ``data.dataset``: a folder, or a name on the hub (``owner/name:configuration``).

    A folder was written by ``save_to_disk``, or is of a kind that ``datasets.load_dataset`` understands: Parquet files,
    class folders of images and others. A hub set that is in the cache of ``datasets`` is taken from the cache, and the
    hub is not asked for a newer version. Images stay encoded until they are used.

    The image column is ``data.columns.image``, ``image``, or the only column of images; the label column is
    ``data.columns.label``, ``label``, or the only column of class labels. A val or test split without any label, as in
    public contests, is left out with a warning.

    Raises:
        DataError: ``datasets`` is not installed, the set cannot be found, a column is missing, or an image has no
            label, group or split.
    """
    check_task(place, "huggingface", "classification", "multilabel", "regression")
    if place.dataset is None:
        raise DataError("data.source=huggingface needs data.dataset, a folder or a name on the hub (owner/name)")
    tables = _by_split(_load(place.dataset), place)
    train = tables["train"][1]
    image = _image_column(train, place)
    columns = _label_columns(train, place)
    parts = [_part(split, *named, image, columns, place) for split, named in tables.items()]
    labelled = [part for part in parts if part.rows]
    names = [name for part in labelled for name in part.names]
    rows = [row for part in labelled for row in part.rows]
    labels, classes = read_labels(rows, columns, place.task, names, f"data.dataset={place.dataset}")
    return Found(
        images=[image for part in labelled for image in part.images],
        labels=labels,
        names=names,
        splits=[split for part in labelled for split in part.splits],
        classes=classes or _class_names(train.features[columns[0]]),
        groups=[group for part in labelled for group in part.groups or ()] if place.columns.group else None,
    )


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.source=huggingface needs the package datasets: pip install -e '.[huggingface]' ({error})"
        ) from error
    return datasets


def _load(dataset: str) -> Any:
    """A Dataset, or a DatasetDict of Datasets by split."""
    datasets = _library()
    try:
        where, _, config = (dataset, "", "") if Path(dataset).expanduser().exists() else dataset.partition(":")
        folder = Path(where).expanduser()
        here, saved = folder.exists(), any((folder / name).is_file() for name in _SAVED)
    except OSError as error:
        raise DataError(f"data.dataset={dataset} cannot be read: {error.strerror}") from error
    if here and not folder.is_dir():
        raise DataError(f"data.dataset={dataset} is a file; expected its folder")
    if saved and config:
        raise DataError(f"data.dataset={dataset} has no configuration '{config}', as one that save_to_disk wrote")
    if saved:
        return _attempt(lambda: datasets.load_from_disk(str(folder)), dataset)
    if here:
        # The full path, because load_dataset takes a name such as "csv" or "parquet" for one of its own readers.
        return _attempt(lambda: datasets.load_dataset(str(folder.resolve()), config or None), dataset)
    if not _HUB_NAME.fullmatch(where):
        raise DataError(f"data.dataset={dataset} does not exist, and is no name on the hub (owner/name)")
    return _from_hub(where, config or None, dataset)


def _from_hub(name: str, config: str | None, dataset: str) -> Any:
    try:
        return _from_cache(name, config or "default")
    except (ValueError, OSError):
        # The set is not cached, or only half of it: a stopped download leaves a folder without description.
        # Imported here because it imports timm, which takes seconds.
        from trainers.hub import hub_obstacle

        obstacle = hub_obstacle()
    if obstacle is None:
        return _attempt(lambda: _library().load_dataset(name, config), dataset)
    try:
        return _from_cache(name, config)
    except (ValueError, OSError) as error:
        raise DataError(
            f"data.dataset={dataset} is neither a folder here nor in the cache of datasets ({_one_line(error)}), and "
            f"the hub could not be reached ({obstacle}). On a machine with access run "
            f"datasets.load_dataset({', '.join(map(repr, filter(None, (name, config))))}).save_to_disk('FOLDER'), "
            "copy FOLDER here and set data.dataset=FOLDER"
        ) from error


def _from_cache(name: str, config: str | None) -> Any:
    """The set as it was last downloaded. The hub is not asked; ``load_dataset`` would try that for a minute.

    Raises:
        ValueError: The set is not in the cache.
    """
    from datasets.packaged_modules.cache.cache import Cache

    short = name.rpartition("/")[2]
    return Cache(dataset_name=short, repo_id=name, config_name=config, version="auto", hash="auto").as_dataset()


def _attempt(load: Callable[[], Any], dataset: str) -> Any:
    try:
        return load()
    except Exception as error:
        # datasets passes on its readers' errors of any kind, or wraps them in an error that does not tell the reason.
        reason = error if error.__cause__ is None else error.__cause__
        raise DataError(f"data.dataset={dataset} cannot be loaded: {_one_line(reason)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _by_split(loaded: Any, place: Place) -> dict[str, tuple[str, Any]]:
    """By our name of each split, the set's own name and its table."""
    where = f"data.dataset={place.dataset}"
    tables: Mapping[str, Any] = loaded if isinstance(loaded, dict) else {"train": loaded}
    found: dict[str, tuple[str, Any]] = {}
    for name, table in tables.items():
        split = SPLIT_WORDS.get(str(name).lower())
        if split in found:
            raise DataError(f"{where} has two splits for {split}: {quoted([found[split][0], name])}")
        if split is not None:
            found[split] = (str(name), table)
    if "train" not in found:
        raise DataError(f"{where} has no split 'train', only {quoted(map(str, tables))}")
    others = [str(name) for name in tables if str(name).lower() not in SPLIT_WORDS]
    if others:
        log.warning("%s: splits other than train, val and test were ignored: %s", where, quoted(others))
    if place.columns.split is not None and len(found) > 1:
        raise DataError(f"data.columns.split={place.columns.split}: {where} is divided already, into {quoted(tables)}")
    return {split: found[split] for split in SPLITS if split in found}


def _image_column(table: Any, place: Place) -> str:
    datasets = _library()
    given = place.columns.image
    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    column = _chosen("image", given, images, table, place)
    kind = table.features[column]
    # A plain column of bytes may hold encoded files too.
    if column not in images and getattr(kind, "dtype", "") not in {"binary", "large_binary"}:
        raise DataError(f"data.columns.image: '{column}' of data.dataset={place.dataset} holds no images, but {kind}")
    return column


def _label_columns(table: Any, place: Place) -> tuple[str, ...]:
    given = place.columns.label
    if isinstance(given, tuple):
        return tuple(_checked("label", column, table, place) for column in given)
    named = [name for name, feature in table.features.items() if _class_names(feature)]
    return (_chosen("label", given, named, table, place),)


def _chosen(key: str, given: str | None, candidates: Sequence[str], table: Any, place: Place) -> str:
    """The given column, else the usual column, else the only column of its kind."""
    if given is not None:
        return _checked(key, given, table, place)
    if key in table.column_names:
        return key
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(
        f"data.columns.{key} is needed: data.dataset={place.dataset} has no column '{key}', its columns are "
        f"{quoted(table.column_names)}"
    )


def _checked(key: str, column: str, table: Any, place: Place) -> str:
    if column not in table.column_names:
        hint = nearest(column, table.column_names)
        raise DataError(f"data.columns.{key}: data.dataset={place.dataset} has no column '{column}' ({hint})")
    return column


def _class_names(feature: Any) -> tuple[str, ...]:
    """Class names of a column of class labels, or of lists of these; empty for any other column."""
    return tuple(getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or ())


def _part(split: str, theirs: str, table: Any, image: str, columns: tuple[str, ...], place: Place) -> _Part:
    group, by_column = place.columns.group, place.columns.split
    needed = [("image", image), *(("label", name) for name in columns), ("group", group), ("split", by_column)]
    for key, column in needed:
        if column is not None:
            _checked(key, column, table, place)
    # Only these columns are read, because a whole row would include the image.
    cells = table.with_format(None).select_columns([column for _, column in needed[1:] if column])[:]
    rows = list(zip(*(_named(cells[name], table.features[name]) for name in columns), strict=True))
    if rows and split != "train" and all(cell is None for row in rows for cell in row):
        log.warning("data.dataset=%s: split '%s' was ignored, it has no labels", place.dataset, theirs)
        rows = []
    images, names = _images(table, image, f"{place.dataset}/{theirs}")
    splits = [split] * len(rows)
    if by_column is not None:
        splits = _splits(_named(cells[by_column], table.features[by_column]), names)
    return _Part(
        images=images,
        names=names,
        rows=rows,
        splits=splits,
        groups=_groups(cells[group], group, names) if group else None,
    )


def _named(cells: Sequence[Any], feature: Any) -> Sequence[Any]:
    """Class labels by their names; None for a label without a name, such as the -1 of unlabelled test images."""
    names = _class_names(feature)
    if not names:
        return cells
    known = dict(enumerate(names))
    if hasattr(feature, "names"):
        return [known.get(cell) for cell in cells]
    return [None if cell is None else [known.get(index) for index in cell] for cell in cells]


def _images(table: Any, column: str, prefix: str) -> tuple[list[ImageRef], list[str]]:
    """Files that the table names become paths; images within it become items of a table with this column alone."""
    import pyarrow.compute as pc

    encoded = table.with_format(None).select_columns([column]).cast_column(column, _library().Image(decode=False))
    cells = encoded.with_format("arrow")[:][column]
    outside = pc.is_null(pc.struct_field(cells, "bytes")).to_pylist()
    paths = pc.struct_field(cells, "path").to_pylist()
    images: list[ImageRef] = [
        Path(path) if absent and path else TableItem(encoded, column, k)
        for k, (absent, path) in enumerate(zip(outside, paths, strict=True))
    ]
    names = [shown(image) if isinstance(image, Path) else f"{prefix}/{k}" for k, image in enumerate(images)]
    return images, names


def _splits(cells: Sequence[Any], names: Sequence[str]) -> list[str]:
    words = [str(cell).strip().lower() for cell in cells]
    faults = [f"{name}: {word}" for name, word in zip(names, words, strict=True) if word not in SPLIT_WORDS]
    if faults:
        raise DataError(f"{len(faults):,} images have a split other than train, val and test{listing(faults)}")
    return [SPLIT_WORDS[word] for word in words]


def _groups(cells: Sequence[Any], column: str, names: Sequence[str]) -> list[str]:
    faults = [name for name, cell in zip(names, cells, strict=True) if cell is None or not str(cell).strip()]
    if faults:
        raise DataError(f"{len(faults):,} images have no group in the column '{column}'{listing(faults)}")
    return [str(cell).strip() for cell in cells]
