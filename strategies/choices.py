"""What a field of a strategy may hold, and what the docs say of it."""

import math
from dataclasses import dataclass, field
from typing import Any

_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Choices:
    """What a strategy's field may hold.

    Args:
        kinds: Types accepted; an int is accepted where a float is, a bool only where it is named.
        help: One line for ``--help`` and the docs.
        low: Least value, itself allowed unless ``above`` is set.
        high: Greatest value, itself allowed unless ``below`` is set.
        above: ``low`` itself is excluded.
        below: ``high`` itself is excluded.
        options: The only values accepted; empty for numbers.
        optional: None is accepted as well.
        source: The paper or library it comes from, for the docs; empty where it is common knowledge.
        helps: When it is worth searching, for the docs.
    """

    kinds: tuple[type, ...]
    help: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    options: tuple[str, ...] = ()
    optional: bool = False
    source: str = ""
    helps: str = ""

    def expected(self) -> str:
        """The accepted values in words."""
        if self.options:
            return "one of " + ", ".join(self.options)
        kind = " or ".join(_KINDS[k] for k in self.kinds)
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        text = kind + (" " + " and ".join(bounds) if bounds else "")
        return f"{text}, or null" if self.optional else text

    def accepts(self, value: object) -> bool:
        """Whether ``value`` is of the right type, finite and within bounds."""
        if value is None or isinstance(value, bool):
            return self.optional if value is None else bool in self.kinds
        if isinstance(value, str):
            return str in self.kinds and (not self.options or value in self.options)
        if not isinstance(value, self.kinds) and not (isinstance(value, int) and float in self.kinds):
            return False
        assert isinstance(value, int | float)
        inside = self.low < value if self.above else self.low <= value
        inside = inside and (value < self.high if self.below else value <= self.high)
        # Not math.isfinite: it cannot take whole numbers beyond the floats. NaN fails either comparison.
        return inside and abs(value) != math.inf


def choice(default: Any, help: str, *kinds: type, **limits: Any) -> Any:
    """A dataclass field whose metadata say what it may hold; the arguments are those of :class:`Choices`."""
    return field(default=default, metadata={"choices": Choices(kinds, help, **limits)})
