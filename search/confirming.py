"""The best strategies trained once more with new seeds: a score that was the best of many is too good to rank by."""

import math
from collections.abc import Sequence
from statistics import mean

from optuna.trial import FrozenTrial

from search.outcome import DEPTH, FINGERPRINT, MODEL, SEED, STRATEGY, score_of
from search.statistics import half_width
from search.stopping import stop_if_asked
from search.team import make_trainer
from search.time_limit import time_limit
from search.trial import Bench, OutOfTimeError, Sampled, describe, log_plan, reason_of
from search.winner import Confirmed
from search.writer import WriteError
from strategies import Strategy, TrialError
from trainers import free_memory, leave_onednn_if_broken

# By trial and seed, the score; null where it has none. In the study's attributes, so that none is trained twice.
_SCORES = "confirmations"
# Far above those that the search itself gives a strategy that it tries again.
_FIRST_SEED = 100_000
# Metrics that may be below zero.
_SIGNED = ("r2", "spearman")


def search_deadline(bench: Bench, best: Sequence[FrozenTrial]) -> float:
    """When, on ``time.monotonic``, the search has to end so that the best can be confirmed within the hours.

    Args:
        bench: Of the study.
        best: Its completed trials so far, best first; training them again is taken to take as long as they took, and
            has half of the hours at most.
    """
    hours = bench.config.budget.hours
    if not bench.config.confirm.seeds or hours is None:
        return bench.deadline
    known = _known(bench)
    needed = 0.0
    for trial in _contenders(bench, best):
        assert trial.duration is not None, "only completed trials are confirmed"
        missing = set(map(str, _seeds(bench))) - known.get(str(trial.number), {}).keys()
        needed += len(missing) * trial.duration.total_seconds()
    return bench.deadline - min(needed, hours * 3600 / 2)


def confirm(bench: Bench, best: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, Confirmed]]:
    """Train the best strategies with the study's number of new seeds, and rank them by their mean score.

    All get the same seeds: where the hours end before (``budget.finish_trials=false``), the seeds count that all had.
    What was trained by an earlier end of the study is not trained again.

    Args:
        bench: Of the study.
        best: Its completed trials, best first.

    Returns:
        Trials and what their strategies came to, the best first; nothing where there was no time for all of them. A
        strategy that failed with any seed comes last.

    Raises:
        KeyboardInterrupt, SystemExit: A signal asked for it.
        WriteError: MLflow refuses what is written, such as for lack of room.
    """
    contenders, seeds = _contenders(bench, best), _seeds(bench)
    scores: list[list[float | None]] = []
    try:
        for seed in seeds:
            scores.append([_score(bench, trial, seed) for trial in contenders])
    except OutOfTimeError:
        bench.watcher.say(f"The hours are over: the best were trained with {len(scores)} of {len(seeds)} new seeds")
    finally:
        bench.team.close()
    if not scores:
        return []
    found = [
        (trial, _confirmed(bench, trial, of_trial))
        for trial, of_trial in zip(contenders, zip(*scores, strict=True), strict=True)
    ]
    sign = 1 if bench.lower_is_better else -1
    # Equals stay in the order of the search.
    return sorted(found, key=lambda one: math.inf if one[1].mean is None else sign * one[1].mean)


def _contenders(bench: Bench, best: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best trials of different strategies among those whose checkpoint is kept, since one of them will win."""
    by_strategy: dict[str, FrozenTrial] = {}
    for trial in best[: bench.config.checkpoints.keep]:
        by_strategy.setdefault(trial.user_attrs[FINGERPRINT], trial)
    return list(by_strategy.values())[: bench.config.confirm.top]


def _seeds(bench: Bench) -> list[int]:
    return [(bench.config.seed + _FIRST_SEED + place) % 2**32 for place in range(bench.config.confirm.seeds)]


def _known(bench: Bench) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = bench.study.user_attrs.get(_SCORES, {})
    return found


def _score(bench: Bench, trial: FrozenTrial, seed: int) -> float | None:
    """The best epoch's score of a strategy with a seed; None where training it failed."""
    known = _known(bench)
    of_trial = known.setdefault(str(trial.number), {})
    if str(seed) not in of_trial:
        of_trial[str(seed)] = _train(bench, trial, seed)
        bench.study.set_user_attr(_SCORES, known)
    return of_trial[str(seed)]


def _train(bench: Bench, trial: FrozenTrial, seed: int) -> float | None:
    """Train so; whatever is logged of it is there when this returns, since what was trained is not trained again."""
    if bench.is_out_of_time:
        raise OutOfTimeError
    source, strategy = bench.source_of(trial), Strategy.from_dict(trial.user_attrs[STRATEGY])
    label = describe(strategy.canonical(source.num_blocks), source.name if bench.chooses_model else "")
    what = f"{trial.number} · {label} · seed {seed}"
    tags = {"unfreeze.kind": "confirmation", "unfreeze.confirms": trial.number, **bench.run_tags}
    run = bench.tracker.start_trial(bench.parent_run, what, tags)
    facts = {MODEL: source.name, **strategy.to_dict(), DEPTH: trial.user_attrs[DEPTH], SEED: seed}
    bench.tracker.log(run, params=facts)
    score = None
    try:
        with time_limit(bench.config.budget.trial_minutes):
            score = _best_score(bench, run, Sampled(source, strategy, seed, trial.user_attrs[FINGERPRINT]))
        bench.tracker.log(run, metrics={"score": score})
        bench.tracker.finish(run, "complete")
        bench.tracker.flush()
    except (KeyboardInterrupt, SystemExit, OutOfTimeError, WriteError):
        # It is no fault of the strategy's, which is trained again by the next end of the study.
        bench.tracker.try_to_finish(run, "killed")
        raise
    except Exception as error:  # whatever it is, it is this training's reason
        leave_onednn_if_broken(error)
        bench.tracker.finish(run, "failed", reason_of(error))
        bench.tracker.flush()
        bench.watcher.say(f"confirm {what}: failed: {reason_of(error)}")
    free_memory()
    if score is not None:
        bench.watcher.say(f"confirm {what}: {bench.config.metric} {score:.4f}")
    return score


def _best_score(bench: Bench, run: str, sampled: Sampled) -> float:
    """Train to the end, and take the best epoch's score, as of any trial."""
    scores = []
    with bench.team.training(sampled) as ranks:
        trainer = make_trainer(bench.config, bench, sampled.source, sampled.strategy, sampled.seed, ranks=ranks)
        log_plan(bench, run, sampled.strategy, trainer.plan, trainer.reused.reason)
        for result in bench.team.epochs(trainer):
            stop_if_asked()
            bench.tracker.log(run, step=result.step, metrics=result.metrics)
            if result.ends_epoch:
                scores.append(result.metrics[f"val_{bench.config.metric}"])
            if bench.is_out_of_time and result.epoch < trainer.strategy.epochs:
                raise OutOfTimeError
    if any(map(math.isnan, scores)):
        raise TrialError(f"validation {bench.config.metric} is not a number")
    return min(scores) if bench.lower_is_better else max(scores)


def _confirmed(bench: Bench, trial: FrozenTrial, scores: Sequence[float | None]) -> Confirmed:
    searched = score_of(trial)
    assert searched is not None, "only completed trials are confirmed"
    found = [score for score in scores if score is not None]
    if len(found) < len(scores):
        return Confirmed(trial.number, searched, tuple(scores), None, None, None)
    middle, half = mean(found), half_width(found)
    if half is None:
        return Confirmed(trial.number, searched, tuple(scores), middle, None, None)
    low, high = middle - half, middle + half
    # What no score can be is in no interval: of metrics more is better up to 1, and few go below 0.
    if not bench.lower_is_better:
        high = min(high, 1.0)
    if bench.config.metric not in _SIGNED:
        low = max(low, 0.0)
    return Confirmed(trial.number, searched, tuple(scores), middle, low, high)
