"""Models of every zoo: their origin's logits, blocks that are complete, and trials like timm's."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_training import DATA, DEVICE
from torch import nn
from torchvision import models
from zoo_models import OF_TORCHVISION, OF_TRANSFORMERS, OWN, SIDE, name_of, source_of

from strategies import ConfigError, Strategy, WeightsError, make_plan, split_blocks
from trainers import ActivationStore, ModelSource, Reuse, Trainer, create_classifier, find_weights, has_linear_head
from trainers.models import Weights
from trainers.models.adopted import adopt
from trainers.models.tree import blocks_by_rule
from trainers.reuse import CutError
from trainers.reuse.rows import describe

NONE = Weights("none", "random", None)
CASES = [
    *[("torchvision", name) for name in OF_TORCHVISION],
    *[("transformers", name) for name in OF_TRANSFORMERS],
    ("module", "own"),
]
#: Blocks of the tiny models: stem, residual blocks or layers, and what lies between stages.
BLOCKS = {
    "tiny_vit": 4,
    "tiny_swin": 5,
    "tiny_convnext": 5,
    "tiny_densenet": 6,
    "vit": 4,
    "convnext": 5,
    "resnet": 4,
    "swin": 4,
    "own": 3,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every small model with weights, by its name."""
    return {name: source_of(zoo, name, tmp_path_factory.mktemp(name)) for zoo, name in CASES}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_parameter_is_in_one_block_and_the_blocks_are_in_order(sources, name):
    model = sources[name].build(0)
    blocks = split_blocks(model)
    assert len(blocks) == BLOCKS[name]
    listed = [param for block in (*blocks.body, blocks.head) for param in block.params]
    assert sorted(listed) == sorted(param for param, _ in model.named_parameters())
    assert {f"{sources[name]._zoo.classifiers(model)[0]}.{part}" for part in ("weight", "bias")} == set(
        blocks.head.params
    )
    order = [param for param, _ in model.named_parameters()]
    firsts = [min(map(order.index, [p for p in block.params if p.endswith("weight")])) for block in blocks.body]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("depth", [0, 0.5, 1.0])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_depth_trains_the_blocks_that_it_says(sources, name, depth):
    model = sources[name].build(0)
    blocks = split_blocks(model)
    strategy = Strategy(depth=depth, layer_decay=0.5)
    count = strategy.blocks_trained(len(blocks))
    plan = make_plan(model, strategy)
    trained = {param for block in (*blocks.body[len(blocks) - count :], blocks.head) for param in block.params}
    assert plan.trainable == trained
    scales = {param.lr_scale for param in plan.params if param.name in trained}
    assert scales == {0.5**distance for distance in range(count + 1)}


@pytest.mark.parametrize(("zoo", "name"), CASES)
def test_logits_are_those_of_the_library_before_the_head_is_changed(tmp_path, zoo, name):
    full = name_of(zoo, name, tmp_path)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    ours = create_classifier(full, 7, SIDE).eval()
    if zoo == "torchvision":
        how = {"image_size": SIDE} if name == "tiny_vit" else {}
        origin = models.get_model(name, weights=None, num_classes=7, **how)
    elif zoo == "module":
        scope = {}
        exec(OWN, scope)
        origin = scope["build"](7, 3)
    else:
        from transformers import AutoModelForImageClassification

        origin = AutoModelForImageClassification.from_pretrained(full.partition(":")[2])
    origin.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = origin.eval()(images)
        assert torch.equal(ours(images), expected.logits if zoo == "transformers" else expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_body_is_the_file_and_the_head_is_drawn_from_the_seed(sources, name):
    source = sources[name]
    file = source.weights.state_dict
    first, other = source.build(1), source.build(2)
    head = set(split_blocks(first).head.params)
    drawn = other.state_dict()
    assert {key for key, tensor in first.state_dict().items() if not torch.equal(tensor, file[key])} == head
    assert {key for key, tensor in first.state_dict().items() if not torch.equal(tensor, drawn[key])} == head
    assert source.pretrained_classifier()[0].shape[0] == 2


@pytest.mark.parametrize("name", BLOCKS)
def test_trials_end_alike_with_and_without_reuse(sources, name, tmp_path):
    strategy = Strategy(depth=0.5, epochs=2, batch_size=16, lr=1e-3)
    store = Reuse(ActivationStore(tmp_path, 2**30), always=True)
    read = Trainer(sources[name], DATA, strategy, 0, DEVICE, reuse=store)
    found = [result.metrics for result in read]
    expected = [result.metrics for result in Trainer(sources[name], DATA, strategy, 0, DEVICE)]
    assert read.reused.reason.startswith("reuse: "), read.reused.reason
    assert found == expected
    assert has_linear_head(sources[name])


@pytest.mark.parametrize("fields", [{"parameters": "lora"}, {"parameters": "norms_and_biases"}, {"dropout": 0.5}])
@pytest.mark.parametrize("name", ["tiny_vit", "tiny_convnext", "vit", "own"])
def test_what_else_a_strategy_may_ask_for_is_applied(sources, name, fields):
    trainer = Trainer(sources[name], DATA, Strategy(depth=1.0, epochs=1, batch_size=32, **fields), 0, DEVICE)
    before = {key: tensor.clone() for key, tensor in trainer.weights().items()}
    assert [result.metrics for result in trainer]
    after = trainer.weights()
    assert before.keys() == after.keys() == sources[name].build(0).state_dict().keys()
    assert any(
        not torch.equal(before[key], after[key]) for key in split_blocks(trainer.model).body[0].params if key in after
    ) or (fields == {"parameters": "lora"})


def test_a_resnet_is_the_same_trial_from_torchvision_and_from_timm(tmp_path):
    torch.manual_seed(0)
    save_file(models.resnet50().state_dict(), tmp_path / "r50.safetensors")
    found = {}
    for name in ("torchvision:resnet50", "resnet50.tv_in1k"):
        source = ModelSource(name, find_weights(name, [str(tmp_path / "r50.safetensors")]), 2, SIDE)
        trainer = Trainer(source, DATA, Strategy(depth=3, epochs=1, batch_size=32, dropout=0.2), 0, DEVICE)
        plan = trainer.plan
        found[name] = [(p.name, p.block, p.lr_scale, p.weight_decay) for p in plan.params], *trainer
    (params, one), (others, other) = found.values()
    assert params == others
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


FAMILIES = {
    "alexnet": 7,
    "vgg11_bn": 10,
    "resnet50": 17,
    "densenet121": 62,
    "squeezenet1_1": 9,
    "googlenet": 12,
    "shufflenet_v2_x0_5": 18,
    "mobilenet_v2": 19,
    "mobilenet_v3_small": 14,
    "mnasnet0_5": 20,
    "efficientnet_b0": 18,
    "swin_t": 16,
    "vit_b_16": 13,
    "maxvit_t": 14,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_is_divided_by_the_rule(name):
    with torch.device("meta"):
        model = create_classifier(f"torchvision:{name}", 5, 224)
    blocks = split_blocks(model)
    assert len(blocks) == FAMILIES[name]
    assert sum(len(block.params) for block in (*blocks.body, blocks.head)) == len(list(model.parameters()))


def test_channels_and_sizes_are_adapted(tmp_path):
    source = source_of("torchvision", "tiny_vit", tmp_path)
    grey = ModelSource(source.name, source.weights, 2, 2 * SIDE, 1)
    model = grey.build(0)
    file = source.weights.state_dict
    assert torch.equal(model.conv_proj.weight, file["conv_proj.weight"].sum(1, keepdim=True))
    assert model.encoder.pos_embedding.shape == (1, 1 + 8 * 8, 16)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 2)
    assert not grey.takes(SIDE)
    assert grey.can_drop_path() is False
    assert ModelSource("torchvision:tiny_swin", NONE, 2, SIDE).can_drop_path()


def test_dropped_branches_and_dropout_are_the_strategys():
    source = ModelSource("torchvision:tiny_swin", NONE, 2, SIDE)
    rates = [m.p for m in source.build(0, drop_path=0.4).modules() if type(m).__name__ == "StochasticDepth"]
    assert max(rates) == pytest.approx(0.4)
    assert {m.p for m in source.build(0).modules() if type(m).__name__ == "StochasticDepth"} == {0.0}
    model = source.build(0, dropout=0.5).train()
    assert not torch.equal(*(model(torch.ones(2, 3, SIDE, SIDE))))
    plain = source.build(0).train()
    assert torch.equal(*(plain(torch.ones(2, 3, SIDE, SIDE))))


class Listing(nn.Module):
    """Says its blocks and its head."""

    def __init__(self, listed):
        super().__init__()
        self.listed = listed
        self.score, self.stem, self.middle = nn.Linear(4, 2), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def blocks(self):
        return self.listed(self)


def test_a_model_may_say_its_blocks():
    model = Listing(lambda own: [own.stem, ["middle", own.scale]])
    adopt(model, 2, head=model.score, blocks=model.blocks())
    blocks = split_blocks(model)
    assert [set(block.params) for block in blocks.body] == [
        {"stem.weight", "stem.bias"},
        {"middle.weight", "middle.bias", "scale"},
    ]
    assert set(blocks.head.params) == {"score.weight", "score.bias"}
    assert model.no_weight_decay() == {"score.bias", "stem.bias", "middle.bias", "scale"}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (lambda own: [own.stem, own.middle], "the parameter scale is in no block"),
        (lambda own: [own.stem, own.middle, "scale", "stem"], "stem.weight is in several blocks"),
        (lambda own: ["stern"], "'stern' is no module or parameter"),
        (lambda own: [nn.Linear(1, 1)], "a Linear in it is no part of the model"),
    ],
)
def test_blocks_that_a_model_says_must_be_complete(listed, message):
    model = Listing(listed)
    with pytest.raises(ConfigError, match=message):
        adopt(model, 2, head=model.score, blocks=model.blocks())


def test_convolutions_with_their_norms_are_blocks_and_the_last_norm_belongs_to_the_block_before():
    head = nn.Linear(4, 2)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Sequential(*layers), nn.LayerNorm(4), head)
    assert blocks_by_rule(model, head) == [["0.0", "0.1"], ["0.3", "0.4", "1"]]


def written(tmp_path, text: str) -> str:
    (tmp_path / "own.py").write_text(text)
    return f"module:{tmp_path / 'own.py'}:build"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvison:resnet18", "there is no zoo 'torchvison'; did you mean 'torchvision'?"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'; did you mean 'resnet1"),
        ("torchvision:fcn_resnet50", "torchvision has no classifier 'fcn_resnet50'"),
        ("transformers:vitt", "Transformers has no image classifier 'vitt'; did you mean 'vit'?"),
        ("transformers:/nowhere/config.json", "there is no config.json"),
        ("module:/nowhere/own.py:build", "there is no file /nowhere/own.py"),
        ("module:build", "neither module:/path/file.py:build nor"),
        ("module:no_such_package_of_ours:build", "raised ModuleNotFoundError"),
    ],
)
def test_an_unknown_zoo_or_name_is_refused_and_the_nearest_named(name, message):
    with pytest.raises(ConfigError, match=message):
        find_weights(name, ["none"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no good')", "raised RuntimeError: no good"),
        ("def built(n, c): pass", "has no function 'build'; did you mean 'built'?"),
        ("def build(n, c): return 1 / 0", "raised ZeroDivisionError"),
        ("def build(n, c): return [n]", "returned a list and no torch.nn.Module"),
        ("from torch import nn\ndef build(n, c): return nn.Flatten()", "no head: the model has no last linear layer"),
        (
            "from torch import nn\ndef build(n, c): return nn.Sequential(nn.Flatten(), nn.Linear(7, n))",
            "cannot take images",
        ),
    ],
)
def test_a_file_that_makes_no_classifier_is_refused_with_what_it_did(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        ModelSource(written(tmp_path, text), NONE, 2, SIDE)


@pytest.mark.parametrize("zoo", ["torchvision", "module"])
def test_weights_of_another_architecture_are_refused(tmp_path, zoo):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
    name = name_of(zoo, "tiny_vit", tmp_path)
    with pytest.raises(WeightsError, match=r"does not fit .*missing, first: .*another architecture"):
        ModelSource(name, find_weights(name, [str(tmp_path / "other.safetensors")]), 2, SIDE)


def test_published_weights_of_torchvision_are_read_from_torch_hubs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    torch.manual_seed(0)
    model = models.resnet18()
    torch.save(model.state_dict(), file)
    for word in ("hub", "torchvision:IMAGENET1K_V1"):
        found = find_weights("torchvision:resnet18", [word])
        assert found.source == "torchvision:IMAGENET1K_V1"
        assert torch.equal(found.state_dict["fc.weight"], model.fc.weight)
    with pytest.raises(WeightsError, match="resnet18 has no torchvision:IMAGENET1K_V2; did you mean 'IMAGENET1K_V1'"):
        find_weights("torchvision:resnet18", ["torchvision:IMAGENET1K_V2"])
    with pytest.raises(WeightsError, match="these are weights of torchvision's models"):
        find_weights("test_resnet", ["torchvision:IMAGENET1K_V1"])


def test_what_cannot_be_downloaded_is_said_with_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("trainers.models.torchvision_zoo.obstacle_at", lambda address: f"{address} is away")
    with pytest.raises(
        WeightsError,
        match=rf"\(https://download.pytorch.org is away\); download https://.*resnet18-f37072fd.pth.*{tmp_path}",
    ):
        find_weights("torchvision:resnet18", ["hub"])


def test_weights_of_a_folder_of_transformers_are_read_with_their_preprocessing(tmp_path):
    name = name_of("transformers", "vit", tmp_path)
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}'
    )
    weights = find_weights(name, ["hub"])
    assert weights.source == f"file:{tmp_path}/vit/model.safetensors"
    source = ModelSource(name, weights, 2, SIDE)
    assert (source.mean, source.std) == ((0.5,) * 3, (0.2,) * 3)
    file = load_file(tmp_path / "vit" / "model.safetensors")
    loaded = source.build(0).state_dict()
    # Written under the names of today or of earlier versions: each tensor of the body is in the model.
    body = [tensor for key, tensor in file.items() if not key.startswith("classifier")]
    assert all(any(tensor.equal(own) for own in loaded.values()) for tensor in body)


def test_outputs_that_are_dicts_with_attributes_do_not_cross_a_cut():
    class Outputs(dict):
        pass

    first, second = (Outputs(maps=torch.rand(count, 4)) for count in (3, 2))
    with pytest.raises(CutError, match="a Outputs depends on which images are in a batch"):
        describe(first, second, (3, 2))
    assert describe(dict(first), dict(second), (3, 2))
