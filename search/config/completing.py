"""What can follow on a command line, for shells that complete words: studies, keys, and the values that a key takes."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from search.config.defaults import TASK_METRICS
from search.config.places import StoreConfig
from search.config.schema import schema_keys
from search.config.study_files import list_spaces, list_studies
from search.config.urls import sqlite_file

# Keys whose words the schema does not list.
_WORDS = {
    "metric": tuple(dict.fromkeys(name for names in TASK_METRICS.values() for name in names)),
    "model.weights": ("hub", "embedded", "none"),
    "device": ("auto", "cpu", "cuda", "mps"),
}


def studies_to_name() -> dict[str, str]:
    """The studies that a command can be given by name, and what each is: those with a file, and those begun here."""
    begun = dict.fromkeys(_begun(), "begun here")
    return dict.fromkeys(list_studies(), "study file") | begun


def _begun() -> list[str]:
    """Studies in the store of the working folder; none where it cannot be read at once."""
    file = Path(sqlite_file(StoreConfig().url) or "")
    if not file.is_file():
        return []
    # Another process may be writing. A shell does not wait for it, and shows the other words.
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as store:
        return [str(name) for (name,) in store.execute("SELECT study_name FROM studies ORDER BY study_name")]
    return []


def keys_to_set() -> dict[str, str]:
    """``KEY=`` of every key that a command line can set, and its help."""
    return {"study=": "the study to search"} | {f"{key.name}=": key.help for key in schema_keys()}


def values_to_give(key: str) -> tuple[str, ...]:
    """The words that a key takes; none where it takes numbers, texts or files.

    Args:
        key: Its dotted name, with or without ``+`` in front.
    """
    key = key.lstrip("+")
    if key == "study":
        return tuple(list_studies())
    words = {found.name: found.words for found in schema_keys()}.get(key, ()) + _WORDS.get(key, ())
    return (*words, *list_spaces()) if key == "strategy" else words
