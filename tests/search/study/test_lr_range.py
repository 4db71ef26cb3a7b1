import pytest

from search.study.lr_range import centred
from strategies import FloatRange, parse_space

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
