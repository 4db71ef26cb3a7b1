"""The planner of a study: what the learnt policy is told of its images, models and space."""

from collections.abc import Mapping
from typing import Any

from search.config import StudyConfig
from search.scheduling import Aims, LearnedPolicy, Planner, Work
from search.storage import FEATURES, MODEL_FACTS, storage_of
from search.study.own_studies import CPU_SPEED, model_facts, own_studies, task_of
from search.study.presets import preset_params
from search.study.similar import similar_params
from search.trials import OpenStudy
from strategies import Fixed
from trainers import ModelSource, multiply_adds, parameter_count

# As CPU_SPEED, and seconds to begin or resume a trial. What is shown was compared with measured seconds.
_GPU_SPEED = 2e12
_SWITCH_SECONDS = 0.5
#: The default of ``budget.min_improvement`` with the learnt policy.
MIN_IMPROVEMENT = 0.001
_KNOWN_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def unknown_to_policy(config: StudyConfig) -> str:
    """What the learnt policy does not know of a study, in a few words; empty where it can plan the study."""
    if config.costs:
        return "costs beside the metric"
    if config.task != "classification":
        return f"task {config.task}"
    if config.metric not in _KNOWN_METRICS:
        return f"metric {config.metric}"
    if len(config.model.names) == 1 and all(isinstance(entry, Fixed) for entry in config.space().values()):
        return "a study with nothing to search"
    return ""


def is_planned(config: StudyConfig) -> bool:
    """Whether the learnt policy plans a study."""
    return config.sampler.name == "learned" and not unknown_to_policy(config)


def planner_of(open_study: OpenStudy) -> Planner | None:
    """The planner of a study; None where Optuna's sampler chooses alone."""
    config = open_study.config
    if not is_planned(config):
        return None
    materials, attrs = open_study.materials, open_study.study.user_attrs
    task = task_of(attrs[FEATURES], _SWITCH_SECONDS)
    models = {
        name: model_facts(name, attrs[MODEL_FACTS][name], attrs[FEATURES], open_study.spaces[name])
        for name in materials.sources
    }
    speed = _GPU_SPEED if materials.device.torch.type == "cuda" else CPU_SPEED
    aims = Aims(
        trials=config.budget.trials,
        min_improvement=config.budget.min_improvement or MIN_IMPROVEMENT,
        seed=config.seed,
        reports_per_epoch=config.pruner.reports_per_epoch,
        amp=materials.device.precision != "fp32",
    )

    def presets() -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        # Not before they are needed: the sweep of linear probes, which seeds them, comes after the study is opened.
        found = {**preset_params(open_study), **similar_params(open_study)}
        return {name: (open_study.first_source.name, params) for name, params in found.items()}

    work = Work(len(materials.data.train), len(materials.data.val), speed)
    earlier = own_studies(storage_of(open_study.study), open_study.study.study_name, config.metric, speed)
    return Planner(LearnedPolicy(seed=config.seed, earlier=earlier), task, models, work, presets, aims)


def facts_of(source: ModelSource) -> dict[str, Any]:
    """A model's parameters, multiply-adds of an image of its usual size, and of the study's image in each block."""
    model = source.build(0)
    blocks = multiply_adds(source)
    return {
        "parameters": parameter_count(model),
        "flops": sum(blocks) * (source.usual_size / source.image_size) ** 2,
        "blocks": list(blocks),
    }
