"""The values that a field of a strategy may hold, and its row in the docs."""

import math
from dataclasses import dataclass, field
from typing import Any

_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Choices:
    """The values that a field of a strategy may hold.

    Args:
        kinds: Accepted types. An int is accepted wherever a float is, a bool only where bool is listed.
        help: One line for ``--help`` and the docs.
        low: Least value; allowed unless ``above`` is set.
        high: Greatest value; allowed unless ``below`` is set.
        above: Values must be above ``low``.
        below: Values must be below ``high``.
        options: The only accepted names; empty where any number or name is accepted.
        optional: None is accepted as well.
        source: The paper or library that the field comes from, for the docs; empty for common knowledge.
        helps: When the field is worth searching, for the docs.
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
        # Not math.isfinite: it fails for whole numbers too large for a float. NaN fails both comparisons.
        return inside and abs(value) != math.inf


def choice(default: Any, help: str, *kinds: type, **limits: Any) -> Any:
    """A dataclass field that carries a :class:`Choices` of these arguments in its metadata."""
    return field(default=default, metadata={"choices": Choices(kinds, help, **limits)})
