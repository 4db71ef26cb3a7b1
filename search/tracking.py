"""Writing a study to MLflow: a parent run, a child run a trial, in a few batched calls."""

import json
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import sqlalchemy
import torch
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from safetensors.torch import save_file

from search.outcome import ENDINGS, Outcome
from strategies import ConfigError, UnfreezeError, WeightsError

# One bar a file, amid our own; MLflow reads the variable at each transfer.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The terminal says at its end where to look.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

PARENT_TAG = "mlflow.parentRunId"
CHECKPOINT_FILE = "checkpoint.safetensors"


class Tracker:
    """The MLflow side of one study.

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
        self._study, self._artifacts = study, artifacts
        try:
            self.uri = absolute_sqlite(uri)
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
                logging.getLogger(__name__).warning("the study's parent run %s is gone; a new one begins", run_id)
        return self._create(name, tags)

    def start_trial(self, parent: str, name: str, tags: Mapping[str, Any]) -> str:
        """Begin a child run and return its id."""
        return self._create(name, {PARENT_TAG: parent, **tags})

    def _create(self, name: str, tags: Mapping[str, Any]) -> str:
        texts = {key: str(value) for key, value in tags.items()}
        return str(self._client.create_run(self.experiment_id, run_name=name, tags=texts).info.run_id)

    def log(
        self,
        run_id: str,
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Write metrics, parameters and tags in one call."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, step) for name, value in (metrics or {}).items()],
            params=[Param(name, str(value)) for name, value in (params or {}).items()],
            tags=[RunTag(name, str(value)) for name, value in (tags or {}).items()],
        )

    def log_json(self, run_id: str, name: str, content: Any) -> None:
        """Write ``content`` as a JSON artifact."""
        self._client.log_text(run_id, json.dumps(content, indent=1), name)

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Write ``text`` as an artifact."""
        self._client.log_text(run_id, text, name)

    def finish(self, run_id: str, outcome: Outcome, reason: str = "") -> None:
        """End a run with the status and tag of its outcome, and the reason if there is one."""
        self.log(run_id, tags={"unfreeze.outcome": outcome} | ({"unfreeze.reason": reason[:500]} if reason else {}))
        self._client.set_terminated(run_id, ENDINGS[outcome].status)

    def running(self) -> dict[str, str]:
        """Runs of this experiment that MLflow shows as running: id to the number of their trial, ``""`` for none."""
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

    def save_checkpoint(self, run_id: str, state_dict: Mapping[str, torch.Tensor]) -> str:
        """Store a model's tensors as a safetensors artifact of a run and return the artifact's path."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CHECKPOINT_FILE
            # safetensors takes neither tensors that share memory nor channels_last ones.
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in state_dict.items()}, path)
            self._client.log_artifact(run_id, str(path))
        return CHECKPOINT_FILE

    def delete_checkpoint(self, run_id: str) -> None:
        """Remove a run's checkpoint; one already gone is no error."""
        repository = get_artifact_repository(self._client.get_run(run_id).info.artifact_uri)
        if any(entry.path == CHECKPOINT_FILE for entry in repository.list_artifacts()):
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


def fetch_uri(uri: str, tracking_uri: str) -> Path:
    """Download what a ``models:/`` or ``runs:/`` URI names in an MLflow store, and return where it lies.

    Raises:
        WeightsError: MLflow does not have it.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=absolute_sqlite(tracking_uri)))
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
