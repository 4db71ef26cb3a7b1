import io
import itertools
import math
from collections.abc import Callable

import pytest
import torch

from strategies import ConfigError, Strategy, TrialError, tta_views
from trainers import ModelSource, Preprocessing, Trainer, Weights, choose_device
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


def halves(task: str = "classification", retarget: Callable[[torch.Tensor], torch.Tensor] = lambda k: k) -> ImageData:
    """The same images for any task; ``retarget`` makes targets of the bright half's index."""
    splits = {name: split(count, seed) for name, count, seed in (("train", 64, 0), ("val", 32, 1), ("test", 32, 2))}
    for part in splits.values():
        part.targets = retarget(part.targets)
    return ImageData(
        task=task,
        classes=("up", "down"),
        **splits,
        fingerprint="0" * 16,
        skipped=(),
        duplicates=(),
        source="halves",
        preprocessing=Preprocessing(32),
    )


DATA = halves()


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return ModelSource("test_resnet", Weights("none", "random", None), 2, 32)


def trainer(source: ModelSource, seed: int = 0, **strategy) -> Trainer:
    values = {"epochs": 3, "batch_size": 16, "lr": 3e-3} | strategy
    return Trainer(source, DATA, Strategy(**values), seed, DEVICE)


def metrics(found: Trainer) -> list[dict[str, float]]:
    return [result.metrics for result in found]


def test_it_learns_to_tell_two_halves_apart(source):
    results = list(trainer(source, epochs=6))
    assert [result.step for result in results] == [1, 2, 3, 4, 5, 6]
    assert results[-1].metrics["val_accuracy"] > 0.9
    assert results[-1].metrics["train_loss"] < results[0].metrics["train_loss"]
    assert all(result.seconds > 0 for result in results)


def test_it_learns_several_labels_an_image(source):
    data = halves("multilabel", lambda half: torch.stack([half == 0, half == 1], dim=1).float())
    results = list(Trainer(source, data, Strategy(epochs=6, batch_size=16, lr=3e-3, loss="bce"), 0, DEVICE))
    assert results[-1].metrics["val_mean_average_precision"] > 0.9
    assert results[-1].metrics["val_exact_match"] > results[0].metrics["val_exact_match"]


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_it_learns_numbers_whatever_their_units(source, loss):
    data = halves("regression", lambda half: torch.stack([1e4 + 100.0 * half, 1e-3 * half], dim=1))
    strategy = Strategy(epochs=12, batch_size=16, lr=1e-2, loss=loss)
    found = Trainer(source, data, strategy, 0, DEVICE)
    assert list(found)[-1].metrics["val_r2"] > 0.7
    outputs, targets = found.predict(data.val)
    assert (outputs[:, 0] - targets[:, 0]).abs().mean() < 25
    assert (outputs[:, 1] - targets[:, 1]).abs().mean() < 2.5e-4


@pytest.mark.parametrize(
    ("task", "loss", "retarget"),
    [
        ("classification", "cross_entropy", lambda half: half),
        ("classification", "focal", lambda half: half),
        ("multilabel", "focal", lambda half: torch.stack([half == 0, half == 1], dim=1).float()),
        ("regression", "l1", lambda half: torch.stack([1.0 * half, 5.0 - half], dim=1)),
    ],
)
def test_every_task_learns_from_varied_and_mixed_images(source, task, loss, retarget):
    strategy = Strategy(
        epochs=6, batch_size=16, lr=1e-2, loss=loss, augment="custom", flip=0.5, policy="trivial", mixup=0.3, cutmix=0.3
    )
    results = list(Trainer(source, halves(task, retarget), strategy, 0, DEVICE))
    assert min(result.metrics["val_loss"] for result in results[1:]) < results[0].metrics["val_loss"]
    again = list(Trainer(source, halves(task, retarget), strategy, 0, DEVICE))
    assert [result.metrics for result in again] == [result.metrics for result in results]


@pytest.mark.parametrize("tta", ["flip", "crops"])
def test_outputs_are_averaged_over_the_views(source, tta):
    plain, averaged = trainer(source), trainer(source, tta=tta)
    outputs, targets = averaged.predict(DATA.val)
    assert not torch.equal(outputs, plain.predict(DATA.val)[0])
    images, _ = next(DATA.val.batches(torch.arange(len(DATA.val)), len(DATA.val), torch.device("cpu")))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (source.mean, source.std))
    shown = tta_views((images / 255 - mean) / std, tta)
    with torch.inference_mode():
        alone = [averaged.model.eval()(view) for view in shown]
    assert torch.allclose(outputs, torch.stack(alone).mean(0), atol=1e-5)
    assert torch.equal(targets, DATA.val.targets)


def test_a_loss_of_another_task_is_refused(source):
    with pytest.raises(ConfigError, match=r"strategy.loss: 'mse' cannot train task multilabel, only bce, focal can"):
        Trainer(source, halves("multilabel"), Strategy(loss="mse"), 0, DEVICE)


def test_the_seed_decides_everything(source):
    strategy = {"augment": "strong", "layer_decay": 0.8}
    assert metrics(trainer(source, **strategy)) == metrics(trainer(source, **strategy))
    assert metrics(trainer(source, **strategy)) != metrics(trainer(source, seed=1, **strategy))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("unfreeze_epochs", [0, 1, 3])
def test_taken_up_after_one_epoch_it_ends_as_without_the_break(source, optimizer, unfreeze_epochs):
    strategy = {"augment": "strong", "optimizer": optimizer, "depth": 2, "layer_decay": 0.8, "warmup_epochs": 1.5}
    strategy |= {"unfreeze_epochs": unfreeze_epochs, "head_lr_scale": 3.0}
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


def test_a_block_that_wakes_up_later_is_trained_from_then_on(source):
    found = trainer(source, depth=2, unfreeze_epochs=2, epochs=3)
    late = next(p.name for p in found.plan.params if p.from_epoch == 1)
    values = [found.model.state_dict()[late].clone()]
    for _ in found:
        values.append(found.model.state_dict()[late].clone())
    assert [torch.equal(before, after) for before, after in itertools.pairwise(values)] == [True, False, False]


def test_a_batch_larger_than_the_data_is_one_update(source):
    (result,) = list(trainer(source, batch_size=1000, epochs=1))
    assert math.isfinite(result.metrics["train_loss"])


def test_predictions_come_in_the_order_of_the_split(source):
    found = trainer(source, epochs=6)
    list(found)
    logits, targets = found.predict(DATA.test)
    assert torch.equal(targets, DATA.test.targets)
    assert (logits.argmax(1) == targets).double().mean() > 0.9
