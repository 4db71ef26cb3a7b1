"""The sink of a study's writes: an MLflow store. Every write is idempotent."""

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from search.processes import temporary_folder
from search.storage import is_outage
from search.tracking import writes
from search.tracking.writes import Begin, Drop, End, Log, Upload, Write
from trainers import sync

CHECKPOINT_FILE = "checkpoint.safetensors"

#: Tag of a run: its key, which stands for the run until MLflow has begun it, and by which the run is found.
KEY_TAG = "unfreeze.spool_key"
# No id of a run begins with it.
_KEY_PREFIX = "key-"

# Without this tag MLflow 3.17 guesses, and may show the runs on its pages for language models.
_OF_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}

_ABSENT = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)


def new_run_key() -> str:
    """A key for a run that has not begun."""
    return _KEY_PREFIX + uuid.uuid4().hex


def find_run(client: MlflowClient, run: str, experiments: Sequence[str] | None = None) -> str | None:
    """The id of a run; ``None`` where no run has the key.

    Args:
        client: Client of the store.
        run: A key, or an id, which is returned as it is.
        experiments: Ids of the experiments to search; ``None`` for all.

    Raises:
        MlflowException: The store cannot be read.
    """
    if not run.startswith(_KEY_PREFIX):
        return run
    if experiments is None:
        experiments = [str(found.experiment_id) for found in client.search_experiments()]
    runs = client.search_runs(list(experiments), f"tags.`{KEY_TAG}` = '{run}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def is_absent(error: MlflowException) -> bool:
    """Whether MLflow does not have the run or the model that it was asked for."""
    return bool(error.error_code == _ABSENT)


class Sink:
    """Carries out writes of one study.

    Args:
        client: Client of the store.
        study: Name of the study, which is the name of its experiment.
        artifacts: URI of the folder for a new experiment; None where the server decides.
        experiment_id: Id of the study's experiment; None to look it up or make the experiment.
    """

    def __init__(
        self, client: MlflowClient, study: str, artifacts: str | None, experiment_id: str | None = None
    ) -> None:
        self._client, self._study, self._artifacts = client, study, artifacts
        self._experiment_id = experiment_id
        self._ids: dict[str, str] = {}
        # Errors of runs that MLflow refused to begin: later writes to these runs are refused with the same error.
        self._refused: dict[str, Exception] = {}
        self._artifact_uris: dict[str, str] = {}

    def __call__(self, write: Write, folder: Path | None, again: bool) -> None:
        """Carry out a write.

        Args:
            write: The write.
            folder: Folder of the spool, where checkpoints are.
            again: Whether the write may have been done before.

        Raises:
            Exception: Whatever MLflow raises.
        """
        match write:
            case Begin():
                self.begin(write, again)
            case Log():
                self._log(write)
            case End():
                self._client.set_terminated(self.id_of(write.run), write.status, end_time=write.time)
            case Upload():
                assert folder is not None, "a checkpoint is in a spool's folder"
                self._upload(write, folder)
            case Drop():
                self._drop(write)

    @property
    def experiment_id(self) -> str:
        """The study's experiment, made when it is first needed."""
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._study)
            self._experiment_id = str(
                found.experiment_id
                if found is not None
                else self._client.create_experiment(self._study, artifact_location=self._artifacts, tags=_OF_EXPERIMENT)
            )
        return self._experiment_id

    def begin(self, write: Begin, again: bool) -> str:
        """Begin a run, unless it has begun, and return its id."""
        run_id = self._look_up(write.run) if again else None
        if run_id is None:
            tags = {KEY_TAG: write.run, **write.tags}
            try:
                run = self._client.create_run(self.experiment_id, start_time=write.time, run_name=write.name, tags=tags)
            except Exception as error:
                if not is_outage(error):
                    self._refused[write.run] = error
                raise
            info = run.info
            run_id = str(info.run_id)
            self._artifact_uris[run_id] = info.artifact_uri
        self._ids[write.run] = run_id
        return run_id

    def id_or_key(self, run: str) -> str:
        """The id of a run that this process has begun, else the given key or id; MLflow is not asked."""
        return self._ids.get(run, run)

    def id_of(self, run: str) -> str:
        """The id of a run, given its id or its key.

        Raises:
            MlflowException: No run has the key.
        """
        if run in self._refused:
            raise self._refused[run]
        if run not in self._ids and run.startswith(_KEY_PREFIX):
            found = self._look_up(run)
            if found is None:
                raise MlflowException(f"no run has the tag {KEY_TAG} {run}", RESOURCE_DOES_NOT_EXIST)
            self._ids[run] = found
        return self.id_or_key(run)

    def _look_up(self, key: str) -> str | None:
        return find_run(self._client, key, [self.experiment_id])

    def artifacts_of(self, run: str) -> ArtifactRepository:
        """The repository of a run's files."""
        return get_artifact_repository(self.artifacts_uri_of(run))

    def artifacts_uri_of(self, run: str) -> str:
        """Where a run's files are."""
        run_id = self.id_of(run)
        if run_id not in self._artifact_uris:
            self._artifact_uris[run_id] = str(self._client.get_run(run_id).info.artifact_uri)
        return self._artifact_uris[run_id]

    def _log(self, write: Log) -> None:
        run_id, most = self.id_of(write.run), MAX_PARAMS_TAGS_PER_BATCH
        metrics = [Metric(*one) for one in write.metrics]
        params = [Param(*one) for one in write.params]
        tags = [RunTag(*one) for one in write.tags]
        while params or tags or metrics:
            room = MAX_ENTITIES_PER_BATCH - len(params[:most]) - len(tags[:most])
            self._client.log_batch(run_id, metrics=metrics[:room], params=params[:most], tags=tags[:most])
            metrics, params, tags = metrics[room:], params[most:], tags[most:]
        if write.datasets:
            # MLflow leaves data sets that the run has already as they are.
            self._client.log_inputs(run_id, [_input(one) for one in write.datasets])
        if write.files:
            with temporary_folder() as folder:
                # Apart from the file that names the folder's owner.
                files = folder / "files"
                for name, content in write.files.items():
                    (files / name).parent.mkdir(parents=True, exist_ok=True)
                    (files / name).write_bytes(content)
                self.artifacts_of(run_id).log_artifacts(str(files))  # type: ignore[no-untyped-call]

    def _upload(self, write: Upload, folder: Path) -> None:
        place = folder / write.run / write.place
        # A missing file was stored before, or was beaten by a better trial while it waited.
        if (place / CHECKPOINT_FILE).exists():
            repository = self.artifacts_of(write.run)
            try:
                repository.log_artifact(str(place / CHECKPOINT_FILE))  # type: ignore[no-untyped-call]
                if isinstance(repository, LocalArtifactRepository):
                    sync(Path(repository.artifact_dir) / CHECKPOINT_FILE)
                    sync(Path(repository.artifact_dir))
            except FileNotFoundError:
                if place.exists():
                    raise
            shutil.rmtree(place, ignore_errors=True)

    def _drop(self, write: Drop) -> None:
        try:
            repository = self.artifacts_of(write.run)
        except MlflowException as error:
            # Someone deleted the run, or a power cut undid it.
            if not is_absent(error):
                raise
            return
        if any(entry.path == CHECKPOINT_FILE for entry in repository.list_artifacts()):
            # Another process may have deleted it meanwhile.
            with suppress(FileNotFoundError):
                repository.delete_artifacts(CHECKPOINT_FILE)  # type: ignore[no-untyped-call]


def _input(found: writes.Dataset) -> DatasetInput:
    dataset = Dataset(found.name, found.digest, source_type="unfreeze", source=found.source, profile=found.profile)
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, found.context)])
