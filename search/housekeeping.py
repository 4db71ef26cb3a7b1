"""Old checkpoints and caches removed: ``python -m search.housekeeping [STUDY ...] --days 30 --gib 50``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import HelpFormatter, exit_code, read_words, say, set_up_logging
from search.config import HousekeepingConfig, check_section, spelled
from search.processes import importing
from search.study import tidy
from strategies import ConfigError

_USAGE = """\
A study is named as for search.run, or by its name in the store; without one, all studies of the store are meant.

The checkpoints are those of the best trials of each study; only mixing weights and choosing another winner needs them.
The winner's checkpoint stays, as do all models, and everything of running studies. Cached images and activations are
computed again where they are needed."""

_CACHE = "mlruns/cache"


def housekeeping(words: Sequence[str], cache: Path, days: float | None, gib: float | None, only_says: bool) -> int:
    """Remove old checkpoints and caches, and print a line for each.

    Raises:
        ConfigError: Neither an age nor a size is given, one of them is out of range, or a study is in no store.
    """
    if days is None and gib is None:
        raise ConfigError("say what is too old or too much: --days N, --gib N")
    try:
        how = check_section("housekeeping", HousekeepingConfig, {"days": days, "gib": gib})
    except ConfigError as error:
        raise ConfigError(str(error).replace("housekeeping.", "--")) from error
    # Only here: it takes seconds to import.
    with importing():
        from search.storage import open_stored

    said = tidy(open_stored(words), cache, how, only_says)
    for line in said:
        say(line)
    say(f"{len(said)} {'would be' if only_says else 'were'} removed")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("housekeeping"),
        description="Remove old checkpoints, and cached images and activations that were not used for long.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="studies, and where their stores are")
    parser.add_argument("--days", type=float, metavar="N", help="remove what was last used more than N days ago")
    parser.add_argument(
        "--gib", type=float, metavar="N", help="remove checkpoints, the oldest first, until they take N GiB"
    )
    parser.add_argument("--cache", type=Path, default=Path(_CACHE), metavar="FOLDER", help=f"{_CACHE} by default")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(
        lambda: housekeeping(options.words, options.cache, options.days, options.gib, options.dry_run),
        "what was removed so far is gone, the rest is still there",
    )


if __name__ == "__main__":
    sys.exit(main())
