"""The reference of a strategy's fields, made from the code: ``python -m search.reference`` writes it into the docs."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search.compose import load_space
from strategies import CHOICES, CONDITIONS, Strategy

_BEGIN, _END = "<!-- begin: fields -->", "<!-- end: fields -->"
_COLUMNS = ("key", "default", "accepts", "range in `full`", "what it does", "only if", "source", "when it helps")


def reference() -> str:
    """A Markdown table with a row for each field of a strategy."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *_rows()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rows() -> Iterator[tuple[str, ...]]:
    defaults, full = Strategy().to_dict(), load_space("full")
    for name, choices in CHOICES.items():
        condition = CONDITIONS.get(name)
        yield (
            f"`strategy.{name}`",
            _inline(defaults[name]),
            choices.expected(),
            _range(full.get(name)),
            choices.help,
            condition.words if condition else "",
            choices.source,
            choices.helps,
        )


def _range(entry: Any) -> str:
    """An entry of a space in a few characters."""
    match entry:
        case None:
            return ""
        case {"choices": choices}:
            return ", ".join(map(_inline, choices))
        case {"low": low, "high": high, **rest}:
            return f"{_inline(low)} to {_inline(high)}" + (" (log)" if rest.get("log") else "")
        case _:
            return _inline(entry)


def _inline(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def with_reference(text: str) -> str:
    """A page with the table between its two markers made anew."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{reference()}\n{_END}{after}"


def main() -> None:
    """Rewrite the table in the page named on the command line, by default docs/strategies.md."""
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/strategies.md")
    page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
