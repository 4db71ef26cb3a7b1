"""The command line: ``python -m search.run study=NAME [key=value ...]``."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from omegaconf import OmegaConf

from search.auto import asks_for_auto
from search.command_line import (
    BAD_INPUT,
    FAILED,
    LogFormatter,
    answer_shell,
    exit_code,
    report_fault,
    say,
    set_up_logging,
)
from search.config import (
    StudyConfig,
    compose_jobs,
    for_output,
    for_reading,
    in_words,
    list_spaces,
    list_studies,
    load_study,
    schema_keys,
    spelled,
)
from search.processes import importing, process_began
from strategies import ConfigError, TrialError, UnfreezeError, nearest

_USAGE = """\
usage: python -m search.run [study=NAME] [key=value ...] [options]

Search for the best way to fine-tune a pretrained model on your images.

  study=NAME       a study of --list, or a file: study=/path/mine.yaml; auto, the default where data.root is given:
                   model, image size, epochs and space are chosen for the images, this machine and the time
  effort=WORD      of study=auto: quick (one good strategy), good, or best (new seeds, soups, larger images)
  key=value        any key below, in Hydra's override grammar
  +key=value       only if the key is not set yet; ++key=value in any case
  ~key             leave the key out: its default holds

options:
  -h, --help       this text
  --list           the studies that can be chosen by name
  -c, --cfg job    print the composed configuration as YAML and stop
  --dry-run        say what would be done and how long it would take; only decoded images are written
  -m, --multirun   run every combination of key=a,b and key=range(1,4), one after the other
  -v, --verbose    log more; twice for everything

examples:
  python -m search.run data.root=/my/images budget.minutes=20
  python -m search.run study=resnet_cls budget.trials=50 data.root=/my/images
  python -m search.run study=resnet_cls strategy.lr.high=0.01 strategy.loss=focal
  python -m search.run study=resnet_cls 'strategy.batch_size={choices: [32, 64]}'
  python -m search.run study=resnet_cls,vit_cls seed=0,1 --multirun

keys, with what they accept and their default:
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _parser() -> _Parser:
    parser = _Parser(prog=spelled("run"), add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    return parser


def help_text() -> str:
    """Usage, examples, and each key of the schema with what it accepts, its default and its help line."""
    rows = []
    for key in schema_keys():
        rows.append(f"  {key.name} = {in_words(key.default)}\n      {key.help}\n      [{key.expected}]")
    return _USAGE.replace("python -m search.run", spelled("run")) + "\n".join(rows)


def listing() -> str:
    """A line for each study and space: its name and its description."""
    studies, spaces = list_studies(), list_spaces()
    width = max(map(len, (*studies, *spaces)), default=0)
    lines = {
        title: [f"  {name:{width}}  {describe(path)}".rstrip() for name, path in files.items()]
        for title, files in (("Studies (study=NAME)", studies), ("Spaces (strategy=NAME)", spaces))
    }
    return "\n".join(line for title, rows in lines.items() for line in (title, *rows))


def describe(path: Path) -> str:
    """The comment that a study file begins with, else its ``description``, else what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        first = next((line.strip() for line in lines if line.strip()), "")
        return first.lstrip("# ") if first.startswith("#") else str(load_study(path).get("description") or "")
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        return f"(cannot be read: {error})"


def as_yaml(config: StudyConfig) -> str:
    """The configuration as a study file that composes to an equal one, except that passwords are left out."""
    return OmegaConf.to_yaml(OmegaConf.create(config.to_show()))


def run_jobs(configs: Sequence[StudyConfig], run: Callable[[StudyConfig], None]) -> int:
    """Run studies one after the other; one that fails does not keep the next from running.

    Args:
        configs: What to run.
        run: Runs one study.

    Returns:
        The worst exit code: 0, 1 after a failure that is not the user's, 2 after bad input.

    Raises:
        KeyboardInterrupt: At once; the remaining studies are not run.
    """
    worst = 0
    for config in configs:
        try:
            run(config)
        except UnfreezeError as error:
            worst = max(worst, FAILED if isinstance(error, TrialError) else BAD_INPUT)
            label = f"study {config.name}: " if len(configs) > 1 else ""
            say(f"error: {label}{error}", sys.stderr)
        except Exception as error:  # after any error the other studies are searched
            worst = max(worst, FAILED)
            report_fault(error, f"study {config.name}: " if len(configs) > 1 else "")
    return worst


def _set_up_logging(verbose: int) -> None:
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from search.reporting import SafeConsole

        # On a terminal, only rich can print above the progress bars.
        handler = RichHandler(console=SafeConsole(stderr=True), show_time=False, show_path=False)
        # rich prints the level in a column of its own.
        handler.setFormatter(LogFormatter("%(name)s: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    else:
        set_up_logging()
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    for package in ("search", "trainers", "strategies"):
        logging.getLogger(package).setLevel(level)


def _dispatch(arguments: Sequence[str], began: float) -> int:
    parser = _parser()
    answer_shell(parser)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        known = ["--help", "--list", "--cfg", "--dry-run", "--multirun", "--verbose"]
        raise ConfigError(f"{unknown[0]}: unknown option; {nearest(unknown[0], known)}")
    if options.help:
        say(for_reading(help_text()))
        return 0
    if options.list:
        say(for_reading(listing()))
        return 0
    if is_auto := asks_for_auto(options.overrides, options.multirun):
        _set_up_logging(options.verbose)
        # What composes stays the command's output alone.
        tell = partial(say, file=sys.stderr) if options.cfg else _say_for_reading
        configs = [_chosen(options.overrides, began, tell, writes=not (options.cfg or options.dry_run))]
    else:
        configs = compose_jobs(options.overrides, options.multirun)
    if options.cfg:
        sys.stdout.write(for_output("---\n".join(map(as_yaml, configs))))
        return 0
    if not is_auto:
        _set_up_logging(options.verbose)
    # Only here: torch, optuna and mlflow take many times longer to import than all of the above.
    with importing():
        from search.executors import may_start_processes
        from search.processes import warm_forkserver
        from search.reporting import print_results
        from search.study import rehearse, run_study

    def run(config: StudyConfig) -> None:
        start = next(starts, time.monotonic())
        if options.dry_run:
            rehearse(config, start)
        else:
            run_study(config, start)

    # Of several studies, each has the whole time.
    starts = iter([began])
    with warm_forkserver(is_wanted=not options.dry_run and any(map(may_start_processes, configs))):
        worst = run_jobs(configs, run)
    if len(configs) > 1 and not options.dry_run:
        print_results(configs)
    return worst


def _say_for_reading(line: str) -> None:
    say(for_reading(line))


def _chosen(words: Sequence[str], began: float, tell: Callable[[str], None], writes: bool) -> StudyConfig:
    """A study that is chosen for the images, the machine and the time."""
    with importing():
        from search.auto import choose_study
    return choose_study(words, began, tell, writes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (failure), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    if arguments is None:
        return exit_code(lambda: _dispatch(sys.argv[1:], process_began()))
    now = time.monotonic()
    return exit_code(lambda: _dispatch(arguments, now))


if __name__ == "__main__":
    sys.exit(main())
