"""Files of trainers' states: written whole or not at all, and read without running code in them."""

import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from strategies import UnfreezeError, first_line
from trainers.atomic_files import PART, sync


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
        with part.open("wb") as file:
            torch.save(state, file)
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
        StateError: The file is missing or not whole.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} cannot be read: it holds no state")
    return found


def _reason(error: BaseException) -> str:
    """The system's message, if the system raised the error; else the error's first line."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
