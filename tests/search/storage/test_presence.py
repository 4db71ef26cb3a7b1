"""Looking at a store changes nothing for the connections to it."""

import sqlite3
import subprocess
import sys

from search.storage import OPTUNA_TABLE, check_store

LEAVE = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM studies').fetchone()"


def test_a_checked_database_keeps_the_locks_of_this_process(tmp_path):
    path = tmp_path / "optuna.db"
    held = sqlite3.connect(path)
    held.execute("PRAGMA journal_mode=WAL")
    held.execute(f"CREATE TABLE {OPTUNA_TABLE} (x)")
    held.commit()
    check_store("store.url", f"sqlite:///{path}", OPTUNA_TABLE, "opened", lambda: None)
    # The last process to leave a database removes its log. This process has not left it.
    subprocess.run([sys.executable, "-c", LEAVE, path], check=True)
    assert path.with_name("optuna.db-wal").exists()
    held.close()
