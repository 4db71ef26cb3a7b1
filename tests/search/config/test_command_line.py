import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.command_line import exit_code
from search.config import StudyConfig, schema_keys
from search.run import describe, main, run_jobs
from strategies import DataError

REPOSITORY = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "timm", "mlflow", "optuna", "sklearn", "pandas")


def fresh_process(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own that fails if a heavy package got imported."""
    code = (
        "import sys; from search.run import main; code = main(sys.argv[1:]);"
        f"heavy = set({HEAVY}) & set(sys.modules); sys.exit(f'imported {{heavy}}' if heavy else code)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--list"], 0),
        (["study=quickstart", "--cfg", "job"], 0),
        (["study=quickstart", "budget.trails=5"], 2),
        (["study=quickstart", "strategy.lr=-1"], 2),
        (["study=nothing"], 2),
        ([], 2),
    ],
)
def test_answers_that_need_no_training_import_nothing_heavy(arguments, code, tmp_path):
    done = fresh_process(arguments, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.startswith("error: ")
        assert done.stdout == ""


def test_python_m_runs_the_same_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "search.run", "study=quickstart", "budget.trails=5"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: budget.trails: unknown key; did you mean 'trials'?\n")


# Loads what computes on torch's threads, without torch itself, which takes seconds.
LOADED = """
import ctypes, importlib.util, search.run
from pathlib import Path
(place,) = importlib.util.find_spec("torch").submodule_search_locations
beside = Path(place).parent
ctypes.CDLL(str(next(path for kind in ("torch", "torch.libs") for path in (beside / kind).rglob("libgomp*.so*"))))
"""


@pytest.mark.parametrize(
    ("wishes", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_of_torch_do_not_spin_for_long_unless_one_wishes_so(wishes, spins):
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = unset | {"PYTHONPATH": str(REPOSITORY), "OMP_DISPLAY_ENV": "verbose"} | wishes
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # So says libgomp itself as it is loaded.
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    command = f"'{sys.executable}' -m search.run --help | head -n 1"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    how = {"shell": True, "cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **how, check=True)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""


def test_help_names_every_key_with_its_help(capsys):
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {key.name} = " in text and key.help in text for key in schema_keys())
    assert "usage:" in text
    assert "examples:" in text


def test_list_shows_each_study_with_its_first_comment(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    Path("studies/mine.yaml").write_text("# For my own images\nseed: 1\n")
    Path("studies/said.yaml").write_text("description: said by its key\n")
    Path("studies/silent.yaml").write_text("seed: 1\n")
    Path("studies/broken.yaml").write_text("a: [\n")
    Path("studies/notes.txt").write_text("no study")
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = dict((line.strip() + "  ").split("  ", 1) for line in lines)
    rows = {name.strip(): text.strip() for name, text in rows.items()}
    assert lines.index("Studies (study=NAME)") < lines.index("Spaces (strategy=NAME)")
    assert rows["small"].startswith("The six c")
    assert rows["mine"] == "For my own images"
    assert rows["said"] == "said by its key"
    assert rows["silent"] == ""
    assert "cannot be read" in rows["broken"]
    assert "quickstart" in rows
    assert "notes" not in rows


def test_a_study_that_is_no_text_is_listed_as_unreadable(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot be read" in describe(tmp_path / "x.yaml")


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-c", "job"], ["-cjob"], ["--cfg=job"]])
def test_options_may_stand_between_overrides(flags, capsys):
    assert main(["study=quickstart", *flags, "seed=5"]) == 0
    assert "seed: 5\n" in capsys.readouterr().out


def test_multirun_prints_each_configuration_as_a_document(capsys):
    assert main(["-m", "study=quickstart,vit_cls", "-c", "job"]) == 0
    assert capsys.readouterr().out.count("---\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lst"], "--lst: unknown option; did you mean '--list'?"),
        (["--cfg"], "argument -c/--cfg: expected one argument; see --help"),
        (["--cfg", "all"], "argument -c/--cfg: invalid choice: 'all'"),
    ],
)
def test_a_wrong_option_is_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_failing_job_does_not_stop_the_others_and_the_worst_code_is_returned(capsys):
    ran = []

    def run(config: StudyConfig) -> None:
        ran.append(config.name)
        if config.name == "bad":
            raise DataError("data.root: no such folder")
        if config.name == "broken":
            raise ZeroDivisionError

    names = ["broken", "bad", "good"]
    assert run_jobs([StudyConfig(name=name) for name in names], run) == 2
    assert ran == names
    assert "error: study bad: data.root: no such folder" in capsys.readouterr().err
    assert run_jobs([StudyConfig(name="broken"), StudyConfig(name="good")], run) == 1
    assert run_jobs([StudyConfig(name="good")], run) == 0


def test_an_error_of_the_only_job_is_told_without_its_name_or_a_traceback(capsys):
    def run(config: StudyConfig) -> None:
        raise DataError("data.root: no such folder")

    assert run_jobs([StudyConfig(name="only")], run) == 2
    assert capsys.readouterr().err == "error: data.root: no such folder\n"


def test_ctrl_c_ends_all_jobs_with_130():
    ran = []

    def run(config: StudyConfig) -> None:
        ran.append(config.name)
        raise KeyboardInterrupt

    assert exit_code(lambda: run_jobs([StudyConfig(name="a"), StudyConfig(name="b")], run)) == 130
    assert ran == ["a"]
