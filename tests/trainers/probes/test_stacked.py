"""Linear probes trained together, beside each trained alone."""

import math

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_training import DATA, DEVICE, halves, lopsided

from strategies import ConfigError, Strategy, TrialError
from trainers import ImageData, ModelSource, Trainer, Weights
from trainers.probes import Probes, has_linear_head, is_batchable, probe_groups, stored_features
from trainers.probes.steppers import ELEMENTWISE

COMMON = {"depth": 0, "epochs": 3, "batch_size": 16}


def source_of(name: str) -> ModelSource:
    torch.manual_seed(0)
    how = {"img_size": 32} if "vit" in name else {}
    return ModelSource(name, Weights("file:w", "0" * 16, timm.create_model(name, **how).state_dict()), 2, 32)


SOURCES = {name: source_of(name) for name in ("test_resnet", "test_vit")}
FEATURES = {name: stored_features(source, 0, DEVICE) for name, source in SOURCES.items()}


@pytest.fixture
def source() -> ModelSource:
    return SOURCES["test_resnet"]


def assert_equal_to_each_alone(
    source: ModelSource, strategies: list[Strategy], data: ImageData = DATA, seed: int = 0, features=None
) -> None:
    probes = Probes(source, data, strategies, seed, DEVICE, features)
    together = list(probes)
    assert len(together) == strategies[0].epochs
    for index, strategy in enumerate(strategies):
        trainer = Trainer(source, data, strategy, seed, DEVICE)
        for results, alone in zip(together, trainer, strict=True):
            assert results[index].step == alone.step
            assert results[index].metrics == pytest.approx(alone.metrics, rel=1e-5, abs=1e-5), strategy
        kept, wanted = probes.weights(index), trainer.weights()
        assert list(kept) == list(wanted)
        assert all(torch.allclose(kept[name], wanted[name], atol=1e-5) for name in wanted), strategy
        assert torch.allclose(probes.predict(index, data.test)[0], trainer.predict(data.test)[0], atol=1e-4)


def strategy_of(**fields) -> Strategy:
    return Strategy(**COMMON | fields)


def drawn(common: dict[str, object]) -> st.SearchStrategy[Strategy]:
    """Probes that may train together, otherwise as unlike as can be."""
    return st.builds(
        strategy_of,
        **{name: st.just(value) for name, value in common.items()},
        # Higher rates are unstable with squared error, and then rounding grows from step to step.
        lr=st.floats(1e-4, 3e-3),
        head_lr_scale=st.sampled_from([1.0, 3.0]),
        weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
        optimizer=st.sampled_from(["sgd", "adamw", "adam", "nadam", "lamb", "lars"]),
        momentum=st.sampled_from([None, 0.5]),
        beta1=st.sampled_from([None, 0.8]),
        nesterov=st.sampled_from([None, False]),
        loss=st.sampled_from(["cross_entropy", "label_smoothing", "focal", "poly1", "bce", "mse"]),
        label_smoothing=st.floats(0.02, 0.3),
        focal_gamma=st.floats(0.5, 4),
        poly1_epsilon=st.floats(-1, 4),
        mse_weight=st.floats(1, 5),
        mse_target=st.floats(1, 5),
        class_weights=st.sampled_from(["none", "balanced", "effective_number"]),
        schedule=st.sampled_from(["cosine", "one_cycle", "multistep", "step", "plateau", "poly", "constant"]),
        warmup_epochs=st.sampled_from([0.0, 0.5, 1.0]),
        clip_grad=st.sampled_from([0.0, 0.1, 1.0]),
        ema=st.sampled_from([0.0, 0.9]),
        swa_epochs=st.sampled_from([0, 2]),
        probe_epochs=st.sampled_from([0, 0, 2]),
    )


COMMONS = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([16, 24, 100]),
        "sampling": st.sampled_from(["natural", "balanced", "sqrt"]),
        "image_scale": st.sampled_from([1.0, 0.75]),
        "tta": st.sampled_from(["none", "flip", "crops"]),
        "sam_rho": st.sampled_from([0.0, 0.05]),
    }
)


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data(), common=COMMONS)
def test_each_gives_what_it_gives_alone(name, draw, common):
    common = {**common, "image_scale": 1.0} if name == "test_vit" else common
    strategies = draw.draw(st.lists(drawn(common), min_size=2, max_size=5))
    assert_equal_to_each_alone(SOURCES[name], strategies, lopsided(), 0, FEATURES[name])


@pytest.mark.parametrize("optimizer", [*ELEMENTWISE, "lars", "muon"])
def test_optimizers_step_as_alone_whatever_rate_and_decay(source, optimizer):
    rates = [(1e-4, 0.0), (1e-3, 0.3), (5e-3, 0.01)]
    strategies = [strategy_of(optimizer=optimizer, lr=lr, weight_decay=decay, clip_grad=1.0) for lr, decay in rates]
    assert_equal_to_each_alone(source, strategies, features=FEATURES["test_resnet"])


def test_each_has_its_own_parameters_of_the_optimizer(source):
    fields = [{"momentum": 0.5}, {}, {"momentum": 0.5, "nesterov": False}, {"momentum": 0.0}, {"momentum": 0.5}]
    strategies = [strategy_of(optimizer="sgd", lr=0.01, **own) for own in fields]
    fields = [{"beta1": 0.5}, {}, {"beta2": 0.9}, {"beta1": 0.5}]
    strategies += [strategy_of(optimizer="adamw", **own) for own in fields]
    # In turns, so that those that step together do not lie side by side.
    strategies = strategies[::2] + strategies[1::2]
    assert_equal_to_each_alone(source, strategies, features=FEATURES["test_resnet"])


def test_each_has_its_own_average_and_clipping(source):
    fields = [
        {},
        {"ema": 0.5},
        {"swa_epochs": 2},
        {"ema": 0.9, "clip_grad": 0.1},
        {"clip_grad": 0.01},
        {"swa_epochs": 3},
    ]
    strategies = [strategy_of(lr=0.01, epochs=4, optimizer="sgd", **own) for own in fields]
    assert_equal_to_each_alone(source, strategies, features=FEATURES["test_resnet"])


@pytest.mark.parametrize(
    ("task", "losses", "weights"),
    [("multilabel", ["bce", "focal"], ["none", "balanced"]), ("regression", ["mse", "l1", "huber"], ["none"])],
)
def test_every_task_can_be_probed(source, task, losses, weights):
    data = halves(task, lambda half: torch.stack([1.0 * (half == 0), 1.0 * half], dim=1))
    strategies = [strategy_of(loss=loss, lr=0.01, class_weights=how) for loss in losses for how in weights]
    assert_equal_to_each_alone(source, strategies, data)


def test_without_weights_the_body_is_of_the_seed():
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    assert_equal_to_each_alone(source, [strategy_of(), strategy_of(lr=0.1)], seed=5)


def test_one_that_diverges_ends_as_alone_and_leaves_the_others_as_they_are(source):
    wild = [
        strategy_of(optimizer=optimizer, lr=100.0, momentum=0.99, loss="mse", mse_weight=9999.0, epochs=8)
        for optimizer in ("sgd", "lars", "sgd")
    ]
    tame = [strategy_of(optimizer=optimizer, lr=0.01, momentum=0.99, epochs=8) for optimizer in ("sgd", "lars")]
    probes = Probes(source, DATA, [wild[0], tame[0], wild[1], tame[1], wild[2].replace(clip_grad=1.0)], 0, DEVICE)
    together = list(probes)
    assert len(together) == 8
    ended = {
        index: result for results in together for index, result in results.items() if isinstance(result, TrialError)
    }
    assert 0 in ended
    for index, error in ended.items():
        alone = Trainer(source, DATA, probes.strategies[index], 0, DEVICE)
        with pytest.raises(TrialError) as raised:
            list(alone)
        assert str(error) == str(raised.value)
        steps = [step for step, results in enumerate(together) if index in results]
        assert steps == list(range(alone.epoch if "validation" in str(raised.value) else alone.epoch + 1))
    left = Probes(source, DATA, tame, 0, DEVICE)
    for results, expected in zip(together, left, strict=True):
        for index, place in ((1, 0), (3, 1)):
            assert results[index].metrics == pytest.approx(expected[place].metrics, rel=1e-5, abs=1e-6)
            assert all(math.isfinite(value) for value in results[index].metrics.values())


def test_when_all_have_ended_there_are_no_more_epochs(source):
    probes = Probes(source, DATA, [strategy_of(), strategy_of(lr=0.1)], 0, DEVICE)
    assert next(probes).keys() == {0, 1}
    probes.drop(0)
    assert next(probes).keys() == {1}
    probes.drop(1)
    assert list(probes) == []


def test_those_that_see_the_same_batches_make_a_group():
    strategies = [
        strategy_of(),
        strategy_of(augment="light"),
        strategy_of(lr=0.1, loss="bce", optimizer="lamb", ema=0.9),
        strategy_of(batch_size=32),
        strategy_of(depth=1),
        strategy_of(depth=0.0, drop_path=0.1),
        strategy_of(batch_size=32, sampling="balanced"),
        strategy_of(batch_size=32, clip_grad=1.0),
    ]
    assert probe_groups(strategies) == [[0, 2, 5], [3, 7], [6]]
    assert [is_batchable(s) for s in strategies] == [True, False, True, True, False, True, True, True]


def test_what_makes_no_group_is_refused(source):
    for strategies in ([], [strategy_of(), strategy_of(epochs=1)], [strategy_of(depth=1)]):
        with pytest.raises(ConfigError, match="cannot be trained together"):
            Probes(source, DATA, strategies, 0, DEVICE)


def test_models_with_one_linear_layer_at_their_end_are_known():
    found = {
        name: has_linear_head(ModelSource(name, Weights("none", "random", None), 2, size))
        for name, size in (
            ("test_resnet", 32),
            ("test_vit", 32),
            ("test_efficientnet", 32),
            ("test_convnext", 32),
            ("dla46_c", 32),
            ("deit_tiny_distilled_patch16_224", 32),
        )
    }
    assert [name for name, linear in found.items() if not linear] == [
        "dla46_c",
        "deit_tiny_distilled_patch16_224",
    ]
    with pytest.raises(ConfigError, match=r"model.name: dla46_c has no linear head"):
        Probes(ModelSource("dla46_c", Weights("none", "random", None), 2, 32), DATA, [strategy_of()], 0, DEVICE)


def test_features_are_computed_once_for_all_groups(source):
    calls = []
    stored = stored_features(source, 0, DEVICE)

    def features(split, size, tta):
        found = stored(split, size, tta)
        calls.append(found.data_ptr())
        return found

    for batch_size in (16, 32):
        list(Probes(source, DATA, [strategy_of(batch_size=batch_size)], 0, DEVICE, features))
    assert len(set(calls)) == 2


def test_the_plan_of_each_says_what_its_trainer_would_do(source):
    strategies = [strategy_of(weight_decay=0.1), strategy_of(head_lr_scale=3.0)]
    probes = Probes(source, DATA, strategies, 0, DEVICE)
    for index, strategy in enumerate(strategies):
        assert probes.plan(index) == Trainer(source, DATA, strategy, 0, DEVICE).plan
