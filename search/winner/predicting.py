"""A logged model's answers for many images: the images are found, and the answers written as a table."""

import base64
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from search.config import for_output, without_password
from strategies import ConfigError, DataError, first_line

if TYPE_CHECKING:
    import pandas as pd


# An image of a URL may have so many bytes, and its server so many seconds for each answer.
_MOST_BYTES, _SECONDS = 2**28, 30.0


def find_images(given: Sequence[str]) -> list[str]:
    """Image files of files, folders and patterns, and URLs, each once; those of a folder or pattern are sorted.

    Raises:
        ConfigError: One of them holds no image file.
    """
    from trainers import IMAGE_SUFFIXES

    found: list[str] = []
    for one in (str(Path(word).expanduser()) if word.startswith("~") else word for word in given):
        if is_url(one):
            found.append(one)
            continue
        path = Path(one)
        # Unlike Path.is_dir, it knows no errors: a name that is too long is that of no folder.
        if os.path.isdir(one):  # noqa: PTH112
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ConfigError(f"{one}: no images in this folder")
            found += map(str, inside)
        elif os.path.isfile(one):  # noqa: PTH113
            found.append(one)
        else:
            # Path.glob takes no absolute pattern.
            matching = sorted(file for file in glob.glob(one, recursive=True) if Path(file).is_file())  # noqa: PTH207
            if not matching:
                raise ConfigError(f"{one[:300]}: no such file, folder or pattern")
            found += matching
    return list(dict.fromkeys(found))


def is_url(text: str) -> bool:
    """Whether an image is to be fetched from a server."""
    return text.startswith(("http://", "https://"))


#: An image with its name: its bytes or its array; None where the name is that of a file or a URL.
NamedImage: TypeAlias = tuple[str, Any]


def named_images(given: Any) -> list[NamedImage]:
    """Images from Python with their names: files and URLs have their own, others their place in the list.

    Args:
        given: An image or a list of them: a path (of a file or folder, or a pattern) or URL, encoded bytes, or a uint8
            array (H, W, C).

    Raises:
        ConfigError: A path holds no image file.
    """
    found: list[NamedImage] = []
    for place, one in enumerate(given if isinstance(given, list | tuple) else [given]):
        if isinstance(one, str | Path):
            found += [(name, None) for name in find_images([str(one)])]
        else:
            found.append((str(place), one))
    return found


def answers_of(
    model: Any, images: Sequence[NamedImage], batch_size: int, skips_bad: bool, bad: list[str]
) -> "Iterator[pd.DataFrame]":
    """A model's answers, a table a batch, with a column ``image`` in front.

    Args:
        model: The model, as MLflow loads it.
        images: The images.
        batch_size: Images in a batch.
        skips_bad: Whether images that cannot be read are left out.
        bad: Is extended by the reason for each image that is left out.

    Raises:
        DataError: An image cannot be read, and ``skips_bad`` is false.
    """
    for start in range(0, len(images), batch_size):
        chosen = list(images[start : start + batch_size])
        try:
            table = model.predict([_content_of(one) for one in chosen])
        except DataError:
            if not skips_bad:
                raise
            chosen, table = _one_by_one(model, chosen, bad)
        table.insert(0, "image", [name for name, _ in chosen])
        yield table


def _content_of(named: NamedImage) -> Any:
    """What the model takes: a path, bytes or an array.

    Raises:
        DataError: A URL cannot be read.
    """
    name, image = named
    if image is not None:
        return image
    if not is_url(name):
        # Names of files are not taken as text, which could come from a client.
        return Path(name)
    import requests

    shown, content = without_password(name), bytearray()
    try:
        with requests.get(name, timeout=_SECONDS, stream=True) as answer:
            answer.raise_for_status()
            for part in answer.iter_content(2**20):
                content += part
                if len(content) > _MOST_BYTES:
                    raise DataError(f"{shown}: more than {_MOST_BYTES:,} bytes")
    except requests.RequestException as error:
        raise DataError(f"{shown}: cannot be fetched: {without_password(first_line(error))}") from error
    return bytes(content)


def _one_by_one(model: Any, images: Sequence[NamedImage], bad: list[str]) -> "tuple[list[NamedImage], pd.DataFrame]":
    import pandas as pd

    read, tables = [], []
    for one in images:
        try:
            tables.append(model.predict([_content_of(one)]))
            read.append(one)
        except DataError as error:
            bad.append(str(error) if one[0] in str(error) else f"{one[0]}: {error}")
    return read, pd.concat(tables, ignore_index=True) if tables else model.predict([])


def with_mask_files(table: "pd.DataFrame", folder: Path) -> "pd.DataFrame":
    """Write the masks of a table of answers to PNG files, and return the table with the files' names instead.

    Raises:
        ConfigError: The model gives no masks, or a file cannot be written.
    """
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


def write_answers(table: "pd.DataFrame", out: Path | None) -> None:
    """Write a table of answers in the format that the file's ending says; without a file, print it as CSV.

    Raises:
        ConfigError: The file cannot be written.
    """
    if out is None:
        sys.stdout.write(for_output(str(table.to_csv(index=False, lineterminator="\n"))))
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
