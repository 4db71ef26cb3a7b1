"""The end of a study: the winner is chosen, scored on the test split and logged."""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from safetensors.torch import load_file
from torch import Tensor

from search.after import GREEDY_SOUP, TRIAL, UNIFORM_SOUP, Candidate, Judge, choose, make_judge, soup_trials
from search.evidence import log_evidence
from search.logged_model import log_model
from search.outcome import RUN_ID, score_of
from search.trial import Bench
from trainers import CALIBRATED_TASKS, TASKS, State, Task, calibration_error, fit_temperature

WINNER = "winner"
CANDIDATES_FILE = "candidates.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The winner's temperature, and its expected calibration error on the test split without and with it."""

    temperature: float
    test_ece: float
    test_ece_calibrated: float


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a strategy that was among the best came to with new seeds.

    Args:
        trial: Number of the trial that had searched it.
        searched: That trial's score, by which it was among the best, and which is too good for that.
        scores: With each new seed; None where training failed.
        mean: Of the scores; None if any failed.
        low: Where the mean's 95% interval begins, by Student's t; None of a single seed, or of equal scores.
        high: Where it ends.
    """

    trial: int
    searched: float
    scores: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Winner:
    """The best trial, or what was mixed from it: its score on the untouched test split, and where its model is.

    Args:
        trial: Number of the best trial.
        metric: The study's metric.
        test_score: The winner's score on the test split.
        test_low: Where its 95% interval begins.
        test_high: Where its 95% interval ends.
        test_images: Images of the test split.
        model_uri: The winner as an MLflow model.
        kind: ``trial``, ``wise_ft alpha=...``, ``uniform_soup`` or ``greedy_soup``.
        trials: Numbers of the trials whose weights are in it.
        candidates: All that were scored on validation, the best trial first.
        calibration: None where there are no probabilities, or nobody wanted it.
        asked: What the choice depended on besides the trial.
        confirmed: The best strategies with new seeds, best first; empty if none was asked for.
    """

    trial: int
    metric: str
    test_score: float
    test_low: float
    test_high: float
    test_images: int
    model_uri: str
    kind: str = TRIAL
    trials: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    calibration: Calibration | None = None
    asked: dict[str, Any] | None = None
    confirmed: tuple[Confirmed, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Winner":
        """A winner as it was stored, by this version or an earlier one."""
        read = {**values, "trials": tuple(values.get("trials", ()))}
        read["candidates"] = tuple(
            Candidate(one["kind"], tuple(one["trials"]), one["score"]) for one in values.get("candidates", ())
        )
        read["confirmed"] = tuple(
            Confirmed(**{**one, "scores": tuple(one["scores"])}) for one in values.get("confirmed", ())
        )
        read["calibration"] = Calibration(**values["calibration"]) if values.get("calibration") else None
        return cls(**read)


def crown(bench: Bench, trial: FrozenTrial, confirmed: Sequence[Confirmed] = ()) -> Winner:
    """Choose among the best trial and what is mixed from it, score the choice on the test split and log it as a model.

    A winner already crowned is returned as it was, unless more trials or other settings of ``after`` change what there
    is to choose from; and if the choice is then the same, its test score and its model stay.

    Args:
        bench: Of the study.
        trial: Its best trial.
        confirmed: Why that is the best, if new seeds have said so.

    Raises:
        UnfreezeError: Its checkpoint is gone.
    """
    stored = bench.study.user_attrs.get(WINNER)
    known = Winner.from_dict(stored) if stored is not None and stored["trial"] == trial.number else None
    asked = _asked(bench)
    if known is not None and _is_answered(known, asked):
        winner = replace(known, confirmed=tuple(confirmed))
        if winner != known:
            bench.study.set_user_attr(WINNER, asdict(winner))
        return winner
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = bench.tracker.fetch_checkpoint(trial.user_attrs[RUN_ID], folder)
        judge = make_judge(bench, trial, load_file(checkpoint))
        weights, candidates, chosen = choose(judge, trial, folder)
        if known is not None and _is_the_same(known, chosen, asked):
            winner = known
        else:
            winner = _present(bench, trial, judge, weights, folder, is_mixed=chosen.kind != TRIAL)
    winner = replace(winner, kind=chosen.kind, trials=chosen.trials, candidates=candidates, asked=asked)
    winner = replace(winner, confirmed=tuple(confirmed))
    bench.tracker.log(bench.parent_run, tags={"unfreeze.winner_kind": winner.kind})
    bench.tracker.log_json(
        bench.parent_run,
        CANDIDATES_FILE,
        {"metric": winner.metric, "winner": winner.kind, "candidates": [asdict(one) for one in candidates]},
    )
    bench.study.set_user_attr(WINNER, asdict(winner))
    return winner


def _asked(bench: Bench) -> dict[str, Any]:
    after = bench.config.after
    return {**after.model_dump(), "soup_trials": [t.number for t in soup_trials(bench)] if after.soups else []}


def _is_answered(known: Winner, asked: Mapping[str, Any]) -> bool:
    """Whether nothing that the choice depended on has changed; earlier versions had nothing to choose."""
    if known.asked is None:
        return not (asked["wise_ft"] or asked["soups"])
    return known.asked == asked


def _is_the_same(known: Winner, chosen: Candidate, asked: Mapping[str, Any]) -> bool:
    """Whether the choice is the known winner's weights: a greedy soup of all members is the uniform one."""
    if known.asked is None or known.asked.get("calibrate") != asked["calibrate"] or known.trials != chosen.trials:
        return False
    return known.kind == chosen.kind or {known.kind, chosen.kind} == {UNIFORM_SOUP, GREEDY_SOUP}


def _present(bench: Bench, trial: FrozenTrial, judge: Judge, weights: State, folder: Path, is_mixed: bool) -> Winner:
    """Score the chosen weights on the test split and log them as a model."""
    task, metric = TASKS[bench.data.task], bench.config.metric
    judge.load(weights)
    temperature = None
    if bench.config.after.calibrate and task.name in CALIBRATED_TASKS:
        known = None if is_mixed else judge.known_of_trial()
        temperature = fit_temperature(task.name, *judge.outputs(bench.data.val, known))
    outputs, targets = judge.outputs(bench.data.test)
    calibration = None if temperature is None else _calibration(task.name, temperature, outputs, targets)
    # Weights that are not the trial's own belong to the study.
    run_id = bench.parent_run if is_mixed else bench.tracker.id_of(trial.user_attrs[RUN_ID])
    model_uri = log_model(bench, judge.source, run_id, weights, folder, judge.strategy, temperature)
    found = {f"test_{name}": value for name, value in task.scores(outputs, targets).items()}
    found |= asdict(calibration) if calibration is not None else {}
    found |= _of_classes(task, outputs, targets, bench.data.classes)
    low, high = task.interval(metric, outputs, targets)
    log_evidence(bench, outputs, targets, temperature)
    if not is_mixed:
        bench.tracker.log(run_id, metrics=found)
    bench.tracker.log(
        bench.parent_run,
        metrics={"best_score": score_of(trial) or 0.0, **found},
        tags={"unfreeze.winner": trial.number, "unfreeze.model_uri": model_uri},
    )
    score = found[f"test_{metric}"]
    return Winner(trial.number, metric, score, low, high, len(targets), model_uri, calibration=calibration)


def _of_classes(task: Task, outputs: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """A dense task's score of each class that can be scored, by a name that MLflow takes."""
    if task.dense is None:
        return {}
    name, of_class = task.dense.per_class
    values = of_class(outputs, targets, len(classes)).tolist()
    names = (re.sub(r"[^\w .:-]", "_", one, flags=re.ASCII) for one in classes)
    return {f"test_{name}/{one}": value for one, value in zip(names, values, strict=True) if math.isfinite(value)}


def _calibration(task: str, temperature: float, outputs: Tensor, targets: Tensor) -> Calibration:
    before, after = (calibration_error(task, outputs.double() / t, targets) for t in (1.0, temperature))
    return Calibration(temperature, before, after)
