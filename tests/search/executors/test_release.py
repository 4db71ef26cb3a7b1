"""What the command gives back before workers train on its device."""

from dataclasses import replace
from pathlib import Path

import torch
from lab import opened

from search.executors import run_pool
from search.executors.local import LocalExecutor
from search.scheduling import Ledger
from trainers.reuse.entry import Activations


def test_the_command_keeps_neither_images_nor_rows_on_the_device_of_its_workers(lab):
    with opened(lab) as open_study:
        device = open_study.materials.device.torch
        # As on a GPU.
        data = open_study.materials.data
        data.train._kept[device] = data.test._kept[device] = torch.ones(3)
        rows = Activations((torch.ones(4, 1),))
        rows._kept[device] = (torch.ones(4, 1),)
        open_study.materials.reuse._store._opened[Path("rows")] = (0, 0), rows
        over = replace(open_study, deadline=0.0)
        run_pool(over, LocalExecutor((), "cpu", 1), open_study.watcher, Ledger(open_study.study))
        assert rows.bytes_on(device) == 0
        assert not data.train._kept
        assert not data.test._kept
