"""The model that is served: a registered model whose version ``champion`` is replaced only by a better one."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from optuna import Study
from torch import Tensor, nn

from search.config import ChampionConfig, StudyConfig, without_password
from search.processes import temporary_files_in, temporary_folder, temporary_place
from search.storage import is_outage
from search.winner.significance import Difference, compare_models
from strategies import ConfigError, Strategy, TrialError, first_line
from trainers import TASKS, Device, normaliser, open_data, predict

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

_REPEATS = 3
_TIMED_IMAGES = 64


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


@dataclass(frozen=True, slots=True)
class Judged:
    """A model's outputs for the test images, and its costs.

    Args:
        outputs: (N, ...) outputs, as ``Task.scores`` takes them.
        targets: (N, ...) targets.
        classes: Class names, in the order of the outputs.
        seconds: Seconds an image.
        parameters: Number of parameters.
        is_new: (N,) bool, whether the image was neither trained nor validated with.
    """

    outputs: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    seconds: float
    parameters: int
    is_new: Tensor


def propose(config: StudyConfig, model_uri: str, run_id: str | None, uri: str, device: Device) -> Verdict:
    """Register a model as the challenger, and make it the champion where it is better beyond chance.

    Both run on the test images as these are now, each with its own preprocessing. Where images were split anew, some
    test images may have trained or validated one of the models; these do not count.

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
    rules, name = config.champion, name_of(config)
    with _registry(uri) as client:
        version = _registered(client, name, model_uri, run_id)
        client.set_registered_model_alias(name, CHALLENGER, str(version.version))
        champion = _champion(client, name)
        if champion is not None and champion.version == version.version:
            return Verdict(name, str(version.version), str(champion.version), False, "it is the champion already")
        if champion is None:
            verdict = Verdict(name, str(version.version), None, True, "there was no champion")
        else:
            old, new = (judge(_address(name, one), config, device) for one in (champion, version))
            verdict = _decide(rules, config, name, version, champion, old, new)
        _write(client, verdict)
    return verdict


def _decide(
    rules: ChampionConfig,
    config: StudyConfig,
    name: str,
    version: ModelVersion,
    champion: ModelVersion,
    old: Judged,
    new: Judged,
) -> Verdict:
    task = TASKS[config.task]
    outputs = _in_order(old, new.classes) if config.task in ("classification", "multilabel") else old.outputs
    counted = old.is_new & new.is_new
    if not counted.any():
        reason = "all test images are among those that one of the models was made with"
        return Verdict(name, str(version.version), str(champion.version), False, reason)
    difference = compare_models(
        task, config.metric, outputs[counted], new.outputs[counted], new.targets[counted], rules.alpha
    )
    scores = f"{config.metric} {difference.new:.4f} against {difference.old:.4f} on {difference.images:,} images"
    interval = f"difference {difference.low:+.4f} to {difference.high:+.4f}"
    if difference.p_value is not None:
        interval += f", p = {difference.p_value:.3g}"
    reason = f"{scores} ({interval})"
    is_promoted = difference.is_better
    if not is_promoted:
        reason += ": not better beyond chance"
    for limit, ratio, what in (
        (rules.max_slowdown, new.seconds / old.seconds, "champion.max_slowdown: it takes {:.2f} times the seconds"),
        (rules.max_growth, new.parameters / old.parameters, "champion.max_growth: it has {:.2f} times the numbers"),
    ):
        if is_promoted and limit is not None and ratio > limit:
            is_promoted = False
            reason += f": better, but {what.format(ratio)}"
    return Verdict(name, str(version.version), str(champion.version), is_promoted, reason, difference)


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
        judged = judge(_address(name, champion), config, device)
        task = TASKS[config.task]
        outputs, targets = judged.outputs[judged.is_new], judged.targets[judged.is_new]
        if not len(targets):
            return f"version {champion.version} of {name} was made with all of them"
        score = task.scores(outputs, targets)[config.metric]
        low, high = task.interval(config.metric, outputs, targets)
        said = f"{config.metric} {score:.4f} ({low:.4f} to {high:.4f}) on {len(targets):,} test images new to it"
        client.set_model_version_tag(name, champion.version, RESCORED, said)
    return f"version {champion.version} of {name}: {said}"


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
    became = "Champion" if verdict.is_promoted else "Challenger"
    against = f" Compared with version {verdict.champion}." if verdict.champion is not None else ""
    client.update_model_version(name, version, f"{became}: {verdict.reason}.{against}")
    if verdict.is_promoted:
        if verdict.champion is not None:
            client.set_model_version_tag(name, version, REPLACED, verdict.champion)
        client.set_registered_model_alias(name, CHAMPION, version)


def judge(model_uri: str, config: StudyConfig, device: Device) -> Judged:
    """Run a logged model on a study's test images, with the preprocessing that it was trained with.

    Raises:
        UnfreezeError: The model is of another task, or the images cannot be opened.
    """
    # Of a server's model, MLflow leaves a copy where temporary files are.
    with temporary_folder(temporary_place(config.data.cache)) as folder, temporary_files_in(folder):
        served = mlflow.pyfunc.load_model(model_uri).unwrap_python_model()
    if served.task.name != config.task:
        raise ConfigError(f"{model_uri} is a model for {served.task.name}, and the study is for {config.task}")
    how = served.preprocessing
    data = config.data.model_copy(update={"image_size": how.image_size, "max_value": how.max_value})
    opened = open_data(task=config.task, in_chans=how.in_chans, **data.model_dump())
    split = opened.test
    strategy = Strategy.from_dict(served.card["strategy"])
    model = served.model.to(device.torch)
    normalise = normaliser(served.card["mean"], served.card["std"], device)
    outputs, targets = predict(model, split, strategy, normalise, served.task, served.scale, device)
    if served.temperature is not None:
        outputs = outputs / served.temperature
    places = torch.arange(min(len(split), _TIMED_IMAGES))
    seconds = min(
        _timed(lambda: predict(model, split, strategy, normalise, served.task, served.scale, device, places=places))
        for _ in range(_REPEATS)
    )
    is_new = torch.from_numpy(~np.isin(opened.digests["test"], served.seen))
    return Judged(outputs, targets, tuple(served.classes), seconds / len(places), _count(model), is_new)


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _count(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def _in_order(judged: Judged, classes: Sequence[str]) -> Tensor:
    """A model's logits in another model's order of classes; a class that it lacks gets the lowest logit."""
    if judged.classes == tuple(classes):
        return judged.outputs
    columns = [
        judged.outputs[:, judged.classes.index(name)]
        if name in judged.classes
        else torch.full((len(judged.outputs),), torch.finfo(torch.float32).min / 2)
        for name in classes
    ]
    return torch.stack(columns, dim=1)


def describe_verdict(verdict: Verdict) -> str:
    """A verdict in one line."""
    if verdict.is_promoted:
        before = f", in place of version {verdict.champion}" if verdict.champion is not None else ""
        return f"Champion: version {verdict.version} of {verdict.name}{before}: {verdict.reason}"
    return f"Champion: version {verdict.champion} of {verdict.name} stays; version {verdict.version}: {verdict.reason}"
