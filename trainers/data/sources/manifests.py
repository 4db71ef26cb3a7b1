"""Images listed in a CSV or Parquet manifest."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from strategies import DataError, nearest
from trainers.data.found import SPLIT_WORDS, SPLITS, Found, Place, listing, natural
from trainers.data.sources.cells import read_labels
from trainers.data.sources.checks import check_task, checked_files, checked_root, name_fault, shown
from trainers.data.sources.tables import read_columns, read_header

_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


@dataclass(frozen=True, slots=True)
class _Manifest:
    """How rows are read: the columns of the file, the folder of its paths, and the file's split, if it has one."""

    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    root: Path
    split_of_file: str
    task: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One image of a manifest: the place of its row, and its cells, or the reason why they cannot be used."""

    where: str
    name: str = ""
    path: Path = Path()
    split: str = ""
    group: str = ""
    labels: tuple[Any, ...] = ()
    fault: str = ""


def find_manifest(place: Place) -> Found:
    """Images listed in ``data.manifest``, a CSV or Parquet file (``.parquet``, ``.pq``), or one for each split.

    The columns are ``path``, ``label`` and, optionally, ``split`` (train, val, test), or those that ``data.columns``
    names, which may name a group as well. A path is relative to ``data.root`` if that is given, else to the
    manifest's folder. A file that does not exist counts as a bad image. The order of the rows makes no difference.

    A multi-label set lists an image's classes in one column, with ``;`` or ``|`` between them or as a list of
    Parquet, or has a column of 0 and 1 (false and true) for each class; a regression target is a column of numbers.

    Raises:
        DataError: A manifest cannot be read, lacks a column, or has rows that cannot be used.
    """
    check_task(place, "manifest", "classification", "multilabel", "regression")
    files = checked_files(place.files, "manifest", "data.manifest", "a CSV or Parquet file")
    columns = _label_columns(place)
    alone = shown(next(iter(files.values()))) if len(files) == 1 else ""
    rows = [row for split, path in files.items() for row in _rows(path, split, place, "" if alone else shown(path))]
    _refuse(rows, alone or "data.manifest")
    names = [f"{row.where}, {row.name}" for row in rows]
    labels, classes = read_labels([row.labels for row in rows], columns, place.task, names, alone or "data.manifest")
    order = sorted(range(len(rows)), key=lambda k: (natural(rows[k].name), SPLITS.index(rows[k].split)))
    return Found(
        images=[rows[k].path for k in order],
        labels=[labels[k] for k in order],
        names=[shown(rows[k].path) for k in order],
        splits=[rows[k].split for k in order],
        classes=classes,
        groups=[rows[k].group for k in order] if place.columns.group else None,
        looked_in=_looked_in(files, place),
    )


def _looked_in(files: Mapping[str, Path], place: Place) -> str:
    """Where relative paths were looked for, and how another folder is named."""
    if place.root is not None:
        return f"relative paths were looked for in data.root={shown(place.root)}"
    folders = dict.fromkeys(shown(path.resolve().parent) for path in files.values())
    return (
        f"relative paths were looked for beside the manifest, in {', '.join(folders)}; data.root names another folder"
    )


def _label_columns(place: Place) -> tuple[str, ...]:
    label = place.columns.label or "label"
    columns = (label,) if isinstance(label, str) else label
    twice = [name for k, name in enumerate(columns) if name in columns[:k]]
    if twice:
        raise DataError(f"data.columns.label names '{twice[0]}' twice")
    if place.task == "multilabel" and isinstance(label, tuple) and len(columns) == 1:
        raise DataError(
            f"data.columns.label lists one column, '{columns[0]}'; list the 0/1 columns of two classes or more, or "
            "name, not as a list, the column that lists the classes of an image"
        )
    return columns


def _rows(path: Path, split: str, place: Place, prefix: str) -> list[_Row]:
    manifest = _manifest(path, split, place)
    wanted = (manifest.image, *manifest.labels, manifest.split, manifest.group)
    table = read_columns(path, [name for name in dict.fromkeys(wanted) if name is not None])
    if not table.places:
        raise DataError(f"{shown(path)} lists no images")
    divided = manifest.split is not None and not all(_is_empty(cell) for cell in table.columns[manifest.split])
    rows = zip(*table.columns.values(), strict=True)
    return [
        _row(f"{prefix} {where}".lstrip(), dict(zip(table.columns, cells, strict=True)), manifest, divided=divided)
        for where, cells in zip(table.places, rows, strict=True)
    ]


def _manifest(path: Path, split: str, place: Place) -> _Manifest:
    header = read_header(path)
    if not any(header):
        raise DataError(f"{shown(path)} has no columns: the file is empty")
    given = place.columns

    def column(key: str, name: str) -> str:
        if name not in header:
            raise DataError(
                f"{shown(path)} has no column '{name}' ({nearest(name, header)}); data.columns.{key} says which it is"
            )
        if header.count(name) > 1:
            raise DataError(f"{shown(path)} has the column '{name}' twice")
        return name

    by_column = given.split or ("split" if "split" in header else None)
    return _Manifest(
        image=column("image", given.image or "path"),
        labels=tuple(column("label", name) for name in _label_columns(place)),
        split=by_column and column("split", by_column),
        group=given.group and column("group", given.group),
        root=path.parent if place.root is None else checked_root(place.root, "manifest"),
        split_of_file=split,
        task=place.task,
    )


def _row(where: str, cells: Mapping[str, Any], manifest: _Manifest, *, divided: bool) -> _Row:
    try:
        name = _text(cells[manifest.image])
        if fault := name_fault(name):
            return _Row(where, fault=fault)
    except ValueError as reason:
        return _Row(where, fault=f"path: {reason}")
    try:
        split = manifest.split_of_file or "train"
        if divided and manifest.split is not None:
            split = _split(_text(cells[manifest.split]), manifest.split_of_file)
        group = "" if manifest.group is None else _group(_text(cells[manifest.group]), manifest.group)
        prepare = _flag if len(manifest.labels) > 1 and manifest.task == "multilabel" else _PREPARE[manifest.task]
        labels = tuple(prepare(cells[column]) for column in manifest.labels)
    except ValueError as reason:
        return _Row(where, name, fault=str(reason))
    return _Row(where, name, manifest.root / name, split, group, labels)


def _refuse(rows: Sequence[_Row], where: str) -> None:
    """Refuse rows that cannot be used, and images listed twice, which could stand in train and in test."""
    seen: dict[Path, str] = {}
    faults: list[str] = []
    for row in rows:
        first = row.where if row.fault else seen.setdefault(row.path, row.where)
        fault = row.fault or ("" if first == row.where else f"already listed on {first}")
        if fault:
            faults.append(": ".join((f"{row.where}, {row.name}" if row.name else row.where, fault)))
    if faults:
        raise DataError(f"{where}: {len(faults):,} of {len(rows):,} rows cannot be used{listing(faults)}")


def _split(word: str, split_of_file: str) -> str:
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        raise ValueError(f"unknown split '{word}' ({nearest(word.lower(), SPLITS)})")
    if split_of_file and split != split_of_file:
        raise ValueError(f"split '{word}' in the manifest of {split_of_file}")
    return split


def _group(group: str, column: str) -> str:
    if not group:
        raise ValueError(f"no group in the column '{column}'")
    return group


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _text(cell: Any) -> str:
    """Text, or a number as text: a whole one without decimals, as pandas has them in a column with gaps."""
    if isinstance(cell, str):
        return cell.strip()
    if _is_empty(cell):
        return ""
    if isinstance(cell, bytes | list | tuple | dict):
        raise ValueError(f"expected text or a number, found {type(cell).__name__}")
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


def _class(cell: Any) -> Any:
    # What is neither text nor a number is left to read_labels, which names it.
    return cell if isinstance(cell, bytes | list | tuple | dict) else _text(cell)


def _classes(cell: Any) -> Any:
    """A cell that lists classes; one that lists none is empty, not missing."""
    if isinstance(cell, list):
        return [_class(part) for part in cell]
    listed = _class(cell)
    if isinstance(listed, str) and listed.startswith("[") and listed.endswith("]"):
        # pandas writes a column of lists so, and all of it would pass for the name of one class.
        raise ValueError(f"a list as text, {listed[:60]}; separate classes by ';' or '|', or use Parquet")
    return listed


def _flag(cell: Any) -> Any:
    return _FLAGS.get(cell.strip().lower(), cell) if isinstance(cell, str) else cell


def _number(cell: Any) -> Any:
    if _is_empty(cell):
        return None
    return float(cell) if isinstance(cell, Decimal) else cell


_PREPARE: Mapping[str, Callable[[Any], Any]] = {
    "classification": _class,
    "multilabel": _classes,
    "regression": _number,
}
