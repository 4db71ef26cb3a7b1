"""Answers of a model for images: ``python -m search.predict STUDY IMAGES ... --out predictions.csv``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import (
    FAILED,
    HelpFormatter,
    check_output,
    exit_code,
    read_words,
    say,
    set_up_logging,
    whole_number,
)
from search.config import spelled
from search.winner import answers_of, find_images, find_model, load, with_mask_files, write_answers
from strategies import ConfigError, counted

_USAGE = """\
MODEL is a study, whose champion answers, else its winner; or what a search prints (models:/m-...), another version
(models:/NAME/3), or a folder that MLflow has stored a model in. A study is named as for search.run, or by its name in
the store; store.url=... and tracking.uri=... say where that is. IMAGES are files, folders, which are searched through,
patterns such as 'shots/**/*.jpg', and URLs (https://...).

The ending of --out says the format: .csv, .json or .parquet. Without --out a CSV is printed. Masks are PNGs as base64,
or files of their own with --masks. An image that cannot be read ends the command before anything is written; with
--skip-bad the image is left out and named, and the exit code is 1."""

_SUFFIXES = (".csv", ".json", ".parquet")


def predict(options: argparse.Namespace) -> int:
    """Load the model, run it on the images and write its answers.

    Raises:
        ConfigError: There is no such model or image, or the file cannot be written.
        DataError: An image cannot be read.
    """
    if options.out is not None and options.out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out: {options.out} ends in none of {', '.join(_SUFFIXES)}")
    if options.out is not None:
        check_output("--out", options.out)
    keys = [word for word in options.images if word.startswith(("store.url=", "tracking.uri="))]
    images = find_images([word for word in options.images if word not in keys])
    if not images:
        raise ConfigError("no images are named: files, folders, patterns or URLs")
    import pandas as pd
    from rich.progress import track

    from search.reporting import SafeConsole

    address, store = find_model(options.model, keys, options.tracking_uri)
    if address != options.model:
        say(f"{options.model}: {address}", sys.stderr)
    model = load(address, store)
    bad: list[str] = []
    batches = answers_of(model, [(name, None) for name in images], options.batch_size, options.skip_bad, bad)
    console = SafeConsole(stderr=True)
    steps = -(-len(images) // options.batch_size)
    # A terminal gets a progress bar; a log gets only what went wrong.
    tables = list(track(batches, "images", steps, console=console, disable=not console.is_terminal, transient=True))
    table = pd.concat(tables, ignore_index=True)
    if options.masks is not None:
        table = with_mask_files(table, options.masks)
    write_answers(table, options.out)
    for problem in bad:
        say(f"left out: {problem}", sys.stderr)
    if options.out is not None:
        say(f"{counted(len(table), 'image')} answered in {options.out}")
    return FAILED if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("predict"),
        description="Run a study's model, or any logged model, on images.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a study, or a model's address in MLflow")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, patterns and URLs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the answers")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="write masks there as PNG files")
    parser.add_argument(
        "--batch-size", type=whole_number(1, 10**6), default=64, metavar="N", help="images at once, 64 by default"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow's store, as tracking.uri=URI")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: predict(options), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
