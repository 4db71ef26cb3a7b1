"""Columns of a CSV or Parquet file."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from strategies import DataError
from trainers.data.sources.checks import shown

_T = TypeVar("_T")

log = logging.getLogger(__name__)

# Of equals the first counts.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class Table:
    """Some columns of a file.

    Args:
        places: (N,) the place of each row: ``line 2`` of a CSV file, ``row 1`` of Parquet.
        columns: (N,) cells of each column, by name; cells of CSV are text.
    """

    places: Sequence[str]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    header: Callable[[Path], list[str]]
    columns: Callable[[Path, Sequence[str]], Table]


def read_header(path: Path) -> list[str]:
    """The names of all columns.

    Raises:
        DataError: The file cannot be read.
    """
    file_format = _format(path)
    return _attempt(lambda: file_format.header(path), path, file_format)


def read_columns(path: Path, names: Sequence[str]) -> Table:
    """The columns called ``names``, each of which is in the file once.

    Raises:
        DataError: The file cannot be read, or a line has more or fewer cells than the first line.
    """
    file_format = _format(path)
    return _attempt(lambda: file_format.columns(path, names), path, file_format)


def _csv_header(path: Path) -> list[str]:
    # utf-8-sig: Excel begins its CSV files with a byte order mark.
    with path.open(newline="", encoding="utf-8-sig") as lines:
        return [name.strip() for name in next(_reader(lines), [])]


def _reader(lines: TextIO) -> Any:
    """A reader of the file's separator: that of comma, semicolon and tab which is most often in the first line.

    Spreadsheets write semicolons where the comma is a decimal mark.
    """
    first = lines.readline()
    lines.seek(0)
    return csv.reader(lines, strict=True, delimiter=max(_SEPARATORS, key=first.count))


def _csv_columns(path: Path, names: Sequence[str]) -> Table:
    places: list[str] = []
    rows: list[list[str]] = []
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = _reader(lines)
        if reader.dialect.delimiter != ",":
            log.warning("%s: columns are separated by %s", shown(path), _SEPARATORS[reader.dialect.delimiter])
        header = [name.strip() for name in next(reader)]
        positions = [header.index(name) for name in names]
        for cells in filter(any, reader):
            if len(cells) != len(header):
                raise DataError(
                    f"{shown(path)} line {reader.line_num} has {len(cells)} cells where the first line has "
                    f"{len(header)}; is a separator missing its quotes?"
                )
            places.append(f"line {reader.line_num}")
            rows.append([cells[k] for k in positions])
    return Table(places, {name: [row[k] for row in rows] for k, name in enumerate(names)})


def _parquet_header(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return list(map(str, file.schema_arrow.names))


def _parquet_columns(path: Path, names: Sequence[str]) -> Table:
    import pyarrow.parquet as pq

    # Not read_table: it takes folder names such as "label=cat" for further columns.
    with pq.ParquetFile(path) as file:
        table = file.read(columns=list(names))
    columns = {name: table.column(name).to_pylist() for name in names}
    return Table([f"row {k + 1}" for k in range(table.num_rows)], columns)


_CSV = _Format("UTF-8 CSV", _csv_header, _csv_columns)
_PARQUET = _Format("Parquet", _parquet_header, _parquet_columns)
_FORMATS = {".parquet": _PARQUET, ".pq": _PARQUET}


def _format(path: Path) -> _Format:
    return _FORMATS.get(path.suffix.lower(), _CSV)


def _attempt(read: Callable[[], _T], path: Path, file_format: _Format) -> _T:
    try:
        return read()
    except (OSError, ValueError, NotImplementedError, csv.Error) as error:
        # pyarrow's errors are of the first three kinds, undecodable text is of the second.
        reason = " ".join(str(error).split())
        raise DataError(f"{shown(path)} cannot be read as a {file_format.name} file: {reason}") from error
