"""Base class of all sections of the configuration, and the messages of their checks."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from strategies import nearest

# More than any search needs; seconds, bytes and counts of so many fit into what libraries and systems count with.
MANY = 1_000_000

Text = Annotated[str, Field(min_length=1)]


def problems(*lines: str) -> PydanticCustomError:
    """The error that a validator raises: one line a problem, each beginning with the full key."""
    return PydanticCustomError("problems", "wrong values", {"lines": list(lines)})


class Section(BaseModel):
    """A part of the configuration; it refuses unknown keys, and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def unknown_key(key: str, allowed: tuple[str, ...]) -> str:
    """The message for an unknown key."""
    return f"unknown key; {nearest(str(key), allowed)}"


def refuse_twice(key: str, listed: Sequence[str]) -> None:
    """Refuse a list that holds a value twice."""
    twice = next((one for one in listed if listed.count(one) > 1), None)
    if twice is not None:
        raise problems(f"{key}: {twice!r} is there twice")


def close_hint(value: Any, allowed: Sequence[str]) -> str:
    """A hint at the closest name; empty if none is close."""
    hint = nearest(str(value), allowed)
    return f"; {hint}" if hint.startswith("did you mean") else ""
