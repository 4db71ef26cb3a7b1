import io

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import update_bn

from strategies import Strategy, freeze, make_plan, set_train_mode
from strategies.optim import WeightAverage, ema_weight, refit_batch_norm, swa_weight


def model_of(name="test_resnet"):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3).train()


def trained_names(model):
    return {name for name, param in model.named_parameters() if param.requires_grad}


def train_a_little(model, seed):
    """Change what a step would: trained parameters and BatchNorm's statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn(param.shape, generator=generator))
        model(torch.rand(4, 3, 32, 32, generator=generator))


def values_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found, expected, rtol=0.0, atol=0.0):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_exponential_average_is_timms(name, decay):
    model = model_of(name)
    average = WeightAverage(model, trained_names(model))
    timms = ModelEmaV3(model, decay=decay, use_warmup=True)
    for step in range(6):
        train_a_little(model, step)
        average.update(ema_weight(average.updates, decay))
        timms.update(model, step=step + 1)
    with average.swapped():
        assert_same(values_of(model), timms.module.state_dict(), rtol=1e-6, atol=1e-7)


def test_the_decay_warms_up_to_its_value():
    weights = [ema_weight(n, 0.9) for n in range(50)]
    assert weights[0] == 1
    assert weights == sorted(weights, reverse=True)
    assert weights[7] == pytest.approx(1 / 4)
    assert weights[-1] == pytest.approx(0.1)


def test_the_stochastic_average_is_the_mean_over_all_updates_and_counters_are_the_last():
    model = model_of()
    average = WeightAverage(model, trained_names(model))
    seen = []
    for step in range(5):
        train_a_little(model, step)
        average.update(swa_weight(average.updates))
        seen.append({name: tensor.numpy().copy() for name, tensor in model.state_dict().items()})
    with average.swapped():
        for name, tensor in model.state_dict().items():
            series = [values[name] for values in seen]
            expected = np.mean(series, axis=0) if tensor.is_floating_point() else series[-1]
            np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_only_what_training_changes_is_kept_twice():
    model = model_of()
    plan = make_plan(model, Strategy(depth=1))
    freeze(model, plan)
    average = WeightAverage(model, plan.trainable)
    buffers = {name for name, _ in model.named_buffers()}
    assert set(average.state_dict()["mean"]) == plan.trainable | buffers
    before = values_of(model)
    average.update(0.5)
    with average.swapped():
        assert_same(values_of(model), before)


def test_outside_of_the_swap_the_model_is_as_it_was_to_the_bit_even_after_an_error():
    model = model_of()
    average = WeightAverage(model, trained_names(model))
    start = values_of(model)
    train_a_little(model, 0)
    later = values_of(model)
    with average.swapped():
        assert_same(values_of(model), start)
    assert_same(values_of(model), later)
    with pytest.raises(KeyError), average.swapped():
        raise KeyError
    assert_same(values_of(model), later)
    with average.swapped():
        assert_same(values_of(model), start)


def test_an_optimizer_trains_on_as_if_there_were_no_average():
    results = []
    for averaged in (False, True):
        model = nn.Linear(3, 2)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        average = WeightAverage(model, trained_names(model))
        for step in range(4):
            optimizer.zero_grad()
            (model(torch.full((2, 3), step + 1.0)) ** 2).sum().backward()
            optimizer.step()
            if averaged:
                average.update(ema_weight(average.updates, 0.9))
                with average.swapped():
                    model(torch.ones(1, 3))
        results.append(model.weight.detach().clone())
    assert torch.equal(*results)


def test_an_average_goes_on_from_its_saved_state_as_if_never_stopped():
    model = model_of()
    average = WeightAverage(model, trained_names(model))
    for step in range(3):
        train_a_little(model, step)
        average.update(ema_weight(average.updates, 0.9))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, file)
    for step in range(3, 6):
        train_a_little(model, step)
        average.update(ema_weight(average.updates, 0.9))

    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = timm.create_model("test_resnet", num_classes=3).train()
    resumed = WeightAverage(again, trained_names(again))
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["average"])
    assert resumed.updates == 3
    for step in range(3, 6):
        train_a_little(again, step)
        resumed.update(ema_weight(resumed.updates, 0.9))
    assert_same(values_of(again), values_of(model))
    with average.swapped(), resumed.swapped():
        assert_same(values_of(again), values_of(model))


def test_a_model_without_numbers_that_change_has_an_average_all_the_same():
    average = WeightAverage(nn.ReLU(), set())
    average.update(0.5)
    assert average.state_dict() == {"updates": 1, "mean": {}}


BATCHES = [torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) + seed for seed in range(3)]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_refitted_statistics_are_torchs_and_the_mean_over_batches(name):
    model, reference = model_of(name), model_of(name)
    train_a_little(model, 0)
    reference.load_state_dict(model.state_dict())
    refit_batch_norm(model, BATCHES)
    update_bn(BATCHES, reference)
    assert_same(values_of(model), values_of(reference))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 3


def test_statistics_of_the_first_norm_are_those_of_what_it_sees():
    model = nn.Sequential(nn.BatchNorm2d(3))
    refit_batch_norm(model, BATCHES)
    np.testing.assert_allclose(
        model[0].running_mean, np.mean([b.numpy().mean((0, 2, 3)) for b in BATCHES], 0), rtol=1e-5
    )
    variances = [b.numpy().var((0, 2, 3)) * 6 * 32 * 32 / (6 * 32 * 32 - 1) for b in BATCHES]
    np.testing.assert_allclose(model[0].running_var, np.mean(variances, 0), rtol=1e-4)


def test_frozen_norms_keep_their_statistics():
    model = model_of()
    plan = make_plan(model, Strategy(depth=1))
    set_train_mode(model, plan)
    before = values_of(model)
    refit_batch_norm(model, BATCHES)
    changed = {
        name.rpartition(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert changed == {name for name, module in norms.items() if module.training}
    assert 0 < len(changed) < len(norms)


def test_without_norms_that_train_nothing_is_computed():
    def batches():
        raise AssertionError
        yield

    refit_batch_norm(model_of().eval(), batches())
    refit_batch_norm(model_of("test_vit"), batches())


def test_momentum_is_back_after_an_error():
    model = model_of()
    with pytest.raises(RuntimeError):
        refit_batch_norm(model, [torch.rand(2, 1, 32, 32)])
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_what_is_fitted_inside_the_swap_belongs_to_the_average():
    model = model_of()
    average = WeightAverage(model, trained_names(model))
    train_a_little(model, 0)
    own = values_of(model)
    with average.swapped():
        refit_batch_norm(model, BATCHES)
        fitted = values_of(model)
    assert_same(values_of(model), own)
    with average.swapped():
        assert_same(values_of(model), fitted)
