import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from search.config import PrunerConfig, SamplerConfig
from search.config.sections import ONE_OBJECTIVE_SAMPLERS
from search.scheduling import StudySampler, make_pruner, make_sampler
from search.scheduling.samplers import PRUNERS, SAMPLERS
from search.storage import PREDICTED, outcome_of

NAMES = (*SAMPLERS, "qmc")


def search(study: optuna.Study, name: str, until: int, seed: int = 0) -> list[dict]:
    """Ask and tell as run_study does, with an objective that is cheap."""
    for number in range(len(study.trials), until):
        study.sampler = make_sampler(SamplerConfig(name=name, startup_trials=3), seed, number)
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        depth = trial.suggest_int("depth", 0, 9)
        loss = trial.suggest_categorical("loss", ["cross_entropy", "focal"])
        study.tell(trial, depth - 100 * lr + (loss == "focal"))
    return [trial.params for trial in study.trials]


def new_study(path) -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{path}", study_name="s", load_if_exists=True)


def test_every_sampler_and_pruner_of_the_configuration_is_there():
    offered = [SamplerConfig.model_fields["name"].annotation, PrunerConfig.model_fields["name"].annotation]
    assert set(offered[0].__args__) == set(NAMES)
    assert set(offered[1].__args__) == set(PRUNERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_goes_on_where_it_stopped(name, tmp_path):
    search(new_study(tmp_path / "broken.db"), name, 4)
    broken = search(new_study(tmp_path / "broken.db"), name, 8)
    assert broken == search(new_study(tmp_path / "whole.db"), name, 8)
    # A sampler that learns may come back to the best.
    assert len({tuple(params.values()) for params in broken}) > 5


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_draws_others(name):
    first, second = (search(optuna.create_study(), name, 5, seed) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_that_is_not_known_to_be_unable_searches_with_costs(name):
    def ask_and_tell() -> None:
        study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
        for number in range(6):
            study.sampler = make_sampler(SamplerConfig(name=name, startup_trials=3), 0, number)
            trial = study.ask()
            lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
            deep = trial.suggest_categorical("model", ["a", "b"]) == "a"
            study.tell(trial, [lr + deep, 1 / lr, 2.0 + deep])

    if name not in ONE_OBJECTIVE_SAMPLERS:
        ask_and_tell()
        return
    with pytest.raises(ValueError, match="multi-objective"):
        ask_and_tell()


@pytest.mark.parametrize("name", PRUNERS)
def test_no_pruner_stops_the_first_trial_and_none_stops_nothing(name):
    study = optuna.create_study(pruner=make_pruner(PrunerConfig(name=name, startup_trials=1, warmup_epochs=1)))
    stopped = {}
    for number, loss in enumerate((1.0, 1.0, 9.0)):
        trial = study.ask()
        stopped[number] = False
        for epoch in range(1, 6):
            # The third rises from bad to worse, the others fall.
            trial.report(loss + epoch if loss > 1 else loss / epoch, epoch)
            stopped[number] |= trial.should_prune()
        study.tell(trial, loss)
    assert not stopped[0]
    if name == "none":
        assert not any(stopped.values())
    if name in ("median", "halving", "patient"):
        assert stopped[2]


def test_by_default_no_trial_is_stopped_before_its_fourth_epoch():
    study = optuna.create_study(direction="maximize", pruner=make_pruner(PrunerConfig()))
    for _ in range(5):
        trial = study.ask()
        for epoch in range(1, 6):
            trial.report(0.8, epoch)
        study.tell(trial, 0.8)
    trial, stopped = study.ask(), []
    for epoch in range(1, 6):
        trial.report(0.1, epoch)
        stopped.append(trial.should_prune())
    assert stopped == [False, False, False, True, True]


@pytest.fixture(scope="module")
def mixed(new_lab):
    """One study that every sampler and pruner adds to."""
    lab = new_lab(presets={"first": {"lr": 1e-3}}, checkpoints={"keep": 1})
    lab.train("budget.trials=1")
    return lab


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_searches(mixed, name):
    before = len(mixed.trials())
    mixed.train(f"budget.trials={before + 1}", f"sampler.name={name}", "sampler.startup_trials=1")
    assert mixed.outcomes()[before:] == ["complete"]


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_watches(mixed, name):
    before = len(mixed.trials())
    settings = [f"pruner.name={name}", "pruner.startup_trials=0", "pruner.warmup_epochs=0", "pruner.patience=0"]
    mixed.train(f"budget.trials={before + 1}", *settings, "strategy.epochs=2")
    (added,) = mixed.trials()[before:]
    assert outcome_of(added) in (("complete",) if name == "none" else ("complete", "pruned"))
    assert len(added.intermediate_values) == (2 if outcome_of(added) == "complete" else 1)


def test_a_trial_that_the_learnt_policy_has_queued_is_not_sampled_again():
    study = optuna.create_study(sampler=StudySampler(SamplerConfig(name="learned", startup_trials=2), 0))
    for lr in (1e-3, 1e-2, 1e-4):
        study.add_trial(create_trial(value=lr, params={"lr": lr}, distributions={"lr": FloatDistribution(1e-5, 1.0)}))
    study.enqueue_trial({"lr": 0.5}, user_attrs={PREDICTED: {}})
    planned = study.ask()
    assert planned.relative_params == {}
    assert planned.suggest_float("lr", 1e-5, 1.0) == 0.5
    assert study.ask().relative_params != {}
