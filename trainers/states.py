"""Files of what a trainer needs to go on: written whole or not at all, and read without running what is in them."""

import pickle
from pathlib import Path
from typing import Any

import torch

from strategies import UnfreezeError
from trainers.durable import PART, sync


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
        torch.save(state, part)
        sync(part)
        part.rename(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
        raise StateError(f"{path} cannot be written: {_first_line(error)}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; tensors are on the CPU.

    Raises:
        StateError: It is not there, or is not whole.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} cannot be read: {_first_line(error)}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} cannot be read: it holds no state")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
