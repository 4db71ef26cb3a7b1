import pytest
from small_training import DATA, DEVICE, short_of_memory

from search.study.lr_range import centred, suggested_lr
from strategies import ConfigError, FloatRange, Strategy, parse_space
from trainers import ModelSource, Trainer, Weights

RATES = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.mark.parametrize("lr", [1e-5, 3e-3, 0.5])
def test_the_range_keeps_its_width_around_the_suggestion(lr):
    found = centred(parse_space({**RATES, "depth": 0.5}), lr)["lr"]
    assert found.high / found.low == pytest.approx(100)
    assert (found.high * found.low) ** 0.5 == pytest.approx(lr)


def test_other_fields_stay():
    space = parse_space({**RATES, "depth": 0.5})
    assert {name: entry for name, entry in centred(space, 1e-3).items() if name != "lr"} == {"depth": space["depth"]}
    assert isinstance(centred(space, 1e-3)["lr"], FloatRange)


def test_a_range_test_without_memory_is_an_error_in_words():
    def make_trainer(strategy: Strategy) -> Trainer:
        source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
        return short_of_memory(Trainer(source, DATA, strategy, 0, DEVICE), 32)

    with pytest.raises(ConfigError, match=r"^centre_lr: the range test runs out of memory: a batch of 64 images"):
        suggested_lr(parse_space(RATES), make_trainer)
