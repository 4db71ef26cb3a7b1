"""The weights that come with Unfreeze: small, true to their card, and worth more than random ones."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import trainers.embedded
from trainers import ModelSource, Preprocessing, Weights, decode, find_weights
from trainers.embedded.distill import Pictures, Teacher, distill

FOLDER = Path(trainers.embedded.__file__).parent
FILE = FOLDER / "resnet18.safetensors"


def test_the_file_is_half_precision_and_at_most_25_megabytes():
    assert FILE.stat().st_size <= 25e6
    tensors = load_file(FILE)
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    wanted = timm.create_model("resnet18", num_classes=0).state_dict()
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in wanted.items()}
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_its_card_names_the_digest_of_the_file():
    digest = find_weights("resnet18", ["embedded"]).digest
    assert digest in (FOLDER / "resnet18.md").read_text()


@pytest.mark.slow
def test_features_of_digits_are_far_better_than_those_of_random_weights():
    images, targets = (some[:900] for some in load_digits(return_X_y=True))
    how = Preprocessing(32)
    pixels = [decode(image.reshape(8, 8).astype(np.uint8) * 15, how) for image in images]

    def accuracy(weights: Weights) -> float:
        source = ModelSource("resnet18", weights, 10, 32)
        model = source.build(0).eval()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (source.mean, source.std))
        with torch.inference_mode():
            batches = torch.from_numpy(np.stack(pixels)).float().div(255).sub(mean).div(std).split(256)
            features = torch.cat([model.forward_head(model.forward_features(b), pre_logits=True) for b in batches])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        return probe.fit(features[:300], targets[:300]).score(features[300:], targets[300:])

    taught = accuracy(find_weights("resnet18", ["embedded"]))
    random = accuracy(Weights("none", "random", None))
    assert taught > random + 0.05


@pytest.mark.slow
def test_the_script_that_made_it_makes_weights_that_load(tmp_path):
    thing = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(thing).ellipse((8, 8, 56, 56), fill="red")
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    pictures = Pictures(scenes=[Image.fromarray(noise)], objects=[thing])
    distill(pictures, Teacher(), views=16, batch_size=8, lr=1e-3, seed=0, out=tmp_path / "resnet18.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "resnet18.safetensors"]
    weights = find_weights("resnet18", [str(tmp_path / "resnet18.safetensors")])
    ModelSource("resnet18", weights, 10, 32)
