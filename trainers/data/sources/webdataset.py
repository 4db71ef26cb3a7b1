"""WebDataset shards: tar archives in which the files of a sample share a key, such as ``0001.jpg`` and ``0001.cls``."""

import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any, BinaryIO

from strategies import DataError, nearest
from trainers.data.found import SPLIT_WORDS, SPLITS, Found, Part, Place, listing, natural
from trainers.data.sources.cells import Row, read_labels
from trainers.data.sources.checks import check_task, checked_root, shown
from trainers.data.sources.folders import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

# A sample's key ends at the first dot of its files' names; a file whose name begins with the dot has no key.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_WITHOUT_DOT = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_TEXT_SUFFIXES = frozenset({"cls", "json", "txt"})
_FIELD = "label"

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_SPLIT_NAME = re.compile(rf"({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class _Sample:
    """The files of one key, by suffix: the places of images, and the contents of text files."""

    name: str
    split: str
    images: dict[str, Part] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def find_webdataset(place: Place) -> Found:
    """The samples of the tar shards ``data.shards``, which are named all together or by split.

    Shards are named by braces (``train-{0000..0012}.tar``), a glob, a folder or a file, relative to ``data.root`` if
    that is given. Shards that are not named by split belong to the split that their names begin with, if all names do,
    else to train. Only headers and labels are read; an image is later read from its place in the archive.

    A sample's image is the file that has an image's suffix, or the suffix ``data.columns.image``. Its label is the
    text of ``.cls``; without any such file, the field ``label`` of ``.json``, or else the text of ``.txt``. Fields of
    ``.json`` that ``data.columns.label`` names take precedence. ``data.columns.group`` is a field of ``.json``.

    Raises:
        DataError: Shards are remote, missing, compressed, cut off or empty; samples lack an image, label or group.
    """
    check_task(place, "webdataset", "classification", "multilabel", "regression")
    if place.columns.split is not None:
        raise DataError("data.columns.split: shards have no such column; data.shards names them by split")
    samples = _read_shards(_shards(place), place.columns.image)
    images = _images(samples)
    names = [sample.name for sample in samples]
    fields, known = _fields(samples, place)
    rows, columns = _rows(samples, fields, known, place)
    labels, classes = read_labels(rows, columns, place.task, names, "data.shards")
    return Found(
        images=images,
        labels=labels,
        names=names,
        splits=[sample.split for sample in samples],
        classes=classes,
        groups=_groups(fields, known, place.columns.group, names) if place.columns.group else None,
    )


def _shards(place: Place) -> list[tuple[Path, str]]:
    """Every shard and its split, in the order of the user's names."""
    if not place.files:
        raise DataError("data.source=webdataset needs data.shards, a pattern such as train-{0000..0012}.tar")
    root = Path() if place.root is None else checked_root(place.root, "webdataset")
    unknown = [split for split in place.files if split not in {"", *SPLITS}]
    if unknown:
        raise DataError(f"data.shards.{unknown[0]} is of no split ({nearest(unknown[0], SPLITS)})")
    try:
        named = [(path, split) for split, text in place.files.items() for path in _paths(text, root)]
        missing = [shown(path) for path, _ in named if not path.is_file()]
    except OSError as error:
        raise DataError(f"data.shards cannot be looked for: {error.strerror}: {error.filename}") from error
    if missing:
        raise DataError(f"data.shards: {len(missing):,} of {len(named):,} shards are missing{listing(missing)}")
    counts = Counter(path.resolve() for path, _ in named)
    twice = [shown(path) for path, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"data.shards names {len(twice):,} shards more than once{listing(twice)}")
    return _split_by_name([path for path, _ in named]) if "" in place.files else named


def _paths(text: str, root: Path) -> list[Path]:
    if _REMOTE.match(text):
        raise DataError(
            f"data.shards={text} is not a path. Images are read from their places in the shards, so copy these to a "
            "local or mounted disk (aws s3 cp --recursive, gsutil cp, curl -O) and name them there"
        )
    folder = root / Path(text).expanduser()
    if folder.is_dir():
        found = [path for path in folder.iterdir() if path.name.endswith(_ARCHIVES)]
        if not found:
            raise DataError(f"data.shards={folder} is a folder without .tar files")
        return sorted(found, key=lambda path: natural(path.name))
    if folder.exists():
        return [folder]
    return [path for pattern in _expanded(text) for path in _matching(pattern, root)]


def _expanded(pattern: str) -> list[str]:
    """``a-{08..10}.tar`` as a-08.tar, a-09.tar and a-10.tar; ``{a,b}.tar`` as a.tar and b.tar."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    options = braces[1].split(",")
    if bounds := _RANGE.fullmatch(braces[1]):
        first, last = bounds.groups()
        options = [f"{k:0{len(first)}}" for k in range(int(first), int(last) + 1)]
    if len(options) < 2 and not bounds:
        raise DataError(f"data.shards={pattern}: expected a range {{0000..0012}} or a list {{a,b}} in the braces")
    if not options:
        raise DataError(f"data.shards={pattern}: the range {braces[0]} is empty")
    return [head + option + rest for option in options for rest in _expanded(tail)]


def _matching(pattern: str, root: Path) -> list[Path]:
    parts = Path(pattern).expanduser().parts
    plain = next((k for k, part in enumerate(parts) if has_magic(part)), len(parts))
    folder = root.joinpath(*parts[:plain])
    if plain == len(parts):
        return [folder]
    found = sorted(folder.glob(str(Path(*parts[plain:]))), key=lambda path: natural(str(path)))
    if not found:
        raise DataError(f"data.shards={pattern} matches no file")
    return found


def _split_by_name(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    words = [_SPLIT_NAME.match(path.name) for path in paths]
    others = [shown(path) for path, word in zip(paths, words, strict=True) if word is None]
    if 0 < len(others) < len(paths):
        log.warning("data.shards: all are train, as some names do not begin with a split%s", listing(others))
    if others:
        return [(path, "train") for path in paths]
    return [(path, SPLIT_WORDS[word[1].lower()]) for path, word in zip(paths, words, strict=True) if word]


def _read_shards(shards: Sequence[tuple[Path, str]], image: str | None) -> list[_Sample]:
    suffixes = _WITHOUT_DOT if image is None else frozenset({image.removeprefix(".").lower()})
    samples: list[_Sample] = []
    faults: list[str] = []
    for path, split in shards:
        try:
            samples += _read_shard(path, split, suffixes)
        except DataError as error:
            faults.append(f"{shown(path)}: {error}")
    if faults:
        raise DataError(f"data.shards: {len(faults):,} of {len(shards):,} shards cannot be used{listing(faults)}")
    return samples


def _read_shard(path: Path, split: str, image_suffixes: frozenset[str]) -> list[_Sample]:
    """The samples of one shard in the order of their keys."""
    samples: dict[str, _Sample] = {}
    for key, suffix, part, archive in _files(path):
        if suffix not in image_suffixes and suffix not in _TEXT_SUFFIXES:
            continue
        sample = samples.setdefault(key, _Sample(shown(f"{path}/{key}"), split))
        if suffix in sample.images or suffix in sample.texts:
            raise DataError(f"it holds {shown(key)}.{suffix} twice")
        if suffix in image_suffixes:
            sample.images[suffix] = part
        else:
            sample.texts[suffix] = _text(archive, part, f"{key}.{suffix}")
    if not samples:
        raise DataError("empty: it holds no images and no labels")
    return [samples[key] for key in sorted(samples, key=natural)]


def _files(path: Path) -> Iterator[tuple[str, str, Part, BinaryIO]]:
    """Key, suffix and place of every file in the archive, and the archive to read from."""
    try:
        with path.open("rb") as file:
            _refuse_compressed(file)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    member = _MEMBER.fullmatch(info.name)
                    if member is None or info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        raise DataError(
                            f"{shown(info.name)} is a link or sparse; the archive must hold the file itself"
                        )
                    yield member[1], member[2].lower(), Part(path, info.offset_data, info.size), file
                _check_end(file, archive.offset)
    except OSError as error:
        raise DataError(error.strerror or type(error).__name__) from error
    except tarfile.TarError as error:
        raise DataError(f"cut off, damaged or no tar archive ({error})") from error


def _refuse_compressed(file: BinaryIO) -> None:
    start = file.read(6)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"compressed with {kind}: no image can be read alone; decompress it to a plain .tar")


def _check_end(file: BinaryIO, offset: int) -> None:
    """Refuse an archive that does not end in zeros: tarfile takes an archive cut between two files for a whole one."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"cut off or damaged at byte {offset:,}: the mark of an archive's end is not there")


def _text(archive: BinaryIO, part: Part, name: str) -> str:
    archive.seek(part.offset)
    try:
        return archive.read(part.size).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(name)} is no UTF-8 text") from error


def _images(samples: Sequence[_Sample]) -> list[Part]:
    faults = [
        f"{sample.name}: {', '.join(sorted(sample.images)) or 'no image'}"
        for sample in samples
        if len(sample.images) != 1
    ]
    if faults:
        raise DataError(
            f"data.shards: {len(faults):,} of {len(samples):,} samples have not one image each "
            f"(data.columns.image chooses one by its suffix){listing(faults)}"
        )
    return [next(iter(sample.images.values())) for sample in samples]


def _fields(samples: Sequence[_Sample], place: Place) -> tuple[list[dict[str, Any]], set[str]]:
    """The requested fields of each sample's ``.json``, and the names of all fields."""
    wanted = {*_columns(place), *([place.columns.group] if place.columns.group else [])}
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    faults: list[str] = []
    for sample in samples:
        try:
            content = json.loads(sample.texts.get("json", "{}"))
        except ValueError as error:
            faults.append(f"{sample.name}.json: {error}")
            continue
        if not isinstance(content, dict):
            faults.append(f"{sample.name}.json: expected an object with fields, found {type(content).__name__}")
            continue
        known.update(content)
        found.append({name: content[name] for name in wanted & content.keys()})
    if faults:
        raise DataError(f"data.shards: {len(faults):,} .json files cannot be read{listing(faults)}")
    return found, known


def _columns(place: Place) -> tuple[str, ...]:
    given = place.columns.label
    return given if isinstance(given, tuple) else (given or _FIELD,)


def _rows(
    samples: Sequence[_Sample], fields: Sequence[dict[str, Any]], known: set[str], place: Place
) -> tuple[list[Row], tuple[str, ...]]:
    """The label cells of each sample, and their names."""
    columns = _columns(place)
    suffixes = {suffix for sample in samples for suffix in sample.texts}
    if place.columns.label is None and (text := _text_suffix(suffixes, known)):
        return [(sample.texts.get(text),) for sample in samples], columns
    if place.columns.label is None and not suffixes:
        raise DataError("data.shards: no sample has a label: a file with the suffix .cls, .json or .txt")
    for column in columns:
        _check_field("label", column, known)
    return [tuple(row.get(column) for column in columns) for row in fields], columns


def _text_suffix(suffixes: set[str], known: set[str]) -> str | None:
    if "cls" in suffixes:
        return "cls"
    return "txt" if "txt" in suffixes and _FIELD not in known else None


def _groups(fields: Sequence[dict[str, Any]], known: set[str], column: str, names: Sequence[str]) -> list[str]:
    _check_field("group", column, known)
    groups = [fields.get(column) for fields in fields]
    faults = [name for name, group in zip(names, groups, strict=True) if group is None or not str(group).strip()]
    if faults:
        raise DataError(f"data.shards: {len(faults):,} samples have no {column} in their .json{listing(faults)}")
    return [str(group).strip() for group in groups]


def _check_field(key: str, column: str, known: set[str]) -> None:
    if column not in known:
        hint = nearest(column, known) if known else "there is no .json"
        raise DataError(f"data.columns.{key}: no sample has the field '{column}' in its .json ({hint})")
