"""When reuse of a prefix pays, and where its outputs come from."""

from collections.abc import Iterable
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from strategies import Strategy, freeze, make_plan, set_train_mode
from trainers import create_classifier
from trainers.reuse import Activations, ActivationStore, BlockGraph, Cut, cut_at, trace_blocks
from trainers.reuse.cost import Cost, measure, weigh
from trainers.reuse.prefix import frozen_blocks, prefix_rows
from trainers.reuse.store import Content, weights_digest

GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def traced() -> tuple[BlockGraph, nn.Module]:
    torch.manual_seed(0)
    model = create_classifier("test_convnext", 5, 64)
    return trace_blocks(model, (3, 64, 64)), model


@pytest.fixture
def store(tmp_path) -> ActivationStore:
    return ActivationStore(tmp_path, GIB)


def images() -> Iterable[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 3, 64, 64, generator=generator).split(4)


def never() -> Iterable[torch.Tensor]:
    raise AssertionError("was computed from the images")


def contents(model):
    def content_of(cut: Cut) -> Content:
        weights = weights_digest(model, cut.state_names)
        return Content(weights, "test_convnext", 3, 64, cut.description, "f", "val", "plain", 0, "cpu fp32")

    return content_of


def read(found: Activations) -> torch.Tensor:
    (rows,) = next(found.batches(torch.arange(len(found)), len(found), CPU))
    return rows


def cost(**changes) -> Cost:
    values = {"compute": 1e-3, "read": 1e-5, "images": 1000, "passes": 10, "bytes": 10**6, "stored": False}
    return Cost(**values | changes)


def test_what_is_spared_is_that_of_one_pass(store):
    assert weigh(cost(), store).spared == pytest.approx(1000 * (1e-3 - 1e-5))
    assert weigh(cost(read=1e-2), store).spared == 0


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    [
        ({"depth": 0}, 11),
        ({"depth": 3}, 8),
        ({"depth": 11}, 0),
        ({"depth": 3, "unfreeze_epochs": 3}, 8),
        ({"depth": 3, "depth_from": "middle"}, 4),
        ({"depth": 3, "depth_from": "input"}, 0),
        ({"depth": 3, "parameters": "biases"}, 8),
        ({"depth": 0, "batch_norm": "frozen"}, 11),
    ],
)
def test_blocks_that_no_epoch_of_a_plan_changes_are_counted_from_the_input(traced, strategy, frozen):
    _, model = traced
    assert frozen_blocks(model, make_plan(model, Strategy(epochs=5, **strategy))) == frozen


def test_a_block_of_batch_norm_statistics_alone_is_not_frozen():
    model = create_classifier("test_resnet", 5, 64)
    bias_free = make_plan(model, Strategy(depth=5, parameters="biases"))
    assert frozen_blocks(model, bias_free) == 0


def test_a_prefix_that_is_slower_than_reading_is_reused(store):
    verdict = weigh(cost(), store)
    assert verdict.use
    assert verdict.reason == (
        "reuse: an image takes 1.000 ms to compute and 0.010 ms to read; 1.0 MiB spare 8.9 s in 10 passes"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"read": 2e-3}, "no reuse: an image takes 1.000 ms to compute and 2.000 ms to read"),
        ({"passes": 1}, "1 passes spare less than storing costs"),
        ({"bytes": 2 * GIB}, "no reuse: 2,048.0 MiB of activations have no room in the cache"),
    ],
)
def test_reuse_that_does_not_pay_is_declined_with_the_reason(store, changes, reason):
    verdict = weigh(cost(**changes), store)
    assert not verdict.use
    assert reason in verdict.reason
    assert "\n" not in verdict.reason


def test_storing_takes_what_a_disk_takes(store):
    assert cost(bytes=0).building == pytest.approx(1.01)
    assert cost(bytes=10**9).building == pytest.approx(3.0)


def test_what_is_stored_pays_sooner(store):
    assert weigh(cost(passes=1, stored=True), store).use
    assert weigh(cost(bytes=2 * GIB, stored=True), store).use
    assert not weigh(cost(read=2e-3, stored=True), store).use


def test_computing_and_reading_are_timed_and_leave_the_model_as_it_was(traced):
    graph, model = traced
    cut = cut_at(graph, model, graph.num_blocks)
    batch = next(iter(images()))
    modes = [module.training for module in model.modules()]
    found = measure(model, cut, batch, images=1000, passes=5)
    assert found.compute > 0
    assert found.read > 0
    assert found.bytes == 1000 * cut.row_bytes
    assert not found.stored
    assert [module.training for module in model.modules()] == modes


def test_reading_more_than_the_memory_holds_is_as_slow_as_a_disk(traced):
    graph, model = traced
    cut = cut_at(graph, model, 1)
    found = measure(model, cut, next(iter(images())), images=10**10, passes=5)
    assert found.read >= cut.row_bytes / 500e6


def test_outputs_are_computed_once(traced, store):
    graph, model = traced
    cut = cut_at(graph, model, 3)
    model.train()
    built = prefix_rows(store, graph, model, cut, contents(model), images, 10, 4)
    direct = torch.cat([cut.prefix(model, batch)[0] for batch in images()])
    assert torch.equal(read(built), direct)
    assert torch.equal(read(prefix_rows(store, graph, model, cut, contents(model), never, 10, 4)), direct)
    rows = measure(model, cut, next(iter(images())), images=10, passes=5, stored=built)
    assert rows.stored
    assert rows.building == 0


def test_outputs_of_a_deeper_cut_are_computed_from_those_of_the_nearest(traced, store):
    graph, model = traced
    cuts = [cut_at(graph, model, k) for k in (1, 3, 6, graph.num_blocks)]
    prefix_rows(store, graph, model, cuts[0], contents(model), images, 10, 4)
    for cut in (cuts[2], cuts[3], cuts[1]):
        built = prefix_rows(store, graph, model, cut, contents(model), never, 10, 4, shallower=cuts)
        direct = torch.cat([cut.prefix(model, batch)[0] for batch in images()])
        assert torch.equal(read(built), direct)


def test_other_weights_in_the_prefix_are_another_entry_and_others_behind_it_are_not(traced, store):
    graph, _ = traced
    torch.manual_seed(1)
    model = create_classifier("test_convnext", 5, 64)
    cut = cut_at(graph, model, 3)
    built = prefix_rows(store, graph, model, cut, contents(model), images, 10, 4)
    with torch.no_grad():
        model.head.fc.weight.zero_()
    assert torch.equal(read(prefix_rows(store, graph, model, cut, contents(model), never, 10, 4)), read(built))
    with torch.no_grad():
        model.stem[0].weight.mul_(2)
    other = prefix_rows(store, graph, model, cut, contents(model), images, 10, 4)
    assert not torch.equal(read(other), read(built))


@pytest.mark.parametrize("k", [3, 8, -1])
def test_epochs_on_stored_outputs_are_those_of_the_whole_model(traced, store, k):
    graph, model = traced
    cut = cut_at(graph, model, k if k > 0 else graph.num_blocks)
    targets = torch.arange(10) % 5
    pixels = torch.cat(list(images()))
    orders = torch.stack([torch.randperm(10, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])

    def losses(reuse: bool) -> torch.Tensor:
        trained = deepcopy(model)
        plan = make_plan(trained, Strategy(depth=graph.num_blocks - cut.k))
        freeze(trained, plan)
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        stored = prefix_rows(store, graph, trained, cut, contents(trained), images, 10, 4) if reuse else None
        found = []
        for order in orders:
            set_train_mode(trained, plan)
            batches = (pixels[part] for part in order.split(5)) if stored is None else stored.batches(order, 5, CPU)
            for batch, part in zip(batches, order.split(5), strict=True):
                logits = trained(batch) if stored is None else cut.suffix(trained, batch)
                loss = functional.cross_entropy(logits, targets[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(loss.detach())
        return torch.stack(found)

    slow, fast = losses(reuse=False), losses(reuse=True)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    assert len(set(slow.tolist())) == len(slow)
