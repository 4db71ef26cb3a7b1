"""Writing a study to MLflow: a parent run, a child run a trial, in a few batched calls from another thread."""

import io
import json
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import sqlalchemy
import torch
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from search.outcome import ENDINGS, Outcome
from search.sqlite import write_ahead
from search.writer import WriteError, Writer
from strategies import ConfigError, UnfreezeError, WeightsError

# One bar a file, amid our own; MLflow reads the variable at each transfer.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The terminal says at its end where to look.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

PARENT_TAG = "mlflow.parentRunId"
CHECKPOINT_FILE = "checkpoint.safetensors"

# Epochs that are shorter share a call: each costs some 5 ms of Python, which a training on the CPU would feel.
BATCH_SECONDS = 0.2

logger = logging.getLogger(__name__)

# A run that was begun, or one whose beginning is still to be written.
RunId = str | Future[str]


@dataclass(slots=True)
class _Batch:
    """What is to be written of one run in one call, or the fewest that MLflow allows."""

    run: RunId
    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


class Tracker:
    """The MLflow side of one study.

    What is written goes through ``writer``, in order and off the calling thread, and is there for sure after
    :meth:`flush`; what is read waits for it. Every method that writes raises :class:`search.writer.WriteError` when an
    earlier write has failed. One thread at a time may call.

    Args:
        uri: MLflow tracking URI; a ``sqlite:///`` path is made when it is not there.
        artifacts: Folder of artifacts, used when the store is a local database; a server decides for itself.
        study: Name of the study and so of the MLflow experiment.

    Raises:
        ConfigError: The store cannot be opened, or the experiment was deleted there.
    """

    def __init__(self, uri: str, artifacts: str, study: str) -> None:
        # The first write to a new database logs some fifty lines of migrations.
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # A write that fails is raised, and said in a line; MLflow would print a traceback of it besides.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._study, self._artifacts = study, artifacts
        try:
            self.uri = absolute_sqlite(uri)
            write_ahead(self.uri)
            _check_database(self.uri)
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
            with _few_retries():
                experiment = self._client.get_experiment_by_name(study)
        except Exception as error:  # each database driver has errors of its own
            raise ConfigError(
                f"tracking.uri: {without_password(uri)!r} cannot be used: {_first_line(error)}"
            ) from error
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise ConfigError(
                f"name: the MLflow experiment {study!r} was deleted; restore it there or choose another name"
            )
        self._experiment_id = str(experiment.experiment_id) if experiment is not None else None
        mlflow.set_tracking_uri(self.uri)
        self.writer = Writer(f"MLflow at {without_password(self.uri)}")
        # By run: several trials may be trained at once.
        self._batches: dict[RunId, _Batch] = {}
        self._last_sent = 0.0
        self._artifact_uris: dict[str, str] = {}

    @property
    def experiment_id(self) -> str:
        """The study's experiment, made when it is first needed."""
        if self._experiment_id is None:
            local = not self.uri.startswith(("http://", "https://", "databricks"))
            location = (Path(self._artifacts).absolute() / self._study).as_uri() if local else None
            self._experiment_id = str(self._client.create_experiment(self._study, artifact_location=location))
        return self._experiment_id

    def open_parent(self, run_id: str | None, name: str, tags: Mapping[str, Any]) -> str:
        """Take up the study's parent run, or begin one when ``run_id`` is not there (any more).

        Returns:
            The run's id.
        """
        if run_id is not None:
            try:
                self._client.update_run(run_id, status="RUNNING")
                self.log(run_id, tags=tags)
                return run_id
            except MlflowException:
                logger.warning("the study's parent run %s is gone; a new one begins", run_id)
        return self._create(name, tags, self.experiment_id, _now())

    def start_trial(self, parent: str, name: str, tags: Mapping[str, Any]) -> "Future[str]":
        """Begin a child run; its id is there once it is written."""
        tags = {PARENT_TAG: parent, **tags}
        experiment_id, now = self.experiment_id, _now()
        self._send()
        # What is logged of a new run need not wait.
        self._last_sent = 0.0
        return self.writer.put(lambda: self._create(name, tags, experiment_id, now))

    def _create(self, name: str, tags: Mapping[str, Any], experiment_id: str, now: int) -> str:
        texts = {key: str(value) for key, value in tags.items()}
        info = self._client.create_run(experiment_id, start_time=now, run_name=name, tags=texts).info
        self._artifact_uris[info.run_id] = info.artifact_uri
        return str(info.run_id)

    def log(
        self,
        run: RunId,
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Write metrics, parameters and tags."""
        now = _now()
        batch = self._batch_of(run)
        batch.metrics += [Metric(name, float(value), now, step) for name, value in (metrics or {}).items()]
        batch.params += [Param(name, str(value)) for name, value in (params or {}).items()]
        batch.tags += [RunTag(name, str(value)) for name, value in (tags or {}).items()]
        self._send_if_due()

    def log_json(self, run: RunId, name: str, content: Any) -> None:
        """Write ``content`` as a JSON artifact."""
        self.log_text(run, name, json.dumps(content, indent=1))

    def log_text(self, run: RunId, name: str, text: str) -> None:
        """Write ``text`` as an artifact."""
        self._log_file(run, name, text.encode())

    def log_pictures(self, run: RunId, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """Write pictures (H, W, 3) as PNG artifacts, over those that were there before."""
        for number, picture in enumerate(pictures):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format="PNG")
            self._log_file(run, f"pictures/{number}.png", buffer.getvalue())

    def _log_file(self, run: RunId, name: str, content: bytes) -> None:
        self._batch_of(run).files[name] = content
        self._send_if_due()

    def finish(self, run: RunId, outcome: Outcome, reason: str = "") -> None:
        """End a run with the status and tag of its outcome, and the reason if there is one."""
        self.log_outcome(run, outcome, reason)
        self.end(run, outcome)

    def log_outcome(self, run: RunId, outcome: Outcome, reason: str = "") -> None:
        """Write what is known of a run's end before it ends: its outcome, and the reason if there is one."""
        self.log(run, tags={"unfreeze.outcome": outcome} | ({"unfreeze.reason": reason[:500]} if reason else {}))

    def end(self, run: RunId, outcome: Outcome) -> None:
        """End a run with the status of its outcome."""
        now = _now()
        self._send()
        self.writer.put(lambda: self._client.set_terminated(_id_of(run), ENDINGS[outcome].status, end_time=now))

    def try_to_finish(self, run: RunId, outcome: Outcome) -> None:
        """End a run and wait for it, on the way out of an error: a store that cannot be written to is only logged."""
        try:
            self.finish(run, outcome)
            self.flush()
        except WriteError as error:
            logger.warning("%s", error)

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            WriteError: Something could not be.
        """
        self._send()
        self.writer.flush()

    def _batch_of(self, run: RunId) -> _Batch:
        """What is being gathered of a run."""
        return self._batches.setdefault(run, _Batch(run))

    def _send_if_due(self) -> None:
        if self.writer.is_idle and time.monotonic() - self._last_sent >= BATCH_SECONDS:
            self._send()

    def _send(self) -> None:
        """Have all that was gathered written."""
        batches, self._batches = self._batches, {}
        if batches:
            self._last_sent = time.monotonic()
        for batch in batches.values():
            self.writer.put(partial(self._write, batch))

    def _write(self, batch: _Batch) -> None:
        run_id = _id_of(batch.run)
        most = MAX_PARAMS_TAGS_PER_BATCH
        while batch.params or batch.tags or batch.metrics:
            params, batch.params = batch.params[:most], batch.params[most:]
            tags, batch.tags = batch.tags[:most], batch.tags[most:]
            room = MAX_ENTITIES_PER_BATCH - len(params) - len(tags)
            metrics, batch.metrics = batch.metrics[:room], batch.metrics[room:]
            self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        if batch.files:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in batch.files.items():
                    (Path(folder) / name).parent.mkdir(exist_ok=True)
                    (Path(folder) / name).write_bytes(content)
                self._artifacts_of(run_id).log_artifacts(folder)  # type: ignore[no-untyped-call]

    def _artifacts_of(self, run_id: str) -> ArtifactRepository:
        if run_id not in self._artifact_uris:
            self._artifact_uris[run_id] = str(self._client.get_run(run_id).info.artifact_uri)
        return get_artifact_repository(self._artifact_uris[run_id])

    def params(self, run_id: str) -> dict[str, str]:
        """The parameters of a run, as texts."""
        self.flush()
        return dict(self._client.get_run(run_id).data.params)

    def running(self) -> dict[str, str]:
        """Runs of this experiment that MLflow shows as running: id to the number of their trial, ``""`` for none."""
        self.flush()
        found: dict[str, str] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], "attributes.status = 'RUNNING'", max_results=1000, page_token=token
            )
            found |= {run.info.run_id: run.data.tags.get("unfreeze.trial", "") for run in page}
            token = page.token
            if not token:
                return found

    def save_checkpoint(self, run: RunId, state_dict: Mapping[str, torch.Tensor]) -> str:
        """Store a model's tensors as a safetensors artifact of a run, at once, and return the artifact's path."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CHECKPOINT_FILE
            save_weights(state_dict, path)
            self._artifacts_of(_id_of(run)).log_artifact(str(path))  # type: ignore[no-untyped-call]
        return CHECKPOINT_FILE

    def delete_checkpoint(self, run: RunId) -> None:
        """Remove a run's checkpoint; one already gone is no error."""
        self._send()
        self.writer.put(lambda: self._delete_checkpoint(_id_of(run)))

    def _delete_checkpoint(self, run_id: str) -> None:
        try:
            repository = self._artifacts_of(run_id)
        except MlflowException as error:
            # Someone deleted the whole run, or a power cut took it back.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
        if any(entry.path == CHECKPOINT_FILE for entry in repository.list_artifacts()):
            # Another process may be faster.
            with suppress(FileNotFoundError):
                repository.delete_artifacts(CHECKPOINT_FILE)  # type: ignore[no-untyped-call]

    def fetch_checkpoint(self, run_id: str, folder: Path) -> Path:
        """Copy a run's checkpoint into ``folder``.

        Raises:
            UnfreezeError: It is not there.
        """
        try:
            return Path(self._client.download_artifacts(run_id, CHECKPOINT_FILE, str(folder)))
        except (MlflowException, OSError) as error:
            raise UnfreezeError(f"the checkpoint of run {run_id} cannot be read: {_first_line(error)}") from error


def _id_of(run: RunId) -> str:
    return run if isinstance(run, str) else run.result()


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def save_weights(state_dict: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a model's tensors to a safetensors file."""
    # safetensors takes neither tensors that share memory nor channels_last ones.
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in state_dict.items()}, path)


def fetch_uri(uri: str, tracking_uri: str) -> Path:
    """Download what a ``models:/`` or ``runs:/`` URI names in an MLflow store, and return where it lies.

    Raises:
        WeightsError: MLflow does not have it.
    """
    # What download_artifacts is told holds for runs alone (MLflow 3.17): models are looked up in the global store.
    mlflow.set_tracking_uri(absolute_sqlite(tracking_uri))
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise WeightsError(_first_line(error)) from error


def _check_database(uri: str) -> None:
    """Fail at once on a database that cannot be opened, where MLflow would try for two minutes."""
    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        engine = sqlalchemy.create_engine(uri)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()


@contextmanager
def _few_retries() -> Iterator[None]:
    """Ask a server that may not be there for seconds, not for MLflow's four minutes, unless the user set a number."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    if name in os.environ:
        yield
        return
    os.environ[name] = "2"
    try:
        yield
    finally:
        del os.environ[name]


def absolute_sqlite(uri: str) -> str:
    """A ``sqlite:///`` URI with an absolute path, its folder made; other URIs as they are."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return uri
    path = Path(uri.removeprefix(prefix)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{prefix}{path}"


def without_password(url: str) -> str:
    """A URL that may be shown and stored: its password is replaced by stars."""
    return re.sub(r"(://[^:/@]*:)[^@/]*@", r"\1***@", url)


def git_commit() -> str:
    """The commit checked out in the working directory, with ``+`` when files differ; ``""`` outside of git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
