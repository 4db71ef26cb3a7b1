"""Answers of a logged model for images: ``python -m search.predict MODEL IMAGES ... --out predictions.csv``."""

import argparse
import glob
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.command_line import FAILED, exit_code
from search.winner import load
from strategies import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_USAGE = """\
MODEL is what a search prints (models:/m-...), a champion (models:/NAME@champion), another version (models:/NAME/3), or
a folder that MLflow has stored a model in. IMAGES are files, folders, which are searched through, and patterns such as
'shots/**/*.jpg'.

The file's name says what is written: .csv, .json or .parquet. Masks are PNGs as base64, or files of their own with
--masks. Without --out a CSV is printed. An image that cannot be read ends it before anything is written; with
--skip-bad it is left out and named, and the exit code is 1."""

_STORE = "sqlite:///mlruns/mlflow.db"
_SUFFIXES = (".csv", ".json", ".parquet")


def find_images(given: Sequence[str]) -> list[str]:
    """Image files by name, sorted, each once.

    Raises:
        ConfigError: There are none.
    """
    from trainers import IMAGE_SUFFIXES

    found: list[str] = []
    for one in given:
        path = Path(one)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ConfigError(f"{one}: no images in this folder")
            found += map(str, inside)
        elif path.is_file():
            found.append(one)
        else:
            # Path.glob takes no absolute pattern.
            matching = sorted(file for file in glob.glob(one, recursive=True) if Path(file).is_file())  # noqa: PTH207
            if not matching:
                raise ConfigError(f"{one}: no such file, folder or pattern")
            found += matching
    return list(dict.fromkeys(found))


def answers(
    model: Any, images: Sequence[str], batch_size: int, skips_bad: bool, bad: list[str]
) -> "Iterator[pd.DataFrame]":
    """What a model says of images, a table a batch, with a column ``image`` in front.

    Args:
        model: As MLflow loads it.
        images: Their files.
        batch_size: How many at once.
        skips_bad: Images that cannot be read are left out.
        bad: Gets why each was.

    Raises:
        DataError: An image cannot be read.
    """
    for start in range(0, len(images), batch_size):
        chosen = list(images[start : start + batch_size])
        try:
            table = model.predict(chosen)
        except DataError:
            if not skips_bad:
                raise
            chosen, table = _one_by_one(model, chosen, bad)
        table.insert(0, "image", chosen)
        yield table


def _one_by_one(model: Any, images: Sequence[str], bad: list[str]) -> "tuple[list[str], pd.DataFrame]":
    import pandas as pd

    read, tables = [], []
    for image in images:
        try:
            tables.append(model.predict([image]))
            read.append(image)
        except DataError as error:
            bad.append(str(error))
    return read, pd.concat(tables, ignore_index=True) if tables else model.predict([])


def predict(options: argparse.Namespace) -> int:
    """Load the model, ask it about the images and write what it says.

    Raises:
        ConfigError: There is no such model or image, or the file cannot be written.
        DataError: An image cannot be read.
    """
    if options.out is not None and options.out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out: {options.out} ends in none of {', '.join(_SUFFIXES)}")
    images = find_images(options.images)
    import pandas as pd
    from rich.console import Console
    from rich.progress import track

    model = load(options.model, options.tracking_uri)
    bad: list[str] = []
    batches = answers(model, images, options.batch_size, options.skip_bad, bad)
    console = Console(stderr=True)
    steps = -(-len(images) // options.batch_size)
    # On a terminal a bar; in a log nothing but what is wrong.
    tables = list(track(batches, "images", steps, console=console, disable=not console.is_terminal, transient=True))
    table = pd.concat(tables, ignore_index=True)
    if options.masks is not None:
        table = _with_mask_files(table, options.masks)
    _write(table, options.out)
    for problem in bad:
        print(f"left out: {problem}", file=sys.stderr)
    if options.out is not None:
        print(f"{len(table):,} images answered in {options.out}")
    return FAILED if bad else 0


def _with_mask_files(table: "pd.DataFrame", folder: Path) -> "pd.DataFrame":
    """Masks written to files, whose names take their place.

    Raises:
        ConfigError: The model gives none, or they cannot be written.
    """
    import base64

    if "mask" not in table:
        raise ConfigError("--masks: this model gives no masks")
    names = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, (image, mask) in enumerate(zip(table["image"], table["mask"], strict=True)):
            # Images of different folders may share a name.
            path = folder / f"{place:06d}_{Path(image).stem}.png"
            path.write_bytes(base64.b64decode(mask))
            names.append(str(path))
    except OSError as error:
        raise ConfigError(f"--masks: {folder} cannot be written to: {error.strerror}") from error
    return table.assign(mask=names)


def _write(table: "pd.DataFrame", out: Path | None) -> None:
    if out is None:
        table.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    try:
        match out.suffix:
            case ".csv":
                table.to_csv(out, index=False, lineterminator="\n")
            case ".json":
                table.to_json(out, orient="records", indent=1)
            case ".parquet":
                table.to_parquet(out, index=False)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.predict",
        description="Ask a logged model about images.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model's address in MLflow")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders and patterns")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the answers")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="write masks there as PNG files")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once, 64 by default")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--tracking-uri", default=_STORE, metavar="URI", help=f"MLflow's store, {_STORE} by default")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(lambda: predict(options), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
