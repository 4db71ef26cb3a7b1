"""Answers of a logged model for images: ``python -m search.predict MODEL IMAGES ... --out predictions.csv``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import FAILED, check_output, exit_code, say, set_up_logging, whole_number
from search.config import tracking_uri
from search.winner import answers_of, find_images, load, with_mask_files, write_answers
from strategies import ConfigError

_USAGE = """\
MODEL is what a search prints (models:/m-...), a champion (models:/NAME@champion), another version (models:/NAME/3), or
a folder that MLflow has stored a model in. IMAGES are files, folders, which are searched through, and patterns such as
'shots/**/*.jpg'.

The ending of --out says the format: .csv, .json or .parquet. Without --out a CSV is printed. Masks are PNGs as base64,
or files of their own with --masks. An image that cannot be read ends the command before anything is written; with
--skip-bad the image is left out and named, and the exit code is 1."""

_STORE = "sqlite:///mlruns/mlflow.db"
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
    images = find_images(options.images)
    import pandas as pd
    from rich.progress import track

    from search.reporting import SafeConsole

    model = load(options.model, tracking_uri(options.tracking_uri))
    bad: list[str] = []
    batches = answers_of(model, images, options.batch_size, options.skip_bad, bad)
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
        say(f"{len(table):,} images answered in {options.out}")
    return FAILED if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.predict",
        description="Run a logged model on images.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model's address in MLflow")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders and patterns")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the answers")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="write masks there as PNG files")
    parser.add_argument(
        "--batch-size", type=whole_number(1, 10**6), default=64, metavar="N", help="images at once, 64 by default"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--tracking-uri", default=_STORE, metavar="URI", help=f"MLflow's store, {_STORE} by default")
    options = parser.parse_args(arguments)
    set_up_logging()
    return exit_code(lambda: predict(options), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
