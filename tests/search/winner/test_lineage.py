"""A study that starts from another's model: what that model has seen is not part of the test score."""

import json
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
from lab import SMALL

from search.reporting import Terminal
from search.storage import RUN_ID, WINNER
from search.study import prepare
from search.tracking import CHECKPOINT_FILE
from search.trials import Lineage, lineage_of
from search.winner.judging import judge
from search.winner.winner import Winner
from strategies import WeightsError
from trainers import TASKS, choose_device, open_data

DATA = SMALL["data"] | {"limit_train": 600, "limit_test": 200}
FIXED = {"depth": 1.0, "batch_size": 64, "lr": 3e-3, "epochs": 1}


def splits(lab, seed: int):
    config = lab.config(f"data.split_seed={seed}")
    return open_data(task="classification", in_chans=3, **config.data.model_dump()).digests


def made_with(lab, seed: int):
    digests = splits(lab, seed)
    return np.union1d(digests["train"], digests["val"])


def model_of(lab, study: str) -> str:
    return lab.open(study).user_attrs[WINNER]["model_uri"]


@pytest.fixture(scope="module")
def lab(new_lab):
    """Studies ``first`` and, from its model and with other splits of the same images, ``second``."""
    lab = new_lab(data=DATA, strategy=FIXED, budget={"trials": 1})
    assert lab.run("name=first") == 0
    assert lab.run("name=second", "data.split_seed=1", f"model.weights={model_of(lab, 'first')}") == 0
    return lab


def opened(lab, *words):
    """A study as far as its first trial."""
    config = lab.config(*words)
    with Terminal(config.metric) as terminal:
        open_study = prepare(config, terminal)
        open_study.tracker.close()
    return open_study


def test_seen_test_images_are_left_out_of_the_score(lab):
    winner = lab.open("second").user_attrs[WINNER]
    fresh = (~np.isin(splits(lab, 1)["test"], made_with(lab, 0))).sum()
    assert 50 < fresh < 150
    assert (winner["test_images"], winner["test_seen"]) == (fresh, 200 - fresh)
    said = f"{fresh} images, not counting {200 - fresh} that its first weights or its teacher were made with"
    assert Winner.from_dict(winner).interval.endswith(said)
    assert Winner.from_dict(lab.open("first").user_attrs[WINNER]).interval.endswith(" over 200 images")
    mlflow.set_tracking_uri(lab.mlflow_uri)
    config = lab.config("data.split_seed=1")
    (judged,) = judge([winner["model_uri"]], config, choose_device("cpu", "float32"))
    assert judged.is_new.sum() == fresh
    right = TASKS["classification"].scores(judged.outputs[judged.is_new], judged.targets[judged.is_new])
    assert winner["test_score"] == pytest.approx(right["accuracy"])


def test_a_third_generation_has_the_images_of_both_before_it(lab, capsys):
    third = opened(lab, "name=third", "data.split_seed=2", f"model.weights={model_of(lab, 'second')}")
    before = np.union1d(made_with(lab, 0), made_with(lab, 1))
    assert np.array_equal(third.materials.lineage.seen, before)
    assert third.materials.lineage.models == (model_of(lab, "first"), model_of(lab, "second"))
    every = splits(lab, 2)["test"]
    kept = every[~np.isin(every, before)]
    assert 0 < len(kept) < (~np.isin(every, made_with(lab, 1))).sum()
    assert np.array_equal(third.materials.data.digests["test"], kept)
    said = capsys.readouterr().out
    assert f"{200 - len(kept)} test images left out that model.weights or teacher were made with" in " ".join(
        said.split()
    )
    assert "nothing is known" not in said


@pytest.mark.parametrize("key", ["model.weights", "teacher"])
def test_seen_test_images_are_refused_where_that_is_asked_for(lab, capsys, key):
    words = [f"name=refused-{key}", "data.split_seed=1", f"{key}={model_of(lab, 'first')}"]
    assert lab.run(*words, "data.on_seen=refuse") == 2
    error = capsys.readouterr().err
    assert " of 200 test images are images by which model.weights or teacher were trained or chosen; " in error
    assert "data.on_seen=drop leaves them out" in error
    assert f"refused-{key}" not in optuna.get_all_study_names(lab.storage)


def test_a_study_without_an_unseen_test_image_is_refused(lab, capsys):
    uri = model_of(lab, "first")
    file = Path(mlflow.artifacts.download_artifacts(uri)) / "artifacts" / "seen.npy"
    before = file.read_bytes()
    try:
        # Those by which a larger study of the same images would have been trained.
        np.save(file, np.concatenate(list(splits(lab, 0).values())))
        assert lab.run("name=none", f"model.weights={uri}") == 2
    finally:
        file.write_bytes(before)
    assert "data.on_seen=drop leaves nothing in test: all of its 200 images are images" in capsys.readouterr().err
    assert "none" not in optuna.get_all_study_names(lab.storage)


def test_it_is_said_of_whose_images_nothing_is_known(lab, capsys):
    uri = f"runs:/{lab.open('first').trials[0].user_attrs[RUN_ID]}/{CHECKPOINT_FILE}"
    study = opened(lab, "name=unknown", "data.split_seed=1", f"model.weights={uri}")
    assert len(study.materials.data.test) == 200
    assert f"nothing is known of the images that {uri} was trained on" in " ".join(capsys.readouterr().out.split())


MODEL, SEEN = "models:/m-1", np.array([3, 5], dtype=np.uint64)
CARDS = {
    "of today": ({"ancestors": {"models": ["a", "b"], "unknown": ["b"]}}, ("a", "b", MODEL), ("b",)),
    "of today, from the hub": ({"weights": "hub:timm/x", "strategy": {}}, (MODEL,), ()),
    "before, from another": ({"weights": "models:/m-0"}, ("models:/m-0", MODEL), ("models:/m-0",)),
    "before, with a teacher": (
        {"weights": "none", "strategy": {"distill_weight": 0.5}},
        (f"the teacher of {MODEL}", MODEL),
        (f"the teacher of {MODEL}",),
    ),
}


@pytest.mark.parametrize("case", CARDS)
def test_what_is_not_known_is_handed_down(tmp_path, case):
    card, models, unknown = CARDS[case]
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert lineage_of(MODEL, tmp_path).unknown == (MODEL,)
    np.save(tmp_path / "seen.npy", SEEN)
    found = lineage_of(MODEL, tmp_path)
    assert (found.models, found.unknown, found.seen.tolist()) == (models, unknown, SEEN.tolist())
    together = found | Lineage(("c",), ("c",), np.array([5, 7], dtype=np.uint64))
    assert (together.unknown, together.seen.tolist()) == ((*unknown, "c"), [3, 5, 7])


def test_a_damaged_record_is_no_empty_one(tmp_path):
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "seen.npy").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"the record of its images, seen\.npy, cannot be read: "):
        lineage_of(MODEL, tmp_path)
