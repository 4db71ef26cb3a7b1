"""Reads a study's runs from MLflow, once all writes are done."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import requests
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from search.config import without_password
from search.storage import is_outage, retrying_mlflow
from search.tracking.background_writer import BackgroundWriter
from search.tracking.batches import Batches
from search.tracking.sink import CHECKPOINT_FILE, Sink, find_run, is_absent
from strategies import UnfreezeError, first_line
from trainers import DamagedFileError, check_tensors


class Reader:
    """Reads a study's runs from MLflow.

    Args:
        client: Client of the store.
        sink: Has the study's experiment and the ids of its runs.
        writer: The background writer, whose writes are waited for.
        batches: Batches that are sent before each read.
    """

    def __init__(self, client: MlflowClient, sink: Sink, writer: BackgroundWriter, batches: Batches) -> None:
        self._client, self._sink, self._writer, self._batches = client, sink, writer, batches

    def id_of(self, run: str) -> str:
        """A run's id, once everything is written.

        Raises:
            AwayError: MLflow cannot be reached.
            UnfreezeError: There is no such run.
        """
        with self._reading(f"run {run}"):
            return self._sink.id_of(run)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """A context for reads, once everything is written."""
        self._batches.send()
        self._writer.deliver()
        try:
            yield
        except (MlflowException, OSError) as error:
            if is_outage(error):
                raise self._writer.away(error) from error
            raise UnfreezeError(f"{what} cannot be read: {first_line(error)}") from error

    @contextmanager
    def needed(self) -> Iterator[None]:
        """While the ``with`` block runs, let MLflow retry for some seconds.

        Raises:
            AwayError: MLflow cannot be reached.
        """
        try:
            with retrying_mlflow():
                yield
        except (MlflowException, requests.RequestException) as error:
            if is_outage(error):
                raise self._writer.away(error) from error
            raise

    def params(self, run: str) -> dict[str, str]:
        """The parameters of a run, as strings."""
        with self._reading(f"run {run}"):
            return dict(self._client.get_run(self._sink.id_of(run)).data.params)

    def running(self) -> dict[str, Mapping[str, str]]:
        """Tags of the runs of this experiment that MLflow shows as running, by id."""
        found: dict[str, Mapping[str, str]] = {}
        token = None
        with self._reading("the study's runs"):
            while True:
                page = self._client.search_runs(
                    [self._sink.experiment_id], "attributes.status = 'RUNNING'", max_results=1000, page_token=token
                )
                found |= {run.info.run_id: run.data.tags for run in page}
                token = page.token
                if not token:
                    return found

    def lacks(self, run: str) -> Literal["run", "checkpoint"] | None:
        """Which of a run and its checkpoint MLflow does not have, or has as deleted; ``None`` where it has both.

        Raises:
            AwayError: MLflow cannot be reached.
        """
        with self._reading(f"run {run}"):
            try:
                run_id = find_run(self._client, self._sink.id_or_key(run), [self._sink.experiment_id])
                if run_id is None or self._client.get_run(run_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
                    return "run"
                files = self._client.list_artifacts(run_id)
            except MlflowException as error:
                if not is_absent(error):
                    raise
                return "run"
        # A power cut may leave an empty file.
        return None if any(one.path == CHECKPOINT_FILE and one.file_size != 0 for one in files) else "checkpoint"

    def fetch_checkpoint(self, run: str, folder: Path) -> Path:
        """Copy a run's checkpoint into ``folder``, and check the copy.

        Raises:
            AwayError: MLflow cannot be reached.
            DamagedFileError: The checkpoint is truncated or altered; the message names the artifact.
            UnfreezeError: The checkpoint is not there.
        """
        with self._reading(f"the checkpoint of run {run}"):
            run_id = self._sink.id_of(run)
            copy = Path(self._client.download_artifacts(run_id, CHECKPOINT_FILE, str(folder)))
        try:
            check_tensors(copy)
        except DamagedFileError as error:
            place = without_password(f"{self._sink.artifacts_uri_of(run)}/{CHECKPOINT_FILE}")
            raise DamagedFileError(f"the checkpoint of run {run_id} is damaged: {place}") from error
        return copy
