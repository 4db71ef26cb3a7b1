"""What the process that leads a rank group makes of errors once another rank is gone."""

import subprocess
import threading

import pytest
import torch
from torch.distributed import DistBackendError

from search.processes import RankGroup, RankLostError, rank_group
from search.processes.rank_group import _Follower
from strategies import Strategy, TrialError
from trainers import choose_device


@pytest.fixture
def follower():
    """A rank that does nothing, and is read as any other."""
    process = subprocess.Popen(
        ["sleep", "600"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    found = _Follower(1, process)
    reader = threading.Thread(target=found.read)
    reader.start()
    yield found
    found.kill()
    reader.join()
    process.stdin.close()
    process.stdout.close()


ERRORS = [
    # From numbers that never came.
    TrialError("training loss became nan in epoch 3"),
    # Of a group that was broken off.
    ValueError("Default process group has not been initialized, please make sure to call init_process_group."),
    # Of NCCL and of CUDA after it.
    DistBackendError("NCCL error: remote process exited or there was a network error"),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    # Of gloo.
    RuntimeError("Connection closed by peer"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_in_a_step_after_a_rank_was_killed_the_trial_is_tried_again(follower, error):
    group = RankGroup(2, choose_device("cpu"), 1, lambda *facts: "")
    group._followers = [follower]
    with pytest.raises(RankLostError, match="rank 1 ended by SIGKILL"), group.training("test_resnet", Strategy(), 0):
        group._is_busy.set()
        follower.process.kill()
        if isinstance(error, TrialError):
            # It comes after the rank's end; the other errors may come before it is known.
            follower.has_ended.wait()
        raise error


def test_an_error_that_all_ranks_raise_alike_stays_what_it_is(follower):
    group = RankGroup(2, choose_device("cpu"), 1, lambda *facts: "")
    group._followers = [follower]
    with pytest.raises(TrialError, match="nan") as caught, group.training("test_resnet", Strategy(), 0):
        group._is_busy.set()
        raise TrialError("training loss became nan")
    assert type(caught.value) is TrialError
    assert not follower.has_ended.is_set()


def test_this_process_knows_that_a_rank_is_gone_before_it_is_woken(follower, monkeypatch):
    known = []
    monkeypatch.setattr(rank_group, "break_off", lambda: known.append(follower.has_ended.is_set()))
    follower.process.kill()
    assert follower.said.get() is None
    assert known == [True]
