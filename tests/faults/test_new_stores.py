"""Processes that are killed while they make a new store: the same command makes the store and goes on."""

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from copies import copies
from sqlalchemy import event
from sqlalchemy.engine import Engine

from search.storage import open_storage

# Migrations are committed one by one; the tenth of some sixty is as good as any.
KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine

commits = 0

@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    global commits
    commits += statement.startswith("UPDATE alembic_version")
    if commits == 10:
        os.kill(os.getpid(), signal.SIGKILL)
"""
BY_MLFLOW = "\nfrom mlflow import MlflowClient\nMlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
BY_US = "\nfrom search.storage import make_store\nmake_store(sys.argv[1], print)"


@pytest.fixture(scope="module")
def half_made(tmp_path_factory) -> Path:
    """An MLflow database whose process was killed between two migrations, as MLflow by itself makes one."""
    path = tmp_path_factory.mktemp("half") / "mlflow.db"
    process = copies().start(KILLED + BY_MLFLOW, [f"sqlite:///{path}"], path.parent, os.environ)
    assert process.wait() == -signal.SIGKILL
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0] > 10
    return path


def test_a_kill_between_two_migrations_leaves_no_half_made_store(tmp_path):
    process = copies().start(KILLED + BY_US, [f"sqlite:///{tmp_path}/mlflow.db"], tmp_path, os.environ)
    assert process.wait() == -signal.SIGKILL
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db.begin.lock", "mlflow.db.part"}


def test_a_half_made_store_without_a_run_is_made_anew(new_lab, half_made, capsys):
    lab = new_lab()
    store = lab.folder / "mlruns" / "mlflow.db"
    # The second is what a killed search of ours leaves.
    for place in (store, store.with_name("mlflow.db.part")):
        shutil.copy(half_made, place)
    lab.train("budget.trials=1")
    assert lab.statuses() == ["FINISHED"]
    said = "mlflow.db was left in the middle of MLflow's migrations and holds no run: it is made anew"
    assert said in " ".join(capsys.readouterr().out.split())
    assert {file.name for file in store.parent.glob("mlflow.db*")} <= {"mlflow.db", "mlflow.db-wal", "mlflow.db-shm"}


def test_a_half_made_store_that_holds_something_stays_as_it_is(new_lab, half_made, capsys):
    lab = new_lab()
    store = Path(shutil.copy(half_made, lab.folder / "mlruns" / "mlflow.db"))
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("INSERT INTO experiments (name) VALUES ('mine')")
        connection.commit()
    before = content(store)
    assert lab.run() == 2
    assert "error: tracking.uri: " in capsys.readouterr().err
    assert content(store) >= before


def content(store: Path) -> set[str]:
    with closing(sqlite3.connect(store)) as connection:
        return set(connection.iterdump())


def test_an_optuna_store_is_there_with_all_its_tables_and_indexes_or_not_at_all(tmp_path):
    store, begun = tmp_path / "optuna.db", tmp_path / "begun"

    def keep_first_state(*_: object) -> None:
        if store.exists() and not begun.exists():
            begun.mkdir()
            for file in tmp_path.glob("optuna.db*"):
                shutil.copy(file, begun)

    event.listen(Engine, "after_cursor_execute", keep_first_state)
    try:
        open_storage(f"sqlite:///{store}")
    finally:
        event.remove(Engine, "after_cursor_execute", keep_first_state)
    assert ("index", "ix_studies_study_name") in schema(store)
    # A process that was killed then, and the next one.
    study = optuna.create_study(study_name="s", storage=open_storage(f"sqlite:///{begun / 'optuna.db'}"))
    study.tell(study.ask(), 1.0)
    assert schema(begun / "optuna.db") == schema(store)


def schema(store: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(store)) as connection:
        return set(connection.execute("SELECT type, name FROM sqlite_master"))
