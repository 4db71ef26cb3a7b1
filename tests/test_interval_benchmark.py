"""Intervals hold the truth as often as they say, by the benchmark that draws them all."""

import json

import pytest

from benchmarks.intervals import CHEAP, INTERVALS, coverage, main


@pytest.mark.parametrize("name", CHEAP)
def test_an_interval_over_seeds_or_trials_holds_the_truth_as_often_as_it_says(name):
    assert 0.92 <= coverage(name, 1500) <= 0.97


def test_the_benchmark_draws_every_interval_and_writes_what_it_found(tmp_path, capsys):
    main(["--quick", "--json", str(tmp_path / "found.json")])
    assert "3 intervals each, 30 over seeds and trials" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["coverage"]
    assert found.keys() == INTERVALS.keys()
    # Of 60 intervals, three miss on average.
    assert sum(3 * share for share in found.values()) >= 3 * len(INTERVALS) - 12
