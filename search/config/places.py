"""The configuration's sections ``champion``, ``serve``, ``housekeeping``, ``store`` and ``tracking``."""

import re
from typing import Literal

from pydantic import Field, field_validator

from search.config.limits import at_home, check_path
from search.config.section import MANY, Section, Text, problems
from search.config.urls import in_memory, sqlite_file, unreadable_address, without_password


class ChampionConfig(Section):
    """Which model is served, and when a new one replaces it."""

    name: str | None = Field(None, description="registered model in MLflow; by default the study's name")
    promote: bool = Field(
        False, description="register the winner at the end; it becomes the champion if it is significantly better"
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="how often, at most, a champion may ever be replaced by a model that is no better, by all its "
        "challengers together",
    )
    split: Literal["test", "fresh"] = Field(
        "test",
        description="images that decide: test, all test images; fresh, those that came since the champion was promoted",
    )
    min_images: int = Field(
        30, gt=1, le=MANY, description="fewer test images decide nothing, and the champion stays; groups: at least 10"
    )

    @field_validator("name")
    @classmethod
    def _names_a_model(cls, value: str | None) -> str | None:
        # What MLflow (3.17) or its databases refuse, after the whole search.
        if value is not None and (not re.fullmatch(r"[^/:\x00-\x1f\x7f]{1,250}", value) or not value.strip(" .")):
            raise problems(f"champion.name: {value!r} cannot name a model; give 1 to 250 characters without / and :")
        return value

    max_slowdown: float | None = Field(
        None,
        gt=0,
        le=MANY,
        description="most that a new champion's seconds per image may be, divided by the old one's; null for any",
    )
    max_growth: float | None = Field(
        None,
        gt=0,
        le=MANY,
        description="most that a new champion's parameters may be, divided by the old one's; null for any",
    )


class ServeConfig(Section):
    """What the winner's logged model takes, and how it computes."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="number format of its answers; in another than that of the search, they differ by rounding"
    )
    allow_paths: bool = Field(
        False,
        description="the model also takes names of files; then clients of mlflow models serve can name the server's",
    )


class HousekeepingConfig(Section):
    """What nightly searches remove."""

    days: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="remove checkpoints of trials that ended so many days ago, and caches unused since; null: none",
    )
    gib: float | None = Field(
        None,
        ge=0,
        le=MANY,
        description="limit of the studies' checkpoints, of which the oldest are removed first; null for none",
    )


class StoreConfig(Section):
    """Where Optuna keeps the study."""

    url: Text = Field(
        "sqlite:///mlruns/optuna.db",
        description="database of the study, such as postgresql://..., or grpc://HOST:PORT of a proxy",
    )

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if "://" not in value:
            raise problems(f"store.url: {value!r} is not a database URL such as sqlite:///mlruns/optuna.db")
        _check_address("store.url", value)
        return value


class TrackingConfig(Section):
    """Where MLflow keeps runs and artifacts."""

    uri: Text = Field("sqlite:///mlruns/mlflow.db", description="MLflow store or server")
    artifacts: Text = Field("mlruns/artifacts", description="folder of the artifacts; a server may have its own")

    @field_validator("uri")
    @classmethod
    def _is_uri(cls, value: str) -> str:
        _check_address("tracking.uri", value)
        return value

    @field_validator("artifacts")
    @classmethod
    def _is_path(cls, value: str) -> str:
        check_path("tracking.artifacts", value)
        return at_home(value)


def _check_address(key: str, url: str) -> None:
    """Refuse an address that nothing can be at, from a validator; whether anything is there is found by opening it."""
    shown = without_password(url)
    if in_memory(url):
        raise problems(f"{key}: {shown!r} is in the memory of one process, and gone with it; name a file")
    reason = unreadable_address(url)
    if reason is not None:
        raise problems(f"{key}: {shown!r} is not an address: {reason}")
    check_path(key, sqlite_file(url) or "")
