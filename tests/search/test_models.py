"""The command that shows blocks and lists zoos, and studies of other zoos than timm's from their start to their end."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from lab import REPOSITORY
from zoo_models import OWN

from search.export import main as export
from search.models import main
from search.storage import IDENTITY, WINNER

PAGE = (REPOSITORY / "docs" / "models.md").read_text()


def own_file(folder: Path) -> Path:
    """The model that the page shows."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    file = folder / "net.py"
    file.write_text(text)
    return file


def test_the_blocks_of_a_model_are_shown_from_the_head(tmp_path, capsys):
    assert main([f"module:{own_file(tmp_path)}:build", "--size", "64"]) == 0
    shown = capsys.readouterr().out
    assert "3 blocks and the head, at 64 px" in shown
    rows = re.findall(r"^ *(head|\d+) +(\S+) +([\d,]+) +([\d.]+)%", shown, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        ("head", "2", "17,000"),
        ("1", "1.1", "4,704"),
        ("2", "1.0", "4,704"),
        ("3", "0", "480"),
    ]
    assert sum(float(row[3]) for row in rows) == pytest.approx(100, abs=0.3)


def test_the_page_shows_what_the_command_prints(capsys):
    assert main(["torchvision:resnet18"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
    assert "\n".join(printed) in PAGE


def test_the_models_of_a_zoo_are_listed_with_what_is_known_of_them(capsys):
    assert main(["--zoo", "torchvision", "--filter", "resnet5"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^resnet50 +25\.6 M +80\.9%$", shown, re.MULTILINE)
    assert "resnet18" not in shown
    assert main(["--zoo", "timm", "--filter", "test_resnet"]) == 0
    assert "test_resnet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["torchvision:resnet19"], "error: model.name: torchvision has no classifier 'resnet19'; did you mean"),
        (["--zoo", "torchvison"], "error: model.name: there is no zoo 'torchvison'; did you mean 'torchvision'?"),
        (["--zoo", "timm", "--filter", "no such"], "error: --filter: no model of timm has 'no such' in its name"),
        (["test_vit", "--size", "7"], "error: data.image_size: test_vit cannot take images of 7 px"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


# Loads the winner without the user's file, and answers for images.
ELSEWHERE = """
import json, sys
import mlflow, numpy as np
uri, store, images = json.loads(sys.argv[1])
mlflow.set_tracking_uri(store)
answers = mlflow.pyfunc.load_model(uri).predict(list(np.load(images)))
print(json.dumps(answers["label"].tolist()))
"""


@pytest.fixture(scope="module")
def done(new_lab, tmp_path_factory):
    """A study that chooses among zoos; its winner is the user's own model, whose file is gone since."""
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(OWN)
    own, other = f"module:{file}:build", "torchvision:squeezenet1_1"
    weak = {"depth": 0.0, "lr": 1e-4}
    model = {"name": ["timm:test_resnet", other, own], "weights": "none"}
    lab = new_lab(model=model, metric="loss", presets={"weak": weak})
    longer = ["strategy.epochs=8", "strategy.batch_size=16"]
    lab.train("budget.trials=1", *longer)
    lab.study.enqueue_trial({"model": other, "depth": 0.1, "lr": 1e-4})
    lab.study.enqueue_trial({"model": own, "depth": 1.0, "lr": 0.01})
    assert lab.run("budget.trials=3", *longer) == 0
    file.rename(file.with_name("gone"))
    return lab, own, file


def test_a_study_chooses_among_zoos(done):
    lab, own, _ = done
    names = ["test_resnet", "torchvision:squeezenet1_1", own]
    assert [trial.params["model"] for trial in lab.trials()] == names
    assert lab.outcomes() == ["complete"] * 3
    identity = lab.study.user_attrs[IDENTITY]
    assert identity["model.name"] == sorted(names)
    assert identity["model.name (the user's files)"][own].startswith(f"{own} ")
    assert lab.study.user_attrs[WINNER]["trial"] == 2


@pytest.mark.slow
def test_the_winner_answers_in_a_process_without_the_users_file_and_as_onnx(done, tmp_path):
    lab, _, _ = done
    uri = lab.study.user_attrs[WINNER]["model_uri"]
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    process = lab.start_code(ELSEWHERE, json.dumps([uri, lab.mlflow_uri, str(tmp_path / "images.npy")]))
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert export([uri, "--out", str(tmp_path / "own.onnx"), "--tracking-uri", lab.mlflow_uri]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "own.onnx"))
    (found,) = session.run(None, {"images": images.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    classes = json.loads((tmp_path / "own.onnx.json").read_text())["classes"]
    assert [classes[k] for k in found.argmax(1)] == json.loads(printed.splitlines()[-1])


def test_a_folder_of_timm_is_refused_for_other_zoos(done, tmp_path, capsys):
    lab, own, _ = done
    words = ["--out", str(tmp_path / "folder"), "--tracking-uri", lab.mlflow_uri]
    assert export([lab.study.user_attrs[WINNER]["model_uri"], *words]) == 2
    assert f"a folder is a timm model, and {own} is none" in capsys.readouterr().err


def test_a_changed_file_is_another_study(done, capsys):
    lab, _, file = done
    file.write_text(OWN.replace("ReLU", "GELU"))
    assert lab.run("budget.trials=4") == 2
    assert "model.name (the user's files)" in capsys.readouterr().err
    file.unlink()


def test_a_model_without_a_linear_head_is_searched_without_a_sweep_and_a_tag_says_so(new_lab):
    model = {"name": "torchvision:squeezenet1_1", "weights": "none"}
    lab = new_lab(model=model, presets={"weak": {"depth": 0.0, "lr": 1e-4}}, probe_sweep=2)
    lab.train("budget.trials=1")
    assert lab.outcomes() == ["complete"]
    reason = "no sweep: torchvision:squeezenet1_1 does not end in one linear layer"
    assert lab.parent().data.tags["unfreeze.probe_sweep"] == reason
