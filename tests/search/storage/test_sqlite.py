import os
import sqlite3

import optuna
import sqlalchemy
from copies import copies

from search.storage import write_ahead


def settings_of(url: str) -> tuple[str, int]:
    """Journal mode and synchronous (1 is NORMAL, 2 is FULL) of a new connection."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            ask = [connection.execute(sqlalchemy.text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")]
            mode, synchronous = (answer.scalar() for answer in ask)
    finally:
        engine.dispose()
    return mode, synchronous


def test_only_the_databases_that_were_named_get_a_write_ahead_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_ahead("sqlite:///ours.db")
    write_ahead("sqlite://")
    write_ahead("postgresql+psycopg://ann@db.example/studies")
    assert settings_of(f"sqlite:///{tmp_path}/ours.db") == ("wal", 1)
    assert settings_of(f"sqlite:///{tmp_path}/theirs.db") == ("delete", 2)
    assert settings_of("sqlite://") == ("memory", 2)


def test_a_database_that_another_is_writing_to_stays_usable(tmp_path):
    path = tmp_path / "busy.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.execute("INSERT INTO t VALUES (1)")
    write_ahead(f"sqlite:///{path}")
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.1})
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM t")).scalar() == 0
    engine.dispose()
    other.commit()
    other.close()
    assert settings_of(f"sqlite:///{path}") == ("wal", 1)


def test_what_was_told_survives_kill_9_of_the_process(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    script = (
        "import os, signal, sys, optuna; from search.storage.optuna_storage import open_storage\n"
        "study = optuna.create_study(study_name='s', storage=open_storage(sys.argv[1]))\n"
        "for number in range(20): study.tell(study.ask(), number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert copies().start(script, [url], tmp_path, os.environ).wait() == -9
    assert (tmp_path / "optuna.db-wal").stat().st_size > 0
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert [trial.value for trial in trials] == list(range(20))
