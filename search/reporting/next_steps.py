"""What a user can do after a search: commands to paste, and the disk space that the search took."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from search.config import StudyConfig, spelled, without_password
from search.storage import stores_of

# From so many bytes on, the end of a search says how to free some.
_MUCH = 2**30


def next_commands(config: StudyConfig) -> list[str]:
    """Commands for the study's results, each with a comment, in lines that a shell takes."""
    words = " ".join(map(shlex.quote, study_words(config)))
    said = {
        f"{spelled('report')} {words}": "one page about this search",
        f"{spelled('ui')} {words}": "all trials, in the browser",
        f"{spelled('promote')} {words}": "make the winner the model that is served",
        f"{spelled('predict')} {words} photos/": "the winner's answers for other images",
    }
    width = max(map(len, said))
    return [f"{command:<{width}}  # {what}" for command, what in said.items()]


def study_words(config: StudyConfig) -> list[str]:
    """The study's name, and its stores where the name alone would not lead to them; without passwords."""
    assert config.name is not None, "composition names every study"
    url, uri, _ = stores_of([config.name])
    words = [config.name]
    if config.store.url != url:
        words.append(f"store.url={without_password(config.store.url)}")
    if config.tracking.uri != uri:
        words.append(f"tracking.uri={without_password(config.tracking.uri)}")
    return words


def disk_lines(config: StudyConfig) -> list[str]:
    """How much disk space the study's models and checkpoints and the shared caches take; if much, how to free some."""
    assert config.name is not None, "composition names every study"
    parts = []
    # A server of MLflow's has a disk of its own.
    if not config.tracking.uri.startswith(("http://", "https://", "databricks")):
        artifacts = Path(config.tracking.artifacts)
        own, of_all = sum(_sizes(artifacts / config.name)), sum(_sizes(artifacts))
        parts.append((of_all, f"{_in_units(own)} of models and checkpoints ({_in_units(of_all)} of all studies)"))
    cache = sum(_sizes(Path(config.data.cache)))
    parts.append((cache, f"{_in_units(cache)} of caches that all studies share"))
    lines = [f"Disk:   {', '.join(text for _, text in parts)}"]
    if sum(size for size, _ in parts) > _MUCH:
        lines.append(f"        {spelled('housekeeping')} --days 7  # removes old checkpoints and unused caches")
    return lines


def _sizes(folder: Path) -> Iterator[int]:
    """Sizes of the files below a folder, in bytes; files that other processes remove meanwhile are passed over."""
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                yield (Path(place) / name).lstat().st_size
            except FileNotFoundError:
                continue


def _in_units(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
