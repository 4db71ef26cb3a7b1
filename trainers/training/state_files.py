"""Files of trainers' states: written whole or not at all, checked when read, and read without running code in them.

A file ends with a mark and a digest of the whole file. Readers of zip files, as ``torch.load`` is one, do not mind.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from strategies import UnfreezeError, first_line
from trainers.atomic_files import PART, sync
from trainers.checked_files import BLANK, is_sealed, seal

# The digest follows; files of earlier versions have none.
_MARK = b"unfreeze state 1 "


class StateError(UnfreezeError):
    """A state cannot be written, or is missing or damaged."""


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values, such as of :meth:`Trainer.state_dict`; missing folders are made.

    Raises:
        StateError: The state cannot be written, for example to a full disk.
    """
    part = path.with_suffix(PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # To a Python file: torch's own error says nothing of a disk, but then has the system's error as its context.
        with part.open("w+b") as file:
            torch.save(state, file)
            file.write(_MARK + BLANK)
            file.flush()
            seal(file.fileno(), file.tell() - len(BLANK))
        sync(part)
        part.rename(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            # The partial file takes room on a full disk.
            part.unlink(missing_ok=True)
        raise StateError(f"{path} cannot be written: {_reason(error)}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of :func:`save_state`; tensors are on the CPU.

    Raises:
        StateError: The file is missing, truncated or altered.
    """
    try:
        with path.open("rb") as file:
            if not _is_whole(file.fileno()):
                raise StateError(f"{path} is damaged: its content does not agree with its digest")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except StateError:
        raise
    except Exception as error:  # torch raises errors of many kinds on a state that it cannot rebuild
        raise StateError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} cannot be read: it holds no state")
    return found


def _is_whole(file: int) -> bool:
    at = os.fstat(file).st_size - len(BLANK)
    return at >= len(_MARK) and os.pread(file, len(_MARK), at - len(_MARK)) == _MARK and is_sealed(file, at)


def _reason(error: BaseException) -> str:
    """The system's message, if the system raised the error; else the error's first line."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
