"""What every section of the configuration is made of: its base class and its checks' words."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from strategies import nearest

Text = Annotated[str, Field(min_length=1)]


def problems(*lines: str) -> PydanticCustomError:
    """What a validator raises: one line a problem, each beginning with the full key."""
    return PydanticCustomError("problems", "wrong values", {"lines": list(lines)})


class Section(BaseModel):
    """A part of the configuration: strict about types, and about keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def unknown_key(key: str, known: tuple[str, ...]) -> str:
    """What is said of a key that is not known."""
    return f"unknown key; {nearest(str(key), known)}"


def refuse_twice(key: str, listed: Sequence[str]) -> None:
    """Refuse a list that names one thing twice."""
    twice = next((one for one in listed if listed.count(one) > 1), None)
    if twice is not None:
        raise problems(f"{key}: {twice!r} is there twice")


def close_hint(value: Any, known: Sequence[str]) -> str:
    """A hint at the name that was meant; empty if none is close."""
    hint = nearest(str(value), known)
    return f"; {hint}" if hint.startswith("did you mean") else ""
