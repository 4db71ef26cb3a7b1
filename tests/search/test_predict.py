"""Answers for images from the command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lab import SMALL
from PIL import Image

from search.predict import main
from search.winner.evidence import OUTPUTS_FILE
from trainers import open_data


@pytest.fixture(scope="module")
def searched(new_lab):
    """A study with a winner, and its test images as files."""
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 1.0, "epochs": 4})
    assert lab.run("budget.trials=1") == 0
    data = open_data(task="classification", in_chans=3, **lab.config().data.model_dump())
    images, _ = next(data.test.batches(torch.arange(len(data.test)), len(data.test), torch.device("cpu")))
    for place, image in enumerate(images):
        folder = lab.folder / "images" / str(place % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place:02}.png")
    (lab.folder / "images" / "notes.txt").write_text("no image")
    lab.classes = data.classes
    lab.truths = [data.classes[target] for target in data.test.targets.tolist()]
    return lab


def predict(lab, *words: str) -> int:
    winner = lab.study.user_attrs["winner"]
    return main([winner["model_uri"], *words, "--tracking-uri", lab.mlflow_uri])


def test_every_image_of_a_folder_is_answered_as_it_was_scored(searched, tmp_path, capsys):
    out = tmp_path / "answers.csv"
    assert predict(searched, str(searched.folder / "images"), "--out", str(out), "--batch-size", "7") == 0
    assert "64 images answered in" in capsys.readouterr().out
    found = pd.read_csv(out, dtype={"label": str})
    outputs = np.load(searched.artifact(searched.parent(), OUTPUTS_FILE))["outputs"]
    said = [searched.classes[place] for place in outputs.argmax(1)]
    assert [row.label for row in found.itertuples()] == [said[int(Path(row.image).stem)] for row in found.itertuples()]
    right = [row.label == searched.truths[int(Path(row.image).stem)] for row in found.itertuples()]
    assert len(right) == 64
    assert sum(right) / 64 == pytest.approx(searched.study.user_attrs["winner"]["test_score"])


def test_patterns_and_files_are_taken_once_and_printed_as_csv(searched, capsys):
    pattern = str(searched.folder / "images" / "**" / "0[0-3].png")
    one = str(searched.folder / "images" / "0" / "02.png")
    assert predict(searched, pattern, one) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("image,label,probability")
    assert sorted(Path(row.split(",")[0]).stem for row in rows) == ["00", "01", "02", "03"]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_other_forms_hold_the_same(searched, tmp_path, suffix):
    image = str(searched.folder / "images" / "0" / "00.png")
    out = tmp_path / f"answers.{suffix}"
    assert predict(searched, image, "--out", str(out)) == 0
    rows = json.loads(out.read_text()) if suffix == "json" else pd.read_parquet(out).to_dict("records")
    assert [row["image"] for row in rows] == [image]
    assert 0 < rows[0]["probability"] <= 1


def test_a_bad_image_is_named_and_can_be_left_out(searched, tmp_path, capsys):
    good = searched.folder / "images" / "0" / "00.png"
    bad = tmp_path / "broken.png"
    bad.write_bytes(good.read_bytes()[:40])
    assert predict(searched, str(good), str(bad)) == 2
    assert "broken.png" in capsys.readouterr().err
    assert predict(searched, str(good), str(bad), "--skip-bad") == 1
    said = capsys.readouterr()
    assert "broken.png" in said.err
    assert len(said.out.splitlines()) == 2


def test_what_is_not_there_is_said_in_one_line(searched, tmp_path, capsys):
    image = str(searched.folder / "images" / "0" / "00.png")
    for words, message in (
        ([str(tmp_path)], "no images in this folder"),
        ([str(tmp_path / "none.png")], "no such file, folder or pattern"),
        ([image, "--out", str(tmp_path / "answers.txt")], "ends in none of .csv, .json, .parquet"),
        ([image, "--out", str(tmp_path / "none" / "answers.csv")], "cannot be written"),
        ([image, "--masks", str(tmp_path / "masks")], "this model gives no masks"),
    ):
        assert predict(searched, *words) == 2
        assert message in capsys.readouterr().err
    assert main(["models:/none@champion", image, "--tracking-uri", searched.mlflow_uri]) == 2
    assert "models:/none@champion: this model cannot be loaded" in capsys.readouterr().err
