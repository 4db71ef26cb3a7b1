"""The model that is served: a registered model whose version ``champion`` is replaced only by a better one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from optuna import Study
from torch import Tensor

from search.config import ChampionConfig, StudyConfig, without_password
from search.storage import is_outage
from search.winner.judging import Judged, judge
from search.winner.looks import Look, count_look
from search.winner.shown import keep_shown, shown_before
from search.winner.significance import Difference, compare_models
from strategies import ConfigError, TrialError, first_line
from trainers import TASKS, Device, open_data

CHAMPION, CHALLENGER = "champion", "challenger"
# Tags of a version.
COMPARED, REASON, REPLACED, RESCORED = (
    "unfreeze.comparison",
    "unfreeze.reason",
    "unfreeze.replaced",
    "unfreeze.rescored",
)
#: Attribute of a study.
VERDICT = "champion_verdict"

# With fewer groups, swapping their answers can hardly be as sure as a later look asks.
_LEAST_GROUPS = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a challenger was promoted, and why.

    Args:
        name: The registered model.
        version: The challenger's version.
        champion: The version that was champion before; None if there was none.
        is_promoted: Whether the challenger is champion now.
        reason: Why, in one line.
        difference: How the two compared; None where nothing was compared.
    """

    name: str
    version: str
    champion: str | None
    is_promoted: bool
    reason: str
    difference: Difference | None = None


def propose(config: StudyConfig, model_uri: str, run_id: str | None, uri: str, device: Device) -> Verdict:
    """Register a model as the challenger, and make it the champion where it is better beyond chance.

    Both run on the test images as these are now, each with its own preprocessing. Where images were split anew, some
    test images may have trained or validated one of the models; these do not count. With ``champion.split=fresh`` only
    images count that came since the champion was promoted. The p-value is held against this look's part of
    ``champion.alpha``; see :mod:`search.winner.looks`.

    Args:
        config: Gives the images, the metric and the limits.
        model_uri: The model, ``models:/m-...``.
        run_id: The model's run; None where it is not known.
        uri: MLflow's store.
        device: Where to compute.

    Raises:
        ConfigError: The registry cannot be used.
        TrialError: MLflow cannot be reached.
    """
    name = name_of(config)
    with _registry(uri) as client:
        version = _registered(client, name, model_uri, run_id)
        client.set_registered_model_alias(name, CHALLENGER, str(version.version))
        champion = _champion(client, name)
        if champion is not None and champion.version == version.version:
            return Verdict(name, str(version.version), str(champion.version), False, "it is the champion already")
        if champion is None:
            verdict = Verdict(name, str(version.version), None, True, "there was no champion")
            digests = open_data(task=config.task, in_chans=config.model.in_chans, **config.data.model_dump()).digests
            shown = digests["test"]
        else:
            old, new = judge([_address(name, one) for one in (champion, version)], config, device)
            _write_score(client, name, champion, config, old)
            verdict, shown = _verdict(client, name, champion, version, config, old, new), old.digests
        if verdict.is_promoted:
            keep_shown(client, name, champion, version, shown)
        _write(client, verdict)
    return verdict


def _verdict(
    client: MlflowClient,
    name: str,
    champion: ModelVersion,
    version: ModelVersion,
    config: StudyConfig,
    old: Judged,
    new: Judged,
) -> Verdict:
    counted = old.is_new & new.is_new
    only = "neither model was made with"
    if config.champion.split == "fresh":
        before = shown_before(client, name, champion)
        if before is None:
            keep_shown(client, name, None, champion, old.digests)
            before = old.digests
        counted &= torch.from_numpy(~np.isin(old.digests, before))
        only += f" and that came since version {champion.version} was promoted"
    is_promoted, difference = False, None
    reason = _too_few(config.champion, counted, old, only)
    if not reason:
        images = old.digests[counted.numpy()]
        look = count_look(client, name, champion, version, images, config.champion.alpha)
        difference = compare_models(
            TASKS[config.task],
            config.metric,
            old.outputs[counted],
            new.outputs[counted],
            new.targets[counted],
            look.alpha,
            old.groups_of(counted),
        )
        is_promoted, reason = _decided(config.champion, difference, look, champion, old, new)
    changes = ((champion, old.changes), (version, new.changes))
    said = [f"the classes have changed since version {one.version}: {words}" for one, words in changes if words]
    return Verdict(
        name, str(version.version), str(champion.version), is_promoted, "; ".join([reason, *said]), difference
    )


def _too_few(rules: ChampionConfig, counted: Tensor, judged: Judged, only: str) -> str:
    """The reason why so few images can decide nothing; empty if there are enough."""
    images, groups = int(counted.sum()), judged.groups_of(counted)
    if images < rules.min_images:
        return (
            f"not compared: there are {images:,} test images that {only}, and champion.min_images={rules.min_images} "
            "are needed"
        )
    if groups is not None and (found := len(np.unique(groups))) < _LEAST_GROUPS:
        return f"not compared: the test images that {only} are of {found} groups, and {_LEAST_GROUPS} are needed"
    return ""


def _decided(
    rules: ChampionConfig, difference: Difference, look: Look, champion: ModelVersion, old: Judged, new: Judged
) -> tuple[bool, str]:
    """Whether the challenger is promoted, and why."""
    of_groups = "" if difference.groups is None else f" of {difference.groups:,} groups"
    reason = (
        f"{difference.metric} {difference.new:.4f} against {difference.old:.4f} on {difference.images:,} images"
        f"{of_groups} (95% interval of the difference {difference.low:+.4f} to {difference.high:+.4f}, "
        f"p = {difference.p_value:.2g}; challenger {look.number} of version {champion.version} needs p up to "
        f"{look.alpha:.2g}, and {look.left:.2g} of champion.alpha={rules.alpha:g} is left for later ones)"
    )
    if not difference.is_better:
        return False, f"{reason}: not better beyond chance"
    for limit, ratio, what in (
        (rules.max_slowdown, new.seconds / old.seconds, "champion.max_slowdown: it takes {:.2f} times the seconds"),
        (rules.max_growth, new.parameters / old.parameters, "champion.max_growth: it has {:.2f} times the numbers"),
    ):
        if limit is not None and ratio > limit:
            return False, f"{reason}: better, but {what.format(ratio)}"
    return True, reason


def rescore(config: StudyConfig, uri: str, device: Device) -> str:
    """The champion's score on the study's test images as they are now, in words; empty without a champion.

    Raises:
        ConfigError: The registry cannot be used.
        TrialError: MLflow cannot be reached.
    """
    name = name_of(config)
    with _registry(uri) as client:
        champion = _champion(client, name)
        if champion is None:
            return ""
        (judged,) = judge([_address(name, champion)], config, device)
        said = _write_score(client, name, champion, config, judged)
    return f"version {champion.version} of {name}: {said}"


def _write_score(client: MlflowClient, name: str, version: ModelVersion, config: StudyConfig, judged: Judged) -> str:
    """Write a version's score on the present test images to its tag, in place of an older one; and return it."""
    task, metric = TASKS[config.task], config.metric
    outputs, targets = judged.outputs[judged.is_new], judged.targets[judged.is_new]
    said = "it was made with all test images"
    if len(targets):
        score = task.scores(outputs, targets)[metric]
        low, high = task.interval(metric, outputs, targets, judged.groups_of(judged.is_new))
        said = f"{metric} {score:.4f} ({low:.4f} to {high:.4f}) on {len(targets):,} test images new to it"
    said += f"; the classes have changed since: {judged.changes}" if judged.changes else ""
    client.set_model_version_tag(name, str(version.version), RESCORED, said)
    return said


def last_verdict(study: Study) -> Verdict | None:
    """The verdict on a study's winner when a search last ended; None without one."""
    found = study.user_attrs.get(VERDICT)
    if found is None:
        return None
    difference = found["difference"]
    return Verdict(**{**found, "difference": None if difference is None else Difference(**difference)})


def rollback(config: StudyConfig, uri: str) -> Verdict:
    """Make the version champion that the present one replaced.

    Raises:
        ConfigError: There is no champion, or it replaced none.
    """
    name = name_of(config)
    with _registry(uri) as client:
        champion = _champion(client, name)
        if champion is None:
            raise ConfigError(f"model {name!r} has no champion")
        before = champion.tags.get(REPLACED)
        if before is None:
            raise ConfigError(f"version {champion.version} of model {name!r} has replaced no other")
        client.set_registered_model_alias(name, CHAMPION, before)
        reason = f"rolled back from version {champion.version}"
        client.set_model_version_tag(name, before, REASON, reason)
    return Verdict(name, before, str(champion.version), True, reason)


def name_of(config: StudyConfig) -> str:
    """Name of the registered model of a study."""
    found = config.champion.name or config.name
    assert found is not None, "composition names every study"
    return found


@contextmanager
def _registry(uri: str) -> Iterator[MlflowClient]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        kind = TrialError if is_outage(error) else ConfigError
        raise kind(f"the model registry at {without_password(uri)} cannot be used: {first_line(error)}") from error
    finally:
        mlflow.set_tracking_uri(before)


def _registered(client: MlflowClient, name: str, model_uri: str, run_id: str | None) -> ModelVersion:
    """The version of this model, which is created where the registry has none."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("unfreeze.model_uri") == model_uri:
            return version
    # The source of a version is the folder of the logged model's files, not its URI.
    source = client.get_logged_model(model_uri.removeprefix("models:/")).artifact_location
    return client.create_model_version(
        name, source, run_id, tags={"unfreeze.model_uri": model_uri}, model_id=model_uri.removeprefix("models:/")
    )


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases if client.search_registered_models(f"name = '{name}'") else {}
    return client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None


def _address(name: str, version: ModelVersion) -> str:
    return f"models:/{name}/{version.version}"


def _write(client: MlflowClient, verdict: Verdict) -> None:
    """Write the comparison to the version's tags and description; move the alias last."""
    name, version = verdict.name, verdict.version
    client.set_model_version_tag(name, version, REASON, verdict.reason)
    if verdict.difference is not None:
        client.set_model_version_tag(name, version, COMPARED, json.dumps(asdict(verdict.difference)))
    elif COMPARED in client.get_model_version(name, version).tags:
        # Of an earlier comparison, which this reason does not speak of.
        client.delete_model_version_tag(name, version, COMPARED)
    became = "Champion" if verdict.is_promoted else "Challenger"
    against = f" Compared with version {verdict.champion}." if verdict.champion is not None else ""
    client.update_model_version(name, version, f"{became}: {verdict.reason}.{against}")
    if verdict.is_promoted:
        if verdict.champion is not None:
            client.set_model_version_tag(name, version, REPLACED, verdict.champion)
        client.set_registered_model_alias(name, CHAMPION, version)


def describe_verdict(verdict: Verdict) -> str:
    """A verdict in one line."""
    if verdict.is_promoted:
        before = f", in place of version {verdict.champion}" if verdict.champion is not None else ""
        return f"Champion: version {verdict.version} of {verdict.name}{before}: {verdict.reason}"
    return f"Champion: version {verdict.champion} of {verdict.name} stays; version {verdict.version}: {verdict.reason}"
