"""The sweep of linear probes before a study's first trial."""

import csv
import io
from pathlib import Path

import pytest
import torch

from search.storage import SWEEP
from search.study.probe_sweep import holds_probes, probe_space
from strategies import Fixed, FloatRange, parse_space
from trainers.probes import stacked

STRATEGY = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 1e-4, "high": 0.1, "log": True},
    "loss": {"choices": ["cross_entropy", "focal"]},
    "epochs": 2,
    "batch_size": 32,
    "augment": {"choices": ["none", "light"]},
}


def test_a_sweep_tries_what_a_head_depends_on_and_rates_of_its_own():
    space = probe_space(parse_space(STRATEGY))
    assert space.keys() == {"depth", "lr", "weight_decay", "loss", "epochs", "batch_size"}
    assert space["depth"] == Fixed(0)
    assert isinstance(space["lr"], FloatRange)
    assert space["lr"].high > 1e-2
    assert probe_space(parse_space({"weight_decay": 0.1}))["weight_decay"] == Fixed(0.1)


@pytest.mark.parametrize(
    ("depth", "holds"),
    [
        (0, True),
        (1.0, False),
        ({"choices": [0, 4]}, True),
        ({"choices": [0.5, 1.0]}, False),
        ({"low": 0.0, "high": 1.0}, True),
        ({"low": 1, "high": 4}, False),
    ],
)
def test_whether_a_space_holds_linear_probes(depth, holds):
    assert holds_probes(parse_space({"depth": depth})) == holds
    assert not holds_probes(parse_space({}))


@pytest.mark.slow
def test_where_blocks_are_trained_in_any_case_the_best_probe_is_no_trial_but_seeds_the_presets(new_lab):
    lab = new_lab(strategy={**STRATEGY, "depth": 1.0}, presets={"deep": {"lr": 1e-3}}, probe_sweep=8)
    lab.train("budget.trials=1")
    (trial,) = lab.trials()
    assert trial.user_attrs["preset"] == "deep"
    assert trial.params["loss"] == lab.study.user_attrs[SWEEP]["values"]["loss"]


def test_without_presets_there_is_nothing_to_seed_and_no_sweep(new_lab, capsys):
    lab = new_lab(strategy=STRATEGY, presets={}, probe_sweep=8)
    lab.train("budget.trials=1")
    assert "linear probes in" not in capsys.readouterr().out
    assert SWEEP not in lab.study.user_attrs


@pytest.mark.slow
def test_the_best_probe_is_tried_first_and_what_it_found_goes_into_the_other_presets(new_lab, capsys):
    presets = {"deep": {"depth": 1.0, "lr": 1e-3}, "own": {"depth": 1.0, "lr": 2e-3, "loss": "cross_entropy"}}
    lab = new_lab(strategy=STRATEGY, presets=presets, probe_sweep=12, budget={"trials": 3})
    lab.train()
    found = lab.study.user_attrs[SWEEP]
    said = capsys.readouterr().out
    assert f"Probes  {found['probes']} linear probes in " in said
    assert f"the best has accuracy {found['score']:.4f}" in said
    probe, deep, own = lab.trials()
    assert probe.user_attrs["preset"] == "probe_sweep"
    assert probe.params["depth"] == 0
    assert probe.params["loss"] == deep.params["loss"] == found["values"]["loss"]
    assert own.params["loss"] == "cross_entropy"
    assert deep.params["weight_decay"] == own.params["weight_decay"]
    rows = list(csv.DictReader(io.StringIO(table_of(lab))))
    assert len(rows) == found["probes"] == 12
    assert max(float(row["val_accuracy"]) for row in rows) <= found["score"]
    # Going on, it is not made again.
    lab.train("budget.trials=4")
    assert "linear probes in" not in capsys.readouterr().out
    assert lab.study.user_attrs[SWEEP] == found


@pytest.mark.slow
def test_a_probe_of_the_sweep_scores_as_a_trial_does(new_lab):
    lab = new_lab(strategy={**STRATEGY, "lr": {"low": 1e-4, "high": 1.0, "log": True}}, presets={"any": {"depth": 0}})
    lab.train("probe_sweep=6", "budget.trials=1", "reuse=on")
    trial = lab.trials()[0]
    assert trial.user_attrs["preset"] == "probe_sweep"
    assert trial.value == pytest.approx(lab.study.user_attrs[SWEEP]["score"], abs=0.02)


def table_of(lab) -> str:
    return Path(lab.artifact(lab.parent(), "probe_sweep.csv")).read_text()


def test_want_of_memory_in_the_sweep_ends_neither_the_command_nor_probes_in_the_queue(new_lab, monkeypatch, capsys):
    class Short:
        """Of torch's functions the one that stacked heads call, on a device without room for its result."""

        @staticmethod
        def linear(*tensors):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(stacked, "F", Short)
    presets = {"slow": {"depth": 0, "lr": 1e-3}, "fast": {"depth": 0, "lr": 1e-2}}
    lab = new_lab(strategy=STRATEGY, presets=presets, probe_sweep=4)
    lab.train("budget.trials=2")
    assert "Probes  none: out of memory: CUDA out of memory. Tried to allocate 2 GiB" in capsys.readouterr().out
    assert lab.outcomes() == ["complete", "complete"]
    assert SWEEP not in lab.study.user_attrs
