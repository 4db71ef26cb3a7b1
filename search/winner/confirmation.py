"""The best strategies trained again with new seeds, since the best of many scores is too good by chance."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from optuna.trial import FrozenTrial

from search.processes import TimeIsOverError, stop_if_asked, time_limit
from search.scheduling import HOURS_ARE_OVER, Decision
from search.storage import CONFIRMATIONS, DEPTH, FINGERPRINT, MODEL, SEED, STRATEGY, score_of
from search.tracking import WriteError, log_plan
from search.trials import OpenStudy, Sampled, make_trainer, reason_of
from search.winner.means import Bounds, bounds_of, mean_interval
from search.winner.winner import Confirmed
from strategies import Strategy, TrialError, one_line
from trainers import free_memory, leave_onednn_if_broken

# Far above the seeds that the search gives when it tries a strategy again.
_FIRST_SEED = 100_000


def search_deadline(open_study: OpenStudy, best: Sequence[FrozenTrial]) -> float:
    """When, on ``time.monotonic``, the search has to end so that the best can be confirmed within the time.

    Training a trial again is expected to take as long as the trial took; confirmation gets half of the time at most.

    Args:
        open_study: The study.
        best: Its completed trials so far, best first.
    """
    seconds = open_study.config.budget.seconds
    if not open_study.config.confirm.seeds or seconds is None:
        return open_study.deadline
    stored = _stored_scores(open_study)
    needed = 0.0
    for trial in _contenders(open_study, best):
        assert trial.duration is not None, "only completed trials are confirmed"
        missing = set(map(str, _seeds(open_study))) - stored.get(str(trial.number), {}).keys()
        needed += len(missing) * trial.duration.total_seconds()
    return open_study.deadline - min(needed, seconds / 2)


def confirm(open_study: OpenStudy, best: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, Confirmed]]:
    """Train the best strategies with the study's number of new seeds, and rank them by their mean score.

    All strategies get the same seeds. Where the time ends before all are trained (``budget.finish_trials``), only seeds
    count with which every strategy was trained. Scores of an earlier end of the study are used again.

    Args:
        open_study: The study.
        best: Its completed trials, best first.

    Returns:
        Trials and their strategies' scores, the best first; empty where the time was too short for the first seed. A
        strategy that failed with any seed comes last.

    Raises:
        KeyboardInterrupt, SystemExit: A signal asked for it.
        WriteError: MLflow refuses a write, for example because its disk is full.
    """
    contenders, seeds = _contenders(open_study, best), _seeds(open_study)
    scores: list[list[float | None]] = []
    try:
        for seed in seeds:
            of_seed = _scores_with(open_study, contenders, seed)
            if of_seed is None:
                done = f"{len(scores)} of {len(seeds)} new seeds"
                open_study.watcher.say(f"The time is over: the best were trained with {done}")
                break
            scores.append(of_seed)
    finally:
        open_study.rank_group.close()
    if not scores:
        return []
    bounds = bounds_of(open_study.config.metric, open_study.lower_is_better)
    by_trial = list(zip(*scores, strict=True))
    found = [
        (trial, confirmed_of(trial, of_trial, by_trial[0], bounds))
        for trial, of_trial in zip(contenders, by_trial, strict=True)
    ]
    sign = 1 if open_study.lower_is_better else -1
    # Equal means stay in the order of the search.
    return sorted(found, key=lambda one: math.inf if one[1].mean is None else sign * one[1].mean)


def _contenders(open_study: OpenStudy, best: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best trials of different strategies. Each has a kept checkpoint, since one of them will win."""
    by_strategy: dict[str, FrozenTrial] = {}
    for trial in best[: open_study.config.checkpoints.keep]:
        by_strategy.setdefault(trial.user_attrs[FINGERPRINT], trial)
    return list(by_strategy.values())[: open_study.config.confirm.top]


def _seeds(open_study: OpenStudy) -> list[int]:
    return [(open_study.config.seed + _FIRST_SEED + place) % 2**32 for place in range(open_study.config.confirm.seeds)]


def _stored_scores(open_study: OpenStudy) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = open_study.study.user_attrs.get(CONFIRMATIONS, {})
    return found


def _scores_with(open_study: OpenStudy, contenders: Sequence[FrozenTrial], seed: int) -> list[float | None] | None:
    """The scores of all contenders with a seed, None for a failed one; None in all where the time ends before."""
    scores: list[float | None] = []
    for trial in contenders:
        score = _score(open_study, trial, seed)
        if isinstance(score, Decision):
            return None
        scores.append(score)
    return scores


def _score(open_study: OpenStudy, trial: FrozenTrial, seed: int) -> float | Decision | None:
    """The best epoch's score of a strategy with a seed; None if training failed; a decision if the time is over."""
    stored = _stored_scores(open_study)
    of_trial = stored.setdefault(str(trial.number), {})
    if str(seed) in of_trial:
        return of_trial[str(seed)]
    if open_study.is_out_of_time():
        return HOURS_ARE_OVER
    run, score = _train(open_study, trial, seed)
    if not isinstance(score, Decision):
        of_trial[str(seed)] = score
        open_study.study.set_user_attr(CONFIRMATIONS, stored)
    if isinstance(score, float):
        # Not before the score is stored: a run that has ended would be there twice if the training was tried again.
        open_study.tracker.finish(run, "complete")
    return score


def _train(open_study: OpenStudy, trial: FrozenTrial, seed: int) -> tuple[str, float | Decision | None]:
    """Train a strategy with a seed; its run, which runs on after a success, and its score.

    Everything logged has been written on return, since the strategy is not trained again.
    """
    source, strategy = open_study.source_of(trial), Strategy.from_dict(trial.user_attrs[STRATEGY])
    label = one_line(strategy.canonical(source.num_blocks), source.name if open_study.chooses_model else "")
    what = f"{trial.number} · {label} · seed {seed}"
    tags = {"unfreeze.kind": "confirmation", "unfreeze.confirms": trial.number, "unfreeze.seed": seed}
    tags |= open_study.run_tags
    run = open_study.tracker.start_trial(open_study.parent_run, what, tags)
    facts = {MODEL: source.name, **strategy.to_dict(), DEPTH: trial.user_attrs[DEPTH], SEED: seed}
    open_study.tracker.log(run, params=facts)
    score: float | Decision | None = None
    try:
        with time_limit(open_study.config.budget.trial_minutes, open_study.cut_at):
            score = _best_score(open_study, run, Sampled(source, strategy, seed, trial.user_attrs[FINGERPRINT]))
        if isinstance(score, Decision):
            # The next end of the study trains this seed again.
            open_study.tracker.try_to_finish(run, "killed")
        else:
            open_study.tracker.log(run, metrics={"score": score})
            open_study.tracker.flush()
    except TimeIsOverError:
        open_study.tracker.try_to_finish(run, "killed")
        score = HOURS_ARE_OVER
    except (KeyboardInterrupt, SystemExit, WriteError):
        # The strategy is not at fault: the next end of the study trains it again.
        open_study.tracker.try_to_finish(run, "killed")
        raise
    except Exception as error:  # any error is the reason for this training's failure
        leave_onednn_if_broken(error)
        open_study.tracker.finish(run, "failed", reason_of(error))
        open_study.tracker.flush()
        open_study.watcher.say(f"confirm {what}: failed: {reason_of(error)}")
    free_memory()
    if isinstance(score, float):
        open_study.watcher.say(f"confirm {what}: {open_study.config.metric} {score:.4f}")
    return run, score


def _best_score(open_study: OpenStudy, run: str, sampled: Sampled) -> float | Decision:
    """Train to the end and return the best epoch's score, as in any trial; or that the time is over."""
    scores: list[float] = []
    source, strategy, seed = sampled.source, sampled.strategy, sampled.seed
    with open_study.rank_group.training(source.name, strategy, seed) as ranks:
        trainer = make_trainer(open_study.materials, open_study.config.pruner, source, strategy, seed, ranks=ranks)
        log_plan(open_study.tracker, run, strategy, trainer.plan.manifest(), trainer.reused.reason)
        for result in open_study.rank_group.epochs(trainer):
            stop_if_asked()
            open_study.tracker.log(run, step=result.step, metrics=result.metrics)
            if result.ends_epoch:
                scores.append(result.metrics[f"val_{open_study.config.metric}"])
            if result.epoch < trainer.strategy.epochs and open_study.is_out_of_time(result.seconds):
                return HOURS_ARE_OVER
    if any(map(math.isnan, scores)):
        raise TrialError(f"validation {open_study.config.metric} is not a number")
    return min(scores) if open_study.lower_is_better else max(scores)


def confirmed_of(
    trial: FrozenTrial, scores: Sequence[float | None], first: Sequence[float | None], bounds: Bounds
) -> Confirmed:
    """A strategy's scores with new seeds, their mean, and the mean of the differences from another strategy's scores.

    Args:
        trial: The trial that tried the strategy in the search.
        scores: A score a seed; None where training failed.
        first: The scores of the strategy that was best in the search, with the same seeds. The new seeds did not choose
            it, so the differences from it are not too low by chance.
        bounds: The lowest and the highest score that the metric can give.
    """
    searched = score_of(trial)
    assert searched is not None, "only completed trials are confirmed"
    found = [score for score in scores if score is not None]
    if len(found) < len(scores):
        return Confirmed(trial.number, searched, tuple(scores), None, None, None)
    low, high = mean_interval(found, bounds) or (None, None)
    confirmed = Confirmed(trial.number, searched, tuple(scores), mean(found), low, high)
    if scores is first or None in first:
        return confirmed
    # A seed draws the same images, batches and start for each strategy, which makes scores of a seed alike.
    gaps = [score - other for score, other in zip(found, first, strict=True) if other is not None]
    reach = bounds[1] - bounds[0]
    gap_low, gap_high = mean_interval(gaps, (-reach, reach)) or (None, None)
    return replace(confirmed, difference=mean(gaps), difference_low=gap_low, difference_high=gap_high)
