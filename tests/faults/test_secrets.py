"""A study with passwords in the addresses of its stores, which are nowhere to be found afterwards."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from werkzeug.security import generate_password_hash

from search import compose_study
from search.run import as_yaml, main
from search.storage.mlflow_store import without_login
from strategies import ConfigError

SECRET, ADMIN = "s3cret-Ab9-of-the-tests", "s3cret-Zk7-of-the-server"


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory, empty_mlflow):
    """The port of a server with basic authentication, and its folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = ann\nadmin_password = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    server = MlflowServer(folder, auth=folder / "auth.ini")
    server.start()
    hash_quickly(folder / "auth.db")
    yield server.port, folder
    server.kill()


def hash_quickly(database: Path) -> None:
    """Store the password's hash with one round; the server computes the hash at each of hundreds of requests."""
    with closing(sqlite3.connect(database)) as users, users:
        quick = generate_password_hash(ADMIN, "pbkdf2:sha256:1")
        assert users.execute("UPDATE users SET password_hash = ? WHERE username = 'ann'", [quick]).rowcount == 1


def holding(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_passwords_open_both_stores_and_are_nowhere_afterwards(new_lab, server, database, mlflow_server, capfd):
    port, folder = mlflow_server
    name = database.partition("@/")[2].partition("?")[0]
    server.sql(f"CREATE ROLE ann LOGIN SUPERUSER PASSWORD '{SECRET}'")
    url = database.replace("postgres@", f"ann:{SECRET}@")
    uri = f"http://ann:{ADMIN}@127.0.0.1:{port}"
    lab = new_lab(store={"url": url}, tracking={"uri": "${oc.env:UNFREEZE_TRACKING}"}, after={"calibrate": False})
    lab.file.write_text(lab.file.read_text().replace(SECRET, "${oc.env:UNFREEZE_PASSWORD}"))
    os.environ |= {"UNFREEZE_TRACKING": uri, "UNFREEZE_PASSWORD": SECRET}
    before = {key: os.environ.get(key) for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
    try:
        shown = as_yaml(lab.config())
        code = lab.run("budget.trials=1")
        os.environ["MLFLOW_TRACKING_PASSWORD"] = "wrong"
        refused = lab.run("budget.trials=2", f"tracking.uri=http://ann:{SECRET}@127.0.0.1:{port}")
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        del os.environ["UNFREEZE_TRACKING"], os.environ["UNFREEZE_PASSWORD"]
    out, err = capfd.readouterr()
    assert (code, refused) == (0, 2), err
    assert "Winner: trial 0" in out
    server.sql("CHECKPOINT")
    for secret in (SECRET, ADMIN):
        assert secret not in out + err + shown
        assert holding(lab.folder, secret) == []
        # The server is told its own.
        assert {path.name for path in holding(folder, secret)} <= {"auth.ini"}
    tables = server.sql("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'", name)
    rows = [server.sql(f"SELECT * FROM {table}", name) for (table,) in tables]
    assert len(rows) > 5
    assert SECRET not in str(rows)
    assert ADMIN not in str(rows)


def test_what_a_mistake_quotes_of_a_url_hides_its_password(capsys):
    for words in ("store.url=postgresql://ann:s3cret@db.example/{", "store.url=postgresql://ann:s3cret@127.0.0.1:1/db"):
        assert main(["study=quickstart", words]) == 2
        err = capsys.readouterr().err
        assert "s3cret" not in err
        assert "ann:***@" in err


def test_a_url_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("UNFREEZE_STORE", "postgresql://ann:s3cret@db.example/studies")
    config = compose_study(["study=quickstart", "store.url=${oc.env:UNFREEZE_STORE}"])
    assert config.store.url.startswith("postgresql://ann:s3cret@")
    with pytest.raises(ConfigError, match="UNFREEZE_ELSE"):
        compose_study(["study=quickstart", "store.url=${oc.env:UNFREEZE_ELSE}"])


def test_a_login_in_a_tracking_uri_goes_where_mlflow_looks_for_it(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    assert without_login("https://ann:s%40cret@mlflow.example:5000/a") == "https://mlflow.example:5000/a"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s@cret"
    assert without_login("https://mlflow.example") == "https://mlflow.example"
