"""From cells of a table, or fields of a JSON file, to the labels of a task."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from strategies import DataError
from trainers.data.found import WholeLabel, listing

#: One image's cells, one a label column; only numbers, text and lists are understood.
Row: TypeAlias = Sequence[Any]

_SEPARATORS = re.compile("[;|]")
_SHOWN_CHARACTERS = 60


def read_labels(
    rows: Sequence[Row], columns: Sequence[str], task: str, names: Sequence[str], where: str
) -> tuple[list[WholeLabel], tuple[str, ...]]:
    """The labels of all images, and the classes or targets that ``columns`` name.

    Classification takes text or an integer. Multi-label takes a list of these, text with ``;`` or ``|`` between
    them, or several columns with 0 or 1. Regression takes a number, a list of numbers, text with ``;`` or ``|``
    between them, or several columns with a number each.

    Args:
        rows: (N,) cells of each image.
        columns: Names of the cells of a row.
        task: ``classification``, ``multilabel`` or ``regression``.
        names: (N,) the name of each image in reports.
        where: The name of the data set in reports.

    Returns:
        (N,) labels; class names of a multi-label set with a column each, names of regression targets, else empty.

    Raises:
        DataError: A cell is empty or of the wrong kind, or rows have different numbers of targets.
    """
    if task == "classification" and len(columns) > 1:
        raise DataError(f"data.columns.label names {len(columns)} columns; task=classification takes one")
    twice = [column for k, column in enumerate(columns) if column in columns[:k]]
    if twice:
        raise DataError(f"data.columns.label names '{twice[0]}' twice")
    labels: list[WholeLabel] = []
    faults: list[str] = []
    for name, row in zip(names, rows, strict=True):
        try:
            labels.append(_PARSERS[task](row, columns))
        except ValueError as reason:
            faults.append(f"{name}: {reason}")
    if task == "regression" and not faults:
        faults = _of_other_lengths(labels, names)
    if faults:
        raise DataError(f"{where}: {len(faults):,} of {len(rows):,} images have no usable label{listing(faults)}")
    return labels, _classes(labels, columns, task)


def _one_class(row: Row, columns: Sequence[str]) -> str:
    return _class_name(row[0])


def _several_classes(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    if len(columns) > 1:
        return tuple(column for column, cell in zip(columns, row, strict=True) if _zero_or_one(cell, column))
    cell = row[0]
    if isinstance(cell, str):
        cell = [part for part in _SEPARATORS.split(cell) if part.strip()]
    if not isinstance(cell, list):
        raise ValueError(_reason(cell, "a list of classes"))
    return tuple(dict.fromkeys(map(_class_name, cell)))


def _numbers(row: Row, columns: Sequence[str]) -> tuple[float, ...]:
    cells = row
    if len(columns) == 1:
        cells = _SEPARATORS.split(row[0]) if isinstance(row[0], str) else row[0] if isinstance(row[0], list) else row
    if not cells:
        raise ValueError("no number")
    return tuple(map(_number, cells))


_PARSERS: Mapping[str, Callable[[Row, Sequence[str]], WholeLabel]] = {
    "classification": _one_class,
    "multilabel": _several_classes,
    "regression": _numbers,
}


def _class_name(cell: Any) -> str:
    name = str(cell).strip() if isinstance(cell, str | int) else ""
    if not name:
        raise ValueError(_reason(cell, "text or an integer"))
    return name


def _zero_or_one(cell: Any, column: str) -> bool:
    if not isinstance(cell, int | float) or cell not in {0, 1}:
        raise ValueError(f"{column}: {_reason(cell, '0 or 1')}")
    return bool(cell)


def _number(cell: Any) -> float:
    if isinstance(cell, str | int | float) and not isinstance(cell, bool):
        try:
            return float(cell)
        except (ValueError, OverflowError):
            pass
    raise ValueError(_reason(cell, "a number"))


def _reason(cell: Any, expected: str) -> str:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "no label"
    text = repr(cell)
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    return f"expected {expected}, found {shown}"


def _of_other_lengths(labels: Sequence[WholeLabel], names: Sequence[str]) -> list[str]:
    return [
        f"{name}: {len(label)} numbers, the first image has {len(labels[0])}"
        for name, label in zip(names, labels, strict=True)
        if len(label) != len(labels[0])
    ]


def _classes(labels: Sequence[WholeLabel], columns: Sequence[str], task: str) -> tuple[str, ...]:
    if task == "regression" and labels and len(labels[0]) != len(columns):
        return tuple(f"{columns[0]}[{k}]" for k in range(len(labels[0])))
    return tuple(columns) if task == "regression" or len(columns) > 1 else ()
