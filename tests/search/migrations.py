"""Reads each store's migrations once a process: Optuna and MLflow read theirs whenever they open a database."""

import threading

from alembic.config import Config
from alembic.script import ScriptDirectory


def read_once() -> None:
    """From now on, have alembic keep what it has read of a folder of migrations, which no test changes."""
    read, known, lock = ScriptDirectory.from_config, {}, threading.Lock()

    def remembered(config: Config) -> ScriptDirectory:
        place = config.get_alembic_option("script_location")
        with lock:
            if place not in known:
                known[place] = read(config)
                # Read here, since two threads that open databases would read into one map.
                assert known[place].get_heads()
            return known[place]

    ScriptDirectory.from_config = staticmethod(remembered)
