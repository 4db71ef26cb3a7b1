"""The configuration's section ``executor``: who trains the trials."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from search.config.section import Section, Text, problems, refuse_twice
from strategies import nearest

# Most processes that train at once on a device, where each takes memory of its own; and on a whole cluster.
MOST_WORKERS, MOST_RAY_WORKERS = 64, 1024
# Of one machine.
_MOST_GPUS = 1024
# Of a resource of a cluster, whose memory is counted in bytes.
_MOST_AMOUNT = 1e15


# Keys that only one executor uses.
EXECUTOR_KEYS: dict[str, tuple[str, ...]] = {
    "local": ("trials_per_device", "devices"),
    "ray": ("address", "workers", "gpus", "resources", "placement"),
}


class ExecutorConfig(Section):
    """Who trains the trials."""

    name: Literal["auto", "inline", "local", "ray"] = Field(
        "auto",
        description="this process, worker processes of this machine, or a Ray cluster; by default it follows from the "
        "keys below, else local where there are several GPUs, and inline where there is one device",
    )
    trials_per_device: Literal["auto"] | int = Field(
        1,
        description="trials trained at once on a device, each by its own process: 1 to 64, or auto to measure the best "
        "number (local)",
    )
    devices: Literal["auto"] | int | tuple[int, ...] = Field(
        "auto",
        description="GPUs of this machine: auto for all visible ones, a number, or a list of indices (local)",
    )
    address: Text | None = Field(
        None, description="cluster: auto, HOST:PORT or ray://HOST:PORT; null starts a cluster on this machine (ray)"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=MOST_RAY_WORKERS,
        description="worker processes; null for as many as fit on the cluster (ray)",
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPU, or share of a GPU, for each worker; null for a whole GPU where there are any (ray)",
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="amounts of the cluster's custom resources that each worker needs (ray)"
    )
    placement: Literal["pack", "spread"] = Field(
        "pack", description="fill one node after the other with workers, or spread workers over nodes (ray)"
    )

    gpus_per_trial: int = Field(
        1, ge=1, le=MOST_WORKERS, description="GPUs that train each trial together; on a CPU, processes"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_follows(cls, values: Any) -> Any:
        """An executor that is not given follows from a key that only it uses."""
        if not isinstance(values, Mapping) or "name" in values:
            return values
        asked = [name for name, keys in EXECUTOR_KEYS.items() if any(_is_set(cls, values, key) for key in keys)]
        return {**values, "name": asked[0]} if asked else values

    @field_validator("trials_per_device", mode="before")
    @classmethod
    def _is_a_count(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and 1 <= value <= MOST_WORKERS):
            return value
        hint = f"; {nearest(value, ('auto',))}" if isinstance(value, str) else ""
        if type(value) is int:
            hint = f"; the nearest is {min(max(value, 1), MOST_WORKERS)}"
        raise problems(
            f"executor.trials_per_device: {value!r} is neither auto nor a whole number from 1 to {MOST_WORKERS}{hint}"
        )

    @field_validator("devices", mode="before")
    @classmethod
    def _are_devices(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and 1 <= value <= _MOST_GPUS):
            return value
        if (
            isinstance(value, list | tuple)
            and value
            and all(type(one) is int and 0 <= one < _MOST_GPUS for one in value)
        ):
            refuse_twice("executor.devices", value)
            return tuple(value)
        hint = f"; {nearest(value, ('auto',))}" if isinstance(value, str) else ""
        raise problems(
            f"executor.devices: {value!r} is neither auto, nor how many GPUs, nor a list of their indices{hint}"
        )

    @field_validator("resources")
    @classmethod
    def _are_amounts(cls, value: dict[str, float]) -> dict[str, float]:
        own = {"CPU": "threads", "GPU": "executor.gpus"}
        found = [f"executor.resources.{name}: is what {own[name]} says; leave it out" for name in own if name in value]
        found += [
            f"executor.resources.{name}: {amount:g} is not above 0 and at most {_MOST_AMOUNT:g}"
            for name, amount in value.items()
            if not 0 < amount <= _MOST_AMOUNT
        ]
        if found:
            raise problems(*found)
        return value

    @model_validator(mode="after")
    def _uses_its_keys(self) -> "ExecutorConfig":
        found = [
            f"executor.{key}: {getattr(self, key)!r} would not be used by executor.name: {self.name}; only {name} does"
            for name, keys in EXECUTOR_KEYS.items()
            for key in keys
            if name != self.name and getattr(self, key) != _default_of(type(self), key)
        ]
        if found:
            raise problems(*found)
        return self

    @property
    def may_be_one_process(self) -> bool:
        """Whether the command's own process may train."""
        return self.name in ("auto", "inline")


def _default_of(section: type[BaseModel], key: str) -> Any:
    return section.model_fields[key].get_default(call_default_factory=True)


def _is_set(section: type[BaseModel], values: Mapping[str, Any], key: str) -> bool:
    return key in values and values[key] != _default_of(section, key)
