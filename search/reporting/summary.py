"""Everything about a study, gathered from its stores for the report."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.processes import temporary_folder
from search.reporting.importance import Importances, importances
from search.reporting.layers import Layers, which_layers
from search.reporting.rows import rows_of, searched_fields
from search.scheduling import Expected, pareto_front, ranked
from search.storage import (
    CONTINUES,
    EXPECTED,
    PARENT_RUN,
    PREDICTED,
    SPARED,
    WINNER,
    StoredStudy,
    outcome_of,
    score_of,
)
from search.winner import EVIDENCE_FILE, LEGEND_FILE, MISTAKES_FOLDER, Winner
from strategies import ConfigError


@dataclass(frozen=True, slots=True)
class Curve:
    """A trial's scores by step.

    Args:
        trial: Its number.
        label: Its strategy in one line.
        steps: Steps at which it reported.
        scores: Scores that it reported.
        outcome: How it ended.
    """

    trial: int
    label: str
    steps: list[int]
    scores: list[float]
    outcome: str


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A trial's score and what the learnt policy had predicted when the trial began.

    Args:
        trial: Its number.
        score: The score that came.
        predicted: The predicted score.
        low: Lower end of its 90% interval.
        high: Upper end.
    """

    trial: int
    score: float
    predicted: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A study as the report shows it.

    Args:
        name: The study's.
        metric: What trials are ranked by.
        is_lower_better: Whether lower values of the metric are better.
        costs: Values that are minimised beside the metric.
        rows: Its ended trials, as :func:`search.reporting.rows.rows_of` has them, the best first.
        curves: Scores by step, in the order of trials.
        front: Numbers of the trials on the Pareto front of score and costs, or of score and seconds.
        importances: The fields that mattered, as far as the trials can tell.
        layers: How many blocks to train, likewise.
        searched: Searched fields, the most important first.
        winner: None until the search has ended once.
        evidence: The winner's answers for the test images; None where they are not kept.
        mistakes: Pictures of its worst mistakes, PNG.
        pictures: For a dense task, images with truth and prediction side by side, PNG.
        legend: The colour of each class in these pictures; empty where they need none.
        images: How many images each split has, and how many classes there are; empty where MLflow does not say.
        config: The study's configuration.
        tags: Tags of the study's run.
        seconds_spared: By trial, seconds that cached features saved (estimated).
        foreseen: Trials that the learnt policy chose and that completed.
        expected: What more search is expected to bring, as a sentence; empty where the learnt policy did not search.
        began: When the first trial began.
        ended: When the last trial ended.
    """

    name: str
    metric: str
    is_lower_better: bool
    costs: list[str]
    rows: list[dict[str, Any]]
    curves: list[Curve]
    front: list[int]
    importances: Importances
    layers: Layers
    searched: list[str]
    winner: Winner | None
    evidence: dict[str, Any] | None
    mistakes: list[bytes]
    pictures: list[bytes]
    legend: dict[str, str]
    images: dict[str, int]
    config: dict[str, Any]
    tags: dict[str, str]
    seconds_spared: dict[int, float]
    foreseen: list[Foreseen]
    expected: str
    began: datetime | None
    ended: datetime | None
    _by_number: dict[int, dict[str, Any]] = field(default_factory=dict)

    def row(self, number: int) -> dict[str, Any]:
        """A trial's row."""
        if not self._by_number:
            self._by_number.update({row["trial"]: row for row in self.rows})
        return self._by_number[number]

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the winner, or of the best trial so far where there is no winner yet."""
        if self.winner is not None:
            return self.row(self.winner.trial)
        return self.complete[0] if self.complete else None

    @property
    def complete(self) -> list[dict[str, Any]]:
        """Rows of the trials that completed, the best first."""
        return [row for row in self.rows if row["outcome"] == "complete"]


def summarize(stored: StoredStudy, temporary: Path | None = None) -> Summary:
    """Gather everything about a study from its stores.

    Args:
        stored: The stored study.
        temporary: Folder for temporary files; None for the system's.

    Raises:
        ConfigError: MLflow's store cannot be read, or the study has no run there yet.
    """
    study, trials = stored.study, stored.study.get_trials(deepcopy=False)
    rows = rows_of(stored, top=None, everything=True)
    labels = {row["trial"]: row["name"] for row in rows}
    told = [trial for trial in trials if outcome_of(trial) is not None]
    winner = study.user_attrs.get(WINNER)
    is_lower_better = study.directions[0] == StudyDirection.MINIMIZE
    front = pareto_front(study) if stored.costs else _front_of_seconds(ranked(study))
    began = [trial.datetime_start for trial in told if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in told if trial.datetime_complete is not None]
    of_runs = _read_runs(stored, temporary)
    return Summary(
        name=stored.name,
        metric=stored.metric,
        is_lower_better=is_lower_better,
        costs=stored.costs,
        rows=rows,
        curves=[
            Curve(
                trial.number,
                labels[trial.number],
                list(trial.intermediate_values),
                list(trial.intermediate_values.values()),
                outcome_of(trial) or "",
            )
            for trial in told
            if trial.intermediate_values
        ],
        front=[trial.number for trial in front],
        importances=importances(study),
        layers=which_layers(study),
        searched=searched_fields([stored]),
        winner=Winner.from_dict(winner) if winner is not None else None,
        seconds_spared={t.number: t.user_attrs[SPARED] for t in told if SPARED in t.user_attrs},
        foreseen=_foreseen(trials),
        expected=Expected(**study.user_attrs[EXPECTED]).sentence if EXPECTED in study.user_attrs else "",
        began=min(began, default=None),
        ended=max(ended, default=None),
        evidence=of_runs.evidence,
        mistakes=of_runs.mistakes,
        pictures=of_runs.pictures,
        legend=of_runs.legend,
        images=of_runs.images,
        config=of_runs.config,
        tags=of_runs.tags,
    )


@dataclass(frozen=True, slots=True)
class _OfRuns:
    """The part of a summary that MLflow stores."""

    evidence: dict[str, Any] | None
    mistakes: list[bytes]
    pictures: list[bytes]
    legend: dict[str, str]
    images: dict[str, int]
    config: dict[str, Any]
    tags: dict[str, str]


def _read_runs(stored: StoredStudy, temporary: Path | None) -> _OfRuns:
    parent = stored.study.user_attrs.get(PARENT_RUN)
    if parent is None:
        raise ConfigError(f"study {stored.name!r} has no run in MLflow yet")
    with stored.reading_runs() as client, temporary_folder(temporary) as folder:
        run = client.get_run(parent)
        config = json.loads(_fetched(client, parent, "study.json", folder).read_text(encoding="utf-8"))
        evidence, mistakes = None, []
        if _has(client, parent, EVIDENCE_FILE):
            evidence = json.loads(_fetched(client, parent, EVIDENCE_FILE, folder).read_text(encoding="utf-8"))
            # A folder at once: MLflow looks the run up anew for each download.
            if evidence["mistakes"]:
                shown = _fetched(client, parent, MISTAKES_FOLDER, folder)
                mistakes = [(shown / f"{place}.png").read_bytes() for place in range(len(evidence["mistakes"]))]
        pictures = []
        if client.list_artifacts(parent, "pictures"):
            found = _fetched(client, parent, "pictures", folder)
            pictures = [file.read_bytes() for file in sorted(found.iterdir())]
        legend = {}
        if pictures and _has(client, parent, LEGEND_FILE):
            legend = json.loads(_fetched(client, parent, LEGEND_FILE, folder).read_text(encoding="utf-8"))
    return _OfRuns(evidence, mistakes, pictures, legend, _counts_of(run), config, dict(run.data.tags))


def _counts_of(run: Run) -> dict[str, int]:
    """Images of each split, by MLflow's name of its use, and classes, as the run's data sets say."""
    found: dict[str, int] = {}
    for used in run.inputs.dataset_inputs if run.inputs is not None else ():
        profile = json.loads(used.dataset.profile or "{}")
        if "images" in profile:
            found |= {tag.value: profile["images"] for tag in used.tags if tag.key == MLFLOW_DATASET_CONTEXT}
            found["classes"] = profile["classes"]
    return found


def _has(client: MlflowClient, run: str, path: str) -> bool:
    return path in {found.path for found in client.list_artifacts(run, str(Path(path).parent))}


def _fetched(client: MlflowClient, run: str, path: str, folder: Path) -> Path:
    return Path(client.download_artifacts(run, path, str(folder)))


def _foreseen(trials: list[FrozenTrial]) -> list[Foreseen]:
    """Of each completed trial, what was predicted when its strategy was chosen, before any pause."""
    found = []
    for trial in trials:
        score = score_of(trial)
        if outcome_of(trial) != "complete" or score is None:
            continue
        first = trial
        while CONTINUES in first.user_attrs:
            first = trials[first.user_attrs[CONTINUES]]
        told = first.user_attrs.get(PREDICTED, {})
        if "low" in told:
            found.append(Foreseen(trial.number, score, told["score"], told["low"], told["high"]))
    return found


def _front_of_seconds(best: list[FrozenTrial]) -> list[FrozenTrial]:
    """The Pareto front of score and seconds, of trials ranked by score."""
    front: list[FrozenTrial] = []
    fastest = float("inf")
    for trial in best:
        seconds = trial.duration.total_seconds() if trial.duration else float("inf")
        if seconds < fastest:
            fastest = seconds
            front.append(trial)
    return front


def presets_of(summary: Summary) -> list[dict[str, Any]]:
    """Rows of the presets that completed, the best first."""
    return [row for row in summary.complete if row["preset"]]
