"""Clean-up over all studies: old checkpoints, and caches that were not used for long."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from search.config import HousekeepingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from search.storage import StoredStudy


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that may be removed.

    Args:
        study: Name of its study.
        trial: Number of its trial.
        uri: Folder of its run's artifacts.
        bytes: Its size.
        ended: When the trial ended.
    """

    study: str
    trial: int
    uri: str
    bytes: int
    ended: datetime


def tidy(studies: Sequence["StoredStudy"], cache: Path, how: HousekeepingConfig, only_says: bool = False) -> list[str]:
    """Remove checkpoints and caches that are too old, and the oldest checkpoints until they are within their limit.

    Args:
        studies: Studies whose checkpoints may be removed.
        cache: Folder of cached images and activations.
        how: The limits of age and size.
        only_says: Whether nothing is removed.

    Returns:
        A line for each checkpoint and cache entry that was, or would be, removed.
    """
    said = []
    for found in too_many(list(_checkpoints(studies)), how):
        if not only_says:
            _remove(found)
        said.append(f"checkpoint of trial {found.trial} of {found.study}, {_size(found.bytes)}")
    if how.days is not None:
        from trainers import drop_unused

        before = time.time() - timedelta(days=how.days).total_seconds()
        for path, size in drop_unused(cache, before, only_says):
            said.append(f"{path}, {_size(size)}")
    return said


def too_many(checkpoints: Sequence[Checkpoint], how: HousekeepingConfig) -> list[Checkpoint]:
    """The checkpoints to remove, the oldest first."""
    in_order = sorted(checkpoints, key=lambda one: one.ended)
    left = sum(one.bytes for one in in_order)
    oldest = datetime.min if how.days is None else datetime.now() - timedelta(days=how.days)
    most = float("inf") if how.gib is None else how.gib * 2**30
    going = []
    for one in in_order:
        if one.ended < oldest or left > most:
            going.append(one)
            left -= one.bytes
    return going


def _checkpoints(studies: Sequence["StoredStudy"]) -> Iterator[Checkpoint]:
    """Checkpoints of studies without running trials, except winners' and those of the best trials, which may win."""
    from optuna.trial import TrialState

    from search.scheduling import ranked
    from search.storage import CHECKPOINT, RUN_ID, WINNER

    for stored in studies:
        trials = stored.study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.RUNNING for trial in trials):
            continue
        spared = {trial.number for trial in ranked(stored.study)[:1]}
        spared.add(stored.study.user_attrs.get(WINNER, {}).get("trial"))
        with stored.reading_runs() as client:
            for trial in trials:
                if CHECKPOINT not in trial.user_attrs or trial.number in spared or trial.datetime_complete is None:
                    continue
                place = _place_of_checkpoint(client, trial.user_attrs[RUN_ID])
                if place is not None:
                    yield Checkpoint(stored.name, trial.number, *place, trial.datetime_complete)


def _place_of_checkpoint(client: "MlflowClient", run: str) -> tuple[str, int] | None:
    """Folder and size of a run's checkpoint; None where the checkpoint or the whole run is gone."""
    from mlflow.exceptions import MlflowException

    from search.tracking import CHECKPOINT_FILE, find_run, is_absent

    run_id = find_run(client, run)
    if run_id is None:
        return None
    try:
        files = client.list_artifacts(run_id)
        uri = str(client.get_run(run_id).info.artifact_uri)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None
    sizes = [file.file_size or 0 for file in files if file.path == CHECKPOINT_FILE]
    return (uri, sizes[0]) if sizes else None


def _remove(checkpoint: Checkpoint) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from search.tracking import CHECKPOINT_FILE

    get_artifact_repository(checkpoint.uri).delete_artifacts(CHECKPOINT_FILE)  # type: ignore[no-untyped-call]


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
