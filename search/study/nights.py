"""A night of searching: a study's share of it, and the summary of all studies."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from search.config import HousekeepingConfig, StudyConfig
from search.scheduling import Ledger, ranked
from search.storage import PAUSED, WINNER, open_one, open_stored, score_of
from search.study.cleanup import tidy
from search.study.generations import first_name
from search.study.lifecycle import NoTrialFinishedError, run_study
from search.winner import Verdict, Winner, describe_verdict, last_verdict


@dataclass(frozen=True, slots=True)
class Night:
    """The results of a night for one study.

    Args:
        study: The name of the study's generation.
        began: Trials that counted against the budget before the night.
        trials: Trials that count now; a killed trial and its retry count as one.
        best: The best validation score; None without a completed trial.
        winner: The winner; None without one.
        verdict: How the winner compared as the challenger; None where nothing was compared.
        rescored: The champion's score on changed images, in words; empty where the images are the same.
        removed: Old checkpoints and cache entries that were removed.
        problem: Why the study failed; empty if it did not.
        is_input: Whether the problem lies in the configuration, the data or the weights.
    """

    study: str
    began: int = 0
    trials: int = 0
    best: float | None = None
    winner: Winner | None = None
    verdict: Verdict | None = None
    rescored: str = ""
    removed: int = 0
    problem: str = ""
    is_input: bool = False


def for_a_night(config: StudyConfig, keys: Collection[str]) -> StudyConfig:
    """The configuration with the defaults of a night.

    The number of trials has no end, a trial may stop within, all generations share one registered model, and the winner
    may be promoted.

    Args:
        config: The study's.
        keys: Keys that the user gave; their values stay.
    """
    changes: dict[str, object] = {}
    ends: dict[str, object] = {} if "budget.trials" in keys else {"trials": None}
    if "budget.finish_trials" not in keys:
        ends["finish_trials"] = False
    changes["budget"] = config.budget.model_copy(update=ends)
    # All generations compete for one model.
    rules: dict[str, object] = {"name": config.champion.name or config.name}
    if "champion.promote" not in keys:
        rules["promote"] = True
    changes["champion"] = config.champion.model_copy(update=rules)
    return config.model_copy(update=changes)


def search_night(config: StudyConfig, hours: float, night: Night) -> Night:
    """Search a generation of a study for some hours, and remove old checkpoints if the study asks for that.

    Args:
        config: The generation's.
        hours: How long.
        night: What is known of the night so far.

    Raises:
        UnfreezeError: The configuration, data or weights cannot be used, or every trial failed.
    """
    budget = config.budget.model_copy(update={"hours": hours})
    nothing_yet = None
    try:
        run_study(config.model_copy(update={"budget": budget}))
    except NoTrialFinishedError as error:
        nothing_yet = error
    stored = open_one(config.store.url, config.tracking.uri, str(config.name))
    # A trial may be longer than a night.
    if nothing_yet is not None and not any(map(_goes_on, stored.study.get_trials(deepcopy=False))):
        raise nothing_yet
    removed: list[str] = []
    if config.housekeeping != HousekeepingConfig():
        name = first_name(stored.name)
        everyone = open_stored([f"store.url={config.store.url}", f"tracking.uri={config.tracking.uri}"])
        generations = [other for other in everyone if first_name(other.name) == name]
        removed = tidy(generations, Path(config.data.cache), config.housekeeping)
    best = ranked(stored.study)
    winner = stored.study.user_attrs.get(WINNER)
    return replace(
        night,
        trials=Ledger(stored.study).counted,
        best=score_of(best[0]) if best else None,
        winner=Winner.from_dict(winner) if winner is not None else None,
        verdict=last_verdict(stored.study) if config.champion.promote else None,
        removed=len(removed),
    )


def _goes_on(trial: FrozenTrial) -> bool:
    """Whether a trial may end in a later night."""
    return trial.state == TrialState.WAITING or PAUSED in trial.user_attrs


def as_markdown(nights: Sequence[Night], seconds: float) -> str:
    """The summary of a night, as Markdown.

    Args:
        nights: The results of each study.
        seconds: How long the night took.
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    lines = [f"# Night of {datetime.now():%Y-%m-%d}, {hours} h {minutes:02} min", ""]
    for night in nights:
        lines.append(f"## {night.study}")
        if night.rescored:
            lines.append(f"- New images: {night.rescored}")
        if night.problem:
            lines.append(f"- Failed: {night.problem}")
        else:
            new = night.trials - night.began
            lines.append(f"- Trials: {new} new, {night.trials} in all")
        if night.winner is not None and night.best is not None:
            winner = night.winner
            scores = f"validation {winner.metric} {night.best:.4f}, test {winner.test_score:.4f}"
            lines.append(f"- Best: trial {winner.trial}, {scores} ({winner.interval})")
        if night.verdict is not None:
            lines.append(f"- {describe_verdict(night.verdict)}")
        if night.removed:
            lines.append(f"- Removed: {night.removed} old checkpoints and cache entries")
        lines.append("")
    return "\n".join(lines)
