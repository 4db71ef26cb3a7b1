"""Search every night: ``python -m search.nightly study=NAME[,NAME...] budget.hours=8``, from cron or a timer."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from search.command_line import FAILED, exit_code, report_fault
from search.config import HousekeepingConfig, StudyConfig, compose_jobs
from search.processes import importing
from search.study import lock_place
from strategies import ConfigError, TrialError, UnfreezeError, first_line

if TYPE_CHECKING:
    from search.winner import Verdict, Winner

#: Exit code where another night of a study is still under way.
OVERLAPS = 3

_USAGE = """\
The hours are those of the whole night, shared among the studies; what one leaves is the next one's. Each goes on where
it stopped the night before, also within a trial (budget.finish_trials=true trains that to its end first). budget.trials
counts over all nights; without it there is no end of trials.

Where images have changed, the champion is scored on them anew, and a new generation of the study begins (NAME.2) with
the best strategies of the one before. A new study begins with those of studies of similar images. A night's winner
becomes the champion only where it is better beyond chance (champion.promote=false: never).

exit codes: 0 all went well; 1 a study has failed; 2 bad input; 3 another night is under way; 130 and 143 stopped"""


@dataclass(frozen=True, slots=True)
class Night:
    """What a night came to for one study.

    Args:
        study: Its name, that of its generation.
        began: How many trials counted against the budget before.
        trials: How many do now; a killed one and the one that tries it again are one.
        best: The best validation score; None without one.
        winner: The winner, if there is one.
        verdict: What became of it as the challenger.
        rescored: What the champion scores on new images, in words.
        removed: How many old checkpoints and cache entries were removed.
        problem: Why the study has failed; empty if it has not.
        is_input: Whether the problem is one of its configuration, data or weights.
    """

    study: str
    began: int = 0
    trials: int = 0
    best: float | None = None
    winner: "Winner | None" = None
    verdict: "Verdict | None" = None
    rescored: str = ""
    removed: int = 0
    problem: str = ""
    is_input: bool = False


def nightly(overrides: Sequence[str], summary: Path | None, notify: Sequence[str]) -> int:
    """Search each study for its share of the night, and say what came of it.

    Raises:
        ConfigError: Something in the configuration is wrong; nothing was searched.
    """
    keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    if "budget.hours" not in keys:
        raise ConfigError("budget.hours: a night has an end; say when it comes, such as budget.hours=8")
    configs = [_for_a_night(config, keys) for config in compose_jobs(overrides, multirun=True)]
    hours = configs[0].budget.hours
    assert hours is not None, "it was just asked for"
    # Only here: they take seconds to import.
    from filelock import Timeout

    from search.reporting import check_addresses, send
    from search.storage import lock_of

    check_addresses(notify)
    began = time.monotonic()
    with ExitStack() as held:
        for config in configs:
            lock = lock_of(lock_place(config), "night")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"error: another night of study {config.name} is under way", file=sys.stderr)
                return OVERLAPS
            held.callback(lock.release)
        nights = []
        for place, config in enumerate(configs):
            left = hours - (time.monotonic() - began) / 3600
            nights.append(search_for(config, max(0.0, left / (len(configs) - place))))
    text = as_markdown(nights, time.monotonic() - began)
    print(f"\n{text}")
    if summary is not None:
        summary.write_text(text, encoding="utf-8")
    send(notify, _title(nights), text)
    return max((_code(night) for night in nights), default=0)


def _for_a_night(config: StudyConfig, keys: set[str]) -> StudyConfig:
    """The configuration with what is different for nights, unless keys say otherwise."""
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


def search_for(config: StudyConfig, hours: float) -> Night:
    """Search one study for some hours; whatever goes wrong is its own."""
    with importing():
        from search.study import generation_of

    night = Night(config.name or "")
    try:
        generation = generation_of(config)
        night = replace(
            night, study=generation.config.name or "", began=generation.trials, rescored=generation.rescored
        )
        return _searched(generation.config, hours, night)
    except UnfreezeError as error:
        is_input = not isinstance(error, TrialError)
        print(f"error: study {night.study}: {error}", file=sys.stderr)
        return replace(night, problem=first_line(error), is_input=is_input)
    except Exception as error:  # a fault of one study's store must not cost the others their night
        report_fault(error, f"study {night.study}: ")
        return replace(night, problem=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _searched(config: StudyConfig, hours: float, night: Night) -> Night:
    from optuna.trial import TrialState

    from search.scheduling import Ledger, ranked
    from search.storage import WINNER, open_one, open_stored, score_of
    from search.study import NoTrialFinishedError, first_name, run_study, tidy
    from search.winner import Winner, last_verdict

    budget = config.budget.model_copy(update={"hours": hours})
    nothing_yet = None
    try:
        run_study(config.model_copy(update={"budget": budget}))
    except NoTrialFinishedError as error:
        nothing_yet = error
    known = open_one(config.store.url, config.tracking.uri, str(config.name))
    # A trial may be longer than a night.
    if nothing_yet is not None and not known.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        raise nothing_yet
    removed: list[str] = []
    if config.housekeeping != HousekeepingConfig():
        name = first_name(known.name)
        everyone = open_stored([f"store.url={config.store.url}", f"tracking.uri={config.tracking.uri}"])
        generations = [other for other in everyone if first_name(other.name) == name]
        removed = tidy(generations, Path(config.data.cache), config.housekeeping)
    best = ranked(known.study)
    stored = known.study.user_attrs.get(WINNER)
    return replace(
        night,
        trials=Ledger(known.study).counted,
        best=score_of(best[0]) if best else None,
        winner=Winner.from_dict(stored) if stored is not None else None,
        verdict=last_verdict(known.study) if config.champion.promote else None,
        removed=len(removed),
    )


def _code(night: Night) -> int:
    if not night.problem:
        return 0
    return 2 if night.is_input else FAILED


def _title(nights: Sequence[Night]) -> str:
    failed = sum(bool(night.problem) for night in nights)
    new = sum(night.verdict is not None and night.verdict.is_promoted for night in nights)
    what = [f"{new} new champion{'s' if new > 1 else ''}"] if new else []
    what += [f"{failed} failed"] if failed else []
    return f"Unfreeze: {', '.join(what) or 'no new champion'}"


def as_markdown(nights: Sequence[Night], seconds: float) -> str:
    """What came of a night, as text that reads well as it is."""
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
            interval = f"({winner.test_low:.4f} to {winner.test_high:.4f})"
            lines.append(f"- Best: trial {winner.trial}, {scores} {interval}")
        if night.verdict is not None:
            from search.winner import describe_verdict

            lines.append(f"- {describe_verdict(night.verdict)}")
        if night.removed:
            lines.append(f"- Removed: {night.removed} old checkpoints and cache entries")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.nightly",
        description="Go on with studies for so many hours, and promote what is better.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for search.run; study=a,b for several")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write there, as Markdown, what came of the night")
    parser.add_argument("--notify", action="append", default=[], metavar="URL", help="send it there, by apprise")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(
        lambda: nightly(options.overrides, options.summary, options.notify), "the next night goes on from here"
    )


if __name__ == "__main__":
    sys.exit(main())
