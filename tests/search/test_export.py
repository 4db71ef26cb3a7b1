"""Models for other programs give what was scored."""

import base64
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import mlflow
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from lab import SMALL

from search.export import main
from search.winner import push
from strategies import ConfigError
from trainers import open_data


@pytest.fixture(scope="module")
def searched(new_lab):
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 1.0, "epochs": 4, "tta": "flip"})
    assert lab.run("budget.trials=1") == 0
    return lab


def export(lab, out, *words: str) -> int:
    return main(
        [lab.study.user_attrs["winner"]["model_uri"], "--out", str(out), "--tracking-uri", lab.mlflow_uri, *words]
    )


def scored(lab) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Test images between 0 and 1, the classes of the served model's answers, and their probabilities."""
    data = open_data(task="classification", in_chans=3, **lab.config().data.model_dump())
    images, _ = next(data.test.batches(torch.arange(len(data.test)), len(data.test), torch.device("cpu")))
    mlflow.set_tracking_uri(lab.mlflow_uri)
    model = mlflow.pyfunc.load_model(lab.study.user_attrs["winner"]["model_uri"])
    answers = model.predict(list(images.permute(0, 2, 3, 1).numpy()))
    columns = [f"probability_{name}" for name in data.classes]
    labels = [data.classes.index(label) for label in answers["label"]]
    return images.float() / 255, np.array(labels), answers[columns].to_numpy()


@pytest.mark.slow
def test_onnx_gives_the_labels_and_probabilities_of_every_test_image(searched, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert export(searched, path) == 0
    assert "gives the model's answers" in capsys.readouterr().out
    images, labels, probabilities = scored(searched)
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"images": images.numpy()})
    assert found.argmax(1).tolist() == labels.tolist()
    assert found == pytest.approx(probabilities, abs=1e-4)
    card = json.loads((tmp_path / "model.onnx.json").read_text())
    assert card["images"] == {"size": 32, "channels": 3, "values": "0 to 1", "fit": "crop"}
    assert len(card["classes"]) == found.shape[1]


@pytest.mark.slow
def test_a_torch_program_gives_the_same_without_our_code(searched, tmp_path):
    path = tmp_path / "model.pt2"
    assert export(searched, path) == 0
    images, labels, probabilities = scored(searched)
    found = torch.export.load(str(path)).module()(images).detach().numpy()
    assert found.argmax(1).tolist() == labels.tolist()
    assert found == pytest.approx(probabilities, abs=1e-4)


def test_a_folder_is_a_timm_model(searched, tmp_path, recwarn):
    folder = tmp_path / "digits"
    before = os.umask(0o027)
    assert export(searched, folder) == 0
    os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "model.safetensors"), "0o640"
    )
    assert not [warning for warning in recwarn if "type hint" in str(warning.message)]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = json.loads((folder / "config.json").read_text())
    images, labels, _ = scored(searched)
    mean, std = (torch.tensor(config["pretrained_cfg"][name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    shown = (images - mean) / std
    with torch.inference_mode():
        # As the trial was scored: the image and its mirror image.
        found = (model(shown) + model(shown.flip(-1))) / 2
    assert found.argmax(1).tolist() == labels.tolist()
    card = (folder / "README.md").read_text()
    assert "library_name: timm" in card
    assert "## Intended use" in card
    winner = searched.study.user_attrs["winner"]
    interval = f"95% interval {winner['test_low']:.4f} to {winner['test_high']:.4f}"
    assert f"accuracy {winner['test_score']:.4f} ({interval}) on 64 test images" in card
    assert "64 images to train on, 64 to choose by, 64 to test on (source:\ndigits, fingerprint " in card
    assert "- tta: flip\n" in card
    # AdamW has no momentum, and the schedule has no steps.
    assert not re.search("^- (momentum|decay_epochs|lora_rank|focal_gamma)", card, re.MULTILINE)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as takes a commit; large files too come within it."""

    made: list[str]
    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.made.append(json.loads(body)["name"])
            self.answer({"url": "https://huggingface.co/me/digits"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            taken = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            self.answer({"files": taken})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": "https://huggingface.co/me/digits/commit/1", "commitOid": "1"})
        else:
            self.send_error(404)

    def answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Into the terminal goes nothing."""


@pytest.fixture
def hub(monkeypatch) -> Iterator[type[Hub]]:
    Hub.made, Hub.files = [], {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_folder_is_uploaded_to_the_hub_with_its_card(searched, hub, tmp_path, capsys):
    folder = tmp_path / "digits"
    assert export(searched, folder, "--push", "me/digits") == 0
    assert hub.made == ["digits"]
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.files["README.md"].startswith(b"---\nlibrary_name: timm\n")
    assert "me/digits" in capsys.readouterr().out.splitlines()[-1]


def test_the_hub_out_of_reach_is_said_in_one_line(searched, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    folder = tmp_path / "digits"
    folder.mkdir()
    with pytest.raises(ConfigError, match="--push: me/digits cannot be written on the hub"):
        push(folder, "me/digits")


def test_what_cannot_be_written_is_said_before_anything_is(searched, tmp_path, capsys):
    for out, words, message in (
        (tmp_path / "model.tflite", [], "ends in none of .onnx, .pt2"),
        (tmp_path / "model.onnx", ["--push", "me/digits"], "the hub takes a timm folder"),
        (tmp_path / "none" / "model.pt2", [], "cannot be written"),
    ):
        assert export(searched, out, *words) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_extra_is_refused_before_a_model_is_looked_for(tmp_path, monkeypatch, capsys):
    # As Python has it of a module that is not installed.
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["models:/nowhere@champion", "--out", str(tmp_path / "model.onnx")]) == 2
    assert ".onnx takes onnxscript; pip install -e '.[onnx]'" in capsys.readouterr().err
