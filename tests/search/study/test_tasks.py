"""Studies of each kind of labels and channels, from files on disk to a loaded winner."""

import csv

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from search.storage import WINNER
from search.winner.evidence import OUTPUTS_FILE
from trainers import TASKS

SPACE = ["strategy.depth=1.0", "strategy.lr=0.01", "strategy.epochs=8", "strategy.batch_size=16", "budget.trials=1"]


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Noise with a bright square in the left half, the right half, both or none, and how bright the image is."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    rows = []
    for k in range(160):
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        shown = [name for name, there in (("left", k % 2), ("right", k // 2 % 2)) if there]
        for name in shown:
            column = {"left": 2, "right": 18}[name]
            pixels[8:24, column : column + 12] = rng.integers(100, 256)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        Image.fromarray(pixels[:, :, 0]).save(folder / f"{k}_grey.png")
        bands = np.concatenate([pixels, pixels[:, :, :2]], axis=2).astype(np.uint16) * 30
        np.save(folder / f"{k}_bands.npy", bands)
        row = {"labels": ";".join(shown), "brightness": pixels.mean() * 1000, "side": shown[0] if shown else "none"}
        row["patient"] = f"patient {k // 4}"
        rows.append(row | {"path": f"{k}.png", "grey": f"{k}_grey.png", "bands": f"{k}_bands.npy"})
    with (folder / "squares.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def winner_of(lab, squares, columns, *overrides, **changes):
    data = {"image_size": 32, "manifest": str(squares / "squares.csv"), "columns": columns}
    lab = lab(data=data, **changes)
    assert lab.run(*SPACE, *overrides) == 0
    mlflow.set_tracking_uri(lab.mlflow_uri)
    winner = lab.study.user_attrs[WINNER]
    return lab, winner, mlflow.pyfunc.load_model(winner["model_uri"])


@pytest.mark.slow
def test_several_labels_an_image_are_learnt_and_served(new_lab, squares):
    _, winner, model = winner_of(new_lab, squares, {"label": "labels"}, task="multilabel")
    assert winner["metric"] == "mean_average_precision"
    assert winner["test_score"] > 0.9
    assert winner["calibration"]["temperature"] == model.unwrap_python_model().temperature
    assert 0 < winner["calibration"]["test_ece_calibrated"] < 0.5
    answers = model.predict([squares / f"{k}.png" for k in range(4)])
    assert list(answers) == ["labels", "probability_left", "probability_right"]
    shown = answers[["probability_left", "probability_right"]].to_numpy()
    # None, left, right, both.
    assert shown[1, 0] > shown[2, 0]
    assert shown[2, 1] > shown[1, 1]
    assert [output["name"] for output in model.metadata.signature.outputs.to_dict()] == list(answers)


@pytest.mark.slow
def test_numbers_are_learnt_and_served_in_their_own_units(new_lab, squares):
    columns = {"label": "brightness", "group": "patient"}
    lab, winner, model = winner_of(new_lab, squares, columns, task="regression")
    truth = {row["path"]: float(row["brightness"]) for row in csv.DictReader((squares / "squares.csv").open())}
    spread = np.std(list(truth.values()))
    assert winner["metric"] == "rmse"
    assert winner["test_low"] < winner["test_score"] < winner["test_high"]
    assert winner["test_score"] < 0.7 * spread
    paths = [squares / name for name in truth]
    answers = model.predict(paths)
    assert list(answers) == ["brightness"]
    errors = answers["brightness"].to_numpy() - np.array(list(truth.values()))
    assert np.sqrt((errors**2).mean()) < 0.7 * spread
    # The score's interval is over patients, not over images, and whoever reads the answers again knows whose they are.
    kept = np.load(lab.artifact(lab.parent(), OUTPUTS_FILE))
    assert winner["test_groups"] == len(set(kept["groups"].tolist())) == winner["test_images"] / 4
    outputs, targets = (torch.from_numpy(kept[name]) for name in ("outputs", "targets"))
    interval = TASKS["regression"].interval("rmse", outputs, targets, kept["groups"])
    assert (winner["test_low"], winner["test_high"]) == interval
    assert interval != TASKS["regression"].interval("rmse", outputs, targets)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "in_chans", "overrides"),
    [("grey", 1, ()), ("bands", 5, ("data.max_value=7650",))],
)
def test_images_of_any_number_of_channels_are_learnt_and_served(new_lab, squares, column, in_chans, overrides):
    columns = {"image": column, "label": "side"}
    _, winner, model = winner_of(new_lab, squares, columns, f"model.in_chans={in_chans}", *overrides)
    assert winner["test_score"] > 0.6
    (file,) = squares.glob(f"1_{column}.*")
    answers = model.predict([file, file.read_bytes()])
    assert list(answers) == ["label", "probability", "probability_left", "probability_none", "probability_right"]
    assert answers.iloc[0].equals(answers.iloc[1])


def test_a_task_that_the_source_has_no_labels_for_ends_with_code_2(new_lab, capsys):
    assert new_lab(task="multilabel").run() == 2
    assert "multilabel" in capsys.readouterr().err
