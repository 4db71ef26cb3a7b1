"""The end of a study: the winner is chosen, scored on the test split and logged."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from safetensors.torch import load_file
from torch import Tensor

from search.processes import temporary_folder
from search.storage import RUN_ID, WINNER, score_of, sync_log
from search.trials import OpenStudy
from search.winner.evidence import log_evidence
from search.winner.logged_model import log_model
from search.winner.mixtures import Judge, choose, make_judge, soup_trials
from search.winner.winner import GREEDY_SOUP, TRIAL, UNIFORM_SOUP, Calibration, Candidate, Confirmed, Winner
from trainers import (
    CALIBRATED_TASKS,
    TASKS,
    Groups,
    State,
    Task,
    calibration_error,
    calibration_interval,
    fit_temperature,
)

CANDIDATES_FILE = "candidates.json"


def crown(open_study: OpenStudy, trial: FrozenTrial, confirmed: Sequence[Confirmed] = ()) -> Winner:
    """Choose between the best trial and mixtures of weights, score the choice on the test split and log it as a model.

    A winner that was crowned before is returned unchanged, unless more trials or other settings of ``after`` change the
    candidates. If the choice is then the same, its test score and its model stay.

    Args:
        open_study: The study.
        trial: Its best trial.
        confirmed: The best strategies' scores with new seeds; empty where none were trained.

    Raises:
        DamagedFileError: The trial's checkpoint is damaged.
        UnfreezeError: The trial's checkpoint is gone.
    """
    stored = open_study.study.user_attrs.get(WINNER)
    crowned = Winner.from_dict(stored) if stored is not None and stored["trial"] == trial.number else None
    asked = _asked(open_study)
    if crowned is not None and _is_answered(crowned, asked):
        winner = replace(crowned, confirmed=tuple(confirmed))
        if winner != crowned:
            open_study.study.set_user_attr(WINNER, asdict(winner))
        return winner
    with temporary_folder(open_study.temporary) as folder:
        checkpoint = open_study.tracker.reader.fetch_checkpoint(trial.user_attrs[RUN_ID], folder)
        judge = make_judge(open_study, trial, load_file(checkpoint))
        weights, candidates, chosen = choose(judge, trial, folder)
        if crowned is not None and _is_the_same(crowned, chosen, asked):
            winner = crowned
        else:
            winner = _present(open_study, trial, judge, weights, folder, is_mixed=chosen.kind != TRIAL)
    winner = replace(winner, kind=chosen.kind, trials=chosen.trials, candidates=candidates, asked=asked)
    winner = replace(winner, confirmed=tuple(confirmed))
    open_study.tracker.log(open_study.parent_run, tags={"unfreeze.winner_kind": winner.kind})
    open_study.tracker.log_json(
        open_study.parent_run,
        CANDIDATES_FILE,
        {"metric": winner.metric, "winner": winner.kind, "candidates": [asdict(one) for one in candidates]},
    )
    # Once Optuna names the winner, nothing of it is logged again: all must be in MLflow, or wait on disk for it.
    open_study.tracker.flush()
    sync_log(open_study.tracker.uri)
    open_study.study.set_user_attr(WINNER, asdict(winner))
    return winner


def _asked(open_study: OpenStudy) -> dict[str, Any]:
    after, serve = open_study.config.after, open_study.config.serve
    # The model is logged anew where a key of these changes. Earlier versions stored none, so only other values than the
    # defaults are.
    served: dict[str, Any] = {"allow_paths": True} if serve.allow_paths else {}
    if serve.precision != "fp32":
        served["serve.precision"] = serve.precision
    soups = [t.number for t in soup_trials(open_study)] if after.soups else []
    return {**after.model_dump(), "soup_trials": soups, **served}


def _is_answered(crowned: Winner, asked: Mapping[str, Any]) -> bool:
    """Whether the choice still depends on the same settings and trials; earlier versions stored none of them."""
    if crowned.asked is None:
        return not (asked["wise_ft"] or asked["soups"] or "allow_paths" in asked)
    return crowned.asked == asked


def _is_the_same(crowned: Winner, chosen: Candidate, asked: Mapping[str, Any]) -> bool:
    """Whether the choice is the crowned winner's weights: a greedy soup of all members is the uniform one."""
    if crowned.asked is None or crowned.trials != chosen.trials:
        return False
    if any(crowned.asked.get(key) != asked.get(key) for key in ("calibrate", "allow_paths", "serve.precision")):
        return False
    return crowned.kind == chosen.kind or {crowned.kind, chosen.kind} == {UNIFORM_SOUP, GREEDY_SOUP}


def _present(
    open_study: OpenStudy, trial: FrozenTrial, judge: Judge, weights: State, folder: Path, is_mixed: bool
) -> Winner:
    """Score the chosen weights on the test split and log them as a model."""
    task, metric = TASKS[open_study.materials.data.task], open_study.config.metric
    judge.load(weights)
    temperature = None
    if open_study.config.after.calibrate and task.name in CALIBRATED_TASKS:
        stored = None if is_mixed else judge.stored_outputs()
        temperature = fit_temperature(task.name, *judge.outputs(open_study.materials.data.val, stored))
    outputs, targets = judge.outputs(open_study.materials.data.test)
    groups = open_study.materials.data.groups.get("test")
    calibration = None if temperature is None else _calibration(task.name, temperature, outputs, targets, groups)
    # Mixed weights belong to the study's run, not to the trial's.
    run_id = open_study.parent_run if is_mixed else open_study.tracker.reader.id_of(trial.user_attrs[RUN_ID])
    scored, served = open_study.materials.device.precision, open_study.config.serve.precision
    if scored != served:
        open_study.watcher.say(
            f"Serve   the model computes in {served}, and was scored in {scored}: answers differ by rounding "
            f"(serve.precision={scored} serves as scored)"
        )
    found = {f"test_{name}": value for name, value in task.scores(outputs, targets).items()}
    if calibration is not None:
        names = ("temperature", "test_ece", "test_ece_calibrated")
        found |= {name: getattr(calibration, name) for name in names}
    found |= _of_classes(task, outputs, targets, open_study.materials.data.classes)
    low, high = task.interval(metric, outputs, targets, groups)
    test = {"metric": metric, "score": found[f"test_{metric}"], "low": low, "high": high, "images": len(targets)}
    model_uri = log_model(open_study, judge.source, run_id, weights, folder, judge.strategy, temperature, test)
    log_evidence(open_study, outputs, targets, temperature)
    if not is_mixed:
        open_study.tracker.log(run_id, metrics=found)
    open_study.tracker.log(
        open_study.parent_run,
        metrics={"best_score": score_of(trial) or 0.0, **found},
        tags={"unfreeze.winner": trial.number, "unfreeze.model_uri": model_uri},
    )
    score = found[f"test_{metric}"]
    return Winner(
        trial.number,
        metric,
        score,
        low,
        high,
        len(targets),
        model_uri,
        calibration=calibration,
        test_groups=None if groups is None else len(np.unique(groups)),
        test_seen=len(open_study.materials.data.seen),
    )


def _of_classes(task: Task, outputs: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """A dense task's finite score of each class, by a metric name that MLflow accepts."""
    if task.dense is None:
        return {}
    name, of_class = task.dense.per_class
    values = of_class(outputs, targets, len(classes)).tolist()
    names = (re.sub(r"[^\w .:-]", "_", one, flags=re.ASCII) for one in classes)
    return {f"test_{name}/{one}": value for one, value in zip(names, values, strict=True) if math.isfinite(value)}


def _calibration(task: str, temperature: float, outputs: Tensor, targets: Tensor, groups: Groups | None) -> Calibration:
    before, after = (calibration_error(task, outputs.double() / t, targets) for t in (1.0, temperature))
    low, high = calibration_interval(task, outputs.double() / temperature, targets, groups)
    return Calibration(temperature, before, after, low, high)
