"""A study that may have begun already, looked for without making anything."""

from pathlib import Path

import optuna
from optuna import Study
from optuna.storages import BaseStorage

from search.config import StudyConfig
from search.storage import IDENTITY, absolute_sqlite, open_storage


def storage_of(config: StudyConfig) -> BaseStorage | None:
    """Optuna's storage; None for a SQLite file that does not exist yet."""
    url = absolute_sqlite(config.store.url)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        return None
    return open_storage(url)


def begun(config: StudyConfig) -> Study | None:
    """The study of this name in the store; None if it has not begun."""
    storage = storage_of(config)
    if storage is None or config.name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=config.name, storage=storage)
    return study if IDENTITY in study.user_attrs else None


def has_begun(config: StudyConfig) -> bool:
    """Whether the store has a study of this name."""
    return begun(config) is not None
