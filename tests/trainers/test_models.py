import pytest
import timm
import torch
from safetensors.torch import save_file

from strategies import ConfigError, WeightsError
from trainers.models import ModelSource, parameter_count
from trainers.weights import Weights, find_weights

NO_WEIGHTS = Weights("none", "random", None)


def trained(name, seed=7, **how):
    """A state dict as after training: no tensor is what a fresh model would hold."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, **how)
        return {
            key: tensor + 0.01 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor
            for key, tensor in model.state_dict().items()
        }


def source_of(tmp_path, name, state_dict, num_classes=5, image_size=64):
    path = tmp_path / f"{name}.safetensors"
    save_file(state_dict, path)
    return ModelSource(name, find_weights(name, [str(path)]), num_classes, image_size)


def differing(first, second):
    return {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("resnet10t", "fc"), ("tf_efficientnet_lite0", "classifier"), ("test_vit", "head")],
)
def test_the_body_is_the_file_in_every_build_and_the_classifier_is_drawn_from_the_seed(tmp_path, name, classifier):
    state_dict = trained(name, **({"img_size": 64} if name == "test_vit" else {}))
    source = source_of(tmp_path, name, state_dict)
    first, again, other = (source.build(seed) for seed in (1, 1, 2))
    head = {f"{classifier}.weight", f"{classifier}.bias"}
    assert differing(first.state_dict(), again.state_dict()) == set()
    assert differing(first.state_dict(), other.state_dict()) == head
    body = {key: tensor for key, tensor in first.state_dict().items() if key not in head}
    assert differing(body, state_dict) == set()
    assert first(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in first.parameters())
    assert first.training


def test_builds_share_no_memory(tmp_path):
    source = source_of(tmp_path, "resnet10t", trained("resnet10t"))
    with torch.no_grad():
        for parameter in source.build(0).parameters():
            parameter.zero_()
    assert source.build(0).conv1[0].weight.abs().sum() > 0


@pytest.mark.parametrize("pretrained", [True, False])
def test_building_leaves_the_global_random_state_as_it_was(tmp_path, pretrained):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    state_dict = trained("test_resnet")
    source = (
        source_of(tmp_path, "test_resnet", state_dict) if pretrained else ModelSource("test_resnet", NO_WEIGHTS, 5, 64)
    )
    source.build(11)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_position_embeddings_are_resized_to_the_images(tmp_path):
    source = source_of(tmp_path, "vit_tiny_patch16_224", trained("vit_tiny_patch16_224"), image_size=32)
    model = source.build(0)
    assert model.pos_embed.shape == (1, 1 + 2 * 2, 192)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_a_classifier_for_as_many_classes_is_drawn_anew_all_the_same(tmp_path):
    state_dict = trained("test_resnet", num_classes=5)
    model = source_of(tmp_path, "test_resnet", state_dict, num_classes=5).build(0)
    assert differing(model.state_dict(), state_dict) == {"fc.weight", "fc.bias"}


def test_a_file_without_classifier_fits(tmp_path):
    state_dict = trained("test_resnet", num_classes=0)
    model = source_of(tmp_path, "test_resnet", state_dict).build(0)
    assert torch.equal(model.conv1[0].weight, state_dict["conv1.0.weight"])


def test_half_precision_files_become_float32(tmp_path):
    state_dict = {k: v.half() if v.is_floating_point() else v for k, v in trained("test_resnet").items()}
    model = source_of(tmp_path, "test_resnet", state_dict).build(0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_without_weights_the_whole_model_is_drawn_from_the_seed():
    source = ModelSource("resnet10t", NO_WEIGHTS, 5, 64)
    first, again, other = (source.build(seed).state_dict() for seed in (1, 1, 2))
    assert differing(first, again) == set()
    assert {"conv1.0.weight", "layer1.0.conv1.weight", "fc.weight"} <= differing(first, other)


def test_packaged_weights_fit_and_bring_their_normalisation():
    weights = find_weights("tf_efficientnet_lite0", ["package:efficientnet-lite0"])
    source = ModelSource("tf_efficientnet_lite0", weights, 10, 64)
    assert source.mean == source.std == (0.5, 0.5, 0.5)
    assert source.weights is weights
    model = source.build(0)
    assert torch.equal(model.conv_stem.weight, weights.state_dict["conv_stem.weight"])
    assert torch.equal(model.bn1.running_var, weights.state_dict["bn1.running_var"])
    assert parameter_count(model) == 3_383_818


def test_the_model_does_not_carry_the_file_in_its_configuration(tmp_path):
    model = source_of(tmp_path, "test_resnet", trained("test_resnet")).build(0)
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["num_classes"] == 1000


def test_a_file_of_another_architecture_is_refused_with_what_is_missing(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(trained("test_vit"), path)
    weights = find_weights("resnet10t", [str(path)])
    message = r"does not fit resnet10t: (\d+) of \1 weight tensors missing, first: conv1\.0\.weight"
    with pytest.raises(WeightsError, match=message):
        ModelSource("resnet10t", weights, 5, 64)


def test_a_file_that_lacks_a_layer_is_refused(tmp_path):
    state_dict = trained("resnet10t")
    del state_dict["layer3.0.conv2.weight"]
    with pytest.raises(WeightsError, match=r"1 of \d+ weight tensors missing, first: layer3\.0\.conv2\.weight"):
        source_of(tmp_path, "resnet10t", state_dict)


def test_a_file_that_lacks_running_statistics_is_refused(tmp_path):
    state_dict = {name: t for name, t in trained("resnet10t").items() if "running_" not in name}
    with pytest.raises(WeightsError, match=r"weight tensors missing, first: conv1\.1\.running_mean"):
        source_of(tmp_path, "resnet10t", state_dict)


def test_a_file_of_a_deeper_sibling_is_refused(tmp_path):
    deeper = trained("test_vit", img_size=64, depth=9)
    with pytest.raises(WeightsError, match=r"holds \d+ weight tensors that the model lacks, first: blocks\.6\."):
        source_of(tmp_path, "test_vit", deeper)


def test_a_tensor_that_the_model_has_no_use_for_is_left_out_with_a_warning(tmp_path, caplog):
    state_dict = trained("test_resnet") | {"aux_head.weight": torch.ones(3, 4)}
    source_of(tmp_path, "test_resnet", state_dict)
    assert "not used: aux_head.weight" in caplog.text


def test_constant_tensors_that_stand_in_the_file_count_as_loaded(tmp_path):
    state_dict = trained("test_resnet")
    state_dict["conv1.1.running_var"] = torch.ones_like(state_dict["conv1.1.running_var"])
    source_of(tmp_path, "test_resnet", state_dict)


def test_a_tensor_of_another_size_is_refused_by_name(tmp_path):
    state_dict = trained("test_resnet")
    state_dict["conv1.0.weight"] = torch.ones(9, 3, 3, 3)
    with pytest.raises(WeightsError, match=r"does not fit test_resnet: .*size mismatch for conv1\.0\.weight"):
        source_of(tmp_path, "test_resnet", state_dict)


def test_images_that_the_model_cannot_take_are_refused_by_size():
    with pytest.raises(ConfigError, match=r"data\.image_size: vit_tiny_patch16_224 cannot take images of 8 px"):
        ModelSource("vit_tiny_patch16_224", NO_WEIGHTS, 5, 8)


def test_an_unknown_model_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'resnet10t'"):
        ModelSource("resnet10", NO_WEIGHTS, 5, 64)
