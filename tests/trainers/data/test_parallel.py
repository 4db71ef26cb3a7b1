"""Two processes that train one model together come to what one comes to, at the same batch size."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from copies import copies
from parallel_cases import CASES, SGD, data_of, train, trainer_of

from strategies import ConfigError
from trainers import Ranks

HERE = Path(__file__).resolve().parents[1]
# One of two processes, as ``python parallel_cases.py FOLDER RANK``, but with torch imported.
RANK = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = ["parallel_cases.py", *sys.argv[2:]]
runpy.run_module("parallel_cases", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two ranks have come to in each case; both train all cases in turn."""
    folder = tmp_path_factory.mktemp("ranks")
    both = [copies().start(RANK, [str(HERE), str(folder), str(rank)], folder, os.environ) for rank in range(2)]
    said = [process.communicate(timeout=1800)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return folder


def found(folder: Path, case: str) -> dict[str, Any]:
    """What both ranks have come to, which is the same."""
    first, second = (torch.load(folder / f"{case} {rank}.pt", weights_only=True) for rank in range(2))
    assert first["metrics"] == second["metrics"]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in second["weights"])
    return first


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_come_to_the_losses_and_weights_of_one(folder, tmp_path, case):
    _, task, fields = CASES[case]
    together = found(folder, case)
    alone = train(trainer_of(case, data_of(task, folder / "cache"), tmp_path))
    for one, other in zip(together["metrics"], alone["metrics"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    for name, tensor in alone["weights"].items():
        # Adam makes a whole step of a gradient that is nothing but rounding, such as of a bias before BatchNorm.
        if fields.get("optimizer") == SGD:
            assert torch.allclose(together["weights"][name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
def test_ranks_that_take_up_a_state_end_as_without_the_break(folder):
    whole, rest = found(folder, "plain"), found(folder, "taken up")
    assert rest["metrics"] == whole["metrics"][1:]
    assert all(torch.equal(rest["weights"][name], tensor) for name, tensor in whole["weights"].items())


@pytest.mark.slow
def test_where_one_rank_has_no_memory_all_go_on_in_parts(folder):
    whole, parts = found(folder, "probe, reuse"), found(folder, "short")
    assert parts["parts"] == 2
    for one, other in zip(parts["metrics"], whole["metrics"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_batch_of_fewer_images_than_ranks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a batch of 26 images cannot be divided among 27 processes"):
        trainer_of("whole set", data_of("classification", tmp_path), tmp_path, Ranks(0, 27))


def test_parts_of_a_batch_differ_by_one_image_at_most():
    assert Ranks(0, 3).sizes(8) == [3, 3, 2]
    assert [Ranks(rank, 3).mine(8) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 8)]
    order, size = Ranks(2, 3).mine_of(torch.arange(13), 8)
    assert order.tolist() == [6, 7, 12]
    assert size == 2
