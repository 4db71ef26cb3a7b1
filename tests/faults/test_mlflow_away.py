"""MLflow that dies, answers 500 or loses its answers in the middle of a study: every write arrives, once, in order."""

import itertools
import resource
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import SMALL, Lab, is_counted
from mlflow import MlflowClient
from mlflow_server import MlflowServer, Proxy
from optuna import Study

from search import housekeeping, rerun
from search.storage import ENDINGS, RUN_ID
from search.tracking import CHECKPOINT_FILE, KEY_TAG, PARENT_TAG, AwayError, NoRoomError, Tracker
from search.tracking import background_writer as writer
from search.tracking.sink import Sink
from search.tracking.spool import REFUSED_FILE, Spool
from search.tracking.writes import Log, from_line
from strategies import ConfigError

EPOCHS = 2


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory) -> Path:
    """An MLflow database that has been through its migrations and holds nothing."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class ServedLab(Lab):
    """A lab whose MLflow is a server behind a proxy, looked at by the server's own address."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.server = MlflowServer(folder / "mlruns")
        self.proxy = Proxy(self.server.port)
        tracking = {"uri": self.proxy.url, "artifacts": "unused"}
        strategy = SMALL["strategy"] | {"epochs": EPOCHS}
        super().__init__(folder, template, tracking=tracking, strategy=strategy, metric="loss", checkpoints={"keep": 1})
        self.mlflow_uri = self.server.url
        self.server.start()

    def artifact(self, run, name):
        return self.folder / "mlruns" / "artifacts" / run.info.artifact_uri.removeprefix("mlflow-artifacts:/") / name

    def waiting(self) -> list[Path]:
        return list(self.spools.glob("*/*/writes.jsonl"))


@pytest.fixture
def lab(tmp_path, empty_mlflow) -> Iterator[ServedLab]:
    before = mlflow.get_tracking_uri()
    lab = ServedLab(tmp_path, empty_mlflow)
    yield lab
    lab.proxy.close()
    lab.server.kill()
    mlflow.set_tracking_uri(before)


@contextmanager
def at_tells(actions) -> Iterator[None]:
    """Do something right after the n-th trial of this process was told."""
    tell, told = Study.tell, 0

    def telling(*arguments, **options):
        nonlocal told
        trial = tell(*arguments, **options)
        told += 1
        actions.get(told, lambda: None)()
        return trial

    Study.tell = telling
    try:
        yield
    finally:
        Study.tell = tell


def check_whole(lab: ServedLab) -> None:
    """Both stores tell the same story, each trial and each value once, and nothing waits any more."""
    runs = lab.runs()
    trials = lab.trials()
    assert sorted(runs) == [trial.number for trial in trials]
    assert len(lab.all_runs()) == len(trials) + 1
    assert lab.parent().info.status == "FINISHED"
    assert lab.parent().data.tags["unfreeze.outcome"] == "complete"
    for trial, outcome in zip(trials, lab.outcomes(), strict=True):
        run = runs[trial.number]
        assert trial.user_attrs[RUN_ID] in (run.info.run_id, run.data.tags[KEY_TAG])
        assert run.data.tags[PARENT_TAG] == lab.parent().info.run_id
        assert run.data.tags["unfreeze.outcome"] == outcome
        assert run.info.status == ENDINGS[outcome].status
        if outcome != "complete":
            continue
        assert float(run.data.params["lr"]) == trial.params["lr"]
        losses = lab.client.get_metric_history(run.info.run_id, "val_loss")
        assert [(metric.step, metric.value) for metric in losses] == list(trial.intermediate_values.items())
        assert [metric.step for metric in losses] == [1, 2]
        assert run.data.metrics["score"] == trial.value
        assert {"manifest.json", "strategy.yaml"} <= {file.path for file in lab.client.list_artifacts(run.info.run_id)}
    best = min((trial for trial in trials if is_counted(trial)), key=lambda trial: trial.value)
    assert lab.parent().data.tags["unfreeze.winner"] == str(best.number)
    assert lab.checkpoints() == {best.number}
    assert list(lab.spools.glob("*/*")) == []


def test_a_server_that_is_killed_and_comes_back_has_everything_of_the_trials_that_went_on_meanwhile(lab, capsys):
    with at_tells({1: lab.server.kill, 3: lab.server.start}):
        assert lab.run("budget.trials=4") == 0
    check_whole(lab)
    said = capsys.readouterr().out
    assert said.count("is away since") == said.count("is back; ") == 1
    assert f"what is written waits in {lab.spools}/lab-" in said


def test_a_trial_told_while_mlflow_was_away_is_found_by_what_its_trial_knows_of_its_run(lab, capsys):
    with at_tells({1: lab.server.kill, 3: lab.server.start}):
        assert lab.run("budget.trials=4", "checkpoints.keep=4") == 0
    assert len(lab.checkpoints()) == 4
    run = next(trial.user_attrs[RUN_ID] for trial in lab.trials() if trial.user_attrs[RUN_ID].startswith("key-"))
    assert rerun.main([run, f"tracking.uri={lab.mlflow_uri}"]) == 0
    assert "The trial was reproduced" in capsys.readouterr().out
    stores = [f"store.url={lab.optuna_url}", f"tracking.uri={lab.mlflow_uri}"]
    assert housekeeping.main(["lab", *stores, "--gib", "0"]) == 0
    assert lab.checkpoints() == {lab.study.user_attrs["winner"]["trial"]}


def test_what_was_answered_with_500_or_not_at_all_is_there_once(lab):
    def become(mode):
        return lambda: setattr(lab.proxy, "mode", mode)

    with at_tells({1: become("fail"), 2: become("lose"), 3: become("pass"), 4: become("lose"), 5: become("pass")}):
        assert lab.run("budget.trials=6") == 0
    check_whole(lab)


def test_where_it_is_still_away_at_the_end_the_same_command_delivers_and_crowns_later(lab, capsys, monkeypatch):
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 1.0)
    with at_tells({1: lab.server.kill}):
        assert lab.run() == 1
    (waiting,) = lab.waiting()
    count = len(waiting.read_bytes().splitlines())
    assert lab.outcomes() == ["complete", "complete"]
    said = capsys.readouterr()
    assert "MLflow at http://127.0.0.1" in said.err
    assert f" writes wait in {waiting.parents[1]}; once it is back, the same command delivers them" in said.err
    assert f"{count} writes wait on disk for MLflow" in said.out
    before = lab.trials()

    assert lab.run() == 2
    assert "cannot be used" in capsys.readouterr().err
    assert lab.waiting() == [waiting]

    lab.server.start()
    assert lab.run() == 0
    assert f"{count} writes were delivered that an ended process had left for MLflow" in capsys.readouterr().out
    assert lab.trials() == before
    check_whole(lab)


# Has the proxy cut connections from the first trial's end on, and ends its process at the third's.
STOPPED = """
import os, sys, urllib.request
from optuna import Study
from search.run import main

number, proxy, *arguments = sys.argv[1:]
tell, told = Study.tell, 0

def telling(*args, **kwargs):
    global told
    trial = tell(*args, **kwargs)
    told += 1
    if told == 1:
        urllib.request.urlopen(proxy + "/mode/cut").close()
    if told == 3:
        os.kill(os.getpid(), int(number))
    return trial

Study.tell = telling
sys.exit(main(arguments))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_what_a_process_left_that_was_stopped_while_mlflow_was_away_is_delivered_by_the_next_start(lab, number, code):
    process = lab.start_code(STOPPED, str(int(number)), lab.proxy.url, f"study={lab.file}", "budget.trials=4")
    assert process.wait() == code
    before = [trial for trial in lab.trials() if trial.state.is_finished()]
    assert [trial.number for trial in before] == [0, 1, 2]
    assert len(lab.waiting()) == 1
    assert set(lab.runs()) == {0}
    lab.proxy.mode = "pass"
    assert lab.run("budget.trials=4") == 0
    assert lab.trials()[:3] == before
    check_whole(lab)


PARENT = "0" * 32


@pytest.fixture
def away(tmp_path) -> Iterator[Tracker]:
    """A tracker whose server is not there."""
    before = mlflow.get_tracking_uri()
    tracker = Tracker("http://127.0.0.1:1", "", "lab", tmp_path / "spool", print, is_checked=False)
    yield tracker
    tracker.close()
    mlflow.set_tracking_uri(before)


def test_without_room_for_what_waits_it_is_an_error_and_what_was_kept_before_stays(away, capfd):
    run = away.start_trial(PARENT, "t", {})
    away.flush()
    (waiting,) = away.writer.spool.folder.glob("writes.jsonl")
    before = waiting.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(NoRoomError, match=r"is away, and its writes cannot wait in .*/spool/lab-00000000: "):
            away.log_text(run, "large.txt", "x" * 100_000)
            away.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert waiting.read_text() == before
    away.log_text(run, "large.txt", "x" * 100_000)
    away.flush()
    assert waiting.read_text().startswith(before)


def test_a_beaten_checkpoint_takes_no_room_while_it_waits(away):
    run = away.start_trial(PARENT, "t", {})
    away.checkpoints.save(run, {"weight": torch.zeros(2)})
    away.flush()
    assert len(list((away.writer.spool.folder / run).glob(f"*/{CHECKPOINT_FILE}"))) == 1
    away.checkpoints.delete(run)
    assert not (away.writer.spool.folder / run).exists()


def test_a_server_that_takes_requests_and_answers_none_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.05)
    before = mlflow.get_tracking_uri()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = Tracker(url, "", "lab", tmp_path / "spool", print, is_checked=False)
        run = tracker.start_trial(PARENT, "t", {})
        tracker.log(run, metrics={"m": 1})
        tracker.flush()
        assert tracker.id_or_key(run) == run
        tracker.close()
    (waiting,) = (tmp_path / "spool").glob("*/*/writes.jsonl")
    assert [from_line(line).kind for line in waiting.read_bytes().splitlines()] == ["begin", "log"]
    mlflow.set_tracking_uri(before)


def test_what_is_to_be_read_cannot_be_while_it_is_away(away):
    run = away.start_trial(PARENT, "t", {})
    with pytest.raises(AwayError, match=r"1 writes wait in .*; once it is back, the same command delivers them"):
        away.reader.params(run)


def test_what_a_living_process_keeps_is_left_to_it(away):
    away.start_trial(PARENT, "t", {})
    away.flush()
    other = Spool(away.writer.spool.folder.parent, away.writer.spool.folder.name)
    assert not other.take()
    away.close()
    assert other.take()
    assert [write.kind for write in other.read()] == ["begin"]
    other.release()


def tracker_of(folder: Path, study: str = "lab") -> Tracker:
    return Tracker(f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"), study, folder / "spool", print)


@contextmanager
def failing(script: list[str]) -> Iterator[None]:
    """Have deliveries fail: ``before`` they are done, or ``after``, as where the answer is lost; later ones do not."""
    deliver, rest = Sink.__call__, iter(script)

    def flaky(self, write, folder, again):
        what = next(rest, "done")
        if what != "before":
            deliver(self, write, folder, again)
        if what != "done":
            raise ConnectionError("away")

    Sink.__call__ = flaky
    pauses, writer._FIRST_PAUSE_SECONDS = writer._FIRST_PAUSE_SECONDS, 0.002
    try:
        yield
    finally:
        Sink.__call__, writer._FIRST_PAUSE_SECONDS = deliver, pauses


def kill(tracker: Tracker) -> None:
    """Leave what a killed process leaves: its folder, its lock free, and perhaps a line that was not finished."""
    with tracker.writer._changed:
        tracker.writer._is_closed = True
        tracker.writer._changed.notify_all()
    thread = tracker.writer._thread
    if thread is not None and thread is not threading.current_thread():
        thread.join()
    waiting = tracker.writer.spool.folder / "writes.jsonl"
    if waiting.exists():
        with waiting.open("a") as file:
            file.write('{"kind": "log", "ru')
    # Whichever of its threads had opened it, or both.
    tracker.writer.spool.release()


def start(folder: Path, study: str, parent: str | None) -> tuple[Tracker, str]:
    """Start until MLflow is there, and take up what is left."""
    while True:
        tracker = tracker_of(folder, study)
        with suppress(ConfigError):
            return tracker, tracker.open_parent(parent, study, {})


def play(folder: Path, study: str, steps: list[tuple[str, int]], is_killed: bool = True) -> dict[int, str]:
    """Write what steps say, from a new process after each kill, and return how runs are known."""
    tracker, parent = start(folder, study, None)
    keys: dict[int, str] = {}
    for number, (what, run) in enumerate(steps):
        if what == "kill":
            if is_killed:
                kill(tracker)
                tracker, _ = start(folder, study, parent)
            continue
        if run not in keys:
            keys[run] = tracker.start_trial(parent, f"run {run}", {"number": run})
        match what:
            case "log":
                tracker.log(keys[run], step=number, metrics={"m": number}, params={f"p{number}": number})
                tracker.log(keys[run], tags={"last": number})
            case "file":
                tracker.log_text(keys[run], "file.txt", f"{number}")
            case "save":
                tracker.checkpoints.save(keys[run], {"weight": torch.full((2,), float(number))})
            case "drop":
                tracker.checkpoints.delete(keys[run])
            case "end":
                tracker.end(keys[run], "complete")
        tracker.flush()
    kill(tracker)
    # What the last one has to write may fail again.
    start(folder, study, parent)[0].close()
    while any((folder / "spool").glob(f"{study}-*/*")):
        start(folder, study, parent)[0].close()
    return keys


def content(folder: Path, study: str, keys: dict[int, str]) -> dict[int, object]:
    """What the store holds of each run, but for ids and times."""
    found = {}
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    for run in client.search_runs([client.get_experiment_by_name(study).experiment_id]):
        if "number" not in run.data.tags:
            continue
        number = int(run.data.tags["number"])
        assert number not in found, "a run was begun twice"
        assert run.data.tags.pop(KEY_TAG) == keys[number]
        run.data.tags.pop(PARENT_TAG)
        place = Path(run.info.artifact_uri.removeprefix("file://"))
        files = {file.name: file.read_bytes() for file in place.glob("*")}
        history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "m")]
        found[number] = (run.info.status, run.data.tags, run.data.params, history, files)
    return found


STEPS = st.lists(
    st.tuples(st.sampled_from(["log", "log", "file", "save", "drop", "end", "kill"]), st.integers(0, 1)),
    min_size=1,
    max_size=6,
)
FAILURES = st.lists(st.sampled_from(["done", "before", "after"]), max_size=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_mlflow) -> Iterator[Path]:
    """A folder with an MLflow database, which MLflow takes a second to open."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    before = mlflow.get_tracking_uri()
    yield folder
    mlflow.set_tracking_uri(before)


_studies = itertools.count()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(steps=STEPS, script=FAILURES)
def test_whatever_fails_and_is_killed_the_store_holds_the_same_in_the_end(steps, script, store):
    plain, failed = f"plain-{next(_studies)}", f"failed-{next(_studies)}"
    expected = content(store, plain, play(store, plain, steps, is_killed=False))
    with failing(script):
        keys = play(store, failed, steps)
    assert content(store, failed, keys) == expected


def test_what_is_refused_when_it_is_delivered_is_set_aside_and_the_rest_arrives(store):
    tracker = tracker_of(store)
    parent = tracker.open_parent(None, "lab", {})
    spool = Spool(tracker.writer.spool.folder.parent)
    spool.add([Log(run=parent, params=[("p", "1")]), Log(run=parent, params=[("p", "2")])])
    spool.add([Log(run="key-unknown", tags=[("t", "1")]), Log(run=parent, tags=[("t", "2")])])
    spool.release()
    assert tracker.deliver_left()
    data = MlflowClient(tracking_uri=tracker.uri).get_run(parent).data
    assert (data.params, data.tags["t"]) == ({"p": "1"}, "2")
    refused = (spool.folder.parent / REFUSED_FILE).read_text().splitlines()
    assert len(refused) == 2
    assert '["p","2"]' in refused[0]
    assert "key-unknown" in refused[1]
    assert not spool.folder.exists()
    tracker.close()
