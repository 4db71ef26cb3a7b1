import io
import itertools
import math
from copy import deepcopy

import pytest
import timm
import torch
from small_training import DATA, DEVICE, halves, lopsided

from strategies import ConfigError, Strategy, TrialError, set_train_mode, tta_views
from trainers import TASKS, ModelSource, ShortEpochs, Teacher, Trainer, Weights, normaliser, predict
from trainers.reuse import NOTHING_REUSED
from trainers.training import ALONE, weights_of_classes
from trainers.training.batches import Batches

NORMALISE = normaliser((0.5,) * 3, (0.5,) * 3, DEVICE)


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


@pytest.mark.parametrize("loss", ["mse", "huber"])
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


# What a strategy can ask for, one by one


def test_so_many_features_are_dropped_in_training_and_none_from_the_answers(source):
    zeros = {}
    for share in (0.0, 0.3, 0.6):
        found, seen = trainer(source, dropout=share, epochs=1), zeros.setdefault(share, {True: [], False: []})
        found.model.fc.register_forward_pre_hook(lambda fc, given, seen=seen: seen[fc.training].append(given[0] == 0))
        answers = found.predict(DATA.val)[0]
        assert torch.equal(answers, trainer(source).predict(DATA.val)[0]), "the same weights, whatever is dropped"
        next(found)
    dark = {(share, mode): torch.cat(of[mode]).double().mean().item() for share, of in zeros.items() for mode in of}
    for share in zeros:
        # Some features are zero before any is dropped.
        assert dark[share, True] == pytest.approx(1 - (1 - dark[0.0, True]) * (1 - share), abs=0.05)
        assert dark[share, False] == pytest.approx(dark[0.0, False], abs=0.05)


def test_dropping_paths_is_for_trained_blocks_of_models_that_have_them(source):
    modules = trainer(source, drop_path=0.5).model.modules()
    assert max(module.drop_prob for module in modules if hasattr(module, "drop_prob")) == pytest.approx(0.5)
    assert metrics(trainer(source, drop_path=0.5)) != metrics(trainer(source))
    assert metrics(trainer(source, drop_path=0.5, depth=0)) == metrics(trainer(source, depth=0))
    with pytest.raises(ConfigError, match=r"strategy.drop_path: vgg11 has no residual branches"):
        trainer(ModelSource("vgg11", Weights("none", "random", None), 2, 32), drop_path=0.5)


def loss_of_first_batch(found: Trainer) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Loss, gradients of the parameters, and the images as the model takes them, before any step."""
    found._batches.turn_to(0)
    set_train_mode(found.model, found.plan)
    batch = found._batches.show(next(found._batches.read(torch.arange(16))))
    loss = found._gradients.compute(batch)
    return loss, [param.grad.clone() for param in found.model.parameters()], batch.inputs


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_sharpness_aware_step_takes_the_gradients_from_up_the_slope(source):
    sharp, plain, climbed = (trainer(source, sam_rho=rho) for rho in (0.5, 0.0, 0.0))
    _, up, _ = loss_of_first_batch(plain)
    norm = torch.stack([grad.norm() for grad in up]).norm()
    with torch.no_grad():
        for param, grad in zip(climbed.model.parameters(), up, strict=True):
            param.add_(0.5 * grad / norm)
    _, expected, _ = loss_of_first_batch(climbed)
    _, found, _ = loss_of_first_batch(sharp)
    assert_close(found, expected)
    assert max((one - other).abs().max() for one, other in zip(found, up, strict=True)) > 0.01
    assert metrics(trainer(source, sam_rho=0.05, epochs=6))[-1]["val_accuracy"] > 0.9


@pytest.mark.parametrize("how", [{"ema": 0.9}, {"swa_epochs": 2}])
def test_what_is_scored_and_kept_is_the_average(source, how):
    averaged, plain = trainer(source, **how), trainer(source)
    list(averaged), list(plain)
    live = averaged.model.state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in plain.model.state_dict().items())
    kept = averaged.weights()
    assert any(not torch.equal(live[name], tensor) for name, tensor in kept.items())
    fresh = source.build(0)
    fresh.load_state_dict(kept)
    outputs, _ = averaged.predict(DATA.val)
    assert torch.allclose(
        predict(fresh, DATA.val, averaged.strategy, NORMALISE, TASKS["classification"], None, DEVICE)[0],
        outputs,
    )


def test_the_average_of_the_last_epochs_begins_with_them(source):
    found = trainer(source, swa_epochs=2, epochs=3)
    next(found)
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in found.weights().items())
    weights = []
    for _ in found:
        weights.append(found.model.state_dict()["fc.weight"].clone())
    assert torch.allclose(found.weights()["fc.weight"], (weights[0] + weights[1]) / 2)


def test_low_rank_updates_are_trained_alone_and_folded_into_what_is_kept(source):
    found = trainer(source, parameters="lora", lora_rank=2, depth=2, epochs=6)
    start = source.build(0).state_dict()
    list(found)
    kept = found.weights()
    assert kept.keys() == start.keys()
    trained = {p.name for p in found.plan.params if p.from_epoch is not None}
    assert all(".lora_" in name or name.startswith("fc.") for name in trained)
    changed = {name for name, tensor in kept.items() if not torch.equal(tensor, start[name]) and "running" not in name}
    assert {"fc.weight", "fc.bias"} < changed
    fresh = source.build(0)
    fresh.load_state_dict(kept)
    outputs = predict(fresh, DATA.val, found.strategy, NORMALISE, TASKS["classification"], None, DEVICE)[0]
    assert torch.allclose(outputs, found.predict(DATA.val)[0], atol=1e-5)


def test_a_penalty_holds_the_body_near_its_start(source):
    start = source.build(0).state_dict()

    def moved(**strategy) -> float:
        found = trainer(source, optimizer="sgd", lr=0.05, weight_decay=0.0, **strategy)
        list(found)
        return sum((p - start[n]).square().sum().item() for n, p in found.model.named_parameters() if "fc" not in n)

    assert moved(l2_sp=10.0) < 0.5 * moved()


def delta_by_hand(found: Trainer, start: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Half the mean square of the differences between the stages' maps and those of the start, summed over stages."""
    stages = ("layer1", "layer2", "layer3", "layer4")
    maps = {id(model): [] for model in (found.model, start)}
    for model, seen in ((found.model, maps[id(found.model)]), (start, maps[id(start)])):
        hooks = [
            model.get_submodule(stage).register_forward_hook(lambda _, given, out, seen=seen: seen.append(out))
            for stage in stages
        ]
        model(images)
        [hook.remove() for hook in hooks]
    return sum((a - b.detach()).square().mean() / 2 for a, b in zip(*maps.values(), strict=True))


def bss_by_hand(found: Trainer, start: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The square of the smallest singular value of the features."""
    features = found.model.forward_head(found.model.forward_features(images), pre_logits=True)
    return torch.linalg.svdvals(features)[-1] ** 2


@pytest.mark.parametrize(("field", "weight", "by_hand"), [("delta", 20.0, delta_by_hand), ("bss", 1e3, bss_by_hand)])
def test_a_penalty_is_in_the_loss_and_in_its_gradients_by_its_weight(source, field, weight, by_hand):
    free, held = (trainer(source, batch_norm="frozen_stats", **{field: value}) for value in (0.0, weight))
    start = deepcopy(held.model).eval()
    for found in (free, held):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in found.model.parameters():
                param.mul_(1 + 0.3 * torch.randn(param.shape, generator=generator))
    loss, without, images = loss_of_first_batch(free)
    penalised, found, _ = loss_of_first_batch(held)
    penalty = weight * by_hand(held, start, images)
    assert penalty > 0.05
    assert penalised == pytest.approx((loss + penalty).item(), rel=1e-3)
    grads = torch.autograd.grad(penalty, list(held.model.parameters()), allow_unused=True, materialize_grads=True)
    assert_close(found, [one + other for one, other in zip(without, grads, strict=True)])


def test_co_tuning_learns_from_the_weights_own_classes_and_says_when_there_are_none(source):
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    pretrained = ModelSource("test_resnet", Weights("file:tests", "0" * 16, state), 2, 32)
    results = metrics(trainer(pretrained, co_tuning=1.0))
    assert all(math.isfinite(result["train_loss"]) for result in results)
    assert results[0]["train_loss"] > metrics(trainer(pretrained))[0]["train_loss"]
    with pytest.raises(ConfigError, match=r"strategy.co_tuning: the pretrained weights bring no classifier"):
        trainer(source, co_tuning=1.0)


def test_a_student_learns_from_its_teacher_alone(source):
    teacher = trainer(source, epochs=8)
    list(teacher)
    says = Teacher(teacher.model, NORMALISE, 32, DEVICE)
    strategy = Strategy(epochs=6, batch_size=16, lr=3e-3, distill_weight=1.0, mixup=0.2)
    # Labels turned round: whatever the student gets right, it has from the teacher.
    wrong = halves(retarget=lambda half: 1 - half)
    wrong.val.targets = DATA.val.targets
    results = list(Trainer(source, wrong, strategy, 1, DEVICE, says))
    assert results[-1].metrics["val_accuracy"] > 0.9
    with pytest.raises(ConfigError, match=r"strategy.distill_weight: the study has no teacher"):
        trainer(source, distill_weight=0.5)


def test_rare_classes_are_shown_as_often_as_the_sampling_says():
    shown = []
    for sampling in ("natural", "sqrt", "balanced"):
        strategy, short = Strategy(batch_size=16, sampling=sampling), ShortEpochs(0, 1.0)
        batches = Batches(lopsided(), strategy, 0, DEVICE, NORMALISE, None, NOTHING_REUSED, short, ALONE)
        shown.append(sum(int(targets.sum()) for _, targets, _ in batches.read(batches.draw_order())))
    assert shown == [7, pytest.approx(16, abs=1), 32]


def test_rare_classes_weigh_as_much_as_the_class_weights_say(source):
    weights = weights_of_classes(lopsided(), Strategy(class_weights="balanced"), DEVICE)
    assert (weights[1] / weights[0]).item() == pytest.approx(57 / 7)
    data = halves("regression", lambda half: half[:, None].float())
    with pytest.raises(ConfigError, match=r"strategy.class_weights: task regression has no classes"):
        Trainer(source, data, Strategy(loss="l1", class_weights="balanced"), 0, DEVICE)


def test_rates_follow_relative_gradients_anew_in_each_epoch(source):
    found = trainer(source, lr_by="gradient", depth=3, head_lr_scale=2.0)
    factors = []
    for _ in found:
        scales = {p.block: p.lr_scale for p in found.plan.params if p.from_epoch is not None}
        assert scales.pop(-1) == 2.0
        assert max(scales.values()) == 1.0
        assert min(scales.values()) < 1.0
        factors.append(scales)
    assert factors[0] != factors[1]


def test_measuring_gradients_leaves_batch_statistics_and_draws_alone(source):
    rated, plain = trainer(source, lr_by="gradient", lr=1e-30), trainer(source, lr=1e-30)
    next(rated), next(plain)
    for (name, tensor), other in zip(rated.model.named_buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(tensor, other), name


def test_images_grow_over_the_epochs_and_are_scored_at_their_final_size(source):
    found = trainer(source, grow_from=0.5, image_scale=0.75, epochs=3)
    sizes = []
    found.model.register_forward_pre_hook(lambda module, inputs: sizes.append((module.training, inputs[0].shape[-1])))
    list(found)
    assert [size for training, size in sizes if training] == [16] * 4 + [16] * 4 + [24] * 4
    assert {size for training, size in sizes if not training} == {24}


@pytest.mark.parametrize("schedule", ["plateau", "one_cycle", "multistep", "step", "poly"])
def test_every_schedule_ends_where_it_should_and_can_be_resumed(source, schedule):
    strategy = {"schedule": schedule, "warmup_steps": 3, "epochs": 4, "lr": 3e-3}
    whole = metrics(trainer(source, **strategy))
    first = trainer(source, **strategy)
    begun = [next(first).metrics, next(first).metrics]
    state = first.state_dict()
    second = trainer(source, **strategy)
    second.load_state_dict(state)
    assert begun + metrics(second) == whole
    assert whole[-1]["lr"] <= whole[0]["lr"]


@pytest.mark.parametrize(
    "strategy",
    [
        {"parameters": "lora", "ema": 0.9},
        {"sampling": "balanced", "class_weights": "effective_number"},
        {"l2_sp": 0.1, "delta": 0.1, "bss": 0.01},
        {"grow_from": 0.5},
    ],
    ids="-".join,
)
def test_whatever_is_asked_for_a_break_changes_nothing(source, strategy):
    whole = metrics(trainer(source, **strategy))
    first = trainer(source, **strategy)
    begun = [next(first).metrics, next(first).metrics]
    state = first.state_dict()
    second = trainer(source, **strategy)
    second.load_state_dict(state)
    assert begun + metrics(second) == whole


def test_what_has_no_effect_has_none(source):
    idle = {"l2_sp": 1.0, "stochastic_norm": 0.5, "lr_by": "gradient", "parameters": "norms", "focal_gamma": 5.0}
    assert metrics(trainer(source, depth=0, **idle)) == metrics(trainer(source, depth=0))


def test_a_range_test_finds_a_rate_that_trains(source):
    found = trainer(source, optimizer="sgd").try_rates(1e-5, 10.0, 60)
    assert found.rates[0] == pytest.approx(1e-5)
    assert found.suggestion is not None
    good, slow = (metrics(trainer(source, optimizer="sgd", lr=lr)) for lr in (found.suggestion, found.suggestion / 300))
    assert good[-1]["train_loss"] < slow[-1]["train_loss"]


BROKEN_UP = [
    {"ema": 0.9, "augment": "light"},
    {"swa_epochs": 2},
    {"views": 2, "augment": "light"},
    {"sam_rho": 0.05, "sampling": "balanced"},
    {"lr_by": "gradient"},
    {"stochastic_norm": 0.5, "dropout": 0.2, "drop_path": 0.2},
    {"schedule": "plateau", "unfreeze_epochs": 2},
]


def divided(source: ModelSource, parts: int, **strategy) -> Trainer:
    values = {"epochs": 3, "batch_size": 16, "lr": 3e-3} | strategy
    return Trainer(source, DATA, Strategy(**values), 0, DEVICE, parts=parts)


@pytest.mark.parametrize("strategy", BROKEN_UP[::2], ids="-".join)
def test_looking_several_times_an_epoch_changes_nothing_in_the_training(source, strategy):
    whole = list(trainer(source, **strategy))
    looked = list(divided(source, 2, **strategy))
    assert [result.step for result in looked] == [1, 2, 3, 4, 5, 6]
    assert [result.epoch for result in looked] == [0.5, 1, 1.5, 2, 2.5, 3]
    ends = [result for result in looked if result.ends_epoch]
    assert [result.metrics for result in ends] == [result.metrics for result in whole]


@pytest.mark.parametrize("strategy", BROKEN_UP, ids="-".join)
def test_a_break_within_an_epoch_changes_nothing(source, strategy):
    whole = metrics(divided(source, 4, **strategy))
    first = divided(source, 4, **strategy)
    begun = [next(first).metrics for _ in range(6)]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = divided(source, 4, **strategy)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert begun + metrics(second) == whole


def test_of_more_looks_than_updates_those_without_a_new_update_are_left_out(source):
    steps = [result.step for result in divided(source, 4, batch_size=32, epochs=2)]
    assert steps == [2, 4, 6, 8]


def test_short_epochs_see_their_share_and_the_schedule_goes_by_the_epoch(source):
    strategy = Strategy(epochs=3, batch_size=16, lr=3e-3, schedule="cosine")
    found = Trainer(source, DATA, strategy, 0, DEVICE, short=ShortEpochs(1, 0.5))
    sizes = []
    found.model.register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0])) if module.training else None
    )
    rates = [result.metrics["lr"] for result in found]
    assert sizes == [16] * 2 + [16] * 4 + [16] * 4
    whole = [result["lr"] for result in metrics(trainer(source, schedule="cosine"))]
    assert rates[1:] == whole[1:]
    # The last of two updates stands where the third of four does.
    assert whole[0] < rates[0] < 3e-3
