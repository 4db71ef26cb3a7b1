"""Files of what a trainer needs to go on: written whole or not at all, and read without running what is in them."""

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
    """Write tensors and plain values, such as :meth:`Trainer.state_dict` gives; folders are made.

    Raises:
        StateError: It cannot be written, such as to a full disk.
    """
    part = path.with_suffix(PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # To a file of Python's, whose error torch's own, which says nothing of a disk, then has as its context.
        with part.open("wb") as file:
            torch.save(state, file)
        sync(part)
        part.rename(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            # What there is of it takes room on a disk that has none.
            part.unlink(missing_ok=True)
        raise StateError(f"{path} cannot be written: {_reason(error)}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; tensors are on the CPU.

    Raises:
        StateError: It is not there, or is not whole.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} cannot be read: it holds no state")
    return found


def _reason(error: BaseException) -> str:
    """What the system has said, if it was the system."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
