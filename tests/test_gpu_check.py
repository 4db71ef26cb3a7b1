"""The command that checks a device runs on a CPU, in its small form."""

import ast
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check_fields import CASES, ELSEWHERE
from benchmarks.gpu_check_setup import Row
from strategies import Strategy

BENCHMARKS = Path(gpu_check.__file__).parent


@pytest.mark.slow
def test_every_step_is_as_expected_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "result.json"
    assert gpu_check.main(["--device", "cpu", "--small", "--json", str(file)]) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["seconds"].keys() == gpu_check.STEPS.keys()
    assert {row["step"] for row in found["rows"]} == gpu_check.STEPS.keys()
    said = capsys.readouterr().out
    assert "| step | what | found | expected | |" in said
    assert ", 0 not as expected" in said


def test_a_step_that_fails_keeps_no_other_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(setup):
        yield Row("begins", "yes", "yes", True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(gpu_check, "STEPS", {"broken": broken, "rows": gpu_check.STEPS["rows"]})
    file = tmp_path / "result.json"
    assert gpu_check.main(["--device", "cpu", "--small", "--json", str(file)]) == 1
    rows = json.loads(file.read_text())["rows"]
    assert [row["step"] for row in rows] == ["broken", "broken", "rows", "rows"]
    assert rows[1]["found"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert "1 not as expected" in capsys.readouterr().out


def test_every_field_of_a_strategy_has_its_turn():
    changed = {name for values in CASES.values() for name in values}
    assert changed | ELSEWHERE == {field.name for field in fields(Strategy)}
    assert changed.isdisjoint(ELSEWHERE)
    # In canonical form a field without an effect has its default again.
    for name, values in CASES.items():
        kept = Strategy(**values).canonical(6)
        for field, value in values.items():
            assert getattr(kept, field) == value, name


def test_it_needs_neither_optuna_nor_mlflow():
    # That trainers and strategies import none of these is held by lint-imports.
    files = [*BENCHMARKS.glob("gpu_check*.py"), BENCHMARKS / "loops.py", BENCHMARKS / "machine.py"]
    assert len(files) == 7
    names = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    found = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert found == {"benchmarks", "numpy", "strategies", "timm", "torch", "torchvision", "trainers"}
