"""The strategies that a study tries first."""

from collections.abc import Iterator, Mapping
from typing import Any

from search.config import DEFAULT_PRESETS, StudyConfig
from search.scheduling import each_from_the_last, frozen_in_front
from search.storage import MODEL, OWN_VALUES, PREDICTED, PRESET, SWEEP, queued_params
from search.study.begun import begun
from search.study.probe_sweep import BEST_PROBE, seeded_presets
from search.trials import OpenStudy
from strategies import ConfigError, Fixed, Space, Strategy, outside, project


def check_presets(config: StudyConfig) -> None:
    """Refuse presets of the user with values that the space does not hold; a study that has begun has moved them.

    Raises:
        ConfigError: A line for each such value.
    """
    space = config.space()
    lines = [
        f"presets.{name}.{field}: {preset[field]!r} is outside of strategy.{field} ({held}); change one of them, or "
        f"leave the preset out with ~presets.{name}"
        for name, preset in config.presets.items()
        if preset != DEFAULT_PRESETS.get(name)
        for field, held in outside(preset, space).items()
    ]
    if lines and begun(config) is None:
        raise ConfigError("\n  ".join(lines))


def preset_params(open_study: OpenStudy) -> dict[str, dict[str, Any]]:
    """The presets, moved into the first model's space, as parameters by name; without the parameter of the model."""
    source = open_study.first_source
    space = open_study.spaces[source.name]
    return {
        name: project(Strategy.from_dict(preset), space, source.num_blocks)
        for name, preset in _fitting(open_study).items()
    }


def _fitting(open_study: OpenStudy) -> dict[str, dict[str, Any]]:
    """The presets and the best probe, without those of another depth than the only one of the space."""
    source, seeded = open_study.first_source, seeded_presets(open_study)
    useless = _of_another_depth(seeded, open_study.spaces[source.name], source.num_blocks)
    return {name: preset for name, preset in seeded.items() if name not in useless}


def _queue_presets(open_study: OpenStudy) -> None:
    """Queue the presets, moved into the space, as first trials; those queued by an earlier run are not queued again.

    With several models, presets are for the first. A preset comes after those whose cached features it can start from.
    The order is the same without a cache, so that the same trials run with and without. Where the learnt policy plans
    the study, the default presets are candidates among others, and only further presets and the best probe are queued.
    That probe keeps its own values. A preset of another depth than the only one of the space is left out.
    """
    source = open_study.first_source
    space, num_blocks = open_study.spaces[source.name], source.num_blocks
    model = {MODEL: source.name} if open_study.chooses_model else {}
    # Read from the trials: a note beside them would be wrong after a kill between the two.
    trials = open_study.study.get_trials(deepcopy=False)
    queued = {one.user_attrs[PRESET]: queued_params(one) for one in reversed(trials) if PRESET in one.user_attrs}
    first = _tried_first(open_study)
    fitting = _fitting(open_study)
    presets = {name: model | params for name, params in preset_params(open_study).items() if name in first}
    frozen = {name: frozen_in_front(params, space, num_blocks) for name, params in presets.items()}
    # A sweep of probes caches the outputs of all blocks.
    stored = {num_blocks} if SWEEP in open_study.study.user_attrs else ()
    for name in each_from_the_last(frozen, stored):
        params = presets[name]
        if name not in queued and params not in queued.values():
            queued[name] = params
            attrs: dict[str, Any] = {PRESET: name, **_predicted(open_study, name, params)}
            if name == BEST_PROBE:
                attrs |= _own_values(fitting[name], space)
            else:
                for change in _changes(open_study.config.presets.get(name, {}), params, space, num_blocks):
                    open_study.watcher.say(f"Preset  {name}: {change}")
            open_study.study.enqueue_trial(params, user_attrs=attrs)
    useless = _of_another_depth(seeded_presets(open_study), space, num_blocks)
    new = [name for name in useless if name not in queued and name in first]
    if new and not trials:
        depth = useless[new[0]]
        open_study.watcher.say(f"Preset  {', '.join(new)}: left out, as strategy.depth is {depth!r}")


def _tried_first(open_study: OpenStudy) -> set[str]:
    """Names of the presets that are queued."""
    presets = open_study.config.presets
    if open_study.planner is None:
        return {BEST_PROBE, *presets}
    return {BEST_PROBE, *(name for name, preset in presets.items() if preset != DEFAULT_PRESETS.get(name))}


def _predicted(open_study: OpenStudy, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The attribute of a preset's trial that says what the learnt policy predicts, and why the trial is the first."""
    if open_study.planner is None:
        return {}
    reason = "best linear probe" if name == BEST_PROBE else "tried first"
    return {PREDICTED: open_study.planner.foreseen(open_study.first_source.name, params, reason)}


def _own_values(preset: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The attribute of a trial that keeps a preset's values outside of the space."""
    own = {field: preset[field] for field in outside(preset, space)}
    return {OWN_VALUES: own} if own else {}


def _of_another_depth(
    presets: Mapping[str, Mapping[str, Any]], space: Space, num_blocks: int
) -> dict[str, int | float]:
    """Names of presets that name another depth than the only one of the space, with that depth."""
    entry = space.get("depth")
    if not isinstance(entry, Fixed):
        return {}
    only = _blocks(entry.value, num_blocks)
    return {
        name: entry.value
        for name, preset in presets.items()
        if "depth" in preset and _blocks(preset["depth"], num_blocks) != only
    }


def _changes(given: Mapping[str, Any], params: Mapping[str, Any], space: Space, num_blocks: int) -> Iterator[str]:
    """How the values that a preset names were changed to lie in the space, such as ``lr 0.002 -> 0.001``."""
    for field, value in given.items():
        entry = space.get(field, Fixed(getattr(Strategy(), field)))
        moved = entry.value if isinstance(entry, Fixed) else params.get(field, value)
        is_same = value == moved or (field == "depth" and _blocks(value, num_blocks) == _blocks(moved, num_blocks))
        if not is_same:
            which = "only value of" if isinstance(entry, Fixed) else "nearest in"
            yield f"{field} {value} -> {moved}, the {which} strategy.{field}"


def _blocks(depth: float, num_blocks: int) -> int:
    """A depth in blocks."""
    return int(Strategy(depth=depth).canonical(num_blocks).depth)
