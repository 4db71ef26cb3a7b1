"""Decoders and heads of segmentation models: from an encoder's feature maps to logits of pixels."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from strategies import check_installed

# Strides of a plain vision transformer's pyramid.
_PLAIN_STRIDES = (4, 8, 16, 32)
# Number of maps that FPN and DeepLab need, each of half the resolution of the map before.
_LEAST_LEVELS = 4


class Segmenter(nn.Module):
    """A decoder of feature maps and its head, whose logits have the size of the images.

    Decoders get a pyramid in which the resolution halves from level to level, for an image whose sides are multiples of
    the coarsest stride. Other maps are resampled to it. Maps of a single stride, as in a plain vision transformer, are
    resampled to strides 4, 8, 16 and 32, the earliest map to the finest, after Li et al., Exploring Plain Vision
    Transformer Backbones for Object Detection, ECCV 2022.

    Args:
        kind: One of :data:`SEGMENTERS`.
        channels: Channels of each feature map, highest resolution first.
        strides: Pixels of the image for each pixel of a map, by map, along a side.
        num_classes: Channels of the logits.
        image_size: Height and width of the images in pixels.

    Raises:
        ConfigError: The decoder is made of parts of segmentation_models_pytorch, which is not installed.
    """

    def __init__(
        self, kind: str, channels: Sequence[int], strides: Sequence[int], num_classes: int, image_size: int
    ) -> None:
        super().__init__()
        if kind in SMP_SEGMENTERS:
            check_installed(f"model.decoder: {kind}", "dense", "segmentation_models_pytorch")
        self._image_size = image_size
        self._levels = _pyramid(strides)
        self.decoder, self.head = _KINDS[kind](
            [channels[source] for _, source in self._levels], [stride for stride, _ in self._levels], num_classes
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits (B, num_classes, S, S) of the pixels.

        Args:
            features: (B, C, h, w) float each, highest resolution first; they are not written to.
        """
        coarsest = self._levels[-1][0]
        cells = math.ceil(self._image_size / coarsest)
        sides = [cells * (coarsest // stride) for stride, _ in self._levels]
        maps = [_resized(features[source], side, side) for (_, source), side in zip(self._levels, sides, strict=True)]
        return _resized(self.head(self.decoder(maps)), self._image_size, self._image_size)


class _Unet(nn.Module):
    """Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, up to full resolution, with half the channels at each level.

    Args:
        channels: Channels of the pyramid's maps.
        strides: Strides of the pyramid's maps.
    """

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        super().__init__()
        self._blanks = int(math.log2(strides[0]))
        blocks = int(math.log2(strides[-1]))
        widths = [16 * 2**k for k in reversed(range(blocks))]
        self.decoder = UnetDecoder([0] * self._blanks + channels, widths, n_blocks=blocks)
        self.width = widths[-1]

    def forward(self, maps: list[Tensor]) -> Tensor:
        batch, _, rows, columns = maps[0].shape
        # Levels without a map of the encoder to skip from are maps without a channel.
        blanks = [maps[0].new_empty(batch, 0, rows << k, columns << k) for k in range(self._blanks, 0, -1)]
        found: Tensor = self.decoder(blanks + maps)
        return found


class _DeepLab(nn.Module):
    """Chen et al.: Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, ECCV 2018.

    The paper's encoders are dilated, to end at stride 16. Here the coarsest map is resampled to twice its resolution
    instead, because pretrained weights fit an encoder without dilation; the finer map has eight times its resolution.

    Args:
        channels: Of the pyramid's maps.
    """

    width = 256

    def __init__(self, channels: list[int]) -> None:
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

        super().__init__()
        self.decoder = DeepLabV3PlusDecoder(
            [0, 0, channels[-_LEAST_LEVELS], 0, 0, channels[-1]],
            encoder_depth=5,
            out_channels=self.width,
            # The paper's rates for stride 16; segmentation_models_pytorch's defaults are for stride 8.
            atrous_rates=(6, 12, 18),
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        # In a batch of one image the pooled map has one pixel a channel, which BatchNorm refuses; in a batch of a few
        # images the statistics are of as few pixels.
        pooling = self.decoder.aspp[0].convs[-1]
        pooling[2] = nn.GroupNorm(32, self.width)

    def forward(self, maps: list[Tensor]) -> Tensor:
        fine, coarse = maps[-_LEAST_LEVELS], maps[-1]
        rows, columns = coarse.shape[2:]
        # The decoder reads the third and the last of an encoder's maps.
        given = [fine, fine, fine, _resized(coarse, 2 * rows, 2 * columns)]
        found: Tensor = self.decoder(given)
        return found


class _Fcn(nn.Module):
    """Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, the FCN-8s.

    The scores of the three coarsest maps, each from a torchvision head, are added up, beginning with the coarsest.

    Args:
        channels: Of the pyramid's maps.
        num_classes: Channels of the logits.
    """

    def __init__(self, channels: list[int], num_classes: int) -> None:
        from torchvision.models.segmentation.fcn import FCNHead

        super().__init__()
        self.heads = nn.ModuleList(FCNHead(width, num_classes) for width in channels[-3:])

    def forward(self, maps: list[Tensor]) -> Tensor:
        scores = [head(features) for head, features in zip(self.heads, maps[-3:], strict=True)]
        total: Tensor = scores.pop()
        while scores:
            finer = scores.pop()
            total = finer + _resized(total, finer.shape[2], finer.shape[3])
        return total


def _unet(channels: list[int], strides: list[int], num_classes: int) -> tuple[nn.Module, nn.Module]:
    decoder = _Unet(channels, strides)
    return decoder, _head(decoder, decoder.width, num_classes, kernel_size=3)


def _fpn(channels: list[int], strides: list[int], num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Kirillov et al.: Panoptic Feature Pyramid Networks, CVPR 2019, on the four coarsest maps."""
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    decoder = FPNDecoder(channels)
    return decoder, _head(decoder, decoder.out_channels, num_classes, kernel_size=1)


def _deeplab(channels: list[int], strides: list[int], num_classes: int) -> tuple[nn.Module, nn.Module]:
    decoder = _DeepLab(channels)
    return decoder, _head(decoder, decoder.width, num_classes, kernel_size=1)


def _fcn(channels: list[int], strides: list[int], num_classes: int) -> tuple[nn.Module, nn.Module]:
    return nn.Identity(), _Fcn(channels, num_classes)


def _head(decoder: nn.Module, width: int, num_classes: int, kernel_size: int) -> nn.Module:
    """The last convolution; head and decoder are initialised as in segmentation_models_pytorch."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head

    head: nn.Module = SegmentationHead(width, num_classes, kernel_size=kernel_size)
    initialize_decoder(decoder)
    initialize_head(head)
    return head


def _pyramid(strides: Sequence[int]) -> list[tuple[int, int]]:
    """The decoder's levels, highest resolution first: the stride of each, a power of two, and the index of its map.

    If two maps have the same stride, as in a dilated encoder, the deeper map is taken.
    """
    exponents = [round(math.log2(stride)) for stride in strides]
    last = len(strides) - 1
    if exponents[0] == exponents[-1]:
        steps = len(_PLAIN_STRIDES) - 1
        return [(stride, round(last * k / steps)) for k, stride in enumerate(_PLAIN_STRIDES)]
    coarsest = max(exponents[-1], _LEAST_LEVELS - 1)
    finest = min(exponents[0], coarsest - _LEAST_LEVELS + 1)
    return [
        (2**level, min(range(len(strides)), key=lambda source: (abs(exponents[source] - level), -source)))
        for level in range(finest, coarsest + 1)
    ]


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] == (height, width):
        return maps
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


_KINDS: dict[str, Callable[[list[int], list[int], int], tuple[nn.Module, nn.Module]]] = {
    "unet": _unet,
    "fpn": _fpn,
    "deeplabv3plus": _deeplab,
    "fcn": _fcn,
}

#: The names of the decoders.
SEGMENTERS: tuple[str, ...] = tuple(_KINDS)

#: Those that are made of parts of segmentation_models_pytorch.
SMP_SEGMENTERS = ("unet", "fpn", "deeplabv3plus")
