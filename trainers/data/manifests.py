"""Images listed in a CSV manifest with the columns path, label and, optionally, split."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strategies import DataError, nearest
from trainers.data.folders import checked_root
from trainers.data.found import SPLITS, Found, Place, listing, natural, train_classes

_REQUIRED = ("path", "label")
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest; ``line`` is where it stands."""

    line: int
    path: str
    label: str
    split: str


def find_csv(place: Place) -> Found:
    """Images listed in the manifest ``data.csv``: columns path, label and maybe split (train, val, test).

    A path is relative to ``data.root`` if that is given, else to the manifest's folder. A file that does not
    exist counts as a bad image. The order of the rows makes no difference.

    Raises:
        DataError: The manifest cannot be read, lacks a column, or has rows that cannot be used.
    """
    if place.csv is None:
        raise DataError("data.source=csv needs data.csv, the manifest file")
    root = place.csv.parent if place.root is None else checked_root(place.root, "csv")
    rows = sorted(_checked(_rows(place.csv), place.csv), key=lambda row: natural(row.path))
    paths = [root / row.path for row in rows]
    labels, splits = [row.label for row in rows], [row.split or "train" for row in rows]
    return Found(
        images=paths,
        labels=labels,
        names=[str(path) for path in paths],
        splits=splits,
        classes=train_classes(labels, splits),
    )


def _rows(manifest: Path) -> list[Row]:
    if not manifest.exists():
        raise DataError(f"data.csv={manifest} does not exist")
    if not manifest.is_file():
        raise DataError(f"data.csv={manifest} is not a file")
    try:
        # utf-8-sig: Excel begins its CSV files with a byte order mark.
        with manifest.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, manifest)
            return [_row(reader.line_num, header, cells, manifest) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest} cannot be read as a UTF-8 CSV file: {error}") from error


def _check_header(header: list[str], manifest: Path) -> None:
    for column in _REQUIRED:
        if column not in header:
            hint = nearest(column, header) if any(header) else "the file is empty"
            raise DataError(f"{manifest} has no column '{column}' in its first line ({hint})")
    for column in (*_REQUIRED, "split"):
        if header.count(column) > 1:
            raise DataError(f"{manifest} has the column '{column}' twice")


def _row(line: int, header: list[str], cells: list[str], manifest: Path) -> Row:
    if len(cells) != len(header):
        raise DataError(
            f"{manifest} line {line} has {len(cells)} cells where the first line has {len(header)}; "
            "is a comma missing its quotes?"
        )
    named = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    return Row(line, named["path"], named["label"], named.get("split", ""))


def _checked(rows: list[Row], manifest: Path) -> list[Row]:
    """``rows`` with their splits in our words, once every row can be used."""
    if not rows:
        raise DataError(f"{manifest} lists no images")
    with_split = any(row.split for row in rows)
    seen: dict[str, int] = {}

    def fault(row: Row) -> str:
        if not row.path:
            return "empty path"
        if not row.label:
            return f"empty label for {row.path}"
        if with_split and row.split.lower() not in _SPLIT_WORDS:
            return f"unknown split '{row.split}' for {row.path} ({nearest(row.split.lower(), SPLITS)})"
        # Listed twice, an image could stand in train and in test.
        first = seen.setdefault(Path(row.path).as_posix(), row.line)
        return "" if first == row.line else f"{row.path} was already listed on line {first}"

    _refuse(rows, fault, manifest)
    return [Row(row.line, row.path, row.label, _SPLIT_WORDS.get(row.split.lower(), "")) for row in rows]


def _refuse(rows: list[Row], fault: Callable[[Row], str], manifest: Path) -> None:
    faults = [f"line {row.line}: {reason}" for row in rows if (reason := fault(row))]
    if faults:
        raise DataError(f"{manifest}: {len(faults):,} of {len(rows):,} rows cannot be used{listing(faults)}")
