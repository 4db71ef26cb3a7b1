"""Reference tables made from the code: ``python -m search.config.reference`` writes them to the docs."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from search.config.schema import Key, in_words, schema_keys
from search.config.study import StudyConfig
from search.config.study_files import load_space
from strategies import CHOICES, CONDITIONS, Strategy

#: By page, the table between its two markers: that of strategies' fields, or that of all other keys.
PAGES = {"docs/strategies.md": "fields", "docs/configuration.md": "keys"}
_COLUMNS = ("key", "default", "accepts", "range in `full`", "what it does", "only if", "source", "when it helps")


def fields() -> str:
    """A Markdown table with a row for each field of a strategy."""
    return _table(_COLUMNS, _rows())


def keys() -> str:
    """Markdown with a table for each section of a study file but ``strategy``, whose fields have their own page."""
    found = [key for key in schema_keys() if not key.name.startswith("strategy.")]
    plain = [key for key in found if "." not in key.name]
    parts = ["## Keys without a section\n", _keys(plain)]
    for section, of_section in groupby((key for key in found if "." in key.name), lambda key: key.name.split(".")[0]):
        what = StudyConfig.model_fields[section].description or ""
        parts += [f"\n## {section}\n", f"{what[:1].upper()}{what[1:]}.\n", _keys(list(of_section))]
    return "\n".join(parts)


def _keys(found: Sequence[Key]) -> str:
    columns = ("key", "default", "accepts", "what it does")
    return _table(
        columns, ((f"`{key.name}`", f"`{_shown(key.default)}`", _cell(key.expected), _cell(key.help)) for key in found)
    )


def _shown(value: Any) -> str:
    """A default in at most 60 characters; ``--cfg job`` shows it whole."""
    text = _cell(in_words(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ("---",) * len(columns), *rows))


def _rows() -> Iterator[tuple[str, ...]]:
    defaults, full = Strategy().to_dict(), load_space("full")
    for name, choices in CHOICES.items():
        condition = CONDITIONS.get(name)
        yield (
            f"`strategy.{name}`",
            in_words(defaults[name]),
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
            return ", ".join(map(in_words, choices))
        case {"low": low, "high": high, **rest}:
            return f"{in_words(low)} to {in_words(high)}" + (" (log)" if rest.get("log") else "")
        case _:
            return in_words(entry)


_MAKERS = {"fields": fields, "keys": keys}


def with_reference(text: str, what: str) -> str:
    """A page whose text between its two markers, ``fields`` or ``keys``, is written again."""
    begin, end = f"<!-- begin: {what} -->", f"<!-- end: {what} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    # A table needs an empty line in front of it.
    return f"{before}{begin}\n\n{_MAKERS[what]()}\n\n{end}{after}"


def main() -> None:
    """Rewrite the tables in the docs, below the folder named on the command line, by default the working folder."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for name, what in PAGES.items():
        page = root / name
        page.write_text(with_reference(page.read_text(encoding="utf-8"), what), encoding="utf-8")


if __name__ == "__main__":
    main()
