"""The winner as others get it: a folder of images is searched, and the model is loaded in a process of its own."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from lab import REPOSITORY
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from search.storage import RUN_ID, STRATEGY, WINNER
from search.tracking import CHECKPOINT_FILE
from search.winner.served_model import ImageModel
from strategies import DataError, Strategy
from trainers import ModelSource, Trainer, choose_device, find_weights, open_data

CLASSES = ("null", "one", "two two")
SIZE = 32

# Loads the model knowing nothing but its URI, with an installed Unfreeze out of sight, and predicts from each input.
ELSEWHERE = """
import base64, importlib.util, json, sys
uri, store, repository, paths = json.loads(sys.stdin.read())
sys.path[:] = [path for path in sys.path if path != repository]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
from pathlib import Path
import mlflow, numpy as np
from PIL import Image
mlflow.set_tracking_uri(store)
model = mlflow.pyfunc.load_model(uri)
ours = tuple(f"{repository}/{package}/" for package in ("search", "strategies", "trainers"))
assert not [n for n, m in sys.modules.items() if (getattr(m, "__file__", "") or "").startswith(ours)]
assert "search" not in sys.modules
contents = [open(path, "rb").read() for path in paths]
inputs = {
    "paths": list(map(Path, paths)),
    "bytes": contents,
    "base64": [base64.b64encode(content).decode() for content in contents],
    "arrays": [np.asarray(Image.open(path).convert("RGB")) for path in paths],
}
answers = {kind: model.predict(images).to_dict("list") for kind, images in inputs.items()}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """120 digits in three class folders, as PNG."""
    root = tmp_path_factory.mktemp("images")
    pixels, targets = load_digits(return_X_y=True)
    for k, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i, row in enumerate(pixels[targets == k][:40]):
            Image.fromarray((row.reshape(8, 8) * 15).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def done(new_lab, images):
    lab = new_lab(data={"root": str(images), "image_size": SIZE}, metric="loss")
    space = ["strategy.depth=1.0", "strategy.lr=0.01", "strategy.epochs=6", "strategy.batch_size=8"]
    assert lab.run(*space, "budget.trials=1") == 0
    return lab


@pytest.fixture(scope="module")
def evaluated(done):
    """The test split, and the logits of the winner's checkpoint for it, without MLflow's model in between."""
    data = open_data(task="classification", in_chans=3, **done.config().data.model_dump())
    (trial,) = done.trials()
    source = ModelSource("test_resnet", find_weights("test_resnet", ["none"]), len(CLASSES), SIZE)
    strategy = Strategy.from_dict(trial.user_attrs[STRATEGY])
    trainer = Trainer(source, data, strategy, 0, choose_device("cpu"))
    run = done.client.get_run(trial.user_attrs[RUN_ID])
    trainer.model.load_state_dict(load_file(done.artifact(run, CHECKPOINT_FILE)))
    logits, targets = trainer.predict(data.test)
    return data, logits, targets


@pytest.fixture(scope="module")
def served(done, evaluated) -> ImageModel:
    """The model as MLflow loads it."""
    mlflow.set_tracking_uri(done.mlflow_uri)
    return mlflow.pyfunc.load_model(done.study.user_attrs[WINNER]["model_uri"])


@pytest.mark.slow
def test_loaded_elsewhere_without_the_repository_it_predicts_what_was_scored(done, evaluated, tmp_path):
    data, logits, targets = evaluated
    winner = done.study.user_attrs[WINNER]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-P", "-c", ELSEWHERE],
        input=json.dumps([winner["model_uri"], done.mlflow_uri, str(REPOSITORY), list(data.test.names)]),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout.splitlines()[-1])
    expected = [CLASSES[i] for i in logits.argmax(1)]
    assert set(expected) == set(CLASSES)
    probabilities = (logits.double() / winner["calibration"]["temperature"]).softmax(1).numpy()
    for kind in ("paths", "bytes", "base64", "arrays"):
        answer = answers[kind]
        assert list(answer) == ["label", "probability", *(f"probability_{name}" for name in CLASSES)]
        assert answer["label"] == expected, kind
        found = np.column_stack([answer[f"probability_{name}"] for name in CLASSES])
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        np.testing.assert_array_equal(answer["probability"], found.max(1))
    accuracy = np.mean([label == CLASSES[target] for label, target in zip(expected, targets, strict=True)])
    assert done.parent().data.metrics["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.slow
def test_served_over_http_it_says_the_same_of_every_test_image(done, evaluated, tmp_path):
    data, logits, _ = evaluated
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    winner = done.study.user_attrs[WINNER]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", winner["model_uri"]]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port), "--workers", "1"],
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_TRACKING_URI": done.mlflow_uri},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            images = [base64.b64encode(Path(name).read_bytes()).decode() for name in data.test.names]
            answers = ask(port, process, {"inputs": images})
            for wrong, message in (
                (str(data.test.names[0]), "files are taken by name only with serve.allow_paths=true"),
                (base64.b64encode(b"no image").decode(), "image 2: not an image in a known format"),
                ([[[1, 2, 300]]], "image 2: not an array (H, W, C) of numbers from 0 to 255"),
            ):
                with pytest.raises(AssertionError) as refused:
                    ask(port, process, {"inputs": [images[0], wrong]})
                answer = json.loads(str(refused.value))
                assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
                assert answer["message"].startswith("image 2: ")
                assert answer["message"].endswith(message)
            log.seek(0)
            assert "type hint" not in log.read()
        except AssertionError:
            log.seek(0)
            raise AssertionError(log.read()) from None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert [row["label"] for row in answers["predictions"]] == [CLASSES[i] for i in logits.argmax(1)]


def ask(port: int, process: "subprocess.Popen[bytes]", content: dict) -> dict:
    """What a server answers, once it does."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            time.sleep(0.5)
    raise AssertionError("no answer in time")


def test_the_test_score_and_its_interval_are_those_of_the_checkpoint(done, evaluated):
    data, logits, targets = evaluated
    winner = done.study.user_attrs[WINNER]
    loss = float(-logits.log_softmax(1)[range(len(targets)), targets].mean())
    assert winner["test_score"] == pytest.approx(loss, rel=1e-4)
    assert winner["test_low"] < winner["test_score"] < winner["test_high"]
    assert winner["test_images"] == len(data.test) == 24


def test_the_model_says_what_it_takes_and_gives(done, served):
    assert served.metadata.signature.outputs.input_names()[:2] == ["label", "probability"]
    assert [kind.name for kind in served.metadata.signature.outputs.input_types()][:2] == ["string", "double"]
    example = served.metadata.load_input_example()
    assert served.predict(example)["label"][0] in CLASSES


def test_kinds_of_images_may_be_mixed_and_none_is_an_empty_table(served, evaluated):
    data, logits, _ = evaluated
    path = data.test.names[0]
    content = Path(path).read_bytes()
    data_url = "data:image/png;base64," + base64.b64encode(content).decode()
    nested = np.asarray(Image.open(path).convert("RGB")).tolist()
    labels = served.predict([Path(path), content, data_url, nested, np.asarray(nested, np.uint8)])["label"]
    assert list(labels) == [CLASSES[int(logits[0].argmax())]] * 5
    assert len(served.predict([])) == 0


def test_more_images_than_a_batch_come_back_in_order(served, evaluated):
    data, logits, _ = evaluated
    labels = list(served.predict([*map(Path, data.test.names)] * 4)["label"])
    assert labels == [CLASSES[i] for i in logits.argmax(1)] * 4


def test_base64_without_a_slash_is_not_looked_up_as_a_file_name(served):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12)).save(buffer, format="BMP")
    text = base64.b64encode(buffer.getvalue()).decode()
    # A word of more than 255 letters is no valid file name, which the operating system says by an error.
    assert "/" not in text[:256]
    assert served.predict([text])["label"][0] in CLASSES


@pytest.mark.parametrize("text", ["no/such/file.jpg", "kein/Bild/köln.jpg", "null\0byte", "x" * 9000 + "."])
def test_text_that_is_no_image_is_named(text):
    model = ImageModel()
    model.image_size = SIZE
    with pytest.raises(DataError, match=r"image 1: .* is not base64; files are taken by name only"):
        model.predict(None, [text])
    model.allows_paths = True
    with pytest.raises(DataError, match=r"image 1: .* is neither an image file nor base64"):
        model.predict(None, [text])


def test_a_name_of_a_file_is_taken_only_where_the_study_allows_that(tmp_path):
    file = tmp_path / "abcd"
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    model = ImageModel()
    with pytest.raises(DataError, match="not base64"):
        model._as_image(str(file), 0)
    model.allows_paths = True
    assert model._as_image(str(file), 0) == file


# Last: it gives the study another winner's model.
def test_a_model_computes_in_the_format_that_is_asked_for_and_says_in_which_it_was_scored(done, images, capsys):
    space = ["strategy.depth=1.0", "strategy.lr=0.01", "strategy.epochs=6", "strategy.batch_size=8"]
    before = done.study.user_attrs[WINNER]["model_uri"]
    assert done.run(*space, "budget.trials=1", "serve.precision=bf16") == 0
    assert "the model computes in bf16, and was scored in fp32" in capsys.readouterr().out
    uri = done.study.user_attrs[WINNER]["model_uri"]
    assert uri != before
    mlflow.set_tracking_uri(done.mlflow_uri)
    model = mlflow.pyfunc.load_model(uri).unwrap_python_model()
    assert (model.card["precision"], model.card["scored_in"]) == ("bf16", "fp32")
    seen = []
    model.model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.dtype))
    assert len(model.predict(None, [images / "one" / "0.png"])) == 1
    assert seen == [torch.bfloat16]
