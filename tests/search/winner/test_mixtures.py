"""Studies whose best weights are mixed and calibrated after the search, from the study file to the loaded model."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from lab import SMALL
from safetensors.torch import load_file, save_file

from search.config import DataConfig
from search.storage import STRATEGY, WINNER
from search.tracking import CHECKPOINT_FILE
from search.winner import TRIAL, Winner
from search.winner.crowning import CANDIDATES_FILE
from strategies import Strategy, split_blocks
from trainers import (
    TASKS,
    ModelSource,
    Trainer,
    calibration_error,
    choose_device,
    find_weights,
    fit_temperature,
    interpolate,
    load_mixed,
    normaliser,
    open_data,
    predict,
    uniform_soup,
)

pytestmark = pytest.mark.slow

WISE_FT = [f"wise_ft alpha={k / 10:g}" for k in range(1, 10)]
DEVICE = choose_device("cpu")
DATA = SMALL["data"] | {"limit_train": 128, "limit_val": 128, "limit_test": 128}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of weights that know digits a little."""
    section = DataConfig(**DATA, cache=str(tmp_path_factory.mktemp("cache")))
    data = open_data(task="classification", in_chans=3, **section.model_dump())
    source = ModelSource("test_resnet", find_weights("test_resnet", ["none"]), 10, 32)
    trainer = Trainer(source, data, Strategy(epochs=6, batch_size=16, lr=5e-3), 0, DEVICE)
    for _ in trainer:
        pass
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({name: t.contiguous().clone() for name, t in trainer.model.state_dict().items()}, path)
    return path


def new_study(new_lab, pretrained, **changes):
    space = {"depth": 1.0, "lr": {"choices": [2e-3, 3e-3, 5e-3, 0.03]}, "epochs": 2, "batch_size": 16}
    how = {"model": {"name": "test_resnet", "weights": str(pretrained)}, "data": DATA, "strategy": space}
    return new_lab(**(how | {"metric": "loss", "budget": {"trials": 3}} | changes))


@pytest.fixture(scope="module")
def mixed(new_lab, pretrained):
    """A study in which everything is tried."""
    lab = new_study(new_lab, pretrained, after={"wise_ft": True, "soups": True})
    assert lab.run() == 0
    return lab


def opened(lab):
    data = open_data(task="classification", in_chans=3, **lab.config().data.model_dump())
    weights = find_weights("test_resnet", lab.config().model.weights)
    return data, ModelSource("test_resnet", weights, 10, 32)


def checkpoint(lab, number):
    return load_file(lab.artifact(lab.runs()[number], CHECKPOINT_FILE))


def candidates(lab):
    return json.loads(lab.artifact(lab.parent(), CANDIDATES_FILE).read_text())


def loss_of(lab, weights, reference, strategy, split="val"):
    """Score mixed weights as written out here."""
    data, source = opened(lab)
    model, normalise = source.build(0), normaliser(source.mean, source.std, DEVICE)
    model.to(memory_format=torch.channels_last)
    load_mixed(model, weights, reference, data.train, strategy.batch_size, normalise, lab.config().seed, DEVICE)
    outputs, targets = predict(model, getattr(data, split), strategy, normalise, TASKS["classification"], None, DEVICE)
    return float(torch.nn.functional.cross_entropy(outputs, targets)), outputs, targets


def model_and_weights(lab):
    winner = Winner.from_dict(lab.study.user_attrs[WINNER])
    mlflow.set_tracking_uri(lab.mlflow_uri)
    model = mlflow.pyfunc.load_model(winner.model_uri)
    return winner, model, model.unwrap_python_model()


def test_every_candidate_is_scored_and_the_best_of_them_wins(mixed, capsys):
    found = candidates(mixed)
    best = min(mixed.trials(), key=lambda t: t.value)
    kinds = [one["kind"] for one in found["candidates"]]
    assert kinds == [TRIAL, *WISE_FT, "uniform_soup", "greedy_soup"]
    assert found["metric"] == "loss"
    assert found["candidates"][0]["score"] == pytest.approx(best.value, rel=1e-5)
    scores = [one["score"] for one in found["candidates"]]
    assert found["winner"] == kinds[scores.index(min(scores))]
    assert mixed.parent().data.tags["unfreeze.winner_kind"] == found["winner"]
    assert mixed.parent().data.tags["unfreeze.winner"] == str(best.number)


def test_interpolations_are_scored_with_the_head_kept_and_statistics_fitted(mixed):
    best = min(mixed.trials(), key=lambda t: t.value)
    strategy = Strategy.from_dict(best.user_attrs[STRATEGY])
    end = checkpoint(mixed, best.number)
    _, source = opened(mixed)
    start = source.build(0)
    head = set(split_blocks(start).head.params)
    scores = {one["kind"]: one["score"] for one in candidates(mixed)["candidates"]}
    for alpha in (0.2, 0.9):
        weights = interpolate(start.state_dict(), end, alpha, head)
        assert torch.equal(weights["fc.weight"], end["fc.weight"])
        expected, _, _ = loss_of(mixed, weights, end, strategy)
        assert scores[f"wise_ft alpha={alpha:g}"] == pytest.approx(expected, rel=1e-5)


def test_soups_are_of_the_kept_checkpoints_from_best_to_worst(mixed):
    ranks = [t.number for t in sorted(mixed.trials(), key=lambda t: t.value)]
    found = {one["kind"]: one for one in candidates(mixed)["candidates"]}
    assert found["uniform_soup"]["trials"] == ranks
    members = [checkpoint(mixed, number) for number in ranks]
    strategy = Strategy.from_dict(mixed.trials()[ranks[0]].user_attrs[STRATEGY])
    expected, _, _ = loss_of(mixed, uniform_soup(members), members[0], strategy)
    assert found["uniform_soup"]["score"] == pytest.approx(expected, rel=1e-4)
    taken = found["greedy_soup"]["trials"]
    assert taken[0] == ranks[0]
    assert taken == [number for number in ranks if number in taken]
    assert found["greedy_soup"]["score"] <= found[TRIAL]["score"]


def test_the_loaded_model_is_the_one_that_was_chosen(mixed):
    winner, model, inner = model_and_weights(mixed)
    data, source = opened(mixed)
    best = mixed.trials()[winner.trial]
    strategy = Strategy.from_dict(best.user_attrs[STRATEGY])
    normalise = normaliser(source.mean, source.std, DEVICE)
    for split, expected in ((data.val, min(c.score for c in winner.candidates)), (data.test, winner.test_score)):
        outputs, targets = predict(inner.model, split, strategy, normalise, TASKS["classification"], None, DEVICE)
        assert float(torch.nn.functional.cross_entropy(outputs, targets)) == pytest.approx(expected, rel=1e-5)
    assert inner.temperature == winner.calibration.temperature
    images = [array.permute(1, 2, 0).numpy() for array in next(data.test.batches(torch.arange(8), 8, DEVICE.torch))[0]]
    answers = model.predict(images)
    columns = [name for name in answers if name.startswith("probability_")]
    calibrated = (outputs[:8].double() / winner.calibration.temperature).softmax(1)
    np.testing.assert_allclose(answers[columns].to_numpy(), calibrated, atol=1e-5)
    assert list(answers["label"]) == [data.classes[k] for k in outputs[:8].argmax(1)]


def test_weights_of_no_single_trial_belong_to_the_studys_run(new_lab, pretrained, capsys):
    # A learning rate that leaves the optimum and a body worth going back to.
    space = {"depth": 1.0, "lr": {"choices": [0.03]}, "epochs": 1, "batch_size": 16}
    lab = new_study(new_lab, pretrained, strategy=space, after={"wise_ft": True}, budget={"trials": 1})
    assert lab.run() == 0
    winner, _, _ = model_and_weights(lab)
    assert winner.kind in WISE_FT
    assert winner.trials == (0,)
    assert "test_loss" not in lab.runs()[0].data.metrics
    assert lab.parent().data.metrics["test_loss"] == pytest.approx(winner.test_score)
    assert lab.parent().info.status == "FINISHED"
    said = capsys.readouterr().out
    assert f"Winner: {winner.kind} (trial 0), test loss {winner.test_score:.4f}" in said
    assert f"{winner.kind} *" in said
    shown = [line.split()[-1] for line in said.partition("After the search")[2].splitlines() if line.strip()]
    assert {f"{one.score:.4f}" for one in winner.candidates} <= set(shown)


def test_a_head_that_was_probed_is_interpolated_too(new_lab, pretrained):
    space = {"depth": 0, "lr": 1e-3, "epochs": 1, "batch_size": 16, "probe_epochs": {"choices": [0, 3]}}
    presets = {"plain": {"probe_epochs": 0}, "probed": {"probe_epochs": 3}}
    lab = new_study(new_lab, pretrained, strategy=space, presets=presets, after={"wise_ft": True})
    assert lab.run("budget.trials=1") == 0
    # Nothing but a head from chance was trained: there is no other end.
    assert [one["kind"] for one in candidates(lab)["candidates"]] == [TRIAL]
    assert lab.run("budget.trials=2") == 0
    assert lab.study.user_attrs[WINNER]["trial"] == 1
    assert [one["kind"] for one in candidates(lab)["candidates"]] == [TRIAL, *WISE_FT]
    data, source = opened(lab)
    strategy = Strategy.from_dict(lab.trials()[1].user_attrs[STRATEGY])
    end = checkpoint(lab, 1)
    start = Trainer(source, data, strategy, int(lab.runs()[1].data.params["seed"]), DEVICE).model.state_dict()
    expected, _, _ = loss_of(lab, interpolate(start, end, 0.3), end, strategy)
    assert candidates(lab)["candidates"][3]["score"] == pytest.approx(expected, rel=1e-5)


def test_a_crowned_winner_stays_and_more_trials_are_scored_anew_without_a_second_test_of_the_same_weights(
    new_lab, pretrained, capsys
):
    # What comes after the first two trials is hopeless.
    space = {"depth": 1.0, "lr": {"choices": [2e-3, 3e-3, 10.0]}, "epochs": 1, "batch_size": 16}
    presets = {"a": {"lr": 2e-3}, "b": {"lr": 3e-3}, "c": {"lr": 10.0}}
    lab = new_study(new_lab, pretrained, strategy=space, presets=presets, after={"soups": True})
    assert lab.run("budget.trials=2") == 0
    first = lab.study.user_attrs[WINNER]
    said = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.strip().startswith(("Winner", "uniform", "greedy"))
    ]
    assert lab.run("budget.trials=2") == 0
    assert lab.study.user_attrs[WINNER] == first
    again = capsys.readouterr().out
    assert len(said) == 3
    assert all(line in again for line in said)
    assert lab.run("budget.trials=3") == 0
    second = lab.study.user_attrs[WINNER]
    assert second["trial"] == first["trial"]
    assert [len(one["candidates"][1]["trials"]) for one in (first, second)] == [2, 3]
    # The mean of all of two, and of the best two of three.
    assert (first["kind"], second["kind"]) == ("uniform_soup", "greedy_soup")
    assert lab.parent().data.tags["unfreeze.winner_kind"] == "greedy_soup"
    assert second["trials"] == first["trials"]
    assert second["model_uri"] == first["model_uri"]
    assert len(lab.client.get_metric_history(lab.parent().info.run_id, "test_loss")) == 1


def test_settings_changed_after_the_search_are_followed_without_a_trial_more(new_lab, pretrained):
    lab = new_study(new_lab, pretrained, budget={"trials": 2})
    assert lab.run("after.calibrate=false") == 0
    assert lab.study.user_attrs[WINNER]["calibration"] is None
    assert [one["kind"] for one in candidates(lab)["candidates"]] == [TRIAL]
    assert "temperature" not in lab.parent().data.metrics
    assert lab.run() == 0
    assert lab.study.user_attrs[WINNER]["calibration"] is not None
    assert lab.run("after.soups=true") == 0
    assert [one["kind"] for one in candidates(lab)["candidates"]] == [TRIAL, "uniform_soup", "greedy_soup"]
    assert len(lab.trials()) == 2


def test_a_winner_of_an_earlier_version_is_returned_as_it_was(new_lab, pretrained):
    lab = new_study(new_lab, pretrained, budget={"trials": 1})
    assert lab.run() == 0
    names = ("trial", "metric", "test_score", "test_low", "test_high", "test_images", "model_uri")
    old = {name: value for name, value in lab.study.user_attrs[WINNER].items() if name in names}
    lab.study.set_user_attr(WINNER, old)
    assert lab.run() == 0
    assert lab.study.user_attrs[WINNER] == old
    assert lab.run("after.wise_ft=true") == 0
    assert len(lab.study.user_attrs[WINNER]["candidates"]) == 10


def test_a_soup_of_checkpoints_that_are_gone_or_of_another_model_is_made_of_the_others(new_lab, pretrained, caplog):
    lab = new_study(new_lab, pretrained, after={"soups": True})
    assert lab.run() == 0
    ranks = [t.number for t in sorted(lab.trials(), key=lambda t: t.value)]
    save_file({"other": torch.zeros(1)}, lab.artifact(lab.runs()[ranks[1]], CHECKPOINT_FILE))
    lab.study.set_user_attr(WINNER, lab.study.user_attrs[WINNER] | {"asked": None})
    assert lab.run() == 0
    assert candidates(lab)["candidates"][1]["trials"] == [ranks[0], ranks[2]]
    assert f"without trial {ranks[1]}: weights of different models" in caplog.text
    lab.artifact(lab.runs()[ranks[2]], CHECKPOINT_FILE).unlink()
    lab.study.set_user_attr(WINNER, lab.study.user_attrs[WINNER] | {"asked": None})
    assert lab.run() == 0
    assert [one["kind"] for one in candidates(lab)["candidates"]] == [TRIAL]
    assert "there is no soup" in caplog.text


def test_probabilities_are_calibrated_on_validation_and_labels_stay(mixed):
    winner, _, inner = model_and_weights(mixed)
    data, source = opened(mixed)
    strategy = Strategy.from_dict(mixed.trials()[winner.trial].user_attrs[STRATEGY])
    normalise = normaliser(source.mean, source.std, DEVICE)
    val, test = (
        predict(inner.model, split, strategy, normalise, TASKS["classification"], None, DEVICE)
        for split in (data.val, data.test)
    )
    temperature = fit_temperature("classification", *val)
    assert temperature != 1
    assert winner.calibration.temperature == pytest.approx(temperature, rel=1e-3)
    logits, targets = test
    metrics = mixed.parent().data.metrics
    assert metrics["temperature"] == pytest.approx(temperature, rel=1e-3)
    expected = calibration_error("classification", logits.double(), targets)
    assert metrics["test_ece"] == pytest.approx(expected, abs=1e-4)
    expected = calibration_error("classification", logits.double() / temperature, targets)
    assert metrics["test_ece_calibrated"] == pytest.approx(expected, abs=1e-3)
    assert metrics["test_accuracy"] == pytest.approx(TASKS["classification"].scores(logits, targets)["accuracy"])


def test_labels_are_those_without_a_temperature_and_cards_without_one_load(mixed):
    _, _, inner = model_and_weights(mixed)
    data, _ = opened(mixed)
    pixels = next(data.test.batches(torch.arange(64), 64, DEVICE.torch))[0]
    images = [image.permute(1, 2, 0).numpy() for image in pixels]
    answers = {}
    try:
        fitted = inner.temperature
        for temperature in (fitted, 0.01, 100.0, None):
            inner.temperature = temperature
            answers[temperature] = inner.predict(None, images)
    finally:
        inner.temperature = fitted
    assert all(list(table["label"]) == list(answers[None]["label"]) for table in answers.values())
    assert answers[100.0]["probability"].max() < answers[None]["probability"].max()


def test_a_card_of_an_earlier_version_has_no_temperature(mixed, tmp_path):
    _, model, inner = model_and_weights(mixed)
    context = model._model_impl.context
    card = json.loads(Path(context.artifacts["card"]).read_text())
    assert card.pop("temperature") == inner.temperature
    (tmp_path / "card.json").write_text(json.dumps(card))
    old = type(inner)()
    old.load_context(
        type(context)(artifacts=context.artifacts | {"card": str(tmp_path / "card.json")}, model_config={})
    )
    data, _ = opened(mixed)
    pixels = next(data.test.batches(torch.arange(4), 4, DEVICE.torch))[0]
    images = [image.permute(1, 2, 0).numpy() for image in pixels]
    inner_answers, old_answers = inner.predict(None, images), old.predict(None, images)
    assert list(inner_answers["label"]) == list(old_answers["label"])
    logits = inner._outputs(images)
    columns = [name for name in old_answers if name.startswith("probability_")]
    np.testing.assert_allclose(old_answers[columns].to_numpy(), logits.softmax(1), atol=1e-6)


def test_a_study_of_numbers_is_not_calibrated_but_can_be_mixed(new_lab, tmp_path):
    rows = ["path,label"]
    rng = np.random.default_rng(0)
    for k in range(60):
        pixels = rng.integers(0, 4 * k + 16, (16, 16, 3)).astype(np.uint8)
        np.save(tmp_path / f"{k}.npy", pixels)
        rows.append(f"{k}.npy,{k}.5")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = {"manifest": str(tmp_path / "labels.csv"), "image_size": 32}
    space = {"depth": 1.0, "lr": 1e-3, "epochs": 1, "batch_size": 8}
    lab = new_lab(task="regression", data=data, strategy=space, after={"soups": True})
    assert lab.run() == 0
    winner, model, _ = model_and_weights(lab)
    assert winner.calibration is None
    assert [one.kind for one in winner.candidates] == [TRIAL, "uniform_soup", "greedy_soup"]
    assert list(model.predict([tmp_path / "1.npy"])) == ["label"]


def test_trials_of_a_study_that_mixes_nothing_are_not_scored_again(new_lab, pretrained, capsys):
    lab = new_study(new_lab, pretrained, budget={"trials": 1}, metric="accuracy")
    assert lab.run() == 0
    said = capsys.readouterr().out
    assert "After the search" not in said
    assert "Winner: trial 0, test accuracy" in said
    (found,) = candidates(lab)["candidates"]
    assert found == {"kind": TRIAL, "trials": [0], "score": lab.trials()[0].value}
    calibration = lab.study.user_attrs[WINNER]["calibration"]
    expected = f"{calibration['test_ece']:.4f} -> {calibration['test_ece_calibrated']:.4f}"
    assert f"Calibration: temperature {calibration['temperature']:.3g}, " in said
    assert expected in said
    assert lab.runs()[0].data.metrics["test_ece"] == pytest.approx(calibration["test_ece"])
