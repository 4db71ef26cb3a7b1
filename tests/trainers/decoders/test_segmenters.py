import pytest
import timm
import torch
from timm.models import FeatureListNet

from trainers.decoders import SEGMENTERS, Segmenter

CNN = ([8, 16, 24, 32, 40], [2, 4, 8, 16, 32])
PYRAMIDS = {
    "cnn": CNN,
    "from stride 4": ([16, 24, 32, 40], [4, 8, 16, 32]),
    "plain transformer": ([24, 24, 24, 24], [16, 16, 16, 16]),
    "plain transformer of one map": ([24], [16]),
    "plain transformer of large patches": ([24, 24, 24], [14, 14, 14]),
    "dilated": ([8, 16, 24, 32, 40], [2, 4, 8, 16, 16]),
    "short": ([16, 24, 32], [4, 8, 16]),
    "coarse": ([16, 24, 32], [16, 32, 64]),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def features_of(strides, channels, size, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, width, -(-size // stride), -(-size // stride), generator=generator)
        for width, stride in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("size", [64, 72])
def test_logits_have_the_size_of_the_images_whatever_maps_an_encoder_gives(kind, pyramid, size):
    channels, strides = PYRAMIDS[pyramid]
    features = features_of(strides, channels, size)
    before = [features_map.clone() for features_map in features]
    segmenter = Segmenter(kind, channels, strides, 3, size)
    for training in (True, False):
        logits = segmenter.train(training)(features)
        assert logits.shape == (2, 3, size, size)
        assert torch.isfinite(logits).all()
    # They may be stored, and shown again in the next epoch.
    assert all(torch.equal(old, new) for old, new in zip(before, features, strict=True))


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_the_deepest_map_and_every_parameter_are_taught(kind, pyramid):
    channels, strides = PYRAMIDS[pyramid]
    features = [features_map.requires_grad_(True) for features_map in features_of(strides, channels, 128)]
    segmenter = Segmenter(kind, channels, strides, 3, 128)
    # Of a random sum, since normalised maps have a fixed sum of their own.
    logits = segmenter(features)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert features[-1].grad.abs().max() > 0
    silent = [name for name, p in segmenter.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("kind", ["unet", "fpn", "deeplabv3plus"])
def test_fine_detail_of_the_first_map_reaches_the_logits_where_it_is(kind):
    channels, strides = PYRAMIDS["from stride 4"]
    segmenter = Segmenter(kind, channels, strides, 2, 64).eval()
    features = features_of(strides, channels, 64)
    changed = [features[0].clone(), *features[1:]]
    changed[0][:, :, 3, 3] += 5
    with torch.no_grad():
        moved = (segmenter(features) - segmenter(changed)).abs().amax((0, 1))
    # Normalisation over the map carries a little of it everywhere.
    assert moved[12:16, 12:16].mean() > 5 * moved[40:].mean()


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_logits_of_an_image_depend_on_no_other_in_evaluation(kind):
    channels, strides = CNN
    segmenter = Segmenter(kind, channels, strides, 2, 64).eval()
    features = features_of(strides, channels, 64, batch=3)
    with torch.no_grad():
        together = segmenter(features)
        alone = segmenter([features_map[1:2] for features_map in features])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_single_image_of_64_pixels_can_be_trained_on(kind):
    channels, strides = CNN
    segmenter = Segmenter(kind, channels, strides, 2, 64).train()
    assert torch.isfinite(segmenter(features_of(strides, channels, 64, batch=1))).all()


@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_decoders_take_the_features_of_timms_encoders(kind, encoder):
    body = timm.create_model(encoder, pretrained=False, features_only=True, img_size=160 if "vit" in encoder else None)
    info = body.feature_info
    segmenter = Segmenter(kind, info.channels(), info.reduction(), 2, 160)
    assert segmenter(body(torch.rand(2, 3, 160, 160))).shape == (2, 2, 160, 160)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_decoder_on_an_untrained_encoder_learns_to_find_squares(kind):
    encoder: FeatureListNet = timm.create_model("test_resnet", pretrained=False, features_only=True)
    info = encoder.feature_info
    segmenter = Segmenter(kind, info.channels(), info.reduction(), 2, 64)
    targets = torch.zeros(8, 64, 64, dtype=torch.int64)
    for i, (top, left) in enumerate(torch.randint(0, 32, (8, 2)).tolist()):
        targets[i, top : top + 32, left : left + 32] = 1
    images = targets[:, None].float().expand(-1, 3, -1, -1) + 0.1 * torch.randn(8, 3, 64, 64)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *segmenter.parameters()], lr=2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(segmenter(encoder(images)), targets).backward()
        optimizer.step()
    found = segmenter(encoder(images)).argmax(1)
    assert (found == targets).float().mean() > 0.9
