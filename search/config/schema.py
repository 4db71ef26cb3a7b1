"""The configuration's keys as data: names, accepted values, and error messages for wrong values."""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from search.config.defaults import DEFAULT_SPACE
from search.config.limits import shortened, unusable_values
from search.config.places import TrackingConfig
from search.config.section import Section
from search.config.study import StudyConfig
from strategies import CHOICES, ConfigError, Strategy, nearest

S = TypeVar("S", bound=Section)

# Problems that are told at once.
_MOST_LINES = 50

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the configuration's reference.

    Args:
        name: Full dotted name, as on the command line.
        expected: The accepted values in words.
        default: Value where neither study file nor command line gives one.
        help: One line.
        words: The accepted words, where they can be listed.
    """

    name: str
    expected: str
    default: Any
    help: str
    words: tuple[str, ...] = ()


def schema_keys() -> Iterator[Key]:
    """Every key that a study file or the command line can set, in the schema's order."""
    for name, field in StudyConfig.model_fields.items():
        section = _section(field)
        if section is not None:
            for below, inner in section.model_fields.items():
                yield _key(f"{name}.{below}", inner, _default(inner))
        else:
            default = {} if name == "strategy" else _default(field)
            yield _key(name, field, default)
        if name == "strategy":
            yield from _strategy_keys()


def _strategy_keys() -> Iterator[Key]:
    defaults = Strategy().to_dict() | DEFAULT_SPACE
    for name, choices in CHOICES.items():
        words = _words(bool) if choices.kinds == (bool,) else choices.options
        yield Key(f"strategy.{name}", choices.expected(), defaults[name], choices.help, words)


def _key(name: str, field: FieldInfo, default: Any) -> Key:
    return Key(name, expected(field), default, field.description or "", _words(field.annotation))


def _words(kind: Any) -> tuple[str, ...]:
    """The words that a value of a type is written with; none of numbers, texts and mappings."""
    if kind is bool:
        return "true", "false"
    inside = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return tuple(map(str, inside))
    # A union, or a list of words.
    return tuple(dict.fromkeys(word for member in inside for word in _words(member)))


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _section(field: FieldInfo | None) -> type[BaseModel] | None:
    kind = field.annotation if field is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def section_names() -> dict[str, tuple[str, ...]]:
    """The sections with fixed keys, and those keys."""
    sections = {name: _section(field) for name, field in StudyConfig.model_fields.items()}
    return {name: tuple(kind.model_fields) for name, kind in sections.items() if kind is not None}


def expected(field: FieldInfo) -> str:
    """The values that a field accepts, in words."""
    kind = field.annotation
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    members = typing.get_args(kind) if is_union else (kind,)
    words = [_kind(member) for member in members if member is not types.NoneType]
    text = " or ".join(words)
    limits = " and ".join(_limits(field))
    text += f" {limits}" if limits else ""
    return f"{text}, or null" if types.NoneType in members else text


def _kind(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _kind(typing.get_args(kind)[0])
    if origin is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        items = ("whole numbers",) if inner is int else ("texts",)
        return "a list of " + ", ".join(typing.get_args(inner) if typing.get_origin(inner) is Literal else items)
    if origin is dict:
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a section with the keys " + ", ".join(kind.model_fields)
    return _KINDS[kind]


def _limits(field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge=bound):
                yield f"at least {bound}"
            case annotated_types.Gt(gt=bound):
                yield f"above {bound}"
            case annotated_types.Le(le=bound):
                yield f"at most {bound}"
            case annotated_types.Lt(lt=bound):
                yield f"below {bound}"


def build_config(values: Mapping[str, Any], earlier: Sequence[str] = ()) -> StudyConfig:
    """Check a mapping against the schema.

    Args:
        values: Sections and keys as a study file holds them; missing keys take their defaults.
        earlier: Lines of earlier problems, to be reported together with those found here.

    Raises:
        ConfigError: One line for each unknown key, wrong value or impossible combination.
    """
    # First: pydantic's and our own messages show values, and a number of thousands of digits cannot be shown.
    unusable = list(unusable_values(values))
    if unusable:
        raise _refusal([*earlier, *unusable])
    try:
        config = StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal([*earlier, *_all_lines(error)]) from None
    if earlier:
        raise _refusal(earlier)
    return config


def check_section(name: str, section: type[S], values: Mapping[str, Any]) -> S:
    """Check a mapping against one section of the schema.

    Args:
        name: The section's name.
        section: Its class.
        values: Its keys; missing keys take their defaults.

    Raises:
        ConfigError: One line for each unknown key and wrong value.
    """
    unusable = list(unusable_values(values, (name,)))
    if unusable:
        raise _refusal(unusable)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(_all_lines(error, (name,))) from None


def tracking_uri(given: str) -> str:
    """MLflow's address from outside of a study file, after the same check as in one.

    Raises:
        ConfigError: Nothing can be at that address.
    """
    return check_section("tracking", TrackingConfig, {"uri": given}).uri


def _refusal(lines: Sequence[str]) -> ConfigError:
    shown = [shortened(line) for line in lines[:_MOST_LINES]]
    if len(lines) == 1:
        return ConfigError(shown[0])
    more = [f"and {len(lines) - len(shown):,} more"] if len(lines) > len(shown) else []
    return ConfigError("\n  ".join([f"{len(lines):,} problems in the configuration", *shown, *more]))


def _all_lines(error: ValidationError, above: tuple[str, ...] = ()) -> list[str]:
    # A value that may be of several types is refused once for each type.
    return list(dict.fromkeys(line for detail in error.errors() for line in _lines(detail, above)))


def _lines(detail: ErrorDetails, above: tuple[str, ...]) -> list[str]:
    path, value = _field_path((*above, *(str(part) for part in detail["loc"]))), detail["input"]
    key = ".".join(path)
    if detail["type"] == "problems":
        return list(detail["ctx"]["lines"])
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return [f"{key}: unknown key; {_nearest_key(path)}"]
    field = _field(path)
    if field is None:
        return [f"{key}: {value!r}: {detail['msg']}"]
    return [f"{key}: {value!r} is not {expected(field)}{_hint(field, value)}"]


def _field_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """The path of a field, without the names of types and keys of mappings that pydantic appends."""
    return next(
        (path[:k] for k in range(1, len(path)) if (f := _field(path[:k])) is not None and not _section(f)), path
    )


def _field(path: tuple[str, ...]) -> FieldInfo | None:
    model: type[BaseModel] | None = StudyConfig
    field: FieldInfo | None = None
    for part in path:
        if model is None or part not in model.model_fields:
            return None
        field = model.model_fields[part]
        model = _section(field)
    return field


def _nearest_key(path: tuple[str, ...]) -> str:
    """Full names of keys of this name in other sections; else a close sibling, or all siblings."""
    elsewhere = [key.name for key in schema_keys() if key.name.split(".")[-1] == path[-1]]
    if elsewhere:
        return "did you mean " + " or ".join(f"'{name}'" for name in elsewhere) + "?"
    holder = _section(_field(path[:-1])) or StudyConfig
    return nearest(path[-1], holder.model_fields)


def _hint(field: FieldInfo, value: Any) -> str:
    if typing.get_origin(field.annotation) is Literal and isinstance(value, str):
        hint = nearest(value, typing.get_args(field.annotation))
        return f"; {hint}" if hint.startswith("did you mean") else ""
    reads_as_number = isinstance(value, int | float) and expected(field).startswith("text")
    return "; put it in quotes inside the YAML value, as '\"2024\"'" if reads_as_number else ""


def in_words(value: Any) -> str:
    """A default as it would be written on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_words, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"
