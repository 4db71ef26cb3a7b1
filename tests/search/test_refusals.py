"""What is refused before anything begins: exit code 2, what is wrong by its name, and no file that was not there."""

import copy
from pathlib import Path

import pytest
import yaml
from lab import SMALL

from search import compare, export, housekeeping, nightly, predict, promote, report, rerun, run, store, ui
from search.nightly import tell
from search.study import Night

LONG = "x" * 300


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study file in a folder where nothing has begun, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(SMALL))
    return "study=lab.yaml"


def refusal(capsys, main, *words: str) -> str:
    """What a command says that must refuse its words, and leave the working folder as it was."""
    before = everything()
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as usage:
        code = usage.code
    said = capsys.readouterr()
    assert code == 2, words
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err + said.out
    assert everything() == before
    return said.err.partition("error: ")[2]


def everything() -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}


def test_a_study_that_is_refused_leaves_nothing(study, capsys):
    for words, said in {
        ("model.name=resnt18",): "model.name: timm has no model 'resnt18'",
        ("model.weights=/none.safetensors",): "model.weights: none available",
        (
            "model.weights=models:/pets@champion",
        ): "model.weights: none available for test_resnet: models:/pets@champion",
        ("teacher=models:/pets@champion", "strategy.distill_weight=0.5"): "teacher: tracking.uri: 'sqlite:///mlruns/ml",
        ("device=cuda:99",): "device: 'cuda:99' cannot be used",
        ("data.root=/none",): "data.root=/none does not exist",
        ("model.name=test_vit", "data.image_size=40"): "data.image_size: test_vit cannot take images of 40 px",
        ("strategy.depth={low: 0, high: 99}",): "strategy.depth.high: 99 blocks asked for, the model has 5",
        ("compile=reduce-overhead", "device=cpu"): "compile: 'reduce-overhead' records CUDA graphs",
        ("strategy.distill_weight=0.5",): "strategy.distill_weight: 0.5 cannot be used",
        ("store.url=sqlite:////proc/none/x.db",): "store.url: 'sqlite:////proc/none/x.db' cannot be opened: ",
        ("store.url=sqlite:///lab.yaml/x.db",): "store.url: 'sqlite:///lab.yaml/x.db' cannot be opened: ",
        ("store.url='sqlite:///x.db?timeout=abc'",): "store.url: 'sqlite:///x.db?timeout=abc' cannot be opened: ",
        ("store.url=oracle://x/y",): "store.url: 'oracle://x/y' cannot be opened: ",
        ("store.url=grpc://127.0.0.1:99999999",): "store.url: 'grpc://127.0.0.1:99999999' is not an address: Port",
        ("tracking.uri=sqlite:////proc/none/x.db",): "tracking.uri: 'sqlite:////proc/none/x.db' cannot be used: ",
        ("tracking.uri=nosuch://x/y",): "tracking.uri: 'nosuch://x/y' cannot be used: ",
        ("tracking.artifacts=/proc/none",): "tracking.artifacts: '/proc/none' cannot be written to: ",
        ("tracking.artifacts=lab.yaml/x",): "tracking.artifacts: 'lab.yaml/x' cannot be written to: Not a directory",
        ("data.cache=lab.yaml/x",): "data.cache: 'lab.yaml/x' cannot be written to: Not a directory",
        ("champion.name=a/b",): "champion.name: 'a/b' cannot name a model",
    }.items():
        assert refusal(capsys, run.main, study, *words).startswith(said), words


def test_a_study_whose_artifacts_cannot_be_written_any_more_is_refused(lab, capsys, monkeypatch):
    monkeypatch.chdir(lab.folder)
    # MLflow keeps the place with the study, so that another tracking.artifacts would not help at the end.
    lab.client.create_experiment("lab", artifact_location="file:///proc/none/lab")
    assert lab.run() == 2
    assert "error: tracking.artifacts: '/proc/none/lab' cannot be written to: No such file" in capsys.readouterr().err


def test_commands_refuse_what_they_cannot_do_before_they_begin(study, capsys):
    Path("empty.db").touch()
    there = "is not there; no study has begun, or it has another store"
    for main, words, said in [
        (compare.main, ["nope"], f"store.url: 'sqlite:///mlruns/optuna.db' {there}"),
        (compare.main, ["store.url=sqlite:///empty.db"], f"store.url: 'sqlite:///empty.db' {there}"),
        (compare.main, ["store.url=mlruns"], "store.url: 'mlruns' is not a database URL"),
        (compare.main, ["tracking.uri=http://[::1"], "tracking.uri: 'http://[::1' is not an address: Invalid IPv6"),
        (compare.main, ["store.url=sqlite:///a\0b"], "store.url: a text with a NUL character is no text"),
        (compare.main, ["--top", "-1"], "argument --top: '-1' is not a whole number from 0 to 1000000000"),
        (compare.main, ["nope", "--out", "/proc/none/x.csv"], "--out: '/proc/none/x.csv' cannot be written: No such"),
        (report.main, ["nope", "--out", LONG], f"--out: '{LONG}' cannot be written: File name too long"),
        (report.main, ["nope"], f"store.url: 'sqlite:///mlruns/optuna.db' {there}"),
        (promote.main, ["nope"], f"store.url: 'sqlite:///mlruns/optuna.db' {there}"),
        (ui.main, ["nope"], f"store.url: 'sqlite:///mlruns/optuna.db' {there}"),
        (ui.main, ["store.url=nope"], "store.url: 'nope' is not a database URL"),
        (ui.main, ["--port", "99999999"], "argument --port: '99999999' is not a whole number from 1 to 65535"),
        (ui.main, ["--optuna-port", "-1"], "argument --optuna-port: '-1' is not a whole number from 1 to 65535"),
        (store.main, ["store.url=nope"], "store.url: 'nope' is not a database URL"),
        (store.main, ["store.url=sqlite://"], "store.url: 'sqlite://' is in the memory of one process"),
        (
            store.main,
            ["store.url=sqlite:////proc/none/x.db"],
            "store.url: 'sqlite:////proc/none/x.db' cannot be opened",
        ),
        (
            store.main,
            ["store.url=sqlite:///new.db", "--host", "300.1.1.1"],
            "--port 13000: cannot be listened at on",
        ),
        (store.main, ["--port", "65536"], "argument --port: '65536' is not a whole number from 0 to 65535"),
        (predict.main, ["models:/x@champion", "lab.yaml", "--batch-size", "0"], "argument --batch-size: '0' is not a"),
        (predict.main, ["models:/x@champion", "lab.yaml"], f"tracking.uri: 'sqlite:///mlruns/mlflow.db' {there}"),
        (
            predict.main,
            ["models:/x@champion", "lab.yaml", "--tracking-uri", "sqlite://"],
            "tracking.uri: 'sqlite",
        ),
        (predict.main, ["x", LONG], f"{LONG}: no such file"),
        (
            predict.main,
            ["x", "lab.yaml", "--out", "/proc/none/x.csv"],
            "--out: '/proc/none/x.csv' cannot be written",
        ),
        (export.main, ["models:/x/1", "--out", "x.pt2"], f"tracking.uri: 'sqlite:///mlruns/mlflow.db' {there}"),
        (rerun.main, ["0", "tracking.uri=sqlite:///none/x.db"], f"tracking.uri: 'sqlite:///none/x.db' {there}"),
        (rerun.main, ["0", "--tolerance", "nan"], "--tolerance: nan is not at least 0"),
        (housekeeping.main, ["--days", "inf"], "--days: inf is not a number above 0 and at most 100000, or null"),
        (
            housekeeping.main,
            ["--gib", "1e300"],
            "--gib: 1e+300 is not a number at least 0 and at most 1000000",
        ),
        (nightly.main, [study, "budget.hours=null"], "budget.hours: null; a night has an end"),
    ]:
        assert refusal(capsys, main, *words).startswith(said), words


def test_a_night_is_refused_whose_summary_could_not_be_written(study, capsys):
    said = refusal(capsys, nightly.main, study, "budget.hours=1", "--summary", "/proc/none/night.md")
    assert said.startswith("--summary: '/proc/none/night.md' cannot be written: No such file")


def test_a_study_that_cannot_be_searched_leaves_its_night_to_the_others_and_nothing_behind(study, capsys):
    other = copy.deepcopy(SMALL) | {"tracking": {"artifacts": "/proc/none"}}
    Path("other.yaml").write_text(yaml.safe_dump(other))
    before = everything()
    words = ["study=lab.yaml,other.yaml", "budget.hours=1", "model.weights=/none.safetensors"]
    assert nightly.main(words) == 2
    said = capsys.readouterr()
    assert "error: study other: tracking.artifacts: '/proc/none' cannot be written to: " in said.err
    assert "error: study lab: model.weights: none available" in said.err
    assert said.out.count("- Failed: ") == 2
    assert everything() == before


def test_a_summary_that_cannot_be_written_after_all_is_sent_all_the_same(capsys, inbox):
    address, received = inbox
    assert tell([Night("lab", trials=3)], 60.0, Path("/proc/none/night.md"), [f"json://{address}"]) == 1
    assert "error: --summary: '/proc/none/night.md' cannot be written: No such file" in capsys.readouterr().err
    assert "Trials: 3 new, 3 in all" in received[0]["message"]
