"""Checkpoints of trials: stored with their MLflow runs, and removed once better trials take their places."""

import shutil
import uuid
from collections.abc import Mapping

import torch
from safetensors import SafetensorError

from search.tracking.background_writer import BackgroundWriter, NoRoomError
from search.tracking.batches import Batches
from search.tracking.sink import CHECKPOINT_FILE
from search.tracking.writes import Drop, Upload
from strategies import first_line
from trainers import save_weights


class Checkpoints:
    """Stores and removes checkpoints, in order with all other writes.

    Args:
        writer: The background writer.
        batches: Batches that are sent before each checkpoint.
    """

    def __init__(self, writer: BackgroundWriter, batches: Batches) -> None:
        self._writer, self._batches = writer, batches
        #: Runs of which this process has stored a checkpoint.
        self.stored: set[str] = set()

    def save(self, run: str, state_dict: Mapping[str, torch.Tensor]) -> str:
        """Store a model's tensors as a safetensors artifact of a run, and return the artifact's path.

        Raises:
            NoRoomError: There is no room for the checkpoint.
        """
        spool = self._writer.spool
        assert spool is not None, "the study's run has begun"
        self.stored.add(run)
        try:
            spool.open()
            place = spool.checkpoints_of(run) / uuid.uuid4().hex
            place.mkdir(parents=True)
            save_weights(state_dict, place / CHECKPOINT_FILE)
        except (OSError, SafetensorError) as error:
            raise NoRoomError(f"a checkpoint cannot be written below {spool.folder}: {first_line(error)}") from error
        self._batches.send()
        self._writer.put(Upload(run=run, place=place.name))
        return CHECKPOINT_FILE

    def delete(self, run: str) -> None:
        """Remove a run's checkpoint; a missing checkpoint is no error."""
        self._batches.send()
        if self._writer.spool is not None:
            # A checkpoint that still waits on disk is not needed there either.
            shutil.rmtree(self._writer.spool.checkpoints_of(run), ignore_errors=True)
        self._writer.put(Drop(run=run))
