import io
import math

import pytest
import torch

from strategies import Strategy, TrialError
from trainers import ClassificationTrainer, ModelSource, Weights, choose_device
from trainers.data import ImageData
from trainers.data.split import ResidentSplit

DEVICE = choose_device("cpu")


def split(count: int, seed: int) -> ResidentSplit:
    """Noise, bright in the upper half for class 0 and in the lower for class 1."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    pixels = torch.randint(0, 100, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for row, target in enumerate(targets):
        pixels[row, :, 16 * target : 16 * target + 16] += 100
    return ResidentSplit(targets, [str(i) for i in range(count)], pixels, torch.arange(count))


DATA = ImageData(("up", "down"), split(64, 0), split(32, 1), split(32, 2), "0" * 16, (), "halves", 32)


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return ModelSource("test_resnet", Weights("none", "random", None), 2, 32)


def trainer(source: ModelSource, seed: int = 0, **strategy) -> ClassificationTrainer:
    values = {"epochs": 3, "batch_size": 16, "lr": 3e-3} | strategy
    return ClassificationTrainer(source, DATA, Strategy(**values), seed, DEVICE)


def metrics(found: ClassificationTrainer) -> list[dict[str, float]]:
    return [result.metrics for result in found]


def test_it_learns_to_tell_two_halves_apart(source):
    results = list(trainer(source, epochs=6))
    assert [result.step for result in results] == [1, 2, 3, 4, 5, 6]
    assert results[-1].metrics["val_accuracy"] > 0.9
    assert results[-1].metrics["train_loss"] < results[0].metrics["train_loss"]
    assert all(result.seconds > 0 for result in results)


def test_the_seed_decides_everything(source):
    strategy = {"augment": "strong", "layer_decay": 0.8}
    assert metrics(trainer(source, **strategy)) == metrics(trainer(source, **strategy))
    assert metrics(trainer(source, **strategy)) != metrics(trainer(source, seed=1, **strategy))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_taken_up_after_one_epoch_it_ends_as_without_the_break(source, optimizer):
    strategy = {"augment": "strong", "optimizer": optimizer, "depth": 2, "layer_decay": 0.8, "warmup_epochs": 1.5}
    whole = metrics(trainer(source, **strategy))
    first = trainer(source, **strategy)
    begun = [next(first).metrics]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    # Other seed, other random state: all that matters comes from the file.
    torch.manual_seed(99)
    second = trainer(source, seed=5, **strategy)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert begun + metrics(second) == whole


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "focal", "bce", "mse"])
def test_every_loss_trains(source, loss):
    results = metrics(trainer(source, loss=loss, epochs=4))
    assert results[-1]["train_loss"] < results[0]["train_loss"]


def test_clipping_bounds_the_step(source):
    free, clipped = (trainer(source, optimizer="sgd", lr=1.0, clip_grad=clip, epochs=1) for clip in (0.0, 1e-9))
    before = {name: tensor.clone() for name, tensor in clipped.model.named_parameters()}
    next(free), next(clipped)
    moved = max(
        (tensor - before[name]).norm().item()
        for name, tensor in clipped.model.named_parameters()
        # Weight decay moves a parameter as well, gradient or not.
        if tensor.ndim == 1
    )
    assert moved < 1e-6
    assert any((tensor - before[name]).norm() > 1e-3 for name, tensor in free.model.named_parameters())


def test_a_loss_that_is_not_finite_ends_the_trial_with_its_reason(source):
    with pytest.raises(TrialError, match=r"(training|validation) loss (became|is) (nan|inf) (in|after) epoch \d+"):
        list(trainer(source, optimizer="sgd", lr=100.0, loss="mse", epochs=20))


def test_a_layer_decay_that_leaves_nothing_for_the_lowest_blocks_still_trains_the_head(source):
    (result,) = metrics(trainer(source, layer_decay=1e-200, epochs=1))
    (plain,) = metrics(trainer(source, epochs=1))
    assert result["lr"] == plain["lr"] > 0


def test_the_optimizer_is_checked_against_the_plan_in_each_epoch(source):
    found = trainer(source, depth=1)
    next(found)
    next(found.model.parameters()).requires_grad_(True)
    with pytest.raises(TrialError, match="should be frozen"):
        next(found)


def test_a_batch_larger_than_the_data_is_one_update(source):
    (result,) = list(trainer(source, batch_size=1000, epochs=1))
    assert math.isfinite(result.metrics["train_loss"])


def test_predictions_come_in_the_order_of_the_split(source):
    found = trainer(source, epochs=6)
    list(found)
    logits, targets = found.predict(DATA.test)
    assert torch.equal(targets, DATA.test.targets)
    assert (logits.argmax(1) == targets).double().mean() > 0.9
