"""The space that strategies are sampled from: for each field a range, a list of choices or a plain value."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Any, Protocol

from strategies.conditions import CONDITIONS, has_effect
from strategies.errors import ConfigError, nearest
from strategies.strategy import CHOICES, CHOICES_DEFAULTS, Strategy


class Suggests(Protocol):
    """The methods of a trial that sampling calls; ``optuna.trial.Trial`` and ``FixedTrial`` have them."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in ``[low, high]``."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in ``[low, high]``."""

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        """One of ``choices``."""


@dataclass(frozen=True, slots=True)
class When:
    """A condition on another field: its value is one of ``values``, or a number from ``low`` to ``high``."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the field that the condition is on meets the condition, given the ``values`` of all fields."""
        value = values[self.name]
        return value in self.values if self.values else bool(self.low <= value <= self.high)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A plain value: the field is not searched."""

    value: Any
    when: tuple[When, ...] = ()


@dataclass(frozen=True, slots=True)
class IntRange:
    """Whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    when: tuple[When, ...] = ()


@dataclass(frozen=True, slots=True)
class FloatRange:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    when: tuple[When, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A list of values."""

    choices: tuple[Any, ...]
    when: tuple[When, ...] = ()


Entry = Fixed | IntRange | FloatRange | Choice
Space = Mapping[str, Entry]

_RANGE_KEYS = ("low", "high", "step", "log")


def parse_space(spec: Mapping[str, Any]) -> dict[str, Entry]:
    """Read the ``strategy:`` section of a study.

    Args:
        spec: Field name to a plain value, ``{low, high, log, step}``, ``{choices: [...]}`` or ``{value: ...}``; in
            braces also ``when``, a mapping of other fields to a value, a list of values or ``{low, high}``. If one of
            these conditions does not hold, the field is not drawn and keeps its default.

    Returns:
        One entry for each field in ``spec``, in the order of :class:`Strategy`'s fields, except that a field comes
        after the fields that its conditions are on.

    Raises:
        ConfigError: A field is unknown, its entry is malformed, empty or out of the field's bounds, or conditions lead
            in a circle.
    """
    for name in spec:
        if name not in CHOICES:
            raise ConfigError(f"strategy.{name}: unknown key; {nearest(str(name), CHOICES)}")
    space = {name: _parse_entry(name, spec[name]) for name in CHOICES if name in spec}
    return {name: space[name] for name in _sampling_order(space) if name in space}


def _sampling_order(space: Space) -> tuple[str, ...]:
    """All fields, each after those that its conditions, built in or of the space, are on."""
    return _order(tuple((name, tuple(when.name for when in entry.when)) for name, entry in space.items() if entry.when))


@cache
def _order(conditions: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[str, ...]:
    """The sampling order, from the fields with conditions of the space and the fields that these are on."""
    asked = {name: list(dict(conditions).get(name, ())) for name in CHOICES}
    for name, condition in CONDITIONS.items():
        asked[name] += condition.controllers
    ordered: dict[str, None] = {}
    while len(ordered) < len(asked):
        # The first field that can come; if the space has no conditions, the result is the order of the fields.
        ready = next((n for n in asked if n not in ordered and all(other in ordered for other in asked[n])), None)
        if ready is None:
            circle = ", ".join(name for name in asked if name not in ordered)
            raise ConfigError(f"strategy: the conditions (when) of these fields lead in a circle: {circle}")
        ordered[ready] = None
    return tuple(ordered)


def _parse_entry(name: str, spec: Any) -> Entry:
    if not isinstance(spec, Mapping):
        _check_value(name, spec)
        return Fixed(spec)
    known = (*_RANGE_KEYS, "choices", "value", "when")
    for key in spec:
        if key not in known:
            raise ConfigError(f"strategy.{name}.{key}: unknown key; {nearest(str(key), known)}")
    when = _parse_when(name, spec.get("when", {}))
    plain = {key: value for key, value in spec.items() if key != "when"}
    for key in ("choices", "value"):
        others = ", ".join(other for other in plain if other != key)
        if key in plain and others:
            raise ConfigError(f"strategy.{name}: {key} cannot stand beside {others}")
    if "value" in plain:
        _check_value(name, plain["value"], "value")
        return Fixed(plain["value"], when)
    entry = _parse_choices(name, plain["choices"]) if "choices" in plain else _parse_range(name, plain)
    return replace(entry, when=when)


def _parse_when(name: str, spec: Any) -> tuple[When, ...]:
    if not isinstance(spec, Mapping):
        raise ConfigError(f"strategy.{name}.when: {spec!r} is not a mapping of other fields to values")
    return tuple(_parse_condition(name, str(other), condition) for other, condition in spec.items())


def _parse_condition(name: str, other: str, condition: Any) -> When:
    where = f"strategy.{name}.when.{other}"
    if other not in CHOICES or other == name:
        hint = "a field cannot depend on itself" if other == name else nearest(other, CHOICES)
        raise ConfigError(f"{where}: unknown key; {hint}")
    if not isinstance(condition, Mapping):
        values = condition if isinstance(condition, list | tuple) else [condition]
        if not values:
            raise ConfigError(f"{where}: an empty list never holds")
        for value in values:
            _check_value(other, value, asked_by=where)
        return When(other, tuple(values))
    unknown = [key for key in condition if key not in ("low", "high")]
    numbers = [value for value in condition.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    if unknown or not condition or len(numbers) < len(condition) or CHOICES[other].options:
        raise ConfigError(f"{where}: {dict(condition)!r} is not a value, a list of values, or low and high of a number")
    return When(other, low=float(condition.get("low", -math.inf)), high=float(condition.get("high", math.inf)))


def _parse_choices(name: str, choices: Any) -> Choice:
    if not isinstance(choices, list | tuple) or not choices:
        raise ConfigError(f"strategy.{name}.choices: {choices!r} is not a list of at least one value")
    for value in choices:
        _check_value(name, value, "choices")
    for position, value in enumerate(choices):
        # Optuna compares choices by equality, so it would take 1 and 1.0 for the same choice.
        if value in choices[:position]:
            raise ConfigError(f"strategy.{name}.choices: {value!r} is there twice (1 and 1.0 count as equal)")
    return Choice(tuple(choices))


def _parse_range(name: str, spec: Mapping[str, Any]) -> IntRange | FloatRange:
    for key in ("low", "high"):
        if key not in spec:
            raise ConfigError(f"strategy.{name}.{key}: missing; a range needs low and high, a list needs choices")
        _check_value(name, spec[key], key)
        if spec[key] is None or isinstance(spec[key], str | bool):
            raise ConfigError(f"strategy.{name}.{key}: {spec[key]!r} is not a number; other values need choices")
    low, high, step, log = spec["low"], spec["high"], spec.get("step"), spec.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"strategy.{name}.log: {log!r} is not true or false")
    if low > high:
        raise ConfigError(f"strategy.{name}: low {low} is above high {high}")
    if log and low <= 0:
        raise ConfigError(f"strategy.{name}.low: {low} is not above 0, which log: true needs")
    if step is not None and log:
        raise ConfigError(f"strategy.{name}: step and log: true exclude each other")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= 1e9):
        raise ConfigError(f"strategy.{name}.step: {step!r} is not a number above 0 and at most 1e9")
    if step is not None and high - low > 1e9 * step:
        raise ConfigError(f"strategy.{name}.step: {step!r} makes more than 1e9 steps from {low} to {high}")
    if isinstance(low, int) and isinstance(high, int) and int in CHOICES[name].kinds:
        if step is not None and not isinstance(step, int):
            raise ConfigError(f"strategy.{name}.step: {step!r} is not a whole number")
        return IntRange(low, _last_step(low, high, step or 1), step or 1, log)
    if name == "depth" and high > 1:
        raise ConfigError(
            f"strategy.depth: low {low!r} and high {high!r} mix whole numbers of blocks with fractions of the model"
        )
    low, high = float(low), float(high)
    return FloatRange(low, high if step is None else _last_step(low, high, step), step, log)


def _last_step(low: Any, high: Any, step: Any) -> Any:
    """The highest value that whole steps from ``low`` reach; in decimal arithmetic, as in Optuna."""
    start, pace = Decimal(str(low)), Decimal(str(step))
    return type(high)(start + (Decimal(str(high)) - start) // pace * pace)


def _check_value(name: str, value: Any, key: str | None = None, asked_by: str | None = None) -> None:
    where = asked_by or f"strategy.{name}" + (f".{key}" if key else "")
    if not CHOICES[name].accepts(value):
        raise ConfigError(f"{where}: {value!r} is not {CHOICES[name].expected()}")
    if name == "depth" and isinstance(value, float) and value > 1:
        raise ConfigError(f"{where}: {value!r} is not a fraction between 0 and 1; write blocks without a decimal point")


def check_depths(space: Space, num_blocks: int) -> None:
    """Refuse whole-number depths larger than the model.

    Raises:
        ConfigError: The space's ``depth`` can exceed ``num_blocks``.
    """
    deepest: dict[str, Any] = {}
    match space.get("depth"):
        case IntRange(high=high):
            deepest = {"strategy.depth.high": high}
        case Choice(choices=choices):
            deepest = {"strategy.depth.choices": max((c for c in choices if isinstance(c, int)), default=0)}
        case Fixed(value=value) if isinstance(value, int):
            deepest = {"strategy.depth": value}
    for key, depth in deepest.items():
        if depth > num_blocks:
            raise ConfigError(f"{key}: {depth} blocks asked for, the model has {num_blocks}")


def sample(space: Space, trial: Suggests) -> Strategy:
    """Draw one strategy.

    A field that earlier draws make meaningless, or whose conditions do not hold, is not drawn and keeps its default.

    Args:
        space: From :func:`parse_space`; fields that it lacks take their defaults.
        trial: Suggests the values.

    Raises:
        ConfigError: The values drawn do not go together (more warm-up epochs than epochs).
    """
    values: dict[str, Any] = {}
    for name in _sampling_order(space):
        default = CHOICES_DEFAULTS[name]
        entry = space.get(name, Fixed(default))
        drawn = has_effect(name, values) and all(when.holds(values) for when in entry.when)
        values[name] = _suggest(name, entry, trial) if drawn else default
    return Strategy(**values)


def _suggest(name: str, entry: Entry, trial: Suggests) -> Any:
    match entry:
        case Fixed(value=value):
            return value
        case IntRange(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatRange(low=low, high=high, step=float_step, log=log):
            return trial.suggest_float(name, low, high, step=float_step, log=log)
        case Choice(choices=choices):
            return trial.suggest_categorical(name, choices)


def without(space: Space, names: Collection[str]) -> dict[str, Entry]:
    """The space without some fields, which then keep their defaults.

    A field whose ``when`` names one of them loses that condition if the default meets it; otherwise that field is left
    out too.
    """
    kept = {name: entry for name, entry in space.items() if name not in names}
    met = {
        name: replace(entry, when=tuple(when for when in entry.when if when.name not in names))
        for name, entry in kept.items()
        if all(when.holds(CHOICES_DEFAULTS) for when in entry.when if when.name in names)
    }
    lost = kept.keys() - met.keys()
    return without(met, lost) if lost else met


def project(strategy: Strategy, space: Space, num_blocks: int) -> dict[str, Any]:
    """The point of ``space`` that is nearest to ``strategy``, as parameters to enqueue in Optuna.

    Numbers are moved to the nearest value in the space, and depths are compared as shares of the model. A name that the
    space does not offer is left to the sampler.

    Returns:
        Field name to value, for the searched fields only.
    """
    params: dict[str, Any] = {}
    wanted = strategy.canonical(num_blocks).to_dict()
    for name, entry in space.items():
        if isinstance(entry, Fixed):
            continue
        value = _nearest_value(name, wanted[name], entry, num_blocks)
        if value is not None:
            params[name] = value
    return params


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest_value(name: str, wanted: Any, entry: Entry, num_blocks: int) -> Any:
    def as_share(value: Any) -> float:
        return float(value) / num_blocks if name == "depth" and isinstance(value, int) else float(value)

    match entry:
        case Choice(choices=choices):
            numbers = [choice for choice in choices if _is_number(choice)]
            if not _is_number(wanted) or not numbers:
                return wanted if wanted in choices else None
            return min(numbers, key=lambda choice: abs(as_share(choice) - as_share(wanted)))
        case _ if not _is_number(wanted):
            return None
        case IntRange(low=low, high=high, step=step):
            steps = round((min(max(wanted, low), high) - low) / step)
            return low + steps * step
        case FloatRange(low=low, high=high, step=None):
            return min(max(as_share(wanted), low), high)
        case FloatRange(low=low, high=high, step=float_step):
            assert float_step is not None
            steps = max(0, round((min(as_share(wanted), high) - low) / float_step))
            # In decimals, because as floats 0.25 + 17 * 0.01 is just above 0.42.
            return float(Decimal(str(low)) + steps * Decimal(str(float_step)))
    raise AssertionError(entry)
