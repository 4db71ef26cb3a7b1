"""Earlier studies in the same store, as the learnt policy is told of them: each is one more set for its prior."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna import Study
from optuna.storages import BaseStorage

from search.scheduling import EarlierStudy, ModelFacts, ModelFeatures, Strands, TaskFeatures, Work, as_seen
from search.storage import FEATURES, IDENTITY, MODEL_FACTS
from strategies import Space

#: Multiply-adds a second for computed seconds on a CPU. It is no measurement: from measured seconds a search would draw
#: other strategies each time.
CPU_SPEED = 1.5e10
# The newest studies of a store; older ones cost time at every start.
_MOST_STUDIES = 20


def own_studies(storage: BaseStorage, name: str, metric: str, speed: float) -> list[EarlierStudy]:
    """The images and trials of the newest other studies that were searched by the same metric.

    Args:
        storage: Optuna's storage.
        name: The study that is opened.
        metric: Its metric.
        speed: Multiply-adds a second, for computed seconds.
    """
    found: list[EarlierStudy] = []
    for other in reversed(optuna.get_all_study_names(storage)):
        if other != name and len(found) < _MOST_STUDIES:
            study = optuna.load_study(study_name=other, storage=storage)
            if _is_alike(study, metric):
                told = _told_of(study, speed)
                found += [told] if told.seen else []
    return found


def told_of_store(storage: BaseStorage, metric: str) -> list[EarlierStudy]:
    """The images and trials of a store's newest studies that were searched by a metric.

    Args:
        storage: Optuna's storage.
        metric: The metric.
    """
    # Their seconds are computed for a processor, as those of the tables are measured on one machine each.
    return own_studies(storage, "", metric, CPU_SPEED)


def _is_alike(study: Study, metric: str) -> bool:
    """Whether a study of classification has the metric and no costs, and says what the policy is to be told."""
    attrs = study.user_attrs
    known = attrs.keys() >= {FEATURES, IDENTITY, MODEL_FACTS} and len(study.directions) == 1
    return known and attrs[FEATURES]["task"] == "classification" and attrs[IDENTITY].get("metric") == metric


def _told_of(study: Study, speed: float) -> EarlierStudy:
    features, facts = study.user_attrs[FEATURES], study.user_attrs[MODEL_FACTS]
    models = {name: model_facts(name, one, features, {}) for name, one in facts.items()}
    work = Work(features["images"], features["images"], speed)
    return EarlierStudy(task_of(features), as_seen(Strands(models, work).of(study.get_trials(deepcopy=False))))


def model_facts(name: str, facts: Mapping[str, Any], features: Mapping[str, Any], space: Space) -> ModelFacts:
    """A model, as the attributes of its study describe it.

    Args:
        name: The model's name.
        facts: Its part of the attribute ``MODEL_FACTS``.
        features: The attribute ``FEATURES``.
        space: The study's space for this model; empty where nothing is drawn.
    """
    told = ModelFeatures(name, facts["parameters"], facts["flops"], image_size=features["image_size"])
    return ModelFacts(told, tuple(facts["blocks"]), space)


def task_of(features: Mapping[str, Any], switch_seconds: float = 0.0) -> TaskFeatures:
    """A study's images, as its attribute describes them."""
    return TaskFeatures(
        images=int(features["images"]),
        classes=int(features["classes"]),
        image_size=int(features["image_size"]),
        evenness=features["evenness"],
        switch_seconds=switch_seconds,
    )
