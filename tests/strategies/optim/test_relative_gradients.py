import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from strategies import ConfigError, TrialError, split_blocks
from strategies.optim import RelativeGradients
from strategies.optim.relative_gradients import gradient_ratios

MODELS = ["test_vit", "test_resnet"]


def make_model(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **({"img_size": 32} if name == "test_vit" else {}))


def backward(model, seed=0):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0, 1, 2])).backward()


def params_of_blocks(model):
    return [block.params for block in split_blocks(model).body]


def given(*blocks):
    """A model of one parameter a block, with its gradient, and the names of the blocks."""
    model = nn.ParameterDict()
    for index, (values, grad) in enumerate(blocks):
        model[f"p{index}"] = nn.Parameter(torch.tensor(values))
        model[f"p{index}"].grad = None if grad is None else torch.tensor(grad)
    return model, [[f"p{index}"] for index in range(len(blocks))]


def factors(*blocks):
    ratios = RelativeGradients(*given(*blocks))
    ratios.add()
    return ratios.factors()


def written_out(model, blocks):
    found = []
    params = {name: (p.detach().numpy().astype(float), p.grad) for name, p in model.named_parameters()}
    for names in blocks:
        grads = np.concatenate([params[name][1].numpy().astype(float).ravel() for name in names])
        values = np.concatenate([params[name][0].ravel() for name in names])
        found.append(math.sqrt((grads**2).sum()) / math.sqrt((values**2).sum()))
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
def test_ratios_and_their_mean_over_batches_are_as_written_out(name):
    model = make_model(name).train()
    blocks = params_of_blocks(model)
    ratios, wanted = RelativeGradients(model, blocks), []
    for seed in range(3):
        backward(model, seed)
        wanted.append(written_out(model, blocks))
        np.testing.assert_allclose(gradient_ratios(model, blocks).numpy(), wanted[-1], rtol=1e-4)
        ratios.add()
    mean = np.mean(wanted, axis=0)
    np.testing.assert_allclose(ratios.factors(), mean / mean.max(), rtol=1e-4)
    assert max(ratios.factors()) == 1


def test_each_batch_weighs_the_same_whatever_its_loss_was():
    model, blocks = given(([1.0], [1.0]), ([2.0], [4.0]))
    ratios = RelativeGradients(model, blocks)
    ratios.add()
    model["p0"].grad.fill_(9.0)
    ratios.add()
    assert ratios.factors() == pytest.approx([1.0, 2 / 5])


def test_a_factor_for_all_gradients_changes_nothing():
    model = make_model("test_resnet")
    blocks, found = params_of_blocks(model), []
    backward(model)
    for _ in range(2):
        ratios = RelativeGradients(model, blocks)
        ratios.add()
        found.append(ratios.factors())
        for param in model.parameters():
            param.grad.mul_(1024)
    assert found[0] == found[1]


def test_frozen_parameters_count_in_neither_norm_and_frozen_blocks_get_nothing():
    model = make_model("test_resnet")
    blocks = params_of_blocks(model)
    for name, param in model.named_parameters():
        param.requires_grad_(name not in blocks[0] and not name.endswith("bn1.weight"))
    backward(model)
    trained = [[name for name in names if not name.endswith("bn1.weight")] for names in blocks[1:]]
    found = gradient_ratios(model, blocks).numpy()
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], written_out(model, trained), rtol=1e-4)
    ratios = RelativeGradients(model, blocks)
    ratios.add()
    assert ratios.factors()[0] == 0


def test_reading_gradients_changes_neither_them_nor_the_model():
    model = make_model("test_vit")
    backward(model)
    before = [(param.clone(), param.grad.clone()) for param in model.parameters()]
    gradient_ratios(model, params_of_blocks(model))
    for (value, grad), param in zip(before, model.parameters(), strict=True):
        assert torch.equal(value, param) and torch.equal(grad, param.grad)


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        # zero weights with a gradient are the furthest from where they should be, and leave the others their scale
        ([([0.0, 0.0], [1e-9, 0.0]), ([3.0, 4.0], [0.0, 1.0]), ([1.0], [0.1])], [1.0, 1.0, 0.5]),
        ([([0.0], [0.0]), ([1.0], [1.0])], [0.0, 1.0]),
        ([([1.0], [0.0]), ([1.0], None), ([2.0], [1.0])], [0.0, 0.0, 1.0]),
        ([([0.0], [1.0]), ([1.0], [0.0])], [1.0, 0.0]),
        ([([1.0], None), ([2.0], [0.0])], [1.0, 1.0]),
        ([([1.0], [1e-30]), ([1.0], [1e-31])], [1.0, 0.1]),
    ],
)
def test_zero_norms_and_missing_gradients_give_finite_factors(blocks, wanted):
    assert factors(*blocks) == pytest.approx(wanted)


def test_a_block_without_parameters_gets_nothing():
    model, _ = given(([1.0], [1.0]))
    ratios = RelativeGradients(model, [[], ["p0"]])
    ratios.add()
    assert ratios.factors() == [0.0, 1.0]


@pytest.mark.parametrize("grad", [math.nan, math.inf])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_refused_with_its_block(grad, weight):
    with pytest.raises(TrialError, match="block 1 is not finite"):
        factors(([1.0], [1.0]), ([weight], [grad]))


def test_wrong_names_and_no_batches_are_refused():
    model, _ = given(([1.0], [1.0]))
    with pytest.raises(ConfigError, match="'p1' is no parameter of ParameterDict; known: p0"):
        gradient_ratios(model, [["p1"]])
    with pytest.raises(ValueError, match="no batch"):
        RelativeGradients(model, [["p0"]]).factors()
