"""Limits of what a configuration may hold: a value beyond them would fail late, or keep the process busy for ever."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from search.config.section import problems
from strategies import ConfigError

# A path is no longer on Linux; databases and file systems keep no larger number.
_MOST_TEXT, _MOST_INT = 4096, 2**63 - 1
# The largest study that comes with Unfreeze has 200 values, four deep.
_MOST_BYTES, _MOST_VALUES, _MOST_DEPTH = 2**18, 10_000, 20
# Bytes of a name between two slashes, on all usual file systems.
_MOST_NAME = 255
_MOST_LINE = 1000
_REFERENCE = re.compile(r"\$\{(\.*)([^${}:]+)\}")


def read_bounded(path: Path) -> str:
    """The text of a YAML file, after a check that it is small enough to be loaded: in bytes, values, and levels.

    An alias counts as all values that it stands for, so that a short file cannot grow without end.

    Raises:
        ConfigError: The file is too large, too deep, or has an alias inside what it stands for.
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is no text.
        yaml.YAMLError: The file is broken YAML.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: more than {_MOST_BYTES:,} bytes are no study file")
    text = content.decode()
    open_nodes: list[_Node] = [_Node()]
    anchored: dict[str, _Node] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}, line {event.start_mark.line + 1}" if event.start_mark else str(path)
        node = _Node(1)
        match event:
            case yaml.CollectionStartEvent():
                open_nodes.append(node)
                # Found by an alias inside, whose size would have no end.
                node.is_open = True
            case yaml.CollectionEndEvent():
                node = open_nodes.pop()
                node.is_open = False
                open_nodes[-1].add(node)
            case yaml.AliasEvent():
                node = anchored.get(event.anchor or "", node)
                if node.is_open:
                    raise ConfigError(f"{where}: the alias *{event.anchor} is inside of what it stands for")
                open_nodes[-1].add(node)
            case yaml.ScalarEvent():
                open_nodes[-1].add(node)
            case _:
                continue
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            anchored[event.anchor] = node
        if len(open_nodes) - 1 + node.depth > _MOST_DEPTH:
            raise ConfigError(f"{where}: more than {_MOST_DEPTH} levels deep")
        if sum(one.size for one in open_nodes) > _MOST_VALUES:
            raise ConfigError(f"{where}: more than {_MOST_VALUES:,} values, with those that aliases stand for")
    return text


class _Node:
    """A value of a YAML file: how many values it holds, with itself, and how many levels are below it."""

    def __init__(self, size: int = 0) -> None:
        self.size, self.depth, self.is_open = size, 0, False

    def add(self, below: "_Node") -> None:
        self.size += below.size
        self.depth = max(self.depth, below.depth + 1)


def check_references(values: Mapping[str, Any]) -> None:
    """Refuse interpolations that stand for too many values: a chain of thirty, each twice the one before, has no end.

    Raises:
        ConfigError: Names the key of the first that does.
    """
    sizes: dict[tuple[str, ...], int] = {}

    def size_of(path: tuple[str, ...], depth: int = 0) -> int:
        if depth > _MOST_DEPTH:
            raise ConfigError(f"{'.'.join(path)}: more than {_MOST_DEPTH} levels deep, with interpolations")
        if path not in sizes:
            # Stays where the path leads back here, which is refused when it is resolved.
            sizes[path] = 1
            value = _at(values, path)
            if isinstance(value, Mapping):
                sizes[path] += sum(size_of((*path, str(key)), depth + 1) for key in value)
            elif isinstance(value, list | tuple):
                sizes[path] += sum(size_of((*path, str(place)), depth + 1) for place in range(len(value)))
            elif isinstance(value, str):
                sizes[path] += sum(size_of(other, depth + 1) for other in _references(value, path))
            if sizes[path] > _MOST_VALUES:
                raise ConfigError(f"{'.'.join(path)}: stands for more than {_MOST_VALUES:,} values by interpolation")
        return sizes[path]

    for key in values:
        size_of((str(key),))


def _references(text: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys that a text's interpolations name: ``${a.b}``, ``${a[b]}``, or from the key above, ``${.b}``."""
    for dots, key in _REFERENCE.findall(text):
        above = path[: len(path) - len(dots)] if dots else ()
        yield (*above, *filter(None, re.split(r"[.\[\]]+", key)))


def _at(values: Any, path: tuple[str, ...]) -> Any:
    """The value at a path; None where there is none."""
    for part in path:
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list | tuple) and part.isdecimal() and int(part) < len(values):
            values = values[int(part)]
        else:
            return None
    return values


def unusable_values(values: Mapping[Any, Any], above: tuple[str, ...] = ()) -> Iterator[str]:
    """A line for each text and number that no key can hold, and for what is nested too deep."""
    for key, value in values.items():
        yield from _unusable((*above, str(key)), value)


def _unusable(path: tuple[str, ...], value: Any) -> Iterator[str]:
    key = ".".join(path)
    reason = _text_problem(path[-1])
    if reason is not None:
        yield f"{key[:100].encode(errors='replace').decode()}: a key {reason}".replace("\0", "")
    elif isinstance(value, Mapping | list | tuple):
        if len(path) > _MOST_DEPTH:
            yield f"{path[0]}: more than {_MOST_DEPTH} levels deep"
        elif isinstance(value, Mapping):
            yield from unusable_values(value, path)
        else:
            for one in value:
                yield from _unusable(path, one)
    elif isinstance(value, str) and (reason := _text_problem(value)) is not None:
        yield f"{key}: a text {reason}"
    elif isinstance(value, int) and not -_MOST_INT <= value <= _MOST_INT:
        # Without the value: Python refuses to print numbers of thousands of digits.
        yield f"{key}: a number beyond {'-' if value < 0 else ''}{_MOST_INT}"


def _text_problem(text: str) -> str | None:
    if len(text) > _MOST_TEXT:
        return f"of {len(text):,} characters is too long; at most {_MOST_TEXT:,} are read"
    if "\0" in text:
        return "with a NUL character is no text"
    if any("\ud800" <= one <= "\udfff" for one in text):
        return "that is not UTF-8 cannot be stored"
    return None


def at_home(path: str) -> str:
    """A path with ``~`` as the user's home folder."""
    return os.path.expanduser(path) if path.startswith("~") else path  # noqa: PTH111, Path would drop a trailing slash


def check_path(key: str, value: str) -> None:
    """Refuse a path that no file system can hold, from a validator."""
    for name in value.split("/"):
        if len(name.encode()) > _MOST_NAME:
            raise problems(f"{key}: {name[:40]!r}... is a name of more than {_MOST_NAME} bytes, which no file can have")


def shortened(line: str) -> str:
    """A message whose middle is left out where it shows a very long value."""
    return line if len(line) <= _MOST_LINE else f"{line[: _MOST_LINE // 2]} ... {line[-_MOST_LINE // 2 :]}"
