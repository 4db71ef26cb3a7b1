"""Trials whose batches do not fit into memory."""

import torch

from search.storage import REASON
from trainers.forward import Forward

LEARNS = {"depth": 1.0, "lr": 1e-3, "epochs": 1, "batch_size": 32}
NORMS = ["train", "frozen_stats"]


def test_a_trial_whose_batches_cannot_be_divided_fails_with_the_cure_and_the_study_goes_on(new_lab, monkeypatch):
    forward = Forward.__call__

    def short(self, model, inputs, *rest):
        if model.training and len(inputs) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, model, inputs, *rest)

    monkeypatch.setattr(Forward, "__call__", short)
    presets = {how: {"batch_norm": how} for how in NORMS}
    lab = new_lab(strategy=LEARNS | {"batch_norm": {"choices": NORMS}}, presets=presets)
    lab.train("budget.trials=2")
    outcomes = dict(zip([trial.user_attrs["preset"] for trial in lab.trials()], lab.outcomes(), strict=True))
    assert outcomes == {"train": "failed", "frozen_stats": "complete"}
    (failed,) = [trial for trial in lab.trials() if REASON in trial.user_attrs]
    assert failed.user_attrs[REASON] == (
        "out of memory: a batch of 32 images does not fit, and would be another training in parts, because of "
        "BatchNorm in train mode; take a smaller strategy.batch_size or strategy.batch_norm=frozen_stats"
    )
    tags = {number: run.data.tags.get("unfreeze.micro_batches") for number, run in lab.runs().items()}
    assert tags == {number: None if number == failed.number else "2" for number in tags}
