"""Nights of promotion, simulated with the functions that decide: the promises of docs/champion.md."""

import json

import numpy as np
import pytest

from benchmarks.champion import Setting, equal_nights, main, wait


@pytest.mark.parametrize("is_grouped", [False, True])
def test_equal_models_are_rarely_promoted_in_two_hundred_nights(is_grouped):
    shares, inflation = {}, {}
    for rule in ("before", "after"):
        found = [equal_nights(Setting(359, is_grouped, rule), 200, seed) for seed in range(60)]
        shares[rule], inflation[rule] = (float(np.mean(part)) for part in zip(*found, strict=True))
    assert shares["after"] <= 0.05
    assert inflation["after"] < 0.002
    # What the test is there for: with a fixed level it is every second time.
    assert shares["before"] > 0.4
    assert inflation["before"] > 0.01


def test_a_model_that_is_two_points_better_is_promoted_within_five_nights():
    setting = Setting(2000, False, "after")
    assert np.mean([wait(setting, 0.02, 0, 5, seed) <= 5 for seed in range(60)]) >= 0.8


def test_the_benchmark_prints_and_writes_what_it_found(tmp_path, capsys):
    main(["--quick", "--images", "60", "--json", str(tmp_path / "found.json")])
    assert "5 nights with equal models, 3 repetitions" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["outcomes"]) == 4
    assert set(found["outcomes"][0]["nights"]) >= {"0.005 after 0", "0.020 after 20"}
