"""The listener that writes a trial's events to its MLflow run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.storage import DEPTH, MODEL, SEED
from search.tracking.events import (
    EpochEnded,
    Event,
    TrialAsked,
    TrialEnded,
    TrialPlanned,
    TrialStarted,
    TrialTrained,
)
from search.tracking.system_metrics import SystemMetrics
from search.tracking.tracker import Tracker
from search.tracking.writes import Dataset
from strategies import Strategy

# Metrics of what the learnt policy predicted; ``score`` and ``seconds`` are what came.
_PREDICTED = ("score", "low", "high", "seconds")


class TrialRuns:
    """A listener that writes each event to the MLflow run of its trial.

    Args:
        tracker: Tracker of the study.
        parent: Id of the study's run.
        tags: Tags of every run.
        datasets: Data sets that every trial uses.
        metric: The study's metric.
    """

    def __init__(
        self, tracker: Tracker, parent: str, tags: Mapping[str, Any], datasets: Sequence[Dataset], metric: str
    ) -> None:
        self._tracker, self._parent, self._tags, self._datasets = tracker, parent, tags, datasets
        self._metric = f"val_{metric}"
        # By run, since linear probes are trained together.
        self._loads: dict[str, SystemMetrics] = {}
        self._sizes: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Write an event.

        Raises:
            WriteError: An earlier write was refused.
        """
        match event:
            case TrialAsked():
                tags = {"unfreeze.trial": event.number, **self._tags}
                self._tracker.start_trial(self._parent, f"trial {event.number}", tags, event.run)
            case TrialStarted():
                self._started(event)
            case TrialPlanned():
                self._loads[event.run] = SystemMetrics()
                log_plan(self._tracker, event.run, event.strategy, event.manifest, event.reuse)
                self._sizes[event.run] = event.parameters_trained
            case EpochEnded():
                self._epoch_ended(event)
            case TrialTrained():
                self._trained(event)
            case TrialEnded():
                self._loads.pop(event.run, None)
                self._tracker.end(event.run, event.outcome)

    def _started(self, event: TrialStarted) -> None:
        params = {MODEL: event.model, **event.strategy.to_dict(), DEPTH: event.depth, SEED: event.seed}
        if event.low_rung_images is not None:
            params["low_rung_images"] = event.low_rung_images
        predicted = dict(event.predicted or {})
        foreseen = {f"predicted_{name}": predicted[name] for name in _PREDICTED if name in predicted}
        self._tracker.log(
            event.run,
            params=params,
            metrics=foreseen,
            tags={
                "unfreeze.model": event.model,
                "unfreeze.weights": event.weights,
                "unfreeze.weights_digest": event.weights_digest,
                "mlflow.runName": f"{event.number} · {event.label}",
                "unfreeze.fingerprint": event.fingerprint,
                "unfreeze.attempt": event.attempt,
                "unfreeze.preset": event.preset,
                **({"unfreeze.chosen": predicted["reason"]} if predicted else {}),
            },
            datasets=self._datasets,
        )

    def _epoch_ended(self, event: EpochEnded) -> None:
        result = event.result
        # Logged in each epoch, so that a stopped trial has its seconds too.
        metrics = {**result.metrics, "epoch_seconds": result.seconds, "seconds": event.seconds}
        # MLflow's comparison of runs begins with the metric that was logged first.
        metrics = {self._metric: metrics[self._metric], **metrics}
        if result.parts > 1:
            metrics["epoch"] = result.epoch
        tags: dict[str, Any] = {}
        if event.compiled:
            tags["unfreeze.compile"] = event.compiled
        if event.micro_batches > 1:
            tags["unfreeze.micro_batches"] = event.micro_batches
        load = self._loads[event.run].metrics() if event.run in self._loads else {}
        self._tracker.log(event.run, step=result.step, metrics=metrics | load, tags=tags)
        self._log_size(event.run)

    def _log_size(self, run: str) -> None:
        """Log once how many numbers are trained, after the first epoch or where there is none."""
        if run in self._sizes:
            self._tracker.log(run, metrics={"parameters_trained": self._sizes.pop(run)})

    def _trained(self, event: TrialTrained) -> None:
        self._log_size(event.run)
        if event.score is not None and event.best_epoch is not None:
            self._tracker.log(event.run, metrics={"score": event.score, "best_epoch": event.best_epoch})
        if event.traceback:
            self._tracker.log_text(event.run, "traceback.txt", event.traceback)
        self._tracker.log_outcome(event.run, event.outcome, event.reason)


def log_plan(tracker: Tracker, run: str, strategy: Strategy, manifest: Sequence[Mapping[str, Any]], reuse: str) -> None:
    """Write a strategy, how it trains each parameter, and in one line what is shared with other trials."""
    tracker.log(run, tags={"unfreeze.reuse": reuse})
    tracker.log_json(run, "manifest.json", manifest)
    tracker.log_text(run, "strategy.yaml", strategy.to_yaml())


def log_pictures(tracker: Tracker, run: str, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Write pictures, each (H, W, 3) uint8, as PNG artifacts of a run, in place of earlier ones."""
    for number, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        tracker.log_file(run, f"pictures/{number}.png", buffer.getvalue())
