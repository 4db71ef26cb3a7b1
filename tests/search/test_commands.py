"""The command ``unfreeze``: help at once, the same commands as ``python -m``, and words that shells complete."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from search.commands import COMMANDS, main
from search.config import keys_to_set, list_spaces, list_studies, schema_keys, spelled, values_to_give
from search.reporting import next_commands

ROOT = Path(__file__).resolve().parents[2]
# Everything that takes longer to import than help may take.
HEAVY = ("hydra", "mlflow", "numpy", "omegaconf", "optuna", "pydantic", "rich", "torch")


@pytest.fixture
def script(tmp_path) -> Path:
    """The console script, as pip writes it."""
    file = tmp_path / "bin" / "unfreeze"
    file.parent.mkdir()
    code = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom search.commands import main\nsys.exit(main())\n"
    file.write_text(f"#!{sys.executable} -P\n{code}")
    file.chmod(0o755)
    return file


def test_help_has_a_line_for_each_command_and_imports_nothing_heavy():
    code = f"""
import sys
from search.commands import main
code = main(sys.argv[1:])
print(sorted(set(sys.modules) & set({HEAVY})), code)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for words, lines, expected in (
        (["--help"], [f"  {name:12}  {line}" for name, line in COMMANDS.items()], 0),
        (["reprot", "pets"], ["error: 'reprot' is no command of unfreeze; did you mean 'report'?"], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == f"[] {expected}"
        assert set(lines) <= set((done.stdout + done.stderr).splitlines())


def test_every_command_is_one_of_python_m_and_none_is_left_out():
    files = {file.stem for file in (ROOT / "search").glob("*.py")}
    started = {"worker", "rank"}  # by other processes
    for_docs = {"reference"}
    no_commands = {"__init__", "api", "command_line", "commands"}
    assert files - started - for_docs - no_commands == COMMANDS.keys() - {"completion"}


def test_words_and_exit_codes_are_those_of_the_command(capsys, monkeypatch):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: unfreeze COMMAND")
    assert main(["run", "study=resnet_cls", "strategy.lr.hihg=1"]) == 2
    assert "error: strategy.lr" in capsys.readouterr().err
    assert main(["study=resnet_cls", "seed=1"]) == 2
    assert "did you mean 'unfreeze run study=resnet_cls seed=1'?" in capsys.readouterr().err
    monkeypatch.setattr(import_module("search.report"), "main", len)
    assert main(["report", "a", "b", "c"]) == 3


def test_help_and_next_steps_call_commands_as_the_user_did(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/unfreeze", "run"])
    assert spelled("ui") == "unfreeze ui"
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert capsys.readouterr().out.startswith("usage: unfreeze compare")
    assert main(["run", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: unfreeze run [study=NAME]")
    assert "python -m" not in said
    from search import compose_study

    assert next_commands(compose_study(["study=resnet_cls"]))[0].startswith("unfreeze report resnet_cls ")
    monkeypatch.setattr(sys, "argv", ["/somewhere/search/run.py"])
    assert spelled("ui") == "python -m search.ui"


def test_values_are_those_that_the_schema_lists():
    assert values_to_give("study") == tuple(list_studies())
    assert set(list_spaces()) <= set(values_to_give("strategy"))
    assert {"folder", "manifest", "coco"} <= set(values_to_give("data.source"))
    assert values_to_give("deterministic") == ("true", "false")
    assert set(values_to_give("costs")) == {"seconds", "parameters_trained"}
    assert "focal" in values_to_give("+strategy.loss")
    assert {"accuracy", "macro_f1"} <= set(values_to_give("metric"))
    assert values_to_give("data.root") == values_to_give("seed") == ()
    assert {f"{key.name}=" for key in schema_keys()} < keys_to_set().keys()


def completed(script: Path, folder: Path, *lines: str) -> list[list[str]]:
    """What bash would offer at the end of each line."""
    tries = "\n".join(
        f"COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; _python_argcomplete unfreeze; "
        'printf "%s\\n" "${COMPREPLY[@]}"; echo --'
        for line in lines
    )
    environment = os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}", "COMP_TYPE": "9"}
    done = subprocess.run(
        ["bash", "-c", f'eval "$(unfreeze completion bash)"\n{tries}'],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return [part.split() for part in done.stdout.split("--\n")[:-1]]


def test_bash_completes_commands_keys_values_studies_options_and_files(script, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "flowers").mkdir(parents=True)
    # Of no concern to the console script.
    (folder / "search.py").write_text("raise SystemExit('the wrong file')")
    commands, keys, sources, folders, studies, forms, options = completed(
        script,
        folder,
        "unfreeze re",
        "unfreeze run study=resnet_cls data.ro",
        "unfreeze run study=resnet_cls data.source=fo",
        "unfreeze run data.root=flo",
        "unfreeze report resnet",
        "unfreeze compare --format ",
        "unfreeze run --multirun study=resnet_cls --ver",
    )
    assert commands == ["report", "rerun"]
    # bash itself takes the part before the = for a word of its own.
    assert keys == ["data.root="]
    assert (sources, folders) == (["folder"], ["flowers/"])
    assert studies == ["resnet_cls"]
    assert forms == ["table", "csv", "json"]
    assert options == ["--verbose"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_is_printed(shell, capsys):
    assert main(["completion", shell]) == 0
    assert re.search(r"\bunfreeze\b", capsys.readouterr().out)
