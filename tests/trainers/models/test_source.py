import pytest
import timm
import torch
from safetensors.torch import save_file

from strategies import ConfigError, WeightsError
from trainers.models import ModelSource, Weights, find_weights, parameter_count

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


def source_of(tmp_path, name, state_dict, num_classes=5, image_size=64, in_chans=3):
    path = tmp_path / f"{name}.safetensors"
    save_file(state_dict, path)
    return ModelSource(name, find_weights(name, [str(path)]), num_classes, image_size, in_chans)


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


# First convolutions of several shapes: a deep stem, a plain one, patches, patches with a norm behind.
FIRST = {
    "test_resnet": "conv1.0",
    "test_efficientnet": "conv_stem",
    "test_vit": "patch_embed.proj",
    "test_convnext": "stem.0",
}


def for_size(name):
    return {"img_size": 64} if name == "test_vit" else {}


@pytest.mark.parametrize("in_chans", [1, 3, 4, 5, 13])
@pytest.mark.parametrize("name", FIRST)
def test_the_first_convolution_is_adapted_to_the_channels_as_timm_does(tmp_path, name, in_chans):
    state_dict = trained(name, **for_size(name))
    source = source_of(tmp_path, name, state_dict, in_chans=in_chans)
    overlay = {"state_dict": dict(state_dict)}
    reference = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans, **for_size(name)
    ).state_dict()
    loaded = source.build(0).state_dict()
    head = {key for key in reference if reference[key].shape != loaded[key].shape}
    assert len(head) == 2, "the classifier's weight and bias"
    assert {key for key in reference.keys() - head if not torch.equal(reference[key], loaded[key])} == set()
    assert loaded[f"{FIRST[name]}.weight"].shape[1] == in_chans
    assert source.build(0)(torch.zeros(2, in_chans, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("in_chans", [1, 4, 5])
@pytest.mark.parametrize("name", FIRST)
def test_weights_of_a_run_with_as_many_channels_are_taken_as_they_are(tmp_path, name, in_chans, caplog):
    state_dict = trained(name, in_chans=in_chans, **for_size(name))
    loaded = source_of(tmp_path, name, state_dict, num_classes=1000, in_chans=in_chans).build(0).state_dict()
    different = differing(loaded, state_dict)
    assert len(different) == 2
    assert all("head" in key or "fc" in key or "classifier" in key for key in different)
    assert caplog.text == ""


@pytest.mark.parametrize(("saved", "in_chans"), [(5, 3), (5, 4), (1, 3), (4, 1)])
def test_weights_of_a_run_with_other_channels_are_refused(tmp_path, saved, in_chans):
    state_dict = trained("test_resnet", in_chans=saved)
    message = rf"its conv1\.0\.weight takes {saved} channels, model\.in_chans is {in_chans}"
    with pytest.raises(WeightsError, match=message):
        source_of(tmp_path, "test_resnet", state_dict, in_chans=in_chans)


def test_a_first_convolution_that_timm_cannot_adapt_is_refused_and_not_left_random(tmp_path):
    # Its stem folds 4 x 4 pixels into channels: timm sums them for grey images, and draws at random for others.
    state_dict = trained("tresnet_m")
    assert source_of(tmp_path, "tresnet_m", state_dict, in_chans=1).in_chans == 1
    with pytest.raises(WeightsError, match=r"its body\.conv1\.conv\.weight cannot be adapted to 5 channels"):
        source_of(tmp_path, "tresnet_m", state_dict, in_chans=5)


def test_a_file_that_lacks_the_first_convolution_is_refused_whatever_the_channels(tmp_path):
    state_dict = trained("test_resnet")
    del state_dict["conv1.0.weight"]
    for in_chans in (1, 3, 5):
        with pytest.raises(WeightsError, match=r"conv1\.0\.weight"):
            source_of(tmp_path, "test_resnet", state_dict, in_chans=in_chans)


@pytest.mark.parametrize(
    ("in_chans", "mean"),
    [
        (3, (0.485, 0.456, 0.406)),
        (1, (pytest.approx(0.449),)),
        (2, (0.485, 0.456)),
        (5, (0.485, 0.456, 0.406, 0.485, 0.456)),
    ],
)
def test_normalisation_has_a_number_for_each_channel(in_chans, mean):
    source = ModelSource("resnet18", NO_WEIGHTS, 5, 64, in_chans)
    assert source.mean == mean
    assert len(source.std) == in_chans
    assert source.build(0)(torch.zeros(2, in_chans, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("in_chans", [3, 1])
def test_half_precision_files_become_float32_models(tmp_path, dtype, suffix, in_chans):
    state_dict = {k: v.to(dtype) if v.is_floating_point() else v for k, v in trained("test_resnet").items()}
    path = tmp_path / f"half{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state_dict, path)
    weights = find_weights("test_resnet", [str(path)])
    model = ModelSource("test_resnet", weights, 5, 64, in_chans).build(0)
    floating = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float32}
    first = state_dict["conv1.0.weight"].float()
    assert torch.equal(model.conv1[0].weight, first if in_chans == 3 else first.sum(dim=1, keepdim=True))


def test_weights_that_come_with_unfreeze_fit_and_are_float32():
    weights = find_weights("resnet18", ["embedded"])
    assert weights.source == "embedded:resnet18"
    model = ModelSource("resnet18", weights, 10, 64).build(0)
    assert {tensor.dtype for tensor in weights.state_dict.values() if tensor.is_floating_point()} == {torch.float32}
    assert torch.equal(model.layer4[1].conv2.weight, weights.state_dict["layer4.1.conv2.weight"])


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
    with pytest.raises(ConfigError, match=r"data\.image_size or model\.in_chans: .* 8 px with 5 channels"):
        ModelSource("vit_tiny_patch16_224", NO_WEIGHTS, 5, 8, 5)


def test_an_unknown_model_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'resnet10t'"):
        ModelSource("resnet10", NO_WEIGHTS, 5, 64)
