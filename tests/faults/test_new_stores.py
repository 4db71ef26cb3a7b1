"""Processes that are killed while they make a new store: the same command makes the store and goes on."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from search.storage import make_store, open_storage


class Killed(BaseException):
    """Ends a function where a kill would end its process."""


@contextmanager
def between_migrations(act: Callable[[], None]) -> Iterator[None]:
    """Do something after the tenth of MLflow's migrations, each of which is committed by itself."""
    done = 0

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal done
        done += statement.startswith("UPDATE alembic_version")
        if done == 10:
            act()

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert done >= 10


@pytest.fixture(scope="module")
def half_made(tmp_path_factory) -> Path:
    """An MLflow database as MLflow by itself leaves it when its process is killed between two migrations."""
    path = tmp_path_factory.mktemp("half") / "mlflow.db"

    def end() -> None:
        raise Killed

    with pytest.raises(Killed), between_migrations(end):
        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0] > 10
    return path


def test_a_half_made_store_without_a_run_is_made_anew(new_lab, half_made, capsys):
    lab = new_lab()
    store = lab.folder / "mlruns" / "mlflow.db"
    # The second is what a search that was killed meanwhile leaves.
    for place in (store, store.with_name("mlflow.db.part")):
        shutil.copy(half_made, place)
    seen = []
    with between_migrations(lambda: seen.append(store.read_bytes() == half_made.read_bytes())):
        lab.train("budget.trials=1")
    # Until the new store is whole, there is none.
    assert all(seen)
    assert lab.statuses() == ["FINISHED"]
    said = "mlflow.db was left in the middle of MLflow's migrations and holds no run: it is made anew"
    assert said in " ".join(capsys.readouterr().out.split())
    assert {file.name for file in store.parent.glob("mlflow.db*")} <= {"mlflow.db", "mlflow.db-wal", "mlflow.db-shm"}


def test_a_new_store_is_there_whole_or_not_at_all(tmp_path):
    store = tmp_path / "mlflow.db"
    names: list[set[str]] = []

    def end() -> None:
        names.append({file.name for file in tmp_path.iterdir()})
        raise Killed

    with pytest.raises(Killed), between_migrations(end):
        make_store(f"sqlite:///{store}", print)
    assert names == [{"mlflow.db.begin.lock", "mlflow.db.part"}]


def test_a_half_made_store_that_holds_something_stays_as_it_is(half_made, tmp_path):
    store = Path(shutil.copy(half_made, tmp_path))
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("INSERT INTO experiments (name) VALUES ('mine')")
        connection.commit()
    before, said = store.read_bytes(), []
    make_store(f"sqlite:///{store}", said.append)
    assert store.read_bytes() == before
    assert said == []


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
