"""The keys of a study that decide how a device computes."""

import os
from collections.abc import Iterator

import pytest
import torch

from search.rerun import main as rerun
from trainers import choose_device


@pytest.fixture
def as_before(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    choose_device("cpu")


def test_a_deterministic_study_in_fp16_is_searched_and_reproduced_as_its_keys_say(lab, as_before, capsys):
    lab.train("budget.trials=1", "deterministic=true", "precision=fp16", "strategy.depth=1")
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    (run,) = lab.runs().values()
    assert run.data.tags["unfreeze.device"].endswith(", fp16")
    choose_device("cpu")
    assert rerun([run.info.run_id, f"tracking.uri={lab.mlflow_uri}"]) == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert "The trial was reproduced exactly" in capsys.readouterr().out
