"""What README and docs tell a reader to type: commands, and rows of tables, read from their text."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The commands for clusters are in test_docs.py, with something for what a shell would fill in.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "cluster")]
TABLES = ("your data", "what you may want to change")
_SPAN = re.compile(r"`([^`]+)`")
# Places in the text of what a reader fills in.
_FILLED = {"$STORE_URL": "sqlite:///mlruns/optuna.db", "...": "hub", "RUN_ID": "0123"}


def filled(text: str, places: dict[str, str] | None = None) -> str:
    """The text with something in those places, by default with something that can be composed."""
    for place, something in (_FILLED if places is None else places).items():
        text = text.replace(place, something)
    return text


def rows_of(page: Path, heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first heading is this."""
    lines = page.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert rows
    return rows


def asked_for(cell: str) -> list[list[str]]:
    """The words of each override in a cell; ``=x`` after ``key=y`` is ``key=x``, as is a bare ``x``."""
    found: list[list[str]] = []
    for place in _SPAN.finditer(cell):
        span, words = place[1], shlex.split(place[1])
        last = found[-1][-1] if found else ""
        if span.startswith("="):
            words = [last.partition("=")[0] + span]
        elif re.search(r"`(, | or |, or )$", cell[: place.start()]) and re.fullmatch(r"[a-z_0-9]+", span):
            words = [last.partition("=")[0] + f"={span}"]
        if all(re.match(r"[a-z_.]+=", word) or word == "--multirun" for word in words):
            found.append(words)
    return found


def completed(words: list[str], own: Path) -> list[str]:
    """The words of a command for what a row asks for, with the data that the row speaks of and does not name again."""
    words = [word.replace("/path/mine.yaml", str(own)) for word in words]
    keys = {word.partition("=")[0] for word in words}
    if not any(key in keys for key in ("data.manifest", "data.annotations", "data.shards", "data.dataset")):
        is_of_rows = "task" in keys or any(key.startswith("data.columns") for key in keys)
        words = [*words, *(["data.manifest=labels.csv"] if is_of_rows else [])]
    return words if "study" in keys else ["study=resnet_cls", *words]


def commands() -> list[tuple[str, str]]:
    """Page and command line of each command in fenced blocks and in code spans of README and docs."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
        outside = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        lines += _SPAN.findall(outside)
        for line in lines:
            match = re.search(r"(?:python3? -m search\.|\bunfreeze )([a-z]+\b[^|;>&)]*)", line)
            if match is not None:
                found.append((page.name, " ".join(f"search.{match[1]}".removesuffix('",').split())))
    return found


def blocks_of_python(page: Path) -> list[str]:
    """The page's fenced blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
