"""Detectors: torchvision's heads on a feature pyramid over the maps of any encoder.

Torchvision's models are built without backbone and without their own resizing: images come square, normalised and of
one size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from trainers.decoders.region_pool import RegionPool
from trainers.modes import modes_kept

MAX_DETECTIONS = 100

# Half, or a quarter, of the papers' channels for the 118,000 images of COCO; a multiple of GroupNorm's 32 in FCOS.
_WIDTH = 128
_REPRESENTATION = 256

# The papers drop scores below 0.05, which a model of few epochs seldom reaches: all trials would look the same.
_LOWEST_SCORE = 0.01

# Regions of an image for the second stage: 300 as Faster R-CNN is tested with, 64 of which train it as in Fast R-CNN;
# images of few pixels have fewer, since at a side of 64 there are a thousand anchors in all.
_PROPOSALS = (100, 300)
_SAMPLED_PROPOSALS = (32, 64)
_ROI_SIDE = 7
# The side of an object that the FPN paper pools from the map of stride 16, which is the side of ImageNet's pictures.
_CANONICAL_SIDE = 224

_ASPECTS = (0.5, 1.0, 2.0)
_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))

# Objects of one image: boxes (M, 4) float32, labels (M,) int64 from 0, and for found objects scores (M,).
_Objects = dict[str, Tensor]


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors around the middle of a map's places, in float32 for maps of any type.

    Torchvision's anchors lie around the upper left corners of places; on a map of one place that is the image's corner.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        grids = super().grid_anchors(grid_sizes, strides)
        return [
            grid + torch.stack([width, height, width, height]) / 2
            for grid, (height, width) in zip(grids, strides, strict=True)
        ]


class _NoBackbone(nn.Module):
    """The parts of a backbone that torchvision's models read when they are built."""

    out_channels = _WIDTH


class _TwoStage(nn.Module):
    """A two-stage detector: regions first, then the class and the box of each region.

    All in float32: torchvision keeps regions in the number format of the maps, in which bfloat16 rounds 257 to 256.

    Args:
        model: The model whose heads are used.
        image_size: Pixels of a side.
    """

    def __init__(self, model: FasterRCNN, image_size: int) -> None:
        super().__init__()
        self.rpn, self.roi_heads = model.rpn, model.roi_heads
        self.image_size = image_size

    def losses(self, levels: Sequence[Tensor], objects: list[_Objects]) -> dict[str, Tensor]:
        # Label 0 is the background.
        objects = [{**of_image, "labels": of_image["labels"] + 1} for of_image in objects]
        _, losses = self._run(levels, objects)
        return losses

    def detections(self, levels: Sequence[Tensor]) -> list[_Objects]:
        found, _ = self._run(levels, None)
        return [{**of_image, "labels": of_image["labels"] - 1} for of_image in found]

    def _run(
        self, levels: Sequence[Tensor], objects: list[_Objects] | None
    ) -> tuple[list[_Objects], dict[str, Tensor]]:
        """Found objects without losses; or, if objects to learn are given, the losses without found objects."""
        images = _images(levels, self.image_size)
        features = {str(k): level.float() for k, level in enumerate(levels)}
        with modes_kept(self), torch.autocast(levels[0].device.type, enabled=False):
            # Torchvision decides by the mode what is computed; nothing else in these heads depends on the mode.
            self.train(objects is not None)
            proposals, of_regions = self.rpn(images, features, objects)
            found, of_boxes = self.roi_heads(features, proposals, images.image_sizes, objects)
        return found, of_regions | of_boxes


class _OneStage(nn.Module):
    """A one-stage detector: class and box of every place of the pyramid at once.

    Args:
        model: The model whose head, matching and decoding are used.
        image_size: Pixels of a side.
    """

    def __init__(self, model: RetinaNet | FCOS, image_size: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size

    def losses(self, levels: Sequence[Tensor], objects: list[_Objects]) -> dict[str, Tensor]:
        outputs, anchors, counts = self._run(levels)
        # FCOS has ranges of sizes by level.
        by_level = (counts,) if isinstance(self.model, FCOS) else ()
        losses: dict[str, Tensor] = self.model.compute_loss(objects, outputs, anchors, *by_level)
        return losses

    def detections(self, levels: Sequence[Tensor]) -> list[_Objects]:
        outputs, anchors, counts = self._run(levels)
        by_level = {name: list(output.split_with_sizes(counts, 1)) for name, output in outputs.items()}
        anchors_by_level = [list(of_image.split_with_sizes(counts)) for of_image in anchors]
        sizes = [(self.image_size, self.image_size)] * len(anchors)
        found: list[_Objects] = self.model.postprocess_detections(by_level, anchors_by_level, sizes)
        return found

    def _run(self, levels: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """The head's outputs in float32, each image's anchors, and how many of them a level has."""
        # In the number format of the maps, also where the loss is computed without autocast.
        kind, half = levels[0].device.type, levels[0].dtype
        with torch.autocast(kind, dtype=half, enabled=half != torch.float32):
            outputs = {name: output.float() for name, output in self.model.head(list(levels)).items()}
        generator = self.model.anchor_generator
        anchors = generator(_images(levels, self.image_size), list(levels))
        at_place = generator.num_anchors_per_location()
        counts = [level.shape[-2:].numel() * each for level, each in zip(levels, at_place, strict=True)]
        return outputs, anchors, counts


def _images(levels: Sequence[Tensor], image_size: int) -> ImageList:
    """The images as torchvision's heads need them: only their size and number."""
    sizes = [(image_size, image_size)] * len(levels[0])
    return ImageList(levels[0].new_empty(0, 3, image_size, image_size), sizes)


def _faster_rcnn(strides: Sequence[int], num_classes: int, image_size: int) -> _TwoStage:
    sizes = _anchor_sizes(len(strides) + 1, strides[0], image_size, 1.0)
    proposals, sampled = (
        max(least, min(most, round(share * image_size)))
        for share, (least, most) in ((1.0, _PROPOSALS), (0.25, _SAMPLED_PROPOSALS))
    )
    model = FasterRCNN(
        _NoBackbone(),
        rpn_anchor_generator=_Anchors(tuple((size,) for size in sizes), (_ASPECTS,) * len(sizes)),
        rpn_pre_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=_roi_pool(strides, image_size),
        box_head=TwoMLPHead(_WIDTH * _ROI_SIDE**2, _REPRESENTATION),
        box_predictor=FastRCNNPredictor(_REPRESENTATION, num_classes + 1),
        box_batch_size_per_image=sampled,
        box_score_thresh=_LOWEST_SCORE,
        box_detections_per_img=MAX_DETECTIONS,
    )
    # Torchvision refuses any pool but its own, so that this one is set afterwards.
    model.roi_heads.box_roi_pool = RegionPool(model.roi_heads.box_roi_pool)
    return _TwoStage(model, image_size)


def _roi_pool(strides: Sequence[int], image_size: int) -> MultiScaleRoIAlign:
    # One sample a cell: nearly as good as four by Mask R-CNN, whose gradients take half of all time on a CPU.
    pool = MultiScaleRoIAlign([str(k) for k in range(len(strides))], _ROI_SIDE, sampling_ratio=1)
    # Torchvision would guess powers of two from its first batch, but a transformer's patches may have 14 pixels.
    pool.scales = [1 / stride for stride in strides]
    finest = round(math.log2(strides[0]))
    pool.map_levels = LevelMapper(
        finest, finest + len(strides) - 1, canonical_scale=min(_CANONICAL_SIDE, image_size), canonical_level=4
    )
    return pool


def _retinanet(strides: Sequence[int], num_classes: int, image_size: int) -> _OneStage:
    sizes = _anchor_sizes(len(strides) + 2, strides[0], image_size, _SCALES[-1])
    scaled = tuple(tuple(size * scale for scale in _SCALES) for size in sizes)
    model = RetinaNet(
        _NoBackbone(),
        num_classes,
        anchor_generator=_Anchors(scaled, (_ASPECTS,) * len(sizes)),
        score_thresh=_LOWEST_SCORE,
        detections_per_img=MAX_DETECTIONS,
    )
    return _OneStage(model, image_size)


def _fcos(strides: Sequence[int], num_classes: int, image_size: int) -> _OneStage:
    # A place takes objects of 4 to 8 times its stride: with strides more than twice apart some objects had no level.
    units = accumulate([*strides, 2 * strides[-1], 4 * strides[-1]], lambda unit, stride: min(2 * unit, stride))
    sizes = tuple((unit,) for unit in units)
    model = FCOS(
        _NoBackbone(),
        num_classes,
        anchor_generator=_Anchors(sizes, ((1.0,),) * len(sizes)),
        # Torchvision's score is the root of the product of class score and centredness.
        score_thresh=_LOWEST_SCORE**0.5,
        detections_per_img=MAX_DETECTIONS,
    )
    # The distance of a side comes from a ReLU that torchvision starts around 0, where half of the ReLUs are dead: an
    # object of a single place would not learn these sides. Started at 1, all boxes begin two strides wide.
    nn.init.ones_(model.head.regression_head.bbox_reg.bias)
    return _OneStage(model, image_size)


def _anchor_sizes(levels: int, finest: int, image_size: int, top_scale: float) -> list[float]:
    """A base size for each level, from an eighth of the side to all of it, by equal factors.

    The papers' sizes, four times a level's stride, are for images of 800 pixels: at 64 pixels and strides from 8 to 32
    they are 32 to 128. They are kept as the least size if they are below the eighth, which is the case where maps are
    large enough for still smaller objects.
    """
    least, most = min(4 * finest, image_size / 8), image_size / top_scale
    return [least * (most / least) ** (k / (levels - 1)) for k in range(levels)]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Levels of the pyramid above the encoder's, and heads from strides, classes and image size."""

    top_levels: Callable[[], nn.Module]
    heads: Callable[[Sequence[int], int, int], _TwoStage | _OneStage]


def _p6_p7() -> nn.Module:
    # From the pyramid's last level as in FCOS: RetinaNet takes the encoder's last map, whose channels may be thousands.
    top: nn.Module = LastLevelP6P7(_WIDTH, _WIDTH)
    return top


DETECTORS = {
    "faster_rcnn": _Kind(LastLevelMaxPool, _faster_rcnn),
    "retinanet": _Kind(_p6_p7, _retinanet),
    "fcos": _Kind(_p6_p7, _fcos),
}


class Detector(nn.Module):
    """The part of a detector above its encoder: a feature pyramid and heads.

    Faster R-CNN: https://arxiv.org/abs/1506.01497, on a pyramid: https://arxiv.org/abs/1612.03144. RetinaNet:
    https://arxiv.org/abs/1708.02002. FCOS: https://arxiv.org/abs/1904.01355. None of them has BatchNorm, so
    small batches do no harm.

    Args:
        kind: A key of ``DETECTORS``.
        channels: Channels of the encoder's maps, highest resolution first.
        strides: Pixels of the image from place to place of those maps.
        num_classes: Number of classes, without a background.
        image_size: Pixels of a side of the images, which are square.
    """

    def __init__(
        self, kind: str, channels: Sequence[int], strides: Sequence[int], num_classes: int, image_size: int
    ) -> None:
        super().__init__()
        self.decoder = FeaturePyramidNetwork(list(channels), _WIDTH, DETECTORS[kind].top_levels())
        self.heads = DETECTORS[kind].heads(strides, num_classes, image_size)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid of an encoder's maps, the same in training and evaluation.

        Args:
            features: (B, C, h, w) each, highest resolution first.

        Returns:
            (B, 128, h, w) for each map, then one (Faster R-CNN) or two coarser ones.
        """
        return tuple(self.decoder({str(k): feature for k, feature in enumerate(features)}).values())

    def losses(self, pyramid: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The training loss, a scalar; Faster R-CNN draws its samples from torch's global generator.

        Args:
            pyramid: From ``forward``.
            targets: (B, M, 5) float32, rows (left, top, right, bottom, class index) in pixels; -1 in unused ones.
        """
        objects = [_objects(of_image) for of_image in targets]
        return torch.stack(list(self.heads.losses(pyramid, objects).values())).sum()

    def detections(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Found boxes, best first; to be called without gradients, in either mode.

        Args:
            pyramid: From ``forward``.

        Returns:
            (B, 100, 6) float32, rows (left, top, right, bottom, class index, score) in pixels; unused rows are
            (0, 0, 0, 0, -1, 0).
        """
        found = self.heads.detections(pyramid)
        rows = torch.zeros(len(found), MAX_DETECTIONS, 6, device=pyramid[0].device)
        rows[..., 4] = -1
        for row, of_image in zip(rows, found, strict=True):
            boxes, labels, scores = (of_image[name] for name in ("boxes", "labels", "scores"))
            # Clipping turns boxes beyond the image's border into lines.
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
            packed = torch.cat([boxes, labels[:, None], scores[:, None]], 1)[has_area]
            row[: len(packed)] = packed
        return rows


def _objects(rows: Tensor) -> _Objects:
    """Boxes and labels of one image's target rows (M, 5)."""
    used = rows[rows[:, 4] >= 0]
    return {"boxes": used[:, :4], "labels": used[:, 4].long()}
