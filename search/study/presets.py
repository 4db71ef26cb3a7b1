"""The strategies that a study tries first."""

from typing import Any

from search.scheduling import each_from_the_last, frozen_in_front
from search.storage import MODEL, PRESET, SWEEP, queued_params
from search.study.probe_sweep import BEST_PROBE, seeded_presets
from search.trials import OpenStudy
from strategies import Strategy, project


def preset_params(open_study: OpenStudy) -> dict[str, dict[str, Any]]:
    """The presets, moved into the first model's space, as parameters by name; without the parameter of the model."""
    source = open_study.first_source
    space = open_study.spaces[source.name]
    return {
        name: project(Strategy.from_dict(preset), space, source.num_blocks)
        for name, preset in seeded_presets(open_study).items()
    }


def _queue_presets(open_study: OpenStudy) -> None:
    """Queue the presets, moved into the space, as first trials; those queued by an earlier run are not queued again.

    With several models, presets are for the first. A preset comes after those whose cached features it can start from.
    The order is the same without a cache, so that the same trials run with and without. Where the learnt policy plans
    the study, presets that no study file gives are candidates among others, and only the best probe is queued.
    """
    source = open_study.first_source
    space, num_blocks = open_study.spaces[source.name], source.num_blocks
    model = {MODEL: source.name} if open_study.chooses_model else {}
    # Read from the trials: a note beside them would be wrong after a kill between the two.
    trials = open_study.study.get_trials(deepcopy=False)
    queued = {one.user_attrs[PRESET]: queued_params(one) for one in reversed(trials) if PRESET in one.user_attrs}
    are_given = open_study.planner is None or "presets" in open_study.config.model_fields_set
    presets = {
        name: model | params for name, params in preset_params(open_study).items() if are_given or name == BEST_PROBE
    }
    frozen = {name: frozen_in_front(params, space, num_blocks) for name, params in presets.items()}
    # A sweep of probes caches the outputs of all blocks.
    stored = {num_blocks} if SWEEP in open_study.study.user_attrs else ()
    for name in each_from_the_last(frozen, stored):
        params = presets[name]
        if name not in queued and params not in queued.values():
            queued[name] = params
            open_study.study.enqueue_trial(params, user_attrs={PRESET: name})
