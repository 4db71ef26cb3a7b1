import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from strategies import Strategy, TrialError, check_applied, freeze, make_optimizer, make_plan, set_train_mode

SMALL = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_nfnet"]


def make(name: str, strategy: Strategy):
    torch.manual_seed(0)
    how = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **how)
    plan = make_plan(model, strategy)
    freeze(model, plan)
    return model, plan, make_optimizer(model, plan, strategy)


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def steps(model, plan, optimizer, epoch=0, count=2):
    """Names of the entries of the state dict that so many steps of an epoch change."""
    before = tensors(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        freeze(model, plan, epoch)
        set_train_mode(model, plan, epoch)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["lr_scale"]
        check_applied(model, plan, optimizer, epoch)
        images = torch.randn(4, 3, 32, 32, generator=generator)
        loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = tensors(model)
    return {key for key in before if not torch.equal(before[key], after[key])}


#: All depths on all small families; all modes of BatchNorm on those that have BatchNorm, where blocks are trained; half
#: the depth on larger families, whose layers have other names.
CASES = [
    *((name, depth, "train") for name in SMALL for depth in (0, 1, 0.5, 1.0)),
    *(
        (name, depth, batch_norm)
        for name in ("test_resnet", "test_efficientnet")
        for depth in (1, 0.5, 1.0)
        for batch_norm in ("frozen_stats", "frozen")
    ),
    *(
        (name, 0.5, batch_norm)
        for name in ("tf_efficientnet_lite0", "densenet121")
        for batch_norm in ("train", "frozen")
    ),
]


@pytest.mark.parametrize(("name", "depth", "batch_norm"), CASES)
def test_two_steps_change_all_that_is_trained_and_no_bit_of_what_is_frozen(name, depth, batch_norm):
    model, plan, optimizer = make(name, Strategy(depth=depth, batch_norm=batch_norm, lr=0.01, weight_decay=0.1))
    changed = steps(model, plan, optimizer)
    parameters = set(dict(model.named_parameters()))
    assert changed & parameters == plan.trainable
    norms = {n for n, module in model.named_modules() if isinstance(module, _BatchNorm)}
    live = {n for n in norms if n not in plan.eval_modules(0)}
    assert {key.rpartition(".")[0] for key in changed - parameters} == live
    if batch_norm != "train" or depth == 0:
        assert not live
    if batch_norm == "frozen":
        assert not {key.rpartition(".")[0] for key in plan.trainable} & norms


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize(("depth_from", "blocks"), [("head", {-2, -1}), ("input", {0, 1}), ("middle", None)])
def test_the_trained_blocks_lie_where_the_strategy_says(name, depth_from, blocks):
    model, plan, optimizer = make(name, Strategy(depth=2, depth_from=depth_from))
    trained = {p.block for p in plan.params if p.trained_in(0)} - {-1}
    middle = (plan.num_blocks - 2) // 2
    expected = {middle, middle + 1} if blocks is None else {k % plan.num_blocks for k in blocks}
    assert trained == expected
    changed = steps(model, plan, optimizer)
    assert changed & set(dict(model.named_parameters())) == plan.trainable


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("parameters", ["norms", "biases", "norms_and_biases"])
def test_norms_or_biases_alone_are_trained_beside_the_head(name, parameters):
    model, plan, optimizer = make(name, Strategy(parameters=parameters))
    for entry, tensor in model.named_parameters():
        if tensor.ndim == 1 and entry.endswith("weight"):
            # A random residual block begins with a last weight of zero, which no gradient passes.
            torch.nn.init.constant_(tensor, 0.5)
    changed = steps(model, plan, optimizer) & set(dict(model.named_parameters()))
    assert changed == plan.trainable
    head = {p.name for p in plan.params if p.block == -1}
    modules = dict(model.named_modules())

    def chosen(entry: str) -> bool:
        module, _, last = entry.rpartition(".")
        in_norm = "Norm" in type(modules[module]).__name__
        return {"norms": in_norm, "biases": last == "bias", "norms_and_biases": in_norm or last == "bias"}[parameters]

    assert changed - head == {entry for entry in dict(model.named_parameters()) if entry not in head and chosen(entry)}
    assert head <= changed
    assert changed > head


def test_blocks_are_unfrozen_from_the_head_on_epoch_by_epoch():
    strategy = Strategy(depth=4, unfreeze_epochs=4, epochs=8, optimizer="sgd", weight_decay=0.1)
    model, plan, optimizer = make("test_vit", strategy)
    parameters = set(dict(model.named_parameters()))
    for epoch in range(6):
        changed = steps(model, plan, optimizer, epoch) & parameters
        blocks = {p.block for p in plan.params if p.name in changed} - {-1}
        assert blocks == set(range(plan.num_blocks - min(4, epoch + 1), plan.num_blocks))
        assert changed == {p.name for p in plan.params if p.trained_in(epoch)}
    assert plan.trainable == changed


def test_batch_norms_wake_up_with_their_block():
    model, plan, _ = make("test_resnet", Strategy(unfreeze_epochs=3, epochs=3))
    norms = {n for n, module in model.named_modules() if isinstance(module, _BatchNorm)}
    asleep = [len(norms & plan.eval_modules(epoch)) for epoch in range(4)]
    assert asleep == sorted(asleep, reverse=True)
    assert asleep[3] == 0 < asleep[0]


def test_the_head_may_learn_faster_than_the_blocks():
    _, plan, _ = make("test_resnet", Strategy(head_lr_scale=10, layer_decay=0.5))
    scales = {p.block: p.lr_scale for p in plan.params}
    assert (scales[-1], scales[plan.num_blocks - 1], scales[plan.num_blocks - 2]) == (10, 0.5, 0.25)


def test_depth_zero_trains_the_head_alone_and_depth_all_everything():
    model, plan, _ = make("test_resnet", Strategy(depth=0))
    assert plan.trainable == {"fc.weight", "fc.bias"}
    _, plan, _ = make("test_resnet", Strategy(depth=1.0))
    assert plan.trainable == set(dict(model.named_parameters()))


def test_depth_one_trains_the_head_and_the_block_next_to_it():
    model, plan, _ = make("test_resnet", Strategy(depth=1))
    assert plan.trainable == {n for n, _ in model.named_parameters() if n.startswith(("fc.", "layer4."))}
    model, plan, _ = make("test_vit", Strategy(depth=1))
    assert plan.trainable == {n for n, _ in model.named_parameters() if n.startswith(("head.", "norm.", "blocks.5."))}


def test_rates_are_counted_from_the_head_whatever_is_frozen_below():
    scales = []
    for depth in (2, 1.0):
        _, plan, _ = make("test_resnet", Strategy(depth=depth, layer_decay=0.5))
        scales.append({p.name: p.lr_scale for p in plan.params if p.trained_in(0)})
        top = {p.block: p.lr_scale for p in plan.params}
        assert top[-1] == 1.0
        assert [top[plan.num_blocks - d] for d in (1, 2, 3)] == [0.5, 0.25, 0.125]
    shallow, deep = scales
    assert shallow.items() <= deep.items()


def test_norms_and_biases_are_not_decayed():
    for name in ("test_resnet", "test_vit"):
        model, plan, _ = make(name, Strategy(weight_decay=0.1))
        decayed = {p.name for p in plan.params if p.weight_decay}
        assert decayed == {
            n for n, t in model.named_parameters() if t.ndim > 1 and n not in ("cls_token", "pos_embed", "reg_token")
        }


@pytest.mark.parametrize("depth", [0, 2])
def test_frozen_blocks_are_in_eval_mode_down_to_every_submodule(depth):
    model, plan, _ = make("test_vit", Strategy(depth=depth))
    set_train_mode(model, plan)
    frozen = {p.name.rpartition(".")[0] for p in plan.params if p.block != -1 and not p.trained_in(0)}
    trained = {p.name.rpartition(".")[0] for p in plan.params if p.trained_in(0)}
    modes = {name: module.training for name, module in model.named_modules()}
    assert not any(modes[name] for name in frozen if name)
    assert all(modes[name] for name in trained if name)
    # Attention drops by its own flag, which is no leaf's.
    assert modes["blocks.0.attn"] is (depth == plan.num_blocks)


def spoil_lr(model, optimizer):
    optimizer.param_groups[-1]["lr"] *= 2


def spoil_decay(model, optimizer):
    optimizer.param_groups[0]["weight_decay"] += 0.1


def spoil_freezing(model, optimizer):
    next(model.parameters()).requires_grad_(True)


def spoil_head(model, optimizer):
    model.get_classifier().weight.requires_grad_(False)


def spoil_mode(model, optimizer):
    model.train()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_lr, "has lr"),
        (spoil_decay, "has weight decay"),
        (spoil_freezing, "conv1.weight should be frozen|should be frozen"),
        (spoil_head, "fc.weight should be trained"),
        (spoil_mode, "should be in eval mode"),
    ],
)
def test_a_deviation_from_the_plan_is_found_and_named(spoil, said):
    model, plan, optimizer = make("test_resnet", Strategy(depth=2, layer_decay=0.5))
    set_train_mode(model, plan)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    check_applied(model, plan, optimizer)
    spoil(model, optimizer)
    with pytest.raises(TrialError, match=f"was not applied as planned.*({said})"):
        check_applied(model, plan, optimizer)


def test_the_manifest_has_a_record_for_each_parameter():
    model, plan, _ = make("test_resnet", Strategy(depth=1))
    assert [record["name"] for record in plan.manifest()] == [p.name for p in plan.params]
    assert {record["name"] for record in plan.manifest()} == set(dict(model.named_parameters()))
