"""Writes to MLflow, as data that can wait in memory or on disk."""

import re
import zlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Write(BaseModel):
    """One write; ``run`` is a run's id, or the key that stands for the run until MLflow has begun it."""

    # A loss that is NaN or infinite is logged as such. Only a damaged line has other keys.
    model_config = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants", extra="forbid"
    )

    run: str


class Begin(_Write):
    """Begin a run; ``time`` is in milliseconds, as everywhere in MLflow."""

    kind: Literal["begin"] = "begin"
    name: str
    tags: dict[str, str]
    time: int


class Dataset(BaseModel):
    """A data set that a run used, as MLflow describes one; ``profile`` and ``source`` are JSON."""

    model_config = ConfigDict(extra="forbid")

    name: str
    digest: str
    source: str
    profile: str
    context: str


class Log(_Write):
    """Log metrics as (name, value, time, step), parameters and tags as (name, value), data sets, and files by name."""

    kind: Literal["log"] = "log"
    metrics: list[tuple[str, float, int, int]] = []
    params: list[tuple[str, str]] = []
    tags: list[tuple[str, str]] = []
    datasets: list[Dataset] = []
    files: dict[str, bytes] = {}


class End(_Write):
    """End a run."""

    kind: Literal["end"] = "end"
    status: str
    time: int


class Upload(_Write):
    """Store a run's checkpoint, which is in the spool's folder at ``run/place``."""

    kind: Literal["upload"] = "upload"
    place: str


class Drop(_Write):
    """Remove a run's checkpoint."""

    kind: Literal["drop"] = "drop"


Write = Begin | Log | End | Upload | Drop

_READER: TypeAdapter[Write] = TypeAdapter(Annotated[Write, Field(discriminator="kind")])


# The end of a line: the CRC-32 of all before.
_CHECK = re.compile(rb',"crc32":"([0-9a-f]{8})"}$')


def as_line(write: Write) -> str:
    """A write as JSON in one line, the last entry of which is a checksum of the others."""
    text = write.model_dump_json().removesuffix("}")
    return f'{text},"crc32":"{zlib.crc32(text.encode()):08x}"}}'


def from_line(line: bytes) -> Write:
    """The write of a line that :func:`as_line` gave, or that an earlier version wrote, which made no checksums.

    Raises:
        ValueError: The line holds no write, or was altered.
    """
    check = _CHECK.search(line)
    if check is None:
        return _READER.validate_json(line)
    text = line[: check.start()]
    if zlib.crc32(text) != int(check[1], 16):
        raise ValueError("the line does not agree with its checksum")
    return _READER.validate_json(text + b"}")
