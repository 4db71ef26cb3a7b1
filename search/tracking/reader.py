"""What MLflow has of a study, read when everything is written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from search.storage import is_outage, retrying_mlflow
from search.tracking.background_writer import BackgroundWriter
from search.tracking.batches import Batches
from search.tracking.sink import CHECKPOINT_FILE, Sink
from strategies import UnfreezeError, first_line


class Reader:
    """Reads what MLflow has of a study.

    Args:
        client: Of the store.
        sink: Knows the study's experiment and the ids of its runs.
        writer: Writes to it.
        batches: What still is to be written.
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
        """Read something when everything is written."""
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
        """While the ``with`` block runs, ask MLflow again for some seconds where it does not answer.

        Raises:
            AwayError: MLflow cannot be reached; raised by it, or by MLflow itself.
        """
        try:
            with retrying_mlflow():
                yield
        except (MlflowException, requests.RequestException) as error:
            if is_outage(error):
                raise self._writer.away(error) from error
            raise

    def params(self, run: str) -> dict[str, str]:
        """The parameters of a run, as texts."""
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

    def fetch_checkpoint(self, run: str, folder: Path) -> Path:
        """Copy a run's checkpoint into ``folder``.

        Raises:
            AwayError: MLflow cannot be reached.
            UnfreezeError: It is not there.
        """
        with self._reading(f"the checkpoint of run {run}"):
            return Path(self._client.download_artifacts(self._sink.id_of(run), CHECKPOINT_FILE, str(folder)))
