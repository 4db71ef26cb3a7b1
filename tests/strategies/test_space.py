import math
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from strategies import Choice, ConfigError, Fixed, FloatRange, IntRange, Strategy, check_depths, parse_space
from strategies.space import project, sample

optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_each_form_of_an_entry_is_read():
    space = parse_space(
        {
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "depth": {"low": 0, "high": 4, "step": 2},
            "loss": {"choices": ["focal", "mse"]},
            "epochs": 3,
        }
    )
    assert space == {
        "depth": IntRange(0, 4, 2),
        "loss": Choice(("focal", "mse")),
        "lr": FloatRange(1e-4, 1e-2, None, True),
        "epochs": Fixed(3),
    }


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"layer_decy": 1}, "strategy.layer_decy: unknown key; did you mean 'layer_decay'?"),
        ({"lr": {"low": 1e-3, "hgih": 1}}, "strategy.lr.hgih: unknown key; did you mean 'high'?"),
        ({"lr": {"low": 1e-3}}, "strategy.lr.high: missing"),
        ({"lr": {"low": 1e-2, "high": 1e-3}}, "low 0.01 is above high 0.001"),
        ({"lr": {"low": "a", "high": 1}}, "strategy.lr.low: 'a' is not a number"),
        ({"lr": {"low": 0, "high": 1}}, "strategy.lr.low: 0 is not a number above 0"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, "0 is not above 0, which log: true needs"),
        ({"lr": {"low": 1e-3, "high": 1, "step": 0.1, "log": True}}, "step and log: true exclude each other"),
        ({"lr": {"low": 1e-3, "high": 1, "step": 0}}, "strategy.lr.step: 0 is not a number above 0"),
        ({"lr": {"low": 1e-3, "high": 1, "step": math.inf}}, "strategy.lr.step: inf is not a number above 0"),
        ({"lr": {"low": 1e-3, "high": 1, "step": 10**400}}, "is not a number above 0 and at most 1e9"),
        ({"lr": {"low": 1e-3, "high": 1, "step": 1e-300}}, "1e-300 makes more than 1e9 steps from 0.001 to 1"),
        ({"epochs": {"low": 1, "high": 5, "step": 0.5}}, "strategy.epochs.step: 0.5 is not a whole number"),
        ({"epochs": {"low": 1.5, "high": 5}}, "strategy.epochs.low: 1.5 is not a whole number"),
        ({"lr": {"low": 1e-3, "high": 1, "log": "yes"}}, "strategy.lr.log: 'yes' is not true or false"),
        ({"loss": {"low": "bce", "high": "mse"}}, "other values need choices"),
        ({"loss": {"choices": []}}, "[] is not a list of at least one value"),
        ({"loss": {"choices": "bce"}}, "'bce' is not a list of at least one value"),
        ({"loss": {"choices": ["bce", "hinge"]}}, "strategy.loss.choices: 'hinge' is not one of"),
        ({"depth": {"choices": [0, 1, 1.0]}}, "1.0 is there twice"),
        ({"depth": {"low": 0.0, "high": 3}}, "mix whole numbers of blocks with fractions"),
        ({"depth": 2.0}, "strategy.depth: 2.0 is not a fraction between 0 and 1"),
        ({"lr": {"choices": [0.1], "low": 1}}, "choices cannot stand beside low"),
    ],
)
def test_a_malformed_entry_is_named(spec, said):
    with pytest.raises(ConfigError) as caught:
        parse_space(spec)
    assert said in str(caught.value)


@pytest.mark.parametrize(("high", "last"), [(1, 0.9), (1.0, 0.9), (0.95, 0.9), (0.6, 0.6), (0.2, 0.0)])
def test_a_range_ends_at_the_last_whole_step(high, last):
    space = parse_space({"weight_decay": {"low": 0, "high": high, "step": 0.3}})
    assert space == {"weight_decay": FloatRange(0.0, last, 0.3)}
    assert parse_space({"epochs": {"low": 1, "high": 9, "step": 3}}) == {"epochs": IntRange(1, 7, 3)}


@pytest.mark.parametrize(
    ("depth", "key"),
    [
        ({"low": 0, "high": 10}, "strategy.depth.high"),
        ({"choices": [0, 10]}, "strategy.depth.choices"),
        (10, "strategy.depth"),
    ],
)
def test_a_depth_beyond_the_model_is_refused_before_sampling(depth, key):
    with pytest.raises(ConfigError, match=f"{key}: 10 blocks asked for, the model has 9"):
        check_depths(parse_space({"depth": depth}), 9)
    check_depths(parse_space({"depth": depth}), 10)


def test_fields_that_an_earlier_choice_makes_meaningless_are_not_drawn():
    space = parse_space(
        {
            "depth": {"low": 0, "high": 4},
            "loss": {"choices": ["cross_entropy", "focal"]},
            "focal_gamma": {"low": 0.5, "high": 4.0},
            "layer_decay": {"low": 0.5, "high": 1.0},
        }
    )
    probe = FixedTrial({"depth": 0, "loss": "cross_entropy"})
    assert sample(space, probe) == Strategy(depth=0)
    deep = FixedTrial({"depth": 2, "loss": "focal", "focal_gamma": 1.5, "layer_decay": 0.6})
    assert sample(space, deep) == Strategy(depth=2, loss="focal", focal_gamma=1.5, layer_decay=0.6)


def test_a_study_draws_strategies_inside_the_space_and_only_parameters_with_an_effect():
    space = parse_space(
        {
            "depth": {"low": 0, "high": 2},
            "loss": {"choices": ["cross_entropy", "focal"]},
            "focal_gamma": {"low": 0.5, "high": 4.0},
            "lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "layer_decay": {"choices": [0.5, 1]},
            "epochs": 3,
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(multivariate=True, group=True, seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        strategy = sample(space, trial)
        study.tell(trial, strategy.lr)
        effective = {"focal_gamma": strategy.loss == "focal", "layer_decay": strategy.depth > 0}
        assert set(trial.params) == {"depth", "loss", "lr"} | {name for name, drawn in effective.items() if drawn}
        assert strategy == Strategy.from_dict(trial.params | {"epochs": 3})
        assert 0 <= strategy.depth <= 2
        assert 1e-4 <= strategy.lr <= 1e-1
        seen.add((strategy.depth, strategy.loss))
    assert len(seen) == 6


def test_fields_that_the_space_lacks_keep_their_defaults():
    assert sample({}, FixedTrial({})) == Strategy()


def ranges(name: str, low: float, high: float) -> st.SearchStrategy[dict]:
    ends = st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted)
    return ends.flatmap(
        lambda e: st.one_of(
            st.just({"low": e[0], "high": e[1], "log": e[0] > 0}),
            st.sampled_from([0.01, 0.05, 0.1, 0.25]).map(
                lambda step: {"low": round(e[0], 3), "high": round(e[1], 3), "step": step}
            ),
        )
    )


INT_ENDS = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 4)).map(
    lambda t: {"low": min(t[:2]), "high": max(t[:2]), "step": t[2]}
)
SPACES = st.fixed_dictionaries(
    {
        "depth": st.one_of(
            INT_ENDS,
            ranges("depth", 0, 1),
            st.lists(st.one_of(st.integers(0, 9), st.floats(0, 1)), min_size=1, max_size=4, unique=True).map(
                lambda values: {"choices": values}
            ),
        ),
        "lr": ranges("lr", 1e-2, 1),
        "weight_decay": st.one_of(
            ranges("weight_decay", 0, 1),
            st.sampled_from([0.3, 0.25, 1, 4]).map(lambda step: {"low": 0, "high": 2, "step": step}),
            st.just({"choices": [0, 0.1]}),
        ),
        "loss": st.lists(st.sampled_from(["cross_entropy", "focal", "mse"]), min_size=1, unique=True).map(
            lambda names: {"choices": names}
        ),
        "epochs": st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda t: {"low": t[0], "high": t[0] + t[1]}),
    }
)


@settings(deadline=None, max_examples=150)
@given(
    SPACES,
    st.builds(
        Strategy, depth=st.one_of(st.integers(0, 9), st.floats(0, 1)), lr=st.floats(1e-6, 10),
        weight_decay=st.floats(0, 5), loss=st.sampled_from(["bce", "focal"]), epochs=st.integers(1, 50),
    ),
)  # fmt: skip
def test_a_projected_strategy_lies_in_the_space_and_is_what_optuna_then_draws(spec, preset):
    space = parse_space(spec)
    params = project(preset, space, 9)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial(params)
    with warnings.catch_warnings():
        # Optuna warns of an enqueued value that lies outside its range.
        warnings.simplefilter("error", UserWarning)
        drawn = sample(space, study.ask()).to_dict()
    assert {name: drawn[name] for name in params} == params


def test_a_preset_keeps_its_values_where_the_space_allows_them():
    space = parse_space(
        {
            "depth": {"low": 0.0, "high": 1.0},
            "lr": {"low": 1e-4, "high": 1e-3, "log": True},
            "loss": {"choices": ["cross_entropy", "mse"]},
            "batch_size": 32,
        }
    )
    params = project(Strategy(depth=1, lr=3e-3, loss="bce"), space, 10)
    assert params == {"depth": 0.1, "lr": 1e-3}


def test_a_field_whose_condition_does_not_hold_is_not_drawn_and_has_its_default():
    space = parse_space(
        {
            "optimizer": {"choices": ["sgd", "adamw"]},
            "lr": 0.1,
            "clip_grad": {"low": 1.0, "high": 5.0, "when": {"optimizer": "sgd", "lr": {"low": 0.05}}},
            "weight_decay": {"value": 0.3, "when": {"optimizer": ["adamw", "adam"]}},
        }
    )
    by_sgd = sample(space, FixedTrial({"optimizer": "sgd", "clip_grad": 2.0}))
    assert (by_sgd.clip_grad, by_sgd.weight_decay) == (2.0, Strategy().weight_decay)
    by_adamw = sample(space, FixedTrial({"optimizer": "adamw"}))
    assert (by_adamw.clip_grad, by_adamw.weight_decay) == (Strategy().clip_grad, 0.3)
    slow = parse_space({"lr": 0.01, "clip_grad": {"low": 1.0, "high": 5.0, "when": {"lr": {"low": 0.05}}}})
    assert sample(slow, FixedTrial({})).clip_grad == Strategy().clip_grad


def test_a_condition_may_ask_for_a_field_that_stands_later():
    space = parse_space({"loss": {"choices": ["focal", "mse"], "when": {"epochs": {"high": 3}}}, "epochs": 3})
    assert list(space) == ["epochs", "loss"]
    assert sample(space, FixedTrial({"loss": "focal"})).loss == "focal"


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (5, "strategy.lr.when: 5 is not a mapping of other fields to values"),
        ({"optimiser": "sgd"}, "strategy.lr.when.optimiser: unknown key; did you mean 'optimizer'?"),
        ({"lr": 1}, "strategy.lr.when.lr: unknown key; a field cannot depend on itself"),
        ({"loss": "focl"}, "strategy.lr.when.loss: 'focl' is not one of"),
        ({"loss": []}, "strategy.lr.when.loss: an empty list never holds"),
        ({"depth": {"above": 0}}, "strategy.lr.when.depth: {'above': 0} is not a value, a list of values, or low"),
        ({"depth": {}}, "strategy.lr.when.depth: {} is not a value"),
        ({"loss": {"low": 1}}, "strategy.lr.when.loss: {'low': 1} is not a value"),
        ({"depth": {"low": "0"}}, "strategy.lr.when.depth: {'low': '0'} is not a value"),
    ],
)
def test_a_malformed_condition_is_named(when, said):
    with pytest.raises(ConfigError) as caught:
        parse_space({"lr": {"low": 0.1, "high": 1.0, "when": when}})
    assert str(caught.value).startswith(said)


def test_conditions_that_lead_in_a_circle_are_refused():
    with pytest.raises(ConfigError, match=r"these fields lead in a circle: lr, batch_size$"):
        parse_space({"lr": {"value": 0.1, "when": {"batch_size": 8}}, "batch_size": {"value": 8, "when": {"lr": 0.1}}})
    with pytest.raises(ConfigError, match=r"lead in a circle: loss, label_smoothing, focal_gamma, "):
        parse_space({"loss": {"value": "focal", "when": {"focal_gamma": {"low": 1}}}})
