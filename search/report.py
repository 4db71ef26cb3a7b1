"""A report of a study, a page that needs no other file: ``python -m search.report STUDY``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import HelpFormatter, check_output, exit_code, read_words, say, set_up_logging, unwritable
from search.config import spelled
from search.processes import importing
from search.reporting import build
from strategies import ConfigError

_USAGE = """\
The study is named as for search.run, or by its name in the store. A study file says where the stores are, or
store.url=... and tracking.uri=... do. A search writes the page to its run's artifacts by itself, as report.html."""


def write(words: Sequence[str], out: Path | None) -> int:
    """Build the page of each study and write it.

    Raises:
        ConfigError: A study is in no store, its stores cannot be read, or the file cannot be written.
    """
    if out is not None:
        check_output("--out", out)
    # Only here: they take seconds to import.
    with importing():
        from search.reporting import summarize
        from search.storage import open_stored

    studies = open_stored(words)
    if out is not None and len(studies) > 1:
        raise ConfigError(f"--out: {len(studies)} studies have a page each; name one study")
    for stored in studies:
        file = out or Path(f"{stored.name}-report.html")
        page = build(summarize(stored))
        try:
            file.write_text(page, encoding="utf-8")
        except OSError as error:
            raise unwritable("--out", file, error) from error
        say(f"{stored.name}: {file.absolute().as_uri()}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("report"),
        description="Write one page about a study: the result, what led to it, and how to reproduce it.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="STUDY or key=value", help="studies, and where their stores are")
    parser.add_argument("--out", type=Path, metavar="FILE", help="STUDY-report.html in the working folder by default")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: write(options.words, options.out), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
