"""A study that is chosen: from a folder and a time to a study file that repeats it."""

import numpy as np
import pytest
import yaml
from digit_folders import write_digits
from PIL import Image

from search import compose_study
from search.run import main
from search.storage import WINNER

# Of digits 0 to 3, as a folder a class.
FOUR = {str(digit): str(digit) if digit < 4 else None for digit in range(10)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("sets") / "my digits", FOUR, train=30, test=6)


def words_of(lab, *words):
    """Words that keep all files in a lab's folder, and the model tiny."""
    places = (
        f"store.url={lab.optuna_url}",
        f"tracking.uri={lab.mlflow_uri}",
        f"tracking.artifacts={lab.folder}/mlruns/artifacts",
        f"data.cache={lab.folder}/mlruns/cache",
    )
    return [*places, "model.name=test_resnet", "model.weights=none", "device=cpu", "threads=1", *words]


def files_of(lab):
    return {path.relative_to(lab.folder).as_posix() for path in lab.folder.rglob("*") if path.is_file()}


def test_a_folder_and_a_time_are_enough(new_lab, digits, capsys):
    lab = new_lab()
    words = words_of(lab, f"data.root='{digits}'", "probe_sweep=0", "presets={}", "strategy.epochs=1")
    assert main([*words, "budget.trials=1"]) == 0
    said = capsys.readouterr().out
    file = lab.folder / "mlruns" / "auto" / "my-digits.yaml"
    heads = ("Auto", "Device", "Model ", "Size", "Epochs", "Trials ", "File")
    chosen = [line for line in said.splitlines() if line.startswith(heads)]
    assert "task classification (a folder a class): 144 images grey, 4 classes" in chosen[0]
    assert len(chosen) <= 10
    assert WINNER in lab.open("my-digits").user_attrs
    # Keys that were given stand, in the file too, which composes to the same study.
    config = compose_study([f"study={file}"])
    assert (config.model.name, config.strategy["epochs"], config.budget.trials) == ("test_resnet", 1, 1)
    assert (config.data.root, config.data.image_size) == (digits, 64)
    assert compose_study([f"study={file}", "budget.minutes=3"]).budget.hours is None
    # The same command goes on with it.
    assert main([*words, "budget.trials=2"]) == 0
    assert "my-digits.yaml was chosen before and is used again" in capsys.readouterr().out
    assert len(lab.open("my-digits").trials) == 2


def test_a_rehearsal_measures_and_writes_nothing_but_decoded_images(new_lab, digits, capsys):
    lab = new_lab()
    before = files_of(lab)
    assert main([*words_of(lab, f"data.root='{digits}'", "budget.minutes=5"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Trials  about " in said
    assert "Nothing was trained" in said
    (head,) = [line for line in said.splitlines() if "images/s" in line and "seconds a trial" in line]
    rows = [line.split() for line in said.splitlines() if line.strip().startswith("test_resnet")]
    assert [row[1] for row in rows] == ["0", "2", "5"]
    # What trains all blocks takes longest.
    assert float(rows[-1][-1].replace(",", "")) >= float(rows[0][-1].replace(",", ""))
    assert head
    new = files_of(lab) - before
    assert new
    assert all(name.startswith("mlruns/cache/images/") or name.endswith(("files.sqlite", ".lock")) for name in new), new


def test_masks_and_efforts(new_lab, tmp_path, capsys):
    for k in range(12):
        for folder, shape in (("images", (40, 40, 3)), ("masks", (40, 40))):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k}.png")
    words = [*words_of(new_lab()), f"data.root={tmp_path}", "model.decoder=fcn", "name=x", "effort=best"]
    assert main([*words, "--cfg", "job"]) == 0
    printed = capsys.readouterr()
    config = yaml.safe_load(printed.out)
    assert (config["task"], config["data"]["masks"]) == ("segmentation", str(tmp_path / "masks"))
    assert (config["confirm"]["seeds"], config["after"]["soups"]) == (2, True)
    assert "task segmentation (folders images and masks): 12 images in colours" in printed.err
    assert main([*words[:-1], "effort=quick", "--cfg", "job"]) == 0
    quick = yaml.safe_load(capsys.readouterr().out)
    assert (quick["budget"]["trials"], list(quick["presets"]), quick["probe_sweep"]) == (1, ["fine_tuning"], 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study=auto", "effort=huge"], "effort: 'huge' is not one of quick, good, best"),
        (["study=quickstart", "effort=best"], "effort: only study=auto chooses by it"),
        (["data.root=/none"], "data.root=/none does not exist"),
        (["study=auto", "budget.minutes=-1"], "budget.minutes: -1 is not a number above 0"),
        (["study=auto", "budget.minutes=5", "budget.until=07:00"], "both say when the search ends"),
        (["study=auto", "strategy.lrr=1"], "strategy.lrr"),
        (["study=auto", "seed=0,1", "--multirun"], "study: auto chooses one study at a time"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
    assert not list(tmp_path.iterdir())
