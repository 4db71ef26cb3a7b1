"""The configuration's sections ``champion``, ``housekeeping``, ``store`` and ``tracking``."""

from typing import Literal

from pydantic import Field, field_validator

from search.config.section import Section, Text, problems


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
        30, gt=1, description="fewer test images decide nothing, and the champion stays; groups: at least 10"
    )
    max_slowdown: float | None = Field(
        None,
        gt=0,
        description="most that a new champion's seconds per image may be, divided by the old one's; null for any",
    )
    max_growth: float | None = Field(
        None, gt=0, description="most that a new champion's parameters may be, divided by the old one's; null for any"
    )


class HousekeepingConfig(Section):
    """What nightly searches remove."""

    days: float | None = Field(
        None,
        gt=0,
        description="remove checkpoints of trials that ended so many days ago, and caches unused since; null: none",
    )
    gib: float | None = Field(
        None,
        ge=0,
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
        return value


class TrackingConfig(Section):
    """Where MLflow keeps runs and artifacts."""

    uri: Text = Field("sqlite:///mlruns/mlflow.db", description="MLflow store or server")
    artifacts: Text = Field("mlruns/artifacts", description="folder of the artifacts; a server may have its own")
