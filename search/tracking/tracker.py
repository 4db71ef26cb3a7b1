"""Writes a study to MLflow: a parent run and a child run for each trial, in batched calls from another thread."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from search.config import without_password
from search.storage import (
    ENDINGS,
    HTTP_RETRIES,
    Outcome,
    artifact_folder,
    check_database,
    check_folder,
    is_outage,
    make_folder_of,
    make_store,
    reachable,
    retrying_mlflow,
    write_ahead,
)
from search.tracking.background_writer import BackgroundWriter, WriteError
from search.tracking.batches import Batches
from search.tracking.best_first_view import VIEW_TAG
from search.tracking.checkpoints import Checkpoints
from search.tracking.leftovers import deliver_all
from search.tracking.reader import Reader
from search.tracking.sink import Sink, new_run_key
from search.tracking.spool import Spool, left_in
from search.tracking.writes import Begin, Dataset, End
from strategies import ConfigError, first_line

# MLflow's progress bars, one a file, would appear amid our own; MLflow reads the variable at each transfer.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The terminal says at its end where to look.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault(HTTP_RETRIES, "0")

PARENT_TAG = "mlflow.parentRunId"

logger = logging.getLogger(__name__)


class Tracker:
    """The MLflow side of one study.

    Writes go through ``writer``, in order and off the calling thread; checkpoints go through ``checkpoints``, and
    ``reader`` reads from MLflow once all writes are done. After :meth:`flush` all writes are done, or wait on disk for
    MLflow to come back. Every method that writes raises :class:`~search.tracking.background_writer.WriteError` when an
    earlier write was refused. One thread at a time may call.

    All methods take a run's id, or the key that :meth:`start_trial` gives.

    Args:
        uri: MLflow tracking URI; a missing ``sqlite:///`` file is made.
        artifacts: Folder of artifacts, used when the store is a local database; a server decides for itself.
        study: Name of the study, which is the name of its MLflow experiment.
        spools: Folder of the spools, where writes wait while MLflow is away.
        say: Gets a line when MLflow is away, and when it is back.
        is_checked: Whether an MLflow that does not answer is an error.

    Raises:
        ConfigError: The store cannot be opened, or the experiment was deleted there.
    """

    def __init__(
        self,
        uri: str,
        artifacts: str,
        study: str,
        spools: Path,
        say: Callable[[str], None] = logger.warning,
        is_checked: bool = True,
    ) -> None:
        # The first write to a new database logs some fifty lines of migrations.
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # MLflow logs each failed try; our own message comes once.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._study, self._spools, self._given_uri, self._say = study, spools, uri, say
        with self._usable():
            self.uri = reachable(uri)
            make_folder_of(uri)
            write_ahead(self.uri)
            make_store(self.uri, say)
            check_database(self.uri)
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
            experiment = None
            if is_checked:
                with retrying_mlflow():
                    experiment = self._client.get_experiment_by_name(study)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise ConfigError(
                f"name: the MLflow experiment {study!r} was deleted; restore it there or choose another name"
            )
        if experiment is not None:
            _check_artifacts(experiment.artifact_location)
        mlflow.set_tracking_uri(self.uri)
        is_local = not self.uri.startswith(("http://", "https://", "databricks"))
        location = (Path(artifacts).absolute() / study).as_uri() if is_local else None
        experiment_id = str(experiment.experiment_id) if experiment is not None else None
        self._sink = Sink(self._client, study, location, experiment_id)
        self.writer = BackgroundWriter(f"MLflow at {without_password(self.uri)}", self._sink, say)
        self._batches = Batches(self.writer)
        self.checkpoints = Checkpoints(self.writer, self._batches)
        self.reader = Reader(self._client, self._sink, self.writer, self._batches)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each database driver has errors of its own
            uri = without_password(self._given_uri)
            raise ConfigError(f"tracking.uri: {uri!r} cannot be used: {first_line(error)}") from error

    @property
    def experiment_id(self) -> str:
        """The study's experiment, made when it is first needed."""
        return self._sink.experiment_id

    def open_parent(self, run_id: str | None, name: str, tags: Mapping[str, Any], key: str | None = None) -> str:
        """Resume the study's parent run, or begin one where there is no run ``run_id`` (any more).

        Writes that ended processes have left are done before.

        Args:
            run_id: The run's id; None if it is not known.
            name: Name of a run that is begun.
            tags: Tags of the run.
            key: Key of a run that is begun, unless there is a run with this key; None for a new key.

        Returns:
            The run's id.

        Raises:
            ConfigError: MLflow went away meanwhile.
        """
        with self._usable():
            if run_id is not None:
                try:
                    with retrying_mlflow():
                        self._client.get_run(run_id)
                    self.join(run_id)
                    self.deliver_left()
                    self._client.update_run(run_id, status="RUNNING")
                    self.log(run_id, tags=tags)
                    return run_id
                except MlflowException as error:
                    if is_outage(error):
                        raise
                    logger.warning("the study's parent run %s is gone; a new one begins", run_id)
            begin = Begin(run=key or new_run_key(), name=name, tags=_texts(tags), time=_now())
            run_id = self._sink.begin(begin, again=key is not None)
        self.join(run_id)
        return run_id

    def save_view(self, view: str) -> None:
        """Save a view, which :func:`search.tracking.best_first_view.best_first` gives, with the study's experiment.

        Raises:
            ConfigError: MLflow went away meanwhile.
        """
        with self._usable(), retrying_mlflow():
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, view)

    def join(self, parent: str) -> None:
        """Name the study's run, which the folder of its spools is named after."""
        if self.writer.spool is None:
            self.writer.spool = Spool(self._spools / f"{self._study}-{parent[:8]}")

    def start_trial(self, parent: str, name: str, tags: Mapping[str, Any], run: str | None = None) -> str:
        """Begin a child run with the key ``run``, or with a new key, and return the key."""
        run = run or new_run_key()
        self.join(parent)
        self._batches.send()
        # The first values of a new run need not wait.
        self._batches.hurry()
        self.writer.put(Begin(run=run, name=name, tags=_texts({PARENT_TAG: parent, **tags}), time=_now()))
        return run

    def id_or_key(self, run: str) -> str:
        """A run's id if this process has begun the run by now, else its key."""
        return self._sink.id_or_key(run)

    def deliver(self) -> bool:
        """Wait until everything is written, with the writes that ended processes have left.

        Returns:
            Whether MLflow was away for this or another process, so that runs may have to be reconciled.

        Raises:
            AwayError: MLflow cannot be reached.
        """
        self._batches.send()
        self.writer.deliver()
        return self.deliver_left() or self.writer.was_away

    def deliver_left(self) -> bool:
        """Do the writes that ended processes have left on disk.

        Returns:
            Whether there were any.

        Raises:
            AwayError: MLflow cannot be reached.
        """
        found = 0
        assert self.writer.spool is not None, "the study's run has begun"
        for spool in left_in(self.writer.spool.folder.parent):
            if not spool.take():
                continue
            try:
                found += deliver_all(spool, self._sink, self.writer)
            finally:
                spool.release()
        if found:
            self._say(f"{found} writes were delivered that an ended process had left for MLflow")
        return found > 0

    def log(
        self,
        run: str,
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        datasets: Sequence[Dataset] = (),
    ) -> None:
        """Write metrics, parameters, tags and data sets of a run."""
        now = _now()
        log = self._batches.of(run)
        log.metrics += [(name, float(value), now, step) for name, value in (metrics or {}).items()]
        log.params += _texts(params or {}).items()
        log.tags += _texts(tags or {}).items()
        log.datasets += datasets
        self._batches.send_if_due()

    def log_json(self, run: str, name: str, content: Any) -> None:
        """Write ``content`` as a JSON artifact."""
        self.log_text(run, name, json.dumps(content, indent=1))

    def log_text(self, run: str, name: str, text: str) -> None:
        """Write ``text`` as an artifact."""
        self.log_file(run, name, text.encode())

    def log_file(self, run: str, name: str, content: bytes) -> None:
        """Write ``content`` as an artifact."""
        self._batches.of(run).files[name] = content
        self._batches.send_if_due()

    def finish(self, run: str, outcome: Outcome, reason: str = "") -> None:
        """End a run with the status and tag of its outcome, and with the reason if there is one."""
        self.log_outcome(run, outcome, reason)
        self.end(run, outcome)

    def log_outcome(self, run: str, outcome: Outcome, reason: str = "") -> None:
        """Write the tags of a run's outcome, and of the reason if there is one, before the run ends."""
        self.log(run, tags={"unfreeze.outcome": outcome} | ({"unfreeze.reason": reason[:500]} if reason else {}))

    def end(self, run: str, outcome: Outcome) -> None:
        """End a run with the status of its outcome."""
        now = _now()
        self._batches.send()
        self.writer.put(End(run=run, status=ENDINGS[outcome].status, time=now))

    def try_to_finish(self, run: str, outcome: Outcome) -> None:
        """End a run after an error, and wait for that; a further error of the store is only logged.

        A stored checkpoint of the run is removed.
        """
        try:
            if run in self.checkpoints.stored:
                self.checkpoints.delete(run)
            self.finish(run, outcome)
            self.flush()
        except WriteError as error:
            logger.warning("%s", error)

    def flush(self) -> None:
        """Wait until all writes are done, or wait on disk for MLflow to come back.

        Raises:
            WriteError: A write was refused, or cannot be spooled to disk.
        """
        self._batches.send()
        self.writer.flush()

    def close(self) -> None:
        """Do the writes that can be done, and leave the others on disk for the next process."""
        with suppress(WriteError):
            self._batches.send()
        waiting = self.writer.close()
        if waiting:
            self._say(f"{waiting} writes wait on disk for MLflow; the next process of this study delivers them")


def _check_artifacts(location: str) -> None:
    """Refuse a study whose artifacts cannot be written where MLflow has kept them since the study began.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    folder = artifact_folder(location)
    if folder is not None:
        check_folder("tracking.artifacts", str(folder))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
