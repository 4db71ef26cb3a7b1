"""Studies that have begun, opened for reading: by the name of a study file, or by their name in the store."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import optuna
from mlflow import MlflowClient
from optuna import Study
from optuna.storages import BaseStorage

from search.config import (
    StoreConfig,
    StudyConfig,
    TrackingConfig,
    check_section,
    compose_study,
    find_study,
    without_password,
)
from search.processes import temporary_folder
from search.storage.attributes import IDENTITY, PARENT_RUN
from search.storage.mlflow_store import absolute_sqlite, reading_mlflow
from search.storage.optuna_storage import open_storage
from search.storage.presence import OPTUNA_TABLE, check_begun
from strategies import ConfigError, first_line, nearest

#: Keys that say where a study is.
STORE_KEYS = ("store.url", "tracking.uri")


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A study that has begun, and where its runs are.

    Args:
        study: The study in Optuna.
        tracking_uri: URI of the MLflow store of its runs.
    """

    study: Study
    tracking_uri: str

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.study_name

    @property
    def metric(self) -> str:
        """The metric by which the study's trials are ranked."""
        return str(self.study.user_attrs[IDENTITY]["metric"])

    @property
    def costs(self) -> list[str]:
        """The costs that the study minimises beside the metric."""
        return list(self.study.user_attrs[IDENTITY].get("costs", ()))

    def reading_runs(self) -> AbstractContextManager[MlflowClient]:
        """:func:`reading_mlflow` of the study's runs."""
        return reading_mlflow(self.tracking_uri, f"study {self.name!r}")


def open_stored(words: Sequence[str]) -> list[StoredStudy]:
    """Open studies that have begun.

    Args:
        words: Names of studies or study files, and keys in the grammar of search.run that say where their stores are.
            Without a name, all studies of the store.

    Raises:
        ConfigError: A study is not there, or a store cannot be read.
    """
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    places = [_place_of(name, overrides) for name in names]
    if not names:
        url, uri = _stores_of(overrides)
        places = [(url, uri, name) for name in sorted(_names_in(_storage(url)))]
        if not places:
            raise ConfigError(f"no study has begun in {without_password(url)}")
    return [open_one(url, uri, name) for url, uri, name in places]


def config_of(stored: StoredStudy, overrides: Sequence[str] = ()) -> StudyConfig:
    """The configuration with which a study was last searched, with overrides.

    Raises:
        ConfigError: MLflow does not have the configuration.
    """
    parent = stored.study.user_attrs.get(PARENT_RUN)
    if parent is None:
        raise ConfigError(f"study {stored.name!r} has no run in MLflow yet")
    with stored.reading_runs() as client, temporary_folder() as folder:
        # The JSON of a configuration is a study file that composes to the same configuration.
        file = Path(client.download_artifacts(parent, "study.json", str(folder))).rename(folder / "study.yaml")
        asked = any(word.startswith("tracking.uri=") for word in overrides)
        stores = [] if asked else [f"tracking.uri={stored.tracking_uri}"]
        return compose_study([f"study={file}", *stores, *overrides])


def stores_of(words: Sequence[str]) -> tuple[str, str, list[str]]:
    """Optuna's and MLflow's store of studies, named as for :func:`open_stored`, and the studies' names there.

    Without a study the stores are those by default.

    Raises:
        ConfigError: The studies are in several stores.
    """
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    places = [_place_of(name, overrides) for name in names]
    found = {place[:2] for place in places} or {_stores_of(overrides)}
    if len(found) > 1:
        raise ConfigError(f"{', '.join(names)}: these studies are in several stores; name one")
    return (*found.pop(), [name for _, _, name in places])


def _place_of(name: str, overrides: Sequence[str]) -> tuple[str, str, str]:
    """Optuna's and MLflow's store of a study, and its name there."""
    try:
        find_study(name)
    except ConfigError:
        # The study's file is elsewhere, or the study was given another name.
        return (*_stores_of(overrides), name)
    config: StudyConfig = compose_study([f"study={name}", *overrides])
    assert config.name is not None, "composition names every study"
    return config.store.url, config.tracking.uri, config.name


def _stores_of(overrides: Sequence[str]) -> tuple[str, str]:
    """The stores that overrides name, else those by default.

    Raises:
        ConfigError: An override has another key.
    """
    found = dict(word.split("=", 1) for word in overrides)
    if len(found) < len(overrides):
        raise ConfigError("a store is given twice; give each of " + ", ".join(STORE_KEYS) + " once")
    unknown = sorted(found.keys() - set(STORE_KEYS))
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: where there is no study file, only stores are chosen: {', '.join(STORE_KEYS)}"
        )
    urls, uris = ({key.partition(".")[2]: found[key]} if key in found else {} for key in STORE_KEYS)
    return check_section("store", StoreConfig, urls).url, check_section("tracking", TrackingConfig, uris).uri


def open_one(url: str, uri: str, name: str) -> StoredStudy:
    """Open a study that has begun.

    Args:
        url: URL of Optuna's store.
        uri: URI of MLflow's store.
        name: Name of the study in the store.

    Raises:
        ConfigError: The study is not there, or the store cannot be read.
    """
    storage = _storage(url)
    names = _names_in(storage)
    if name not in names:
        there = nearest(name, names) if names else "no study has begun there"
        raise ConfigError(f"study {name!r} is not in {without_password(url)}; {there}")
    study = optuna.load_study(study_name=name, storage=storage)
    if IDENTITY not in study.user_attrs:
        raise ConfigError(f"study {name!r} in {without_password(url)} was not begun by Unfreeze")
    return StoredStudy(study, uri)


def _storage(url: str) -> BaseStorage:
    """Optuna's storage at a URL; a missing one is not made.

    Raises:
        ConfigError: The storage is not there, or cannot be read.
    """
    check_begun("store.url", url, OPTUNA_TABLE)
    try:
        return open_storage(absolute_sqlite(url))
    except Exception as error:  # each database driver has errors of its own
        raise ConfigError(f"store.url: {without_password(url)!r} cannot be opened: {first_line(error)}") from error


def _names_in(storage: BaseStorage) -> list[str]:
    return optuna.get_all_study_names(storage)
