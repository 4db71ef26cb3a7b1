import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import CHOICES, ConfigError, Strategy, nearest


def value_of(name: str) -> st.SearchStrategy:
    choices = CHOICES[name]
    if name == "depth":
        return st.one_of(st.integers(0, 9), st.floats(0, 1))
    if name in ("warmup_epochs", "unfreeze_epochs", "swa_epochs"):
        return st.just(0)
    if choices.optional:
        return st.none() | (st.booleans() if choices.kinds == (bool,) else st.floats(0, 0.99))
    if choices.kinds == (str,):
        return st.sampled_from(choices.options or ("adamw", "sgd", "lion"))
    low, high = max(choices.low, 0), min(choices.high, 1000)
    if choices.kinds == (int,):
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=choices.above, exclude_max=choices.below)


STRATEGIES = st.builds(Strategy, **{name: value_of(name) for name in CHOICES})


@given(STRATEGIES)
def test_a_strategy_is_read_back_from_its_yaml(strategy):
    assert Strategy.from_yaml(strategy.to_yaml()) == strategy


@given(STRATEGIES)
def test_a_canonical_strategy_is_its_own_canonical_form_and_trains_alike(strategy):
    canonical = strategy.canonical(9)
    assert canonical.canonical(9) == canonical
    assert canonical.fingerprint(9) == strategy.fingerprint(9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Strategy(depth=1.0), Strategy(depth=9)),
        (Strategy(depth=0), Strategy(depth=0.0)),
        (Strategy(focal_gamma=1.0), Strategy(focal_gamma=5.0)),
        (Strategy(label_smoothing=0.2), Strategy()),
        (Strategy(lr=1, weight_decay=0), Strategy(lr=1.0, weight_decay=0.0)),
        (Strategy(depth=0, layer_decay=0.5, batch_norm="frozen"), Strategy(depth=0)),
    ],
)
def test_what_has_no_effect_does_not_change_the_fingerprint(one, other):
    assert one.fingerprint(9) == other.fingerprint(9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Strategy(depth=8), Strategy(depth=9)),
        (Strategy(loss="focal", focal_gamma=1.0), Strategy(loss="focal", focal_gamma=5.0)),
        (Strategy(lr=1e-3), Strategy(lr=2e-3)),
        (Strategy(depth=1, layer_decay=0.5), Strategy(depth=1)),
    ],
)
def test_what_has_an_effect_changes_the_fingerprint(one, other):
    assert one.fingerprint(9) != other.fingerprint(9)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(0, 0), (0.0, 0), (0.01, 1), (0.5, 5), (0.25, 2), (1.0, 9), (1, 1), (9, 9)]
)
def test_depth_is_a_number_of_blocks_or_a_share_of_nine(depth, blocks):
    assert Strategy(depth=depth).blocks_trained(9) == blocks


def test_more_blocks_than_the_model_has_are_refused():
    with pytest.raises(ConfigError, match=r"strategy\.depth: 10 blocks asked for, the model has 9"):
        Strategy(depth=10).blocks_trained(9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": 0}, "strategy.lr: 0 is not a number above 0 and at most 100"),
        ({"lr": math.nan}, "strategy.lr: nan is not"),
        ({"weight_decay": math.inf}, "strategy.weight_decay: inf is not"),
        ({"lr": "fast"}, "strategy.lr: 'fast' is not a number"),
        ({"lr": 10**400}, "strategy.lr: 1000"),
        ({"lr": True}, "strategy.lr: True is not a number"),
        ({"epochs": 2.5}, "strategy.epochs: 2.5 is not a whole number"),
        ({"epochs": 10**400}, "strategy.epochs: 1000"),
        ({"depth": -1}, "strategy.depth: -1 is not"),
        ({"depth": 1.5}, "strategy.depth: 1.5 is not a fraction between 0 and 1"),
        ({"loss": "hinge"}, "strategy.loss: 'hinge' is not one of cross_entropy"),
        ({"epochs": 2, "warmup_epochs": 3}, "strategy.warmup_epochs: 3 is longer than epochs: 2"),
        ({"learning_rate": 0.1}, "strategy.learning_rate: unknown key"),
        ({"layerdecay": 0.1}, "did you mean 'layer_decay'?"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(values, said):
    with pytest.raises(ConfigError) as caught:
        Strategy.from_dict(values)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- list", "lr: [", "plain"])
def test_text_that_is_no_mapping_is_refused(text):
    with pytest.raises(ConfigError, match="strategy: "):
        Strategy.from_yaml(text)


def test_a_hint_knows_words_in_upper_and_lower_case():
    assert nearest("AdamW", ["adamp", "adamw", "sgd"]) == "did you mean 'adamw'?"
    assert nearest("cifar10", ["CIFAR10", "SVHN"]) == "did you mean 'CIFAR10'?"
    assert nearest("zzz", ["b", "A"]) == "known: A, b"
