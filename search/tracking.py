"""Writing a study to MLflow: a parent run, a child run a trial, in a few batched calls from another thread."""

import io
import json
import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import requests
import sqlalchemy
import torch
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from search.best_first import VIEW_TAG
from search.delivery import CHECKPOINT_FILE, Delivery, new_key
from search.outage import is_outage, reason_of
from search.outcome import ENDINGS, Outcome
from search.postgres import with_driver
from search.spool import Spool, left_in
from search.sqlite import write_ahead
from search.urls import without_login, without_password
from search.writer import NoRoomError, WriteError, Writer
from search.writes import Begin, Dataset, Drop, End, Log, Upload
from strategies import ConfigError, UnfreezeError, WeightsError, first_line

# One bar a file, amid our own; MLflow reads the variable at each transfer.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The terminal says at its end where to look.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow itself would ask a server that is away for four minutes, and could begin a run twice whose answer was lost. The
# writer tries again by itself.
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_RETRIES_ARE_SET = _RETRIES in os.environ
os.environ.setdefault(_RETRIES, "0")

PARENT_TAG = "mlflow.parentRunId"

# Epochs that are shorter share a call: each costs some 5 ms of Python, which a training on the CPU would feel.
BATCH_SECONDS = 0.2

logger = logging.getLogger(__name__)


class Tracker:
    """The MLflow side of one study.

    What is written goes through ``writer``, in order and off the calling thread. After :meth:`flush` it is there for
    sure, or waits on disk for MLflow to come back; what is read waits until it is there. Every method that writes
    raises :class:`search.writer.WriteError` when an earlier write was refused. One thread at a time may call.

    A run is known by its id, or by the key that :meth:`start_trial` gives; all methods take either.

    Args:
        uri: MLflow tracking URI; a ``sqlite:///`` path is made when it is not there.
        artifacts: Folder of artifacts, used when the store is a local database; a server decides for itself.
        study: Name of the study and so of the MLflow experiment.
        spools: Folder of what waits while MLflow is away.
        say: Gets a line when MLflow is away, and when it is back.
        is_checked: Whether MLflow has to be there.

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
        # It says of each try what is said once.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._study, self._spools, self._given_uri, self._say = study, spools, uri, say
        with self._usable():
            self.uri = reachable(uri)
            write_ahead(self.uri)
            _check_database(self.uri)
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
            experiment = None
            if is_checked:
                with patient():
                    experiment = self._client.get_experiment_by_name(study)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise ConfigError(
                f"name: the MLflow experiment {study!r} was deleted; restore it there or choose another name"
            )
        mlflow.set_tracking_uri(self.uri)
        is_local = not self.uri.startswith(("http://", "https://", "databricks"))
        location = (Path(artifacts).absolute() / study).as_uri() if is_local else None
        known = str(experiment.experiment_id) if experiment is not None else None
        self._delivery = Delivery(self._client, study, location, known)
        self.writer = Writer(f"MLflow at {without_password(self.uri)}", self._delivery, say)
        # By run: several trials may be trained at once.
        self._logs: dict[str, Log] = {}
        self._last_sent = 0.0
        # Runs that this process has stored a checkpoint of.
        self._stored: set[str] = set()

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
        return self._delivery.experiment_id

    def open_parent(self, run_id: str | None, name: str, tags: Mapping[str, Any]) -> str:
        """Take up the study's parent run, or begin one when ``run_id`` is not there (any more).

        What ended processes could not write is written before.

        Returns:
            The run's id.

        Raises:
            ConfigError: MLflow went away meanwhile.
        """
        with self._usable():
            if run_id is not None:
                try:
                    with patient():
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
            begin = Begin(run=new_key(uuid.uuid4().hex), name=name, tags=_texts(tags), time=_now())
            run_id = self._delivery.begin(begin, again=False)
        self.join(run_id)
        return run_id

    def save_view(self, view: str) -> None:
        """Save what :func:`search.best_first.best_first` gives with the study's experiment.

        Raises:
            ConfigError: MLflow went away meanwhile.
        """
        with self._usable(), patient():
            self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, view)

    def join(self, parent: str) -> None:
        """Name the study's run, by which it is known whose writes wait on disk."""
        if self.writer.spool is None:
            self.writer.spool = Spool(self._spools / f"{self._study}-{parent[:8]}")

    def start_trial(self, parent: str, name: str, tags: Mapping[str, Any]) -> str:
        """Begin a child run and return the key by which it is known."""
        self.join(parent)
        self._send()
        # What is logged of a new run need not wait.
        self._last_sent = 0.0
        key = new_key(uuid.uuid4().hex)
        self.writer.put(Begin(run=key, name=name, tags=_texts({PARENT_TAG: parent, **tags}), time=_now()))
        return key

    def known_id(self, run: str) -> str:
        """A run's id if it was begun by now, else its key."""
        return self._delivery.known_id(run)

    def id_of(self, run: str) -> str:
        """A run's id, once everything is written.

        Raises:
            AwayError: MLflow cannot be reached.
            UnfreezeError: There is no such run.
        """
        with self._reading(f"run {run}"):
            return self._delivery.id_of(run)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Read something when everything is written."""
        self._send()
        self.writer.deliver()
        try:
            yield
        except (MlflowException, OSError) as error:
            if is_outage(error):
                raise self.writer.away(error) from error
            raise UnfreezeError(f"{what} cannot be read: {first_line(error)}") from error

    @contextmanager
    def needed(self) -> Iterator[None]:
        """While the ``with`` block runs, ask MLflow again for some seconds where it does not answer.

        Raises:
            AwayError: MLflow cannot be reached; raised by it, or by MLflow itself.
        """
        try:
            with patient():
                yield
        except (MlflowException, requests.RequestException) as error:
            if is_outage(error):
                raise self.writer.away(error) from error
            raise

    def deliver(self) -> bool:
        """Wait until everything is written, what ended processes have left too.

        Returns:
            Whether MLflow was away for this or another process, so that more may have to be settled.

        Raises:
            AwayError: MLflow cannot be reached.
        """
        self._send()
        self.writer.deliver()
        return self.deliver_left() or self.writer.was_away

    def deliver_left(self) -> bool:
        """Write what processes could not that have ended since.

        Returns:
            Whether there was any.

        Raises:
            AwayError: MLflow cannot be reached.
        """
        found = False
        assert self.writer.spool is not None, "a study has a run by then"
        for spool in left_in(self.writer.spool.folder.parent):
            if not spool.take():
                continue
            try:
                found = self._deliver_all(spool) or found
            finally:
                spool.release()
        return found

    def _deliver_all(self, spool: Spool) -> bool:
        writes = spool.read()
        for place, write in enumerate(writes):
            try:
                self._delivery(write, spool.folder, again=True)
            except Exception as error:
                if is_outage(error):
                    raise self.writer.away(error, more=len(writes) - place) from error
                spool.set_aside(write, reason_of(error))
            spool.delivered()
        spool.remove()
        if writes:
            self._say(f"{len(writes)} writes were delivered that an ended process had left for MLflow")
        return bool(writes)

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
        """Write metrics, parameters, tags, and the data sets that a run uses."""
        now = _now()
        log = self._log_of(run)
        log.metrics += [(name, float(value), now, step) for name, value in (metrics or {}).items()]
        log.params += _texts(params or {}).items()
        log.tags += _texts(tags or {}).items()
        log.datasets += datasets
        self._send_if_due()

    def log_json(self, run: str, name: str, content: Any) -> None:
        """Write ``content`` as a JSON artifact."""
        self.log_text(run, name, json.dumps(content, indent=1))

    def log_text(self, run: str, name: str, text: str) -> None:
        """Write ``text`` as an artifact."""
        self.log_file(run, name, text.encode())

    def log_pictures(self, run: str, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """Write pictures (H, W, 3) as PNG artifacts, over those that were there before."""
        for number, picture in enumerate(pictures):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format="PNG")
            self.log_file(run, f"pictures/{number}.png", buffer.getvalue())

    def log_file(self, run: str, name: str, content: bytes) -> None:
        """Write ``content`` as an artifact."""
        self._log_of(run).files[name] = content
        self._send_if_due()

    def finish(self, run: str, outcome: Outcome, reason: str = "") -> None:
        """End a run with the status and tag of its outcome, and the reason if there is one."""
        self.log_outcome(run, outcome, reason)
        self.end(run, outcome)

    def log_outcome(self, run: str, outcome: Outcome, reason: str = "") -> None:
        """Write what is known of a run's end before it ends: its outcome, and the reason if there is one."""
        self.log(run, tags={"unfreeze.outcome": outcome} | ({"unfreeze.reason": reason[:500]} if reason else {}))

    def end(self, run: str, outcome: Outcome) -> None:
        """End a run with the status of its outcome."""
        now = _now()
        self._send()
        self.writer.put(End(run=run, status=ENDINGS[outcome].status, time=now))

    def try_to_finish(self, run: str, outcome: Outcome) -> None:
        """End a run and wait for it, on the way out of an error: a store that cannot be written to is only logged.

        A checkpoint that was stored of it goes.
        """
        try:
            if run in self._stored:
                self.delete_checkpoint(run)
            self.finish(run, outcome)
            self.flush()
        except WriteError as error:
            logger.warning("%s", error)

    def flush(self) -> None:
        """Wait until everything is written, or waits on disk for MLflow to come back.

        Raises:
            WriteError: Something could not be.
        """
        self._send()
        self.writer.flush()

    def close(self) -> None:
        """Write what can be written; what cannot is left on disk, for the next process to write."""
        with suppress(WriteError):
            self._send()
        waiting = self.writer.close()
        if waiting:
            self._say(f"{waiting} writes wait on disk for MLflow; the next process of this study delivers them")

    def _log_of(self, run: str) -> Log:
        """What is being gathered of a run."""
        return self._logs.setdefault(run, Log(run=run, metrics=[], params=[], tags=[], datasets=[], files={}))

    def _send_if_due(self) -> None:
        if self.writer.is_idle and time.monotonic() - self._last_sent >= BATCH_SECONDS:
            self._send()

    def _send(self) -> None:
        """Have all that was gathered written."""
        logs, self._logs = self._logs, {}
        if logs:
            self._last_sent = time.monotonic()
        for log in logs.values():
            self.writer.put(log)

    def params(self, run: str) -> dict[str, str]:
        """The parameters of a run, as texts."""
        with self._reading(f"run {run}"):
            return dict(self._client.get_run(self._delivery.id_of(run)).data.params)

    def running(self) -> dict[str, Mapping[str, str]]:
        """Tags of the runs of this experiment that MLflow shows as running, by id."""
        found: dict[str, Mapping[str, str]] = {}
        token = None
        with self._reading("the study's runs"):
            while True:
                page = self._client.search_runs(
                    [self.experiment_id], "attributes.status = 'RUNNING'", max_results=1000, page_token=token
                )
                found |= {run.info.run_id: run.data.tags for run in page}
                token = page.token
                if not token:
                    return found

    def save_checkpoint(self, run: str, state_dict: Mapping[str, torch.Tensor]) -> str:
        """Store a model's tensors as a safetensors artifact of a run, and return the artifact's path.

        Raises:
            NoRoomError: There is no room for it.
        """
        spool = self.writer.spool
        assert spool is not None, "a study has a run by then"
        self._stored.add(run)
        try:
            spool.open()
            place = spool.checkpoints_of(run) / uuid.uuid4().hex
            place.mkdir(parents=True)
            save_weights(state_dict, place / CHECKPOINT_FILE)
        except (OSError, SafetensorError) as error:
            raise NoRoomError(f"a checkpoint cannot be written below {spool.folder}: {first_line(error)}") from error
        self._send()
        self.writer.put(Upload(run=run, place=place.name))
        return CHECKPOINT_FILE

    def delete_checkpoint(self, run: str) -> None:
        """Remove a run's checkpoint; one already gone is no error."""
        self._send()
        if self.writer.spool is not None:
            # One that still waits needs no room.
            shutil.rmtree(self.writer.spool.checkpoints_of(run), ignore_errors=True)
        self.writer.put(Drop(run=run))

    def fetch_checkpoint(self, run: str, folder: Path) -> Path:
        """Copy a run's checkpoint into ``folder``.

        Raises:
            AwayError: MLflow cannot be reached.
            UnfreezeError: It is not there.
        """
        with self._reading(f"the checkpoint of run {run}"):
            return Path(self._client.download_artifacts(self._delivery.id_of(run), CHECKPOINT_FILE, str(folder)))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


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
    mlflow.set_tracking_uri(reachable(tracking_uri))
    try:
        with patient():
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise WeightsError(first_line(error)) from error


def _check_database(uri: str) -> None:
    """Fail at once on a database that cannot be opened, where MLflow would try for two minutes."""
    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        engine = sqlalchemy.create_engine(uri)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()


@contextmanager
def patient() -> Iterator[None]:
    """Ask a server that does not answer again for some seconds, where nothing else tries again."""
    if _RETRIES_ARE_SET:
        yield
        return
    os.environ[_RETRIES] = "2"
    try:
        yield
    finally:
        os.environ[_RETRIES] = "0"


def reachable(uri: str) -> str:
    """A tracking URI as MLflow is given it: with an absolute path, a driver that is installed, and no password.

    Raises:
        ConfigError: No driver is installed.
    """
    return without_login(with_driver(absolute_sqlite(uri)))


def absolute_sqlite(uri: str) -> str:
    """A ``sqlite:///`` URI with an absolute path, its folder made; other URIs as they are."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return uri
    path = Path(uri.removeprefix(prefix)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{prefix}{path}"


def git_commit() -> str:
    """The commit checked out in the working directory, with ``+`` when files differ; ``""`` outside of git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
