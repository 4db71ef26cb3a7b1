"""Processes that train together meet on this machine alone."""

import os
from datetime import timedelta

import torch

from trainers import join, leave


def test_ranks_meet_on_the_loopback_interface_whichever_library_connects_them(tmp_path, monkeypatch):
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    join(tmp_path / "meeting", 0, 1, torch.device("cpu"), timedelta(seconds=60))
    leave()
    assert {os.environ.pop(name) for name in names} <= {"lo", "lo0"}
