"""The pages of the stores, really served."""

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator

import optuna
import psutil
import pytest
from copies import Started
from lab import family_of, open_to_others

from search.reporting import page_servers
from search.storage import IDENTITY
from search.tracking import front_page, page_of
from search.ui import main

# Also where the tests themselves run below nohup, which has all that they start ignore SIGHUP.
START = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from search.ui import main
sys.exit(main())
"""


@pytest.mark.slow
def test_mlflow_and_optuna_are_served_to_this_machine_until_the_command_has_ended(lab):
    assert lab.run("budget.trials=1") == 0
    # A file of the user's that has the name of our package, which the servers are not to take for it.
    (lab.folder / "search.py").write_text("raise SystemExit('not the package')")
    with socket.socket() as taken:
        # Whoever does not ask for a port gets one that is free.
        taken.bind(("127.0.0.1", 0))
        process = lab.start_code(START, str(lab.file))
        name, page = process.stdout.readline().split()
        assert name == "MLflow"
        address = page.removesuffix(f"/{front_page()}")
        assert process.stdout.readline().split() == ["lab:", f"{address}/{page_of(lab.parent().info.experiment_id)}"]
        name, dashboard = process.stdout.readline().split()
        assert name == "Optuna"
    assert process.stdout.readline() == "Ctrl-C ends them\n"
    body = json.dumps({"max_results": 10}).encode()
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        assert "lab" in [experiment["name"] for experiment in json.load(answer)["experiments"]]
    with urllib.request.urlopen(f"{dashboard}/api/studies") as answer:
        assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["lab"]
    command, *servers = family_of(process.pid)
    assert open_to_others([command, *servers]) == {}
    process.kill()
    process.wait()
    assert psutil.wait_procs(servers, timeout=60)[1] == []
    for page in (address, dashboard):
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(page)


def begin(lab) -> None:
    """Make the study's stores, in which no test here looks for more."""
    optuna.create_study(study_name="lab", storage=lab.optuna_url).set_user_attr(IDENTITY, {})


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_servers_that_are_still_starting_end_with_the_command(lab, number):
    begin(lab)
    process = lab.start_code(START, str(lab.file))
    servers = next(found for found in _children_of(process) if found)
    os.kill(process.pid, number)
    process.wait(60)
    assert psutil.wait_procs(servers, timeout=60)[1] == []


def _children_of(process: Started) -> Iterator[list[psutil.Process]]:
    """The processes that a process has started so far, again and again while it runs."""
    while process.poll() is None:
        yield psutil.Process(process.pid).children()


def test_a_port_that_was_asked_for_and_is_taken_is_refused(lab, capsys):
    begin(lab)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([str(lab.file), "--port", str(port)]) == 2
    assert f"--port: port {port} is taken" in capsys.readouterr().err


def test_stores_of_different_studies_are_not_guessed(lab, new_lab, capsys):
    assert main([str(lab.file), str(new_lab().file)]) == 2
    assert "these studies are in several stores; name one" in capsys.readouterr().err


@pytest.mark.slow
def test_optuna_is_served_where_a_server_of_ones_own_does_not_answer(lab):
    begin(lab)
    process = lab.start_code(START, str(lab.file), "tracking.uri=http://me:secret@127.0.0.1:9")
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0] == f"MLflow  http://me:***@127.0.0.1:9/{front_page()}  (a server of its own)\n"
    assert "the list of studies cannot be read at http://me:***@127.0.0.1:9: " in lines[1]
    assert lines[2].startswith("Optuna  http://127.0.0.1:")
    assert "secret" not in "".join(lines)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130


def test_a_server_of_pages_imports_nothing_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("search", "strategies", "trainers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    server = page_servers._served("pages", 1, ["-c", "import search.processes, strategies, trainers"], {})
    server.process.stdin.close()
    assert server.process.wait(60) == 0, page_servers.last_line(server)
