"""Learning curves of our own: what a row holds, and that a run goes on where it stopped."""

import json

import numpy as np
import pandas as pd

from benchmarks import collect, collected_sets
from strategies import Strategy

SMALL = ["--sets", "digits", "photographs", "--models", "resnet18", "--epochs", "2", "--device", "cpu", "--rows"]
MEASURED = ["seconds", "wall_seconds", "start_seconds"]


def test_a_run_goes_on_where_it_stopped_and_has_the_rows_of_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "IMAGES", (40,))
    monkeypatch.setattr(collect, "SIZES", (32,))
    monkeypatch.setattr(collected_sets, "COUNTS", {"train": 48, "val": 24, "test": 24})
    whole = ["--folder", str(tmp_path / "whole")]
    collect.main([*SMALL, "2", *whole])
    broken = ["--folder", str(tmp_path / "broken")]
    collect.main([*SMALL, "1", *broken])
    rows = tmp_path / "broken" / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"number": 1, "data_s')
    collect.main([*SMALL, "2", *broken])
    first, second = (pd.read_parquet(tmp_path / name / "curves.parquet") for name in ("whole", "broken"))
    pd.testing.assert_frame_equal(first.drop(columns=MEASURED), second.drop(columns=MEASURED))
    assert list(first["data_set"]) == ["digits", "photographs"]
    row = first.iloc[1]
    assert row["images"] == 40
    assert 0 <= row["pct_to_freeze"] <= 1
    assert len(row["accuracy"]) == len(row["seconds"]) == len(row["train_loss"]) == 2
    assert Strategy.from_dict(json.loads(row["fields"])).epochs == 2


def test_depths_are_spread_evenly_and_rates_from_too_low_to_too_high():
    jobs = [collect.job_of(number, 0, collected_sets.available(), list(collect.MODELS)) for number in range(200)]
    depths = np.histogram([float(job.strategy.depth) for job in jobs], bins=4, range=(0, 1))[0]
    assert depths.min() > 40
    rates = [job.strategy.lr for job in jobs if job.strategy.optimizer == "adamw"]
    assert min(rates) < 3e-5
    assert max(rates) > 3e-2
    assert {job.data.name for job in jobs[: len(collected_sets.SETS)]} == set(collected_sets.available())
    assert len({job.strategy for job in jobs}) == 200
