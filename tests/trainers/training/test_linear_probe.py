"""Where a fine-tuning starts: from a probed head, from blocks drawn anew."""

import pytest
import torch
from small_training import DATA, DEVICE, halves

from strategies import Strategy, entries_of_last_blocks
from trainers import TASKS, ImageData, ModelSource, Trainer, Weights

PROBED = Strategy(probe_epochs=50, probe_lr=0.2, batch_size=16, epochs=1)


def pretrained() -> dict[str, torch.Tensor]:
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    return source.build(7).state_dict()


@pytest.fixture
def source() -> ModelSource:
    return ModelSource("test_resnet", Weights("file:w", "0" * 16, pretrained()), 2, 32)


def loss(trainer: Trainer, data: ImageData = DATA) -> float:
    return TASKS[data.task].scores(*trainer.predict(data.train))["loss"]


def test_the_head_is_fitted_to_the_features_before_the_first_epoch_and_the_body_is_as_it_was(source):
    probed = Trainer(source, DATA, PROBED, 0, DEVICE)
    plain = Trainer(source, DATA, PROBED.replace(probe_epochs=0), 0, DEVICE)
    assert loss(probed) < 0.8 * loss(plain)
    before, after = plain.model.state_dict(), probed.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    assert all(p.grad is None for p in probed.model.parameters())


def test_trials_that_agree_share_the_probe_and_give_what_they_would_alone(source):
    alone = [result.metrics for result in Trainer(source, DATA, PROBED.replace(depth=1), 0, DEVICE)]
    (probe,) = source.probes.values()
    marked = {name: tensor.clone() for name, tensor in probe.items()}
    again = Trainer(source, DATA, PROBED.replace(depth=2, lr=0.1), 0, DEVICE)
    assert torch.equal(again.model.fc.weight, marked["weight"])
    assert [result.metrics for result in Trainer(source, DATA, PROBED.replace(depth=1), 0, DEVICE)] == alone
    assert len(source.probes) == 1
    for other in (PROBED.replace(probe_lr=0.01), PROBED.replace(loss="focal"), PROBED.replace(reinit_blocks=1)):
        Trainer(source, DATA, other, 0, DEVICE)
    Trainer(source, DATA, PROBED, 1, DEVICE)
    assert len(source.probes) == 5


@pytest.mark.parametrize(("task", "kind"), [("multilabel", "bce"), ("regression", "mse")])
def test_every_task_can_be_probed(source, task, kind):
    data = halves(task, lambda half: torch.stack([1.0 * half, 1.0 - half], dim=1))
    probed = Trainer(source, data, PROBED.replace(loss=kind), 0, DEVICE)
    plain = Trainer(source, data, PROBED.replace(loss=kind, probe_epochs=0), 0, DEVICE)
    assert loss(probed, data) < 0.8 * loss(plain, data)


def test_blocks_next_to_the_head_are_drawn_anew_from_the_seed(source):
    start = pretrained()

    def changed(seed: int, **fields) -> set[str]:
        model = Trainer(source, DATA, Strategy(epochs=1, batch_size=16, **fields), seed, DEVICE).model
        return {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, start[n])} - {
            "fc.weight",
            "fc.bias",
        }

    model = source.build(0)
    last = entries_of_last_blocks(model, 1)
    assert last == {name for name in start if name.startswith("layer4.")}
    assert changed(0) == set()
    # Statistics and biases of new layers are constants, so not all entries differ.
    assert {name for name in last if name.endswith("conv1.weight")} <= changed(0, reinit_blocks=1) <= last
    assert changed(0, reinit_blocks=3, depth=1) == changed(0, reinit_blocks=1)
    assert changed(0, reinit_blocks=2) > changed(0, reinit_blocks=1)
