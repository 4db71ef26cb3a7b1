"""Trials of one study or several, side by side: ``python -m search.compare STUDY [STUDY ...]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import (
    HelpFormatter,
    check_output,
    exit_code,
    read_words,
    say,
    set_up_logging,
    unwritable,
    whole_number,
)
from search.config import for_output, spelled
from search.processes import importing
from search.reporting import as_csv, as_json, rows_of, searched_fields, table_of
from strategies import ConfigError, counted

_USAGE = """\
A study is named as for search.run, or by its name in the store; without one, all studies of the store are shown. A
study file says where the stores are, or store.url=... and tracking.uri=... do.

The table shows the fields that differ among the trials; csv and json have every field of their strategies."""


def compare(words: Sequence[str], form: str, top: int | None, everything: bool, out: Path | None) -> int:
    """Print the comparison, or write it to a file.

    Raises:
        ConfigError: A study is in no store, or the file cannot be written.
    """
    if out is not None:
        check_output("--out", out)
    # Only here: they take seconds to import.
    with importing():
        from search.reporting import SafeConsole, print_table, widened
        from search.storage import open_stored

    studies = open_stored(words)
    rows = [row for stored in studies for row in rows_of(stored, top, everything)]
    if form == "table" and out is None:
        console = widened(SafeConsole(highlight=False))
        if not rows:
            console.print("No trial has completed yet")
            return 0
        names = ", ".join(stored.name for stored in studies)
        searched = searched_fields(studies)
        columns = table_of(rows, searched, compares=True)
        # Depth and learning rate say most.
        spare = [name for name in searched if name not in ("model", "lr")]
        print_table(console, f"Trials of {names}, the best first", columns, verbatim=True, spare=spare)
        if "data" in columns:
            console.print("Scores on other images cannot be compared: the column data tells the sets apart")
        return 0
    text = as_csv(rows) if form == "csv" else as_json(rows) + "\n"
    if out is None:
        sys.stdout.write(for_output(text))
        return 0
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable("--out", out, error) from error
    say(f"{counted(len(rows), 'trial')} written to {out}")
    return 0


def _form_of(options: argparse.Namespace) -> str:
    """The format that --format names, or that the ending of --out names."""
    if options.format is not None:
        return str(options.format)
    if options.out is None:
        return "table"
    suffix = options.out.suffix.removeprefix(".")
    if suffix not in ("csv", "json"):
        raise ConfigError(f"--out: {options.out} ends in neither .csv nor .json; say --format")
    return str(suffix)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("compare"),
        description="Show the trials of one study or several side by side, the best first.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="studies, and where their stores are")
    parser.add_argument(
        "--top", type=whole_number(0, 10**9), default=10, metavar="N", help="completed trials of each study; 0 for all"
    )
    parser.add_argument("--all", action="store_true", help="also trials that were pruned, killed or failed")
    parser.add_argument("--format", choices=("table", "csv", "json"), help="table by default, or the ending of --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write csv or json there")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(
        lambda: compare(options.words, _form_of(options), options.top or None, options.all, options.out),
        "nothing was written",
    )


if __name__ == "__main__":
    sys.exit(main())
