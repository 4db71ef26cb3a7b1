import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from strategies.optim import Sam, fixed_batch_stats

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def model_of(name, seed=0):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=3)


def sam_step(model, sam, clip=0.0):
    F.cross_entropy(model(IMAGES), CLASSES).backward()
    sam.climb()
    with fixed_batch_stats(model):
        F.cross_entropy(model(IMAGES), CLASSES).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    sam.step()


def test_on_a_quadratic_the_steps_are_as_written_out():
    matrix, rho, lr, momentum = np.array([[3.0, 1.0], [1.0, 2.0]]), 0.3, 0.05, 0.9
    weight, velocity = np.array([1.0, -2.0]), np.zeros(2)
    param = nn.Parameter(torch.tensor(weight))
    optimizer = torch.optim.SGD([param], lr=lr, momentum=momentum)
    sam = Sam(optimizer, rho)
    for _ in range(10):
        gradient = matrix @ weight
        worst = weight + rho * gradient / np.sqrt((gradient**2).sum())
        velocity = momentum * velocity + matrix @ worst
        weight = weight - lr * velocity

        (param @ torch.from_numpy(matrix) @ param / 2).backward()
        sam.climb()
        np.testing.assert_allclose(param.detach(), worst, rtol=1e-12)
        (param @ torch.from_numpy(matrix) @ param / 2).backward()
        sam.step()
        optimizer.zero_grad()
        np.testing.assert_allclose(param.detach(), weight, rtol=1e-12)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_on_a_network_the_steps_are_as_written_out(name, clip):
    rho = 0.1
    model, reference = model_of(name).double().train(), model_of(name).double().train()
    for net in (model, reference):
        for param in list(net.parameters())[:4]:
            param.requires_grad_(False)
    images, frozen = IMAGES.double(), [p.clone() for p in list(model.parameters())[:4]]

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    plain = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=0.01)
    sam = Sam(optimizer, rho)
    for _ in range(3):
        F.cross_entropy(model(images), CLASSES).backward()
        sam.climb()
        with fixed_batch_stats(model):
            F.cross_entropy(model(images), CLASSES).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        sam.step()
        optimizer.zero_grad()

        trained = {n: p for n, p in reference.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(F.cross_entropy(reference(images), CLASSES), list(trained.values()))
        length = torch.sqrt(sum((g**2).sum() for g in gradients))
        worst = {n: (p + rho * g / length).detach() for (n, p), g in zip(trained.items(), gradients, strict=True)}
        for tensor in worst.values():
            tensor.requires_grad_(True)
        # On copies of the buffers, which the second pass would change.
        buffers = {n: b.clone() for n, b in reference.named_buffers()}
        loss = F.cross_entropy(functional_call(reference, worst | buffers, (images,)), CLASSES)
        gradients = torch.autograd.grad(loss, list(worst.values()))
        length = torch.sqrt(sum((g**2).sum() for g in gradients))
        for param, gradient in zip(trained.values(), gradients, strict=True):
            # As torch clips.
            param.grad = gradient * (min(1.0, clip / (length + 1e-6)) if clip else 1.0)
        plain.step()

        for found, expected in zip(model.state_dict().items(), reference.state_dict().items(), strict=True):
            torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-9, msg=found[0])
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), frozen, strict=False))


def test_a_step_of_no_length_leaves_every_weight_as_it_was_to_the_bit():
    model = model_of("test_efficientnet").train()
    before = [p.clone() for p in model.parameters()]
    sam_step(model, Sam(torch.optim.SGD(model.parameters(), lr=0.0), 0.5))
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_what_has_no_gradient_is_left_alone_and_no_gradient_at_all_leads_nowhere():
    used, unused = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([1.0]))
    sam = Sam(torch.optim.SGD([used, unused], lr=0.1), 0.5)
    (used**2).sum().backward()
    sam.climb()
    assert used.item() == 0
    ((used - 1) ** 2).sum().backward()
    sam.step()
    assert used.item() == pytest.approx(0.2)
    assert unused.item() == 1


def test_the_optimizer_keeps_its_groups_and_rates():
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    groups = [{"params": [params[0]], "lr": 0.1}, {"params": [params[1]], "lr": 0.0}]
    sam = Sam(torch.optim.SGD(groups), 0.5)
    sum((p**2).sum() for p in params).backward()
    sam.climb()
    # Both are on the way up, by the length over all of them.
    assert [p[0].item() for p in params] == pytest.approx([1.25, 1.25])
    sum((p**2).sum() for p in params).backward()
    sam.step()
    assert [p[0].item() for p in params] == pytest.approx([0.75, 1.0])


@pytest.mark.parametrize("rho", [0.0, -0.1])
def test_a_radius_that_is_not_above_zero_is_refused(rho):
    with pytest.raises(ValueError, match="is not above 0"):
        Sam(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), rho)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_with_fixed_statistics_a_pass_computes_the_same_and_changes_no_buffer(name):
    model = model_of(name).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    with fixed_batch_stats(model):
        inside = model(IMAGES)
        model.eval()
        in_eval = model(IMAGES)
        model.train()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    torch.testing.assert_close(inside, model(IMAGES))
    assert any(not torch.equal(b, before[n]) for n, b in model.named_buffers())
    model.load_state_dict(before, strict=False)
    torch.testing.assert_close(in_eval, model.eval()(IMAGES))


def test_statistics_are_free_again_after_an_error():
    model = model_of("test_resnet").train()
    with pytest.raises(RuntimeError), fixed_batch_stats(model):
        model(IMAGES[:, :1])
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
