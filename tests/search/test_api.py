"""The search from Python."""

import doctest
import pickle

import numpy as np
import pytest
import yaml

import search.api
from search import Study, compose_study
from strategies import ConfigError, Strategy


@pytest.fixture(scope="module")
def lab(new_lab):
    return new_lab()


@pytest.fixture(scope="module")
def study(lab):
    found = Study(lab.file, budget={"trials": 3})
    found.run()
    return found


def test_the_examples_run():
    assert doctest.testmod(search.api).failed == 0


def test_keys_are_those_of_the_command_line(lab):
    words = ["strategy.lr.high=0.005", "seed=3", "budget.trials=7", "data.limit_train=32"]
    by_words = compose_study([f"study={lab.file}", *words])
    lr = {"strategy.lr.high": 0.005}
    by_values = Study(lab.file, seed=3, budget={"trials": 7}, data={"limit_train": 32}, **lr)
    assert by_values.config == by_words
    assert Study(lab.file, *words).config == by_words
    whole = Study(lab.file, strategy={"lr": {"low": 1e-4, "high": 0.005, "log": True}})
    assert set(whole.config.strategy) == {"lr"}
    assert Study(yaml.safe_load(lab.file.read_text()), *words, name="lab").config == by_words


def test_paths_and_tuples_are_taken_as_yaml_has_them(tmp_path):
    found = Study("resnet_cls", data={"root": tmp_path}, costs=("seconds",)).config
    assert found.data.root == str(tmp_path)
    assert found.data.source == "folder"
    assert found.costs == ("seconds",)


def test_what_is_wrong_is_said_by_name():
    with pytest.raises(ConfigError, match=r"budget.trails: unknown key; did you mean 'trials'"):
        Study("resnet_cls", budget={"trails": 3})
    with pytest.raises(ConfigError, match="there is none called 'resnet_clss'"):
        Study("resnet_clss")
    with pytest.raises(ConfigError, match="name: missing"):
        Study({"seed": 1})


def test_a_study_that_has_not_begun_or_not_ended_says_so(new_lab):
    fresh = Study(new_lab().file)
    with pytest.raises(ConfigError, match="is not there; no study has begun"):
        fresh.trials()


def test_it_runs_and_goes_on(study, lab):
    assert len(lab.trials()) == 3
    assert study.winner.trial == study.optuna.best_trial.number
    more = Study(lab.file, budget={"trials": 4})
    assert more.run().test_images == 64
    assert len(lab.trials()) == 4


def test_trials_are_a_frame_the_best_first(study):
    frame = study.trials()
    assert list(frame["rank"]) == list(range(1, len(frame) + 1))
    assert frame["score"].is_monotonic_decreasing
    assert frame["lr"].dtype == float


def test_the_winners_strategy_trains_what_won(study):
    assert isinstance(study.strategy, Strategy)
    assert study.strategy.lr == study.optuna.trials[study.winner.trial].params["lr"]


def test_the_winner_answers(study):
    answers = study.predict([np.zeros((32, 32, 3), dtype=np.uint8)] * 2)
    assert len(answers) == 2
    assert "label" in answers


def test_report_promote_and_export(study, tmp_path):
    assert "Best strategy of" in study.report(tmp_path / "page.html").read_text(encoding="utf-8")
    verdict = study.promote()
    assert verdict.is_promoted
    with pytest.raises(ConfigError, match="has replaced no other"):
        study.rollback()
    assert study.export(tmp_path / "model.pt2").stat().st_size > 1000


def test_it_can_be_sent_to_another_process(study):
    assert pickle.loads(pickle.dumps(study)).config == study.config
