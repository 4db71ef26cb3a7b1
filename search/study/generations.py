"""Generations of a study: where its images have changed, a new one begins with the best strategies so far."""

import re
from dataclasses import dataclass

import optuna
from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from search.config import StudyConfig
from search.reporting import Terminal
from search.scheduling import Ledger
from search.storage import IDENTITY, reachable
from search.study.begun import storage_of
from search.study.materials import open_models
from search.study.planning import is_planned
from search.study.similar import features_of, strategies_of_similar
from search.winner import rescore
from strategies import moved_into
from trainers import ImageData, choose_device, open_data


@dataclass(frozen=True, slots=True)
class Generation:
    """The generation of a study that a night searches.

    Args:
        config: The study's configuration, under the generation's name; a new generation has presets from studies of
            similar images.
        trials: Trials that count against the budget already.
        rescored: Where images have changed, the champion's score on them, in words; else empty.
    """

    config: StudyConfig
    trials: int
    rescored: str = ""


def generation_of(config: StudyConfig) -> Generation:
    """The newest generation of a study, or a new generation where its images have changed.

    Raises:
        UnfreezeError: The images cannot be opened.
    """
    name = config.name
    assert name is not None, "composition names every study"
    storage = storage_of(config)
    if storage is None:
        # The search reads the images, after it has checked everything else.
        return Generation(config, 0)
    newest = max(_generations(storage, name), default=0)
    config = _sized(config, storage, newest)
    data = open_data(task=config.task, in_chans=config.model.in_chans, **config.data.model_dump())
    if newest == 0:
        return Generation(_warmed(config, storage, data), 0)
    study = optuna.load_study(study_name=name_of(name, newest), storage=storage)
    if _is_of(study, data):
        now = config.model_copy(update={"name": study.study_name})
        # Before its first trial an interrupted night may not have queued the strategies of other studies.
        has_begun = any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        return Generation(now if has_begun else _warmed(now, storage, data), Ledger(study).counted)
    config = config.model_copy(update={"name": name_of(name, newest + 1)})
    device = choose_device(config.device, config.precision, config.deterministic)
    rescored = rescore(config, reachable(config.tracking.uri), device) if config.champion.promote else ""
    return Generation(_warmed(config, storage, data), 0, rescored or "a new generation begins")


def _sized(config: StudyConfig, storage: BaseStorage, newest: int) -> StudyConfig:
    """The configuration with the size of the images, which all generations share."""
    if config.data.image_size is not None:
        return config
    if newest > 0:
        study = optuna.load_study(study_name=name_of(str(config.name), newest), storage=storage)
        size = study.user_attrs.get(IDENTITY, {}).get("data.image_size")
        return config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
    with Terminal(config.metric) as terminal:
        return open_models(config, terminal).config


def name_of(study: str, generation: int) -> str:
    """``pets``, ``pets.2``, ``pets.3``: the name of a study's generation."""
    return study if generation == 1 else f"{study}.{generation}"


def first_name(name: str) -> str:
    """The name of the study that a generation's name belongs to."""
    return re.sub(r"\.[1-9]\d*$", "", name)


def _generations(storage: BaseStorage, name: str) -> list[int]:
    names = optuna.get_all_study_names(storage)
    later = [re.fullmatch(re.escape(name) + r"\.([1-9]\d*)", other) for other in names]
    return ([1] if name in names else []) + [int(found[1]) for found in later if found is not None]


def _is_of(study: Study, data: ImageData) -> bool:
    identity = study.user_attrs.get(IDENTITY)
    return identity is None or identity["data (fingerprint)"] == data.fingerprint


def _warmed(config: StudyConfig, storage: BaseStorage, data: ImageData) -> StudyConfig:
    """The configuration, with the best strategies of studies of similar images before its presets.

    Where the learnt policy plans the study, it has these strategies among its candidates anyway.
    """
    if is_planned(config):
        return config
    found = strategies_of_similar(storage, config.name or "", features_of(data))
    space = config.space()
    moved = {name: moved_into(preset, space) for name, preset in found.items()}
    return config.model_copy(update={"presets": {**moved, **config.presets}})
