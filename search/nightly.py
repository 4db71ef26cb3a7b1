"""Search every night: ``python -m search.nightly study=NAME[,NAME...] budget.hours=8``, from cron or a timer."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from search.command_line import (
    FAILED,
    HelpFormatter,
    check_output,
    exit_code,
    read_words,
    report_fault,
    say,
    set_up_logging,
    unwritable,
)
from search.config import StudyConfig, compose_jobs, spelled
from search.processes import importing
from strategies import ConfigError, TrialError, UnfreezeError, counted, first_line

if TYPE_CHECKING:
    from search.study import Night

#: Exit code where another night of a study is still under way.
OVERLAPS = 3

_USAGE = """\
The hours are those of the whole night. The studies share them; hours that one leaves go to the next. Each study resumes
where it stopped the night before, also within a trial (budget.finish_trials=true trains that trial to its end first).
budget.trials counts over all nights; without it the number of trials has no end.

Where images have changed, the champion is scored on the new images, and a new generation of the study begins (NAME.2)
with the best strategies of the generation before. A new study begins with those of studies of similar images. A night's
winner becomes the champion only where it is better beyond chance (champion.promote=false: never).

exit codes: 0 all went well; 1 a study has failed; 2 bad input; 3 another night is under way; 130 and 143 stopped"""


def nightly(overrides: Sequence[str], summary: Path | None, notify: Sequence[str]) -> int:
    """Search each study for its share of the night, and print, write and send the summary.

    Raises:
        ConfigError: Something in the configuration is wrong; nothing was searched.
    """
    keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    if "budget.hours" not in keys:
        raise ConfigError("budget.hours: a night has an end; say when it comes, such as budget.hours=8")
    composed = compose_jobs(overrides, multirun=True)
    hours = composed[0].budget.hours
    if hours is None:
        raise ConfigError("budget.hours: null; a night has an end")
    # Only here: they take seconds to import.
    with importing():
        from filelock import Timeout

        from search.reporting import check_addresses
        from search.storage import forget, lock_of
        from search.study import for_a_night, lock_place

    configs = [for_a_night(config, keys) for config in composed]
    check_addresses(notify)
    if summary is not None:
        check_output("--summary", summary)
    # A study that could not write its results leaves its share of the night to the others.
    refused = {config.name: night for config in configs if (night := _refused(config)) is not None}
    began = time.monotonic()
    locks = {}
    with ExitStack() as held:
        for config in configs:
            if config.name in refused:
                continue
            lock = lock_of(lock_place(config), "night")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"error: another night of study {config.name} is under way", sys.stderr)
                return OVERLAPS
            held.callback(lock.release)
            locks[config.name] = lock
        nights = []
        for place, config in enumerate(configs):
            left = hours - (time.monotonic() - began) / 3600
            sharing = sum(other.name not in refused for other in configs[place:])
            nights.append(refused.get(config.name) or search_for(config, max(0.0, left / sharing)))
            if config.name in locks and nights[-1].is_input:
                forget(locks[config.name])
    return max(tell(nights, time.monotonic() - began, summary, notify), *map(_code, nights))


def tell(nights: Sequence["Night"], seconds: float, summary: Path | None, notify: Sequence[str]) -> int:
    """Print, write and send the summary of a night.

    Args:
        nights: The results of each study.
        seconds: How long the night took.
        summary: The file to write; None for none.
        notify: The addresses to send to.

    Returns:
        0, or 1 where the file cannot be written.
    """
    from search.reporting import send
    from search.study import as_markdown

    text, code = as_markdown(nights, seconds), 0
    say(f"\n{text}")
    if summary is not None:
        try:
            summary.write_text(text, encoding="utf-8")
        except OSError as error:
            # The disk may be full by now; the summary is sent all the same.
            say(f"error: {unwritable('--summary', summary, error)}", sys.stderr)
            code = FAILED
    send(notify, _title(nights), text)
    return code


def _refused(config: StudyConfig) -> "Night | None":
    """The night of a study that cannot be searched where it is to be; None for any other study."""
    from search.study import Night, check_places

    try:
        check_places(config)
    except ConfigError as error:
        say(f"error: study {config.name}: {error}", sys.stderr)
        return Night(config.name or "", problem=first_line(error), is_input=True)
    return None


def search_for(config: StudyConfig, hours: float) -> "Night":
    """Search one study for some hours; its errors are printed and kept, so that the next study gets its share."""
    from search.study import Night, generation_of, search_night

    night = Night(config.name or "")
    try:
        generation = generation_of(config)
        night = replace(
            night, study=generation.config.name or "", began=generation.trials, rescored=generation.rescored
        )
        return search_night(generation.config, hours, night)
    except UnfreezeError as error:
        is_input = not isinstance(error, TrialError)
        say(f"error: study {night.study}: {error}", sys.stderr)
        return replace(night, problem=first_line(error), is_input=is_input)
    except Exception as error:  # an error in one study's store must not cost the others their night
        report_fault(error, f"study {night.study}: ")
        return replace(night, problem=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _code(night: "Night") -> int:
    if not night.problem:
        return 0
    return 2 if night.is_input else FAILED


def _title(nights: Sequence["Night"]) -> str:
    failed = sum(bool(night.problem) for night in nights)
    new = sum(night.verdict is not None and night.verdict.is_promoted for night in nights)
    what = [counted(new, "new champion")] if new else []
    what += [f"{failed} failed"] if failed else []
    return f"Unfreeze: {', '.join(what) or 'no new champion'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("nightly"),
        description="Resume studies for so many hours, and promote winners that are better.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for search.run; study=a,b for several")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the night's summary there, as Markdown")
    parser.add_argument(
        "--notify", action="append", default=[], metavar="URL", help="send the summary there, by apprise"
    )
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(
        lambda: nightly(options.overrides, options.summary, options.notify), "the next night resumes from here"
    )


if __name__ == "__main__":
    sys.exit(main())
