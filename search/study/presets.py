"""The strategies that a study tries first."""

from typing import Any

from search.scheduling import each_from_the_last, frozen_in_front
from search.storage import MODEL, PRESET, PRESETS_QUEUED, SWEEP
from search.study.probe_sweep import seeded_presets
from search.trials import OpenStudy
from strategies import Strategy, project


def _queue_presets(open_study: OpenStudy) -> None:
    """Queue the presets, moved into the space, as first trials; those queued by an earlier run are not queued again.

    Of several models, they are for the first. Each comes behind those from which it can compute what it has frozen,
    also where nothing is shared, so that the same is tried with and without.
    """
    source = open_study.first_source
    space, num_blocks = open_study.spaces[source.name], source.num_blocks
    model = {MODEL: source.name} if open_study.chooses_model else {}
    queued: dict[str, dict[str, Any]] = dict(open_study.study.user_attrs.get(PRESETS_QUEUED, {}))
    presets = {
        name: model | project(Strategy.from_dict(preset), space, num_blocks)
        for name, preset in seeded_presets(open_study).items()
    }
    frozen = {name: frozen_in_front(params, space, num_blocks) for name, params in presets.items()}
    # A sweep of probes leaves the outputs of all blocks.
    stored = {num_blocks} if SWEEP in open_study.study.user_attrs else ()
    for name in each_from_the_last(frozen, stored):
        params = presets[name]
        if name not in queued and params not in queued.values():
            queued[name] = params
            open_study.study.set_user_attr(PRESETS_QUEUED, queued)
            open_study.study.enqueue_trial(params, user_attrs={PRESET: name})
