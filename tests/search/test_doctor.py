"""The doctor names what works, what does not, and what to do."""

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from search import doctor
from search.doctor import Finding, in_time, main, of_disk, of_folder, unmet


@pytest.fixture
def no_hub(monkeypatch):
    """The hub is told to be away, which saves waiting for its time limit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("no_hub")
def test_an_installation_that_works_is_told_thing_by_thing(lab, capsys, monkeypatch):
    monkeypatch.chdir(lab.folder)
    lab.train("budget.trials=1")
    assert main([str(lab.file)]) == 0
    said = capsys.readouterr().out
    assert "A search can begin" in said
    assert sys.version.split()[0] in said
    assert "hub" in said
    assert "HF_HUB_OFFLINE is set" in said
    rows = {line.split()[1]: line for line in said.splitlines()}
    assert rows["CPU"].startswith("ok ")
    assert rows["tracking.uri"].startswith("ok ")
    assert rows["store.url"].startswith("ok ")
    assert "1 studies, tables of version" in rows["store.url"]
    assert rows["hub"].startswith("note ")


@pytest.mark.usefixtures("no_hub")
def test_a_store_that_cannot_be_opened_is_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.db").write_text("this is no database, whatever its name says")
    assert main(["store.url=sqlite:///broken.db", "tracking.uri=http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().out
    assert "Does not work: store.url, tracking.uri" in said
    assert "file is not a database" in said
    assert [one.name for one in tmp_path.iterdir()] == ["broken.db"]


def test_words_that_name_no_store_are_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data.root=/x"]) == 2
    assert capsys.readouterr().err.startswith("error: data.root: ")


def test_what_is_missing_of_an_extra_is_named_with_its_own_extras():
    assert unmet(Requirement("numpy>=1")) == []
    assert unmet(Requirement("no-such-package>=1")) == ["no-such-package"]
    (line,) = unmet(Requirement("numpy>=99"))
    assert line.startswith("numpy is ")
    assert line.endswith(", not >=99")


def test_a_file_that_hides_a_package_is_named(tmp_path):
    (tmp_path / "search.py").write_text("")
    (finding,) = of_folder(tmp_path)
    assert (finding.state, "search.py" in finding.found) == ("note", True)
    assert not list(of_folder(Path(doctor.__file__).resolve().parents[1]))


def test_a_disk_without_room_fails(monkeypatch):
    monkeypatch.setattr(doctor, "_FULL", 2**80)
    assert {finding.state for finding in of_disk()} == {"fails"}


def test_what_does_not_answer_is_a_failure_and_is_not_waited_for(monkeypatch):
    import threading

    monkeypatch.setattr(doctor, "_PATIENCE", 0.05)
    never = threading.Event()
    finding = in_time("store.url", lambda: Finding("store.url", "ok", str(never.wait())))
    assert finding.state == "fails"
    assert finding.found.startswith("no answer within")
    never.set()
