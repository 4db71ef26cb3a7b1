"""Studies that search the model along with the strategy."""

import json

import mlflow
import pytest
from lab import SMALL, abandoned_trial, dead_owner, scored
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from search.storage import DEPTH, FINGERPRINT, PRESET, WINNER
from search.tracking import CHECKPOINT_FILE
from trainers import create_classifier

MODELS = {"name": ["test_vit", "test_resnet"], "weights": "none"}
BLOCKS = {"test_vit": 7, "test_resnet": 5}
WEAK, STRONG = {"depth": 0.0, "lr": 1e-4}, {"depth": 1.0, "lr": 3e-3}


@pytest.fixture(scope="module")
def done(new_lab):
    """A study whose first model does badly and whose second does well."""
    lab = new_lab(model=MODELS, metric="loss", presets={"weak": WEAK})
    assert lab.run("budget.trials=1") == 0
    for params in (
        {"model": "test_resnet", **STRONG},
        {"model": "test_resnet", **WEAK},
        {"model": "test_resnet", **WEAK},
    ):
        lab.study.enqueue_trial(params)
    assert lab.run("budget.trials=4", "strategy.epochs=2") == 0
    return lab


def drawn(lab) -> list[str]:
    return [trial.params["model"] for trial in lab.trials()]


def test_presets_are_tried_on_the_first_model(done):
    first = done.trials()[0]
    assert first.user_attrs[PRESET] == "weak"
    assert first.params == {"model": "test_vit", **WEAK}
    assert drawn(done) == ["test_vit", *3 * ["test_resnet"]]


def test_every_run_says_which_model_it_trained(done):
    for trial in done.trials():
        run, name = done.runs()[trial.number], trial.params["model"]
        assert (run.data.params["model"], run.data.tags["unfreeze.model"]) == (name, name)
        assert (run.data.tags["unfreeze.weights"], run.data.tags["unfreeze.weights_digest"]) == ("none", "random")
        assert run.data.tags["mlflow.runName"].startswith(f"{trial.number} · {name} · depth ")
        depth = round(trial.params["depth"] * BLOCKS[name])
        assert (trial.user_attrs[DEPTH], run.data.params[DEPTH]) == (depth, str(depth))
        assert {entry["block"] for entry in manifest(done, run)} == {-1, *range(BLOCKS[name])}
    assert done.parent().data.tags["unfreeze.model"] == "test_vit, test_resnet"
    assert done.parent().data.tags["unfreeze.weights"] == "none, none"


def manifest(lab, run):
    return json.loads(lab.artifact(run, "manifest.json").read_text())


def test_a_checkpoint_fits_the_model_of_its_trial(done):
    assert len(done.checkpoints()) == 3
    for number in done.checkpoints():
        model = create_classifier(drawn(done)[number], 10, 32)
        model.load_state_dict(load_file(done.artifact(done.runs()[number], CHECKPOINT_FILE)))


def test_the_winner_is_served_with_its_own_model(done):
    winner = done.study.user_attrs[WINNER]
    assert drawn(done)[winner["trial"]] == "test_resnet"
    mlflow.set_tracking_uri(done.mlflow_uri)
    model = mlflow.pyfunc.load_model(winner["model_uri"])
    assert len(model.predict([load_digits().images[0].astype("uint8")[:, :, None]])) == 1
    cards = {path: json.loads(path.read_text())["model"] for path in done.folder.rglob("card.json")}
    # The first run ended with one trial, which won.
    assert sorted(cards.values()) == ["test_resnet", "test_vit"]
    (own,) = (name for path, name in cards.items() if winner["model_uri"].removeprefix("models:/") in path.parts)
    assert own == "test_resnet"


def test_equal_strategies_on_different_models_are_different_trials_and_repeats_get_the_next_seed(done):
    first, _, second, third = (trial.user_attrs[FINGERPRINT] for trial in done.trials())
    assert first != second == third
    seeds = [run.data.params["seed"] for _, run in sorted(done.runs().items())]
    assert seeds == ["0", "0", "0", "1"]


def test_the_end_shows_each_model_and_a_column_for_it(done, capsys):
    assert done.run("budget.trials=4") == 0
    said = capsys.readouterr().out
    assert "Model   test_vit, 7 blocks, weights none (random)" in said
    assert "Model   test_resnet, 5 blocks, weights none (random)" in said
    rows = [line.split() for line in said.splitlines()]
    assert any(row[:4] == ["rank", "trial", "loss", "model"] for row in rows)
    assert next(row for row in rows if row[:2] == ["1", "1"])[3:5] == ["test", "resnet"]


def test_the_list_may_be_written_in_another_order_but_is_the_studys(done, capsys):
    before = done.trials()
    assert done.run("budget.trials=4", "model.name=[test_resnet, test_vit]") == 0
    for name in ("test_resnet", "[test_resnet, test_vit, test_efficientnet]"):
        capsys.readouterr()
        assert done.run("budget.trials=5", f"model.name={name}") == 2
        said = capsys.readouterr().err
        assert "model.name: ['test_resnet', 'test_vit'] -> " in said
        assert "name=lab-2" in said
    assert done.trials() == before


def test_a_study_resumed_draws_the_models_that_one_without_a_break_does(new_lab):
    sampler = {"name": "tpe", "startup_trials": 2}
    broken, whole = (new_lab(model=MODELS, sampler=sampler, metric="loss") for _ in range(2))
    broken.train("budget.trials=3")
    broken.train("budget.trials=5")
    whole.train("budget.trials=5")
    assert scored(broken.trials()) == scored(whole.trials())
    assert set(drawn(whole)) == set(BLOCKS)


def test_a_killed_trial_is_tried_again_with_its_model(new_lab):
    lab = new_lab(model=MODELS)
    lab.train("budget.trials=1")
    other = next(name for name in BLOCKS if name != drawn(lab)[0])
    abandoned_trial(lab.study, dead_owner(), {"model": other, **WEAK})
    lab.train("budget.trials=2")
    assert lab.outcomes() == ["complete", "killed", "complete"]
    assert lab.trials()[2].params == {"model": other, **WEAK}
    assert lab.runs()[2].data.params["model"] == other


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=[test_vit, tset_resnet]", "model.name: timm has no model 'tset_resnet'; did you mean 'test_resn"),
        ("strategy.depth=6", "strategy.depth: 6 blocks asked for, the model has 5 (test_resnet)"),
        ("data.image_size=40", "data.image_size: test_vit cannot take images of 40 px"),
    ],
)
def test_what_one_of_the_models_cannot_do_is_refused_by_its_name(new_lab, capsys, override, message):
    lab = new_lab(model=MODELS)
    assert lab.run(override) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert lab.all_runs() == []


def test_a_list_of_one_is_the_study_of_that_model(new_lab):
    lab = new_lab(model={"name": ["test_resnet"], "weights": "none"})
    lab.train("budget.trials=1")
    assert set(lab.trials()[0].params) == {"depth", "lr"}
    assert lab.config() == lab.config("model.name=test_resnet")
    lab.train("budget.trials=1", f"model.name={SMALL['model']['name']}")
