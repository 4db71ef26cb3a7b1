"""The model that is served: replaced by what is better beyond chance, and by nothing else."""

import json
import math
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
from digit_folders import write_digits
from lab import SMALL
from mlflow.exceptions import MlflowException

from search.promote import main
from search.winner.champion import COMPARED, REPLACED, RESCORED
from search.winner.judging import judge
from search.winner.looks import LOOKS
from trainers import TASKS, choose_device, open_data

DATA = SMALL["data"] | {"limit_train": 256, "limit_test": 200}
FIXED = {"depth": 1.0, "batch_size": 32}
POOR, GOOD = (FIXED | values for values in ({"lr": 1e-5, "epochs": 1}, {"lr": 1e-2, "epochs": 12}))


@pytest.fixture(scope="module")
def lab(new_lab):
    """Studies ``poor``, which learns next to nothing, ``poor_too``, like it but for its seed, and ``good``."""
    lab = new_lab(data=DATA, strategy=POOR)
    assert lab.run("budget.trials=1", "name=poor") == 0
    assert lab.run("budget.trials=1", "name=poor_too", "seed=1") == 0
    good = [f"strategy.{name}={value}" for name, value in GOOD.items()]
    assert lab.run("budget.trials=1", "name=good", *good) == 0
    return lab


def promote(lab, study: str, model: str, *words: str) -> int:
    stores = [f"store.url={lab.optuna_url}", f"tracking.uri={lab.mlflow_uri}"]
    return main([study, f"champion.name={model}", *stores, *words])


def aliases(lab, model: str) -> dict[str, str]:
    found = lab.client.get_registered_model(model).aliases
    return {alias: str(version) for alias, version in found.items()}


def test_the_first_winner_is_champion_and_stays_so(lab, capsys):
    assert promote(lab, "poor", "first") == 0
    assert capsys.readouterr().out == "Champion: version 1 of first: there was no champion\n"
    assert aliases(lab, "first") == {"champion": "1", "challenger": "1"}
    assert promote(lab, "poor", "first") == 0
    assert "it is the champion already" in capsys.readouterr().out
    assert len(lab.client.search_model_versions("name = 'first'")) == 1


def test_what_is_better_beyond_chance_takes_its_place_and_can_be_rolled_back(lab, capsys):
    assert promote(lab, "poor", "second") == 0
    assert promote(lab, "good", "second") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("Champion: version 2 of second, in place of version 1: accuracy 0.")
    assert aliases(lab, "second") == {"champion": "2", "challenger": "2"}
    version = lab.client.get_model_version("second", "2")
    compared = json.loads(version.tags[COMPARED])
    assert compared["images"] == 200
    assert compared["p_value"] < 0.05
    assert 0 < compared["low"] < compared["new"] - compared["old"] < compared["high"]
    winner = lab.open("good").user_attrs["winner"]
    assert compared["new"] == pytest.approx(winner["test_score"])
    assert version.tags[REPLACED] == "1"
    assert version.description.startswith("Champion: accuracy")

    assert promote(lab, "good", "second", "--rollback") == 0
    assert aliases(lab, "second")["champion"] == "1"
    assert promote(lab, "good", "second", "--rollback") == 2
    assert "version 1 of model 'second' has replaced no other" in capsys.readouterr().err


def test_what_is_better_by_chance_alone_stays_the_challenger(lab, capsys):
    assert promote(lab, "poor", "third") == 0
    for _ in range(2):
        assert promote(lab, "poor_too", "third") == 0
        said = capsys.readouterr().out
        assert "not better beyond chance" in said
        # A rerun is no other look.
        assert "challenger 1 of version 1 needs p up to 0.019, and 0.031 of champion.alpha=0.05 is left" in said
    assert aliases(lab, "third") == {"champion": "1", "challenger": "2"}
    assert lab.client.get_model_version("third", "2").description.startswith("Challenger: ")


def test_what_is_better_but_beyond_a_limit_is_not_promoted(lab, capsys):
    assert promote(lab, "poor", "fourth") == 0
    for limit in ("max_growth=0.99", "max_slowdown=1e-6"):
        assert promote(lab, "good", "fourth", f"champion.{limit}") == 0
        assert f": better, but champion.{limit.partition('=')[0]}: it " in capsys.readouterr().out
        assert aliases(lab, "fourth")["champion"] == "1"


def test_both_are_asked_about_the_images_as_they_are_now(lab, capsys):
    assert promote(lab, "poor", "fifth") == 0
    assert promote(lab, "good", "fifth", "data.limit_test=120") == 0
    assert " on 120 images (" in capsys.readouterr().out


def test_images_that_a_model_was_made_with_do_not_count(new_lab, capsys):
    lab = new_lab(data=DATA, strategy=POOR)
    assert lab.run("budget.trials=1", "name=before") == 0
    # Other images are for the test now, some of which the first model was trained with.
    assert lab.run("budget.trials=1", "name=after", "data.split_seed=1") == 0
    assert promote(lab, "before", "model") == 0
    assert promote(lab, "after", "model") == 0
    compared = json.loads(lab.client.get_model_version("model", "2").tags[COMPARED])
    made_with, asked = (
        open_data(task="classification", in_chans=3, **lab.config(*words).data.model_dump())
        for words in ((), ("data.split_seed=1",))
    )
    seen = np.concatenate([made_with.digests["train"], made_with.digests["val"]])
    new = (~np.isin(asked.digests["test"], seen)).sum()
    assert compared["images"] == new
    assert 100 < new < 200


def test_a_study_without_a_winner_and_a_model_without_a_champion_are_refused(lab, capsys):
    diverging = ["strategy.lr=100", "strategy.optimizer=sgd", "strategy.momentum=0.99", "strategy.batch_size=8"]
    assert lab.run("budget.trials=1", "name=failing", *diverging) == 1
    capsys.readouterr()
    assert promote(lab, "failing", "sixth") == 2
    assert "study 'failing' has no winner yet" in capsys.readouterr().err
    assert promote(lab, "good", "sixth", "--rollback") == 2
    assert "model 'sixth' has no champion" in capsys.readouterr().err
    with pytest.raises(MlflowException):
        lab.client.get_registered_model("sixth")


def test_a_search_promotes_its_winner_itself_where_it_is_asked_to(new_lab, capsys):
    lab = new_lab(data=DATA, strategy=POOR, champion={"promote": True, "name": "served"})
    assert lab.run("budget.trials=1") == 0
    assert "Champion: version 1 of served: there was no champion" in capsys.readouterr().out
    assert aliases(lab, "served")["champion"] == "1"


def test_fresh_images_are_those_that_came_since_the_promotion(lab, capsys):
    assert promote(lab, "poor", "seventh", "data.limit_test=100") == 0
    # A champion of an earlier release has no record of its images.
    for kept in lab.folder.rglob("champion/seventh.npy"):
        kept.unlink()
    for count in (100, 120):
        assert promote(lab, "good", "seventh", f"data.limit_test={count}", "champion.split=fresh") == 0
        said = capsys.readouterr().out
        assert f"not compared: there are {count - 100} test images that neither model was made with and that " in said
        assert "came since version 1 was promoted, and champion.min_images=30 are needed" in said
    # Nothing was looked at.
    assert LOOKS not in lab.client.get_model_version("seventh", "1").tags
    assert promote(lab, "good", "seventh", "champion.split=fresh") == 0
    assert " on 100 images (" in capsys.readouterr().out
    assert aliases(lab, "seventh")["champion"] == "2"


CHANGES = {
    "added": ({}, ("!first", "~last"), ["it does not know '!first', '~last', which counts as wrong"]),
    "removed": ({"3": None}, (), ["'3' is no longer in the data"]),
    "renamed": (
        {"0": "zero"},
        (),
        ["not know 'zero' (it calls ", " of 10 such images '0': renamed?)", "'0' is no longer"],
    ),
    "merged": ({"0": "pair", "6": "pair"}, (), [" of 20 such images '0' or '6': merged?)", "'0', '6' are no longer"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_answers_are_compared_by_name_whatever_became_of_the_classes(lab, change, tmp_path):
    names, more, words = CHANGES[change]
    uri = lab.open("good").user_attrs["winner"]["model_uri"]
    mlflow.set_tracking_uri(lab.mlflow_uri)
    right, judged = {}, {}
    for what, root in (
        ("before", write_digits(tmp_path / "before", {})),
        ("after", write_digits(tmp_path / "after", names, more)),
    ):
        config = lab.config("data.source=folder", f"data.root={root}", "data.limit_test=null", "data.limit_train=null")
        (judged[what],) = judge([uri], config, choose_device("cpu", "fp32"))
        data = open_data(task="classification", in_chans=3, **config.data.model_dump())
        hits = (judged[what].outputs.argmax(1) == judged[what].targets).tolist()
        right[what] = {Path(name).stem: hit for name, hit in zip(data.test.names, hits, strict=True)}
    assert judged["before"].changes == ""
    for said in words:
        assert said in judged["after"].changes
    # The model says what it said; a class under another name is another class.
    for image, hit in right["after"].items():
        digit = image.partition("_")[0]
        assert hit == (digit not in names and digit not in more and right["before"][image])
    assert sum(right["before"].values()) > 80
    assert math.isfinite(TASKS["classification"].scores(judged["after"].outputs, judged["after"].targets)["loss"])


def test_a_loss_of_classes_that_no_model_knows_is_finite_and_decides(lab, capsys, tmp_path):
    root = write_digits(tmp_path, {"0": "zero", "1": "few", "2": "few", "3": None}, ("!first", "~last"))
    data = ["data.source=folder", f"data.root={root}", "data.limit_test=null", "data.limit_train=null", "metric=loss"]
    assert promote(lab, "poor", "classes", *data) == 0
    assert promote(lab, "good", "classes", *data) == 0
    said = capsys.readouterr().out
    assert "Champion: version 2 of classes, in place of version 1: loss" in said
    assert "the classes have changed since version 1: it does not know '!first', 'few', 'zero', '~last'" in said
    compared = json.loads(lab.client.get_model_version("classes", "2").tags[COMPARED])
    assert all(math.isfinite(compared[name]) for name in ("old", "new", "low", "high"))
    assert "loss" in lab.client.get_model_version("classes", "1").tags[RESCORED]


def test_images_of_one_patient_are_compared_together(lab, capsys, tmp_path):
    write_digits(tmp_path, {})
    rows = ["path,label,split,patient,ward"]
    for split, size in (("train", 2), ("test", 5)):
        for place, file in enumerate(sorted((tmp_path / split).rglob("*.png"))):
            rows.append(
                f"{file.relative_to(tmp_path)},{file.parent.name},{split},{split} {place // size},{split} {place % 6}"
            )
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = ["data.source=manifest", f"data.manifest={tmp_path}/labels.csv"]
    data += ["data.limit_train=null", "data.limit_val=null", "data.limit_test=null"]
    assert promote(lab, "poor", "grouped", *data, "data.columns.group=patient") == 0
    assert promote(lab, "good", "grouped", *data, "data.columns.group=patient") == 0
    assert " on 100 images of 20 groups (95% interval of the difference +" in capsys.readouterr().out
    assert json.loads(lab.client.get_model_version("grouped", "2").tags[COMPARED])["groups"] == 20
    assert promote(lab, "poor_too", "grouped", *data, "data.columns.group=ward") == 0
    assert re.search(r"not compared: the test images that .* are of 6 groups, and 10 are", capsys.readouterr().out)
