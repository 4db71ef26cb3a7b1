"""A logged trial trained once more, and its results compared with the logged ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from search.config import StudyConfig, without_password
from search.processes import temporary_folder
from search.storage import MODEL, SEED, reading_mlflow
from search.study.materials import gather, open_models
from search.tracking import PARENT_TAG, find_run
from search.trials import Watcher, make_trainer, rank_group_of
from strategies import ConfigError, Strategy


@dataclass(frozen=True, slots=True)
class LoggedTrial:
    """A trial as its MLflow run tells it.

    Args:
        study: Content of the study's ``study.json``.
        strategy: Content of the trial's ``strategy.yaml``.
        model: Name of the model.
        seed: Of the training.
        metrics: By step, the metrics that a repeated training computes again.
    """

    study: str
    strategy: str
    model: str
    seed: int
    metrics: Mapping[int, Mapping[str, float]]


def read_trial(tracking_uri: str, run_id: str) -> LoggedTrial:
    """Read a trial's run, and its study's configuration.

    Args:
        tracking_uri: MLflow's store.
        run_id: Id of the run in MLflow, or its tag ``unfreeze.spool_key``.

    Raises:
        ConfigError: The store has no such run, or the run is not that of a trial that was trained.
    """
    shown = without_password(tracking_uri)
    with reading_mlflow(tracking_uri, f"run {run_id}") as client, temporary_folder() as folder:
        run = client.get_run(find_run(client, run_id) or run_id)
        run_id = run.info.run_id
        parent = run.data.tags.get(PARENT_TAG)
        if parent is None or SEED not in run.data.params:
            raise ConfigError(f"run {run_id} at {shown} is not that of a trial that was trained")
        study = Path(client.download_artifacts(parent, "study.json", str(folder))).read_text(encoding="utf-8")
        strategy = Path(client.download_artifacts(run_id, "strategy.yaml", str(folder))).read_text(encoding="utf-8")
        metrics: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            if name == "train_loss" or name.startswith("val_"):
                for entry in client.get_metric_history(run_id, name):
                    metrics.setdefault(entry.step, {})[name] = entry.value
    if not metrics:
        raise ConfigError(f"run {run_id} at {shown} has no epoch to compare with")
    return LoggedTrial(study, strategy, run.data.params[MODEL], int(run.data.params[SEED]), metrics)


def reproduce(config: StudyConfig, logged: LoggedTrial, watcher: Watcher) -> float:
    """Train a logged trial again, and show each logged metric beside the new one.

    Args:
        config: The study's configuration; the data, the device and the number of threads may be others than before.
        logged: The trial.
        watcher: Shows the metrics.

    Returns:
        The largest :func:`difference` of a metric.

    Raises:
        UnfreezeError: The data, the weights or the strategy cannot be used.
    """
    materials = gather(open_models(config, watcher), watcher)
    strategy = Strategy.from_yaml(logged.strategy)
    rank_group = rank_group_of(config, materials.device)
    source = materials.sources[logged.model]
    worst = 0.0
    try:
        with rank_group.training(logged.model, strategy, logged.seed) as ranks:
            trainer = make_trainer(materials, config.pruner, source, strategy, logged.seed, ranks=ranks)
            watcher.say(f"{'step':>5}  {'metric':<24}  {'logged':>14}  {'now':>14}  difference")
            for result in rank_group.epochs(trainer):
                before = logged.metrics.get(result.step)
                if before is None:
                    # The logged trial was pruned, or resumed by another trial, after the step before.
                    break
                for name in sorted(before.keys() & result.metrics.keys()):
                    gap = difference(before[name], result.metrics[name])
                    worst = max(worst, gap)
                    values = f"{before[name]:>14.8g}  {result.metrics[name]:>14.8g}"
                    watcher.say(f"{result.step:>5}  {name:<24}  {values}  {'none' if gap == 0 else f'{gap:.1e}'}")
    finally:
        rank_group.close()
    return worst


def difference(one: float, other: float) -> float:
    """Distance of two values as a share of the larger absolute one, or of 1 where both are smaller; 0 of two NaN."""
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other) / max(abs(one), abs(other), 1.0)
