"""Configurations from the arguments of a command: study file, Hydra overrides, sweeps."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, Sweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search.config.limits import at_home, check_references, shortened
from search.config.schema import build_config, section_names
from search.config.sections import TIMES
from search.config.study import StudyConfig
from search.config.study_files import as_dict, find_study, list_studies, load_space, load_study
from search.config.task_change import for_task, with_losses_of
from search.config.urls import without_password
from strategies import ConfigError, first_line, nearest

# Hydra's parser takes a second for some two thousand.
_MOST_WORD = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """One override with one value.

    Args:
        kind: Set, add or delete.
        key: Dotted key.
        value: The new value; for a deletion the value that must be there, or None for any.
        swept: Whether this is one of several values of the override.
    """

    kind: OverrideType
    key: str
    value: Any
    swept: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


Job = tuple[Change, ...]


def compose_study(arguments: Sequence[str]) -> StudyConfig:
    """The configuration of one study.

    Args:
        arguments: Hydra overrides, ``study=...`` among them.

    Raises:
        ConfigError: One line a problem.
    """
    return compose_jobs(arguments)[0]


def configure(
    study: str | Path | Mapping[str, Any], overrides: Sequence[str], changes: Mapping[str, Any]
) -> StudyConfig:
    """The configuration of one study, from Python.

    Args:
        study: A study's name or file, or the content of a study file.
        overrides: Hydra overrides, as on the command line; they come last.
        changes: Values by key. A mapping for a section is merged with it, one level deep, as on the command line.

    Raises:
        ConfigError: One line a problem.
    """
    given = [Change(OverrideType.CHANGE, key, _as_yaml_has_it(value)) for key, value in changes.items()]
    parsed = [_parse(word) for word in overrides]
    _refuse_repeated(parsed)
    words = [change for override in parsed for change in _changes(override, multirun=False)]
    if isinstance(study, Mapping):
        values = _merged(_as_yaml_has_it(study))
        if values["name"] is None and "name" not in changes:
            raise ConfigError("name: missing; a study that is no file needs one")
    else:
        values = _read(find_study(str(study)))
    return build_config(*_changed(values, [*given, *words]))


def given_by(words: Sequence[str]) -> dict[str, Any]:
    """The values that words of the command line set, as a study file would hold them, before any check.

    Raises:
        ConfigError: A word cannot be read, or a key is given twice.
    """
    parsed = [_parse(word) for word in words]
    _refuse_repeated(parsed)
    values: dict[str, Any] = {}
    for override in parsed:
        for change in _changes(override, multirun=False):
            if change.kind != OverrideType.DEL:
                _apply(values, change, None)
    return values


def as_study(content: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The content of a study file that composes as ``content`` does with words of the command line.

    Args:
        content: The content of a study file.
        words: Overrides; those of Hydra's grammar.

    Raises:
        ConfigError: One line for each word that cannot be applied.
    """
    changes = [change for word in words for change in _changes(_parse(word), multirun=False)]
    values, found = _changed(_merged(content), changes)
    if found:
        raise ConfigError("\n  ".join(found))
    defaults, sections = _merged({}), section_names()
    study: dict[str, Any] = {}
    for key, value in values.items():
        if key in sections and isinstance(value, dict):
            usual = defaults[key]
            own = {name: one for name, one in value.items() if name not in usual or one != usual[name]}
            study |= {key: own} if own else {}
        elif key not in defaults or value != defaults[key]:
            study[key] = value
    return study


def _as_yaml_has_it(value: Any) -> Any:
    """A Python value as a study file would hold it."""
    if isinstance(value, Mapping):
        return {key: _as_yaml_has_it(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_yaml_has_it(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def compose_jobs(arguments: Sequence[str], multirun: bool = False) -> list[StudyConfig]:
    """The configurations of the arguments: one, or with ``multirun`` the product of all sweeps.

    Where several jobs would have the same study's name, the swept values that differ become a suffix of it, unless
    ``name`` itself is swept.

    Raises:
        ConfigError: One line a problem; with several jobs, those of the first job that has any.
    """
    jobs = _expand(arguments, multirun)
    drafts = [_draft(job) for job in jobs]
    if not any(change.swept and change.key == "name" for job in jobs for change in job):
        _tell_apart(jobs, [values for values, _ in drafts])
    configs = []
    for job, (values, problems) in zip(jobs, drafts, strict=True):
        try:
            configs.append(build_config(values, problems))
        except ConfigError as error:
            label = " ".join(str(change) for change in job if change.swept)
            raise ConfigError(f"{label}: {error}" if label else str(error)) from error
    return configs


def _expand(arguments: Sequence[str], multirun: bool) -> list[Job]:
    parsed = [_parse(argument) for argument in arguments]
    _refuse_repeated(parsed)
    alternatives = [_changes(override, multirun) for override in parsed]
    if not any(change.key == "study" and change.value for changes in alternatives for change in changes):
        raise ConfigError(f"study: missing; choose one with study=NAME: {', '.join(list_studies())}")
    return list(itertools.product(*alternatives))


def _parse(argument: str) -> Override:
    if "=" not in argument and not argument.startswith("~"):
        hint = f"study={argument}" if argument in list_studies() else "key=value"
        raise ConfigError(f"{argument!r} is not an override; write {hint}")
    key, _, value = argument.partition("=")
    # A shell leaves key=~/folder as it is, and Hydra's grammar has no ~.
    argument = f"{key}={at_home(value)}" if value.startswith("~/") else argument
    if len(argument) > _MOST_WORD:
        raise ConfigError(
            f"{shortened(key)}: {len(argument):,} characters are too long for the command line; write them into a "
            "study file"
        )
    try:
        return OverridesParser.create().parse_overrides([argument])[0]
    # The latter two: brackets too deep, and a number of too many digits.
    except (HydraException, RecursionError, ValueError) as error:
        shown = shortened(without_password(argument))
        raise ConfigError(
            f"{shown!r} cannot be read; special characters need quotes of their own: \"{key}='...'\""
        ) from error


def _refuse_repeated(overrides: Sequence[Override]) -> None:
    """Refuse a key that is given more than once: all values but the last would be lost without a word.

    Raises:
        ConfigError: Names the key. A shell makes several words of a pattern such as ``data.shards=a-{0..2}.tar``.
    """
    # Mappings that are added are merged, so that none is lost; a key may be left out and then given.
    merged = (OverrideType.ADD, OverrideType.FORCE_ADD)
    values = [one for one in overrides if one.type != OverrideType.DEL]
    keys = [one.key_or_group for one in values if not (one.type in merged and isinstance(one.value(), dict))]
    for key, count in Counter(keys).items():
        if count > 1:
            raise ConfigError(
                f"{key} is given {count} times; give one value. Quote a pattern, or the shell makes several words of "
                f"it: \"{key}='...'\""
            )


def _changes(override: Override, multirun: bool) -> list[Change]:
    kind, key, value = override.type, override.key_or_group, override.value()
    if override.package is not None:
        key = f"{key}@{override.package}"
    if not isinstance(value, Sweep | Glob):
        return [Change(kind, key, value)]
    if override.is_interval_sweep() or (isinstance(value, Glob) and key != "study"):
        raise ConfigError(f"{override.input_line}: a sweep must list its values: {key}=a,b or {key}=range(1,4)")
    if not multirun:
        raise ConfigError(f"{override.input_line}: several values need --multirun; one list is written {key}=[a,b]")
    if isinstance(value, Glob):
        values: list[Any] = value.filter(list(list_studies()))
    else:
        # Hydra's grammar quotes each element so that it can be parsed again.
        values = [_parse(f"{key}={text}").value() for text in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"{override.input_line}: the sweep holds no value")
    return [Change(kind, key, one, swept=True) for one in values]


def _draft(job: Job) -> tuple[dict[str, Any], list[str]]:
    """The values of a job before the check against the schema, and the problems so far."""
    path = find_study(str([change.value for change in job if change.key == "study" and change.value][-1]))
    return _changed(_read(path), [change for change in job if change.key != "study"])


def _read(path: Path) -> dict[str, Any]:
    """The values of a study file over the defaults; a study without a name takes the file's."""
    values = _merged(load_study(path))
    if values["name"] is None:
        values["name"] = path.stem
    return values


def _changed(values: dict[str, Any], changes: Sequence[Change]) -> tuple[dict[str, Any], list[str]]:
    """The changed values, and a line for each change that cannot be made."""
    problems = []
    task = next((change.value for change in reversed(changes) if change.key == "task"), values["task"])
    values = for_task(values, task)
    _drop_other_times(values, changes)
    for change in changes:
        try:
            _apply(values, change, task)
        except ConfigError as error:
            problems.append(str(error))
    return _resolved(values), problems


def _drop_other_times(values: dict[str, Any], changes: Sequence[Change]) -> None:
    """Leave out when a study file ends the search, if a change says that in another way."""
    given = {change.key for change in changes if change.value is not None}
    given |= {f"budget.{key}" for change in changes if change.key == "budget" for key in _keys_of(change.value)}
    budget = values.get("budget")
    if isinstance(budget, dict) and given & {f"budget.{name}" for name in TIMES}:
        values["budget"] = {key: value for key, value in budget.items() if key not in TIMES}


def _keys_of(value: Any) -> set[str]:
    return set(map(str, value)) if isinstance(value, Mapping) else set()


def _merged(study: Mapping[str, Any]) -> dict[str, Any]:
    values = StudyConfig().model_dump(mode="json")
    # These follow from other keys unless they are given.
    del values["data"]["source"], values["metric"], values["pruner"]["name"], values["executor"]["name"]
    for key, given in study.items():
        value = _by_name(key, given, study.get("task", values["task"]))
        if key in values and value is None and isinstance(values[key], dict):
            continue  # a section whose every line is commented out
        values[key] = values[key] | value if key in section_names() and isinstance(value, dict) else value
    return values


def _by_name(key: str, value: Any, task: Any) -> Any:
    """The content of a section that was given as one word: ``strategy=small``, ``executor=ray``."""
    if key == "strategy" and isinstance(value, str):
        return with_losses_of(task, load_space(value))
    return {"name": value} if key == "executor" and isinstance(value, str) else value


def _apply(values: dict[str, Any], change: Change, task: Any) -> None:
    change = replace(change, value=_by_name(change.key, change.value, task))
    *above, last = change.key.split(".")
    holder = values
    for position, part in enumerate(above):
        below = holder.get(part)
        if below is None:
            below = holder[part] = {}
        if not isinstance(below, dict):
            where = ".".join(above[: position + 1])
            hint = f"; write {where}={{low: ..., high: ...}}" if above[0] == "strategy" else ""
            raise ConfigError(f"{change.key}: {where} is the plain value {below!r} without keys of its own{hint}")
        holder = below
    if change.kind == OverrideType.DEL:
        _delete(holder, last, change)
    else:
        _set(holder, last, change, is_section=not above and last in section_names())


def _delete(holder: dict[str, Any], last: str, change: Change) -> None:
    if last not in holder:
        hint = f"; {nearest(last, holder)}" if holder else ""
        raise ConfigError(f"~{change.key}: there is nothing to leave out{hint}")
    if change.value is not None and holder[last] != change.value:
        raise ConfigError(f"~{change.key}={change.value}: the value there is {holder[last]!r}")
    del holder[last]


def _set(holder: dict[str, Any], last: str, change: Change, is_section: bool) -> None:
    old, new = holder.get(last), change.value
    adds = change.kind == OverrideType.ADD
    if isinstance(old, dict) and isinstance(new, dict) and (is_section or (adds and last in ("strategy", "presets"))):
        holder[last] = old | new
    elif adds and old is not None:
        raise ConfigError(f"+{change.key}: is there already, with {old!r}; leave out the + to change it")
    else:
        holder[last] = new


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    check_references(values)
    try:
        return as_dict(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'study'}: {first_line(error)}") from error


def _tell_apart(jobs: Sequence[Job], drafts: Sequence[dict[str, Any]]) -> None:
    """Append the swept values that differ to names that several jobs have."""
    for name in {str(values.get("name")) for values in drafts}:
        group = [place for place, values in enumerate(drafts) if str(values.get("name")) == name]
        labels = {place: _label([jobs[other] for other in group], jobs[place]) for place in group}
        if len(group) > 1:
            for place, label in labels.items():
                drafts[place]["name"] = _short(f"{name}-{label}")
    names = [str(values.get("name")) for values in drafts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"name: the sweep would run {twice!r} twice; give its values once each")


def _label(group: Sequence[Job], job: Job) -> str:
    differing = (now for now, *others in zip(job, *group, strict=True) if any(now != other for other in others))
    parts = (f"{change.key.split('.', 1)[-1]}_{change.value}" for change in differing)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).strip("_")


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:89]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
