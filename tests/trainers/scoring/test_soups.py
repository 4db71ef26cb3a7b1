"""Mixed weights against sums written out, and BatchNorm statistics against those of the images themselves."""

import numpy as np
import pytest
import timm
import torch
from small_training import DATA, DEVICE

from strategies import Strategy, WeightsError
from trainers import ModelSource, Trainer, Weights, greedy_soup, interpolate, load_mixed, normaliser, uniform_soup
from trainers.scoring import random_at_start
from trainers.scoring.soups import stale_norms

NORMALISE = normaliser((0.5,) * 3, (0.5,) * 3, DEVICE)


def numbers(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values), "steps": torch.tensor(int(values[0]))}


def model_of(seed: int, name: str = "test_resnet"):
    """A model whose BatchNorm statistics and weights are its own."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=2).train()
    with torch.no_grad():
        model(torch.rand(8, 3, 32, 32))
    return model.eval()


def test_an_interpolation_is_the_weighted_sum_and_counters_are_those_of_the_end():
    start, end = numbers(1.0, 2.0), numbers(3.0, -2.0)
    for alpha in (0.0, 0.1, 0.5, 0.9, 1.0):
        found = interpolate(start, end, alpha)
        expected = (1 - alpha) * start["w"].numpy() + alpha * end["w"].numpy()
        np.testing.assert_allclose(found["w"], expected, rtol=1e-6)
        assert found["steps"] == 3
    assert torch.equal(interpolate(start, end, 0.3, kept={"w"})["w"], end["w"])


def test_what_is_equal_in_both_is_equal_to_the_bit_between():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e3
    for alpha in np.linspace(0, 1, 11):
        assert torch.equal(interpolate({"w": values}, {"w": values.clone()}, float(alpha))["w"], values)
    assert torch.equal(uniform_soup({"w": values.clone()} for _ in range(7))["w"], values)


def test_a_uniform_soup_is_the_mean_and_one_member_is_itself():
    members = [torch.randn(5, generator=torch.Generator().manual_seed(k)) for k in range(6)]
    soup = uniform_soup({"w": member, "steps": torch.tensor(k)} for k, member in enumerate(members))
    np.testing.assert_allclose(soup["w"], np.mean([member.numpy() for member in members], axis=0), rtol=1e-5)
    assert soup["steps"] == 0
    assert torch.equal(uniform_soup([{"w": members[0]}])["w"], members[0])


def greedy_by_hand(values: list[float], target: float) -> list[int]:
    """Recipe 1 of the paper, written out for members that are one number each: the closer to the target, the better."""
    taken = [0]
    for k in range(1, len(values)):
        without = abs(np.mean([values[i] for i in taken]) - target)
        if abs(np.mean([values[i] for i in [*taken, k]]) - target) <= without:
            taken.append(k)
    return taken


@pytest.mark.parametrize("seed", range(5))
def test_a_greedy_soup_takes_what_the_papers_recipe_takes(seed):
    rng = np.random.default_rng(seed)
    values = sorted(rng.normal(size=8).tolist(), key=abs)
    expected = greedy_by_hand(values, 0.0)
    members = [{"w": torch.tensor([value], dtype=torch.float64)} for value in values]
    soup, places = greedy_soup(members, lambda state: state["w"].abs().item(), lower_is_better=True)
    assert list(places) == expected
    assert soup["w"].item() == pytest.approx(np.mean([values[i] for i in expected]))
    soup, places = greedy_soup(members, lambda state: -state["w"].abs().item(), lower_is_better=False)
    assert list(places) == expected


def test_a_greedy_soup_keeps_ties_and_refuses_what_is_no_number():
    members = [{"w": torch.tensor([value])} for value in (1.0, 2.0, 3.0)]
    assert greedy_soup(members, lambda state: 0.5, lower_is_better=False)[1] == (0, 1, 2)
    scores = iter([0.5, float("nan"), 0.6])
    assert greedy_soup(members, lambda state: next(scores), lower_is_better=False)[1] == (0, 2)


@pytest.mark.parametrize("other", [{"w": torch.zeros(3)}, {"w": torch.zeros(2), "b": torch.zeros(1)}, {}])
def test_weights_of_different_models_are_refused_by_name(other):
    with pytest.raises(WeightsError, match=r"cannot be mixed: [wb] "):
        uniform_soup([{"w": torch.zeros(2)}, other])


def test_statistics_of_mixed_models_are_those_of_the_training_images():
    first, second = (model_of(seed).state_dict() for seed in (0, 1))
    mixed = uniform_soup([first, second])
    model = model_of(2)
    load_mixed(model, mixed, first, DATA.train, len(DATA.train), NORMALISE, 0, DEVICE)
    assert not any(module.training for module in model.modules() if not isinstance(module, torch.nn.BatchNorm2d))
    found = model.state_dict()
    assert all(torch.equal(found[name], mixed[name]) for name, _ in model.named_parameters())
    # The whole split was one batch, so what the first BatchNorm was given can be written out.
    (images, _), *_ = DATA.train.batches(torch.arange(len(DATA.train)), len(DATA.train), DEVICE.torch)
    with torch.no_grad():
        inputs = model.conv1[0](NORMALISE(images.float() / 255))
    name = "conv1.1.running_mean"
    torch.testing.assert_close(found[name], inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    variance = inputs.var((0, 2, 3))
    torch.testing.assert_close(found[name.replace("mean", "var")], variance, rtol=1e-4, atol=1e-5)


def test_statistics_that_all_members_share_stay():
    first = model_of(0).state_dict()
    second = {n: tensor + 0.1 if n.endswith("weight") else tensor for n, tensor in first.items()}
    mixed = uniform_soup([first, second])
    model = model_of(2)
    assert stale_norms(model, mixed, first) == []
    load_mixed(model, mixed, first, DATA.train, 16, NORMALISE, 0, DEVICE)
    assert all(torch.equal(tensor, mixed[name]) for name, tensor in model.state_dict().items())


def test_only_modules_whose_statistics_differ_are_fitted():
    first = model_of(0).state_dict()
    changed = "layer4.0.bn1"
    second = {n: tensor * 2 if n == f"{changed}.running_var" else tensor for n, tensor in first.items()}
    mixed = interpolate(first, second, 0.5)
    model = model_of(0)
    load_mixed(model, mixed, second, DATA.train, 16, NORMALISE, 0, DEVICE)
    differing = {name.rpartition(".")[0] for name, t in model.state_dict().items() if not torch.equal(t, mixed[name])}
    assert differing == {changed}


def test_the_head_and_blocks_drawn_anew_have_no_start_unless_the_head_was_probed():
    source = ModelSource("test_resnet", Weights("file:w", "0" * 16, model_of(7).state_dict()), 2, 32)
    model = source.build(0)
    head = {"fc.weight", "fc.bias"}
    assert random_at_start(model, Strategy()) == head
    assert random_at_start(model, Strategy(probe_epochs=1)) == set()
    drawn = random_at_start(model, Strategy(reinit_blocks=1))
    assert drawn - head
    assert {name.split(".")[0] for name in drawn} == {"layer4", "fc"}
    assert random_at_start(model, Strategy(reinit_blocks=1, depth=0)) == head


def test_a_trainer_that_has_not_begun_has_the_model_that_training_starts_from():
    source = ModelSource("test_resnet", Weights("file:w", "0" * 16, model_of(7).state_dict()), 2, 32)
    strategy = Strategy(epochs=1, batch_size=16, probe_epochs=2)
    trained, again = (Trainer(source, DATA, strategy, 3, DEVICE) for _ in range(2))
    start = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    next(trained)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in trained.model.state_dict().items())
    assert all(torch.equal(tensor, start[name]) for name, tensor in again.model.state_dict().items())
