"""The size that images are decoded to: as given, or as it follows from the images and the model."""

import math
from collections.abc import Iterator, Mapping

from search.config import StudyConfig, values_of
from search.storage import IDENTITY
from search.study.begun import begun
from search.trials import Watcher
from strategies import counted
from trainers import LEAST_SIZE, ImageData, Weights, short_side_of, trained_size

# Most architectures halve their maps five times, and patches are 14 to 32 pixels wide.
_STEP = 32
# Of fewer updates a trial learns little.
_FEW_UPDATES = 50


def with_image_size(config: StudyConfig, weights: Mapping[str, Weights], watcher: Watcher) -> StudyConfig:
    """The configuration with the size of the images, where it is not given.

    A study that has begun keeps its size. A new one takes :func:`fitting_size`, and says so.

    Args:
        config: The study's configuration.
        weights: Weights of each model, by the model's name.
        watcher: Shows the line.

    Raises:
        DataError: The images cannot be found.
    """
    if config.data.image_size is not None:
        return config
    study = begun(config)
    if study is not None:
        size = int(study.user_attrs[IDENTITY]["data.image_size"])
    else:
        own, side = _own(weights), short_side_of(config.task, **config.data.model_dump())
        size = fitting_size(own, side)
        watcher.say(f"Size    data.image_size={size}: {_facts(own, side)}")
    return config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})


def remarks(config: StudyConfig, data: ImageData, weights: Mapping[str, Weights]) -> Iterator[str]:
    """Lines about a size that is far below what images and weights suggest, and about trials of very few updates.

    Args:
        config: The study's configuration.
        data: The images.
        weights: Weights of each model, by the model's name.
    """
    own, given = _own(weights), data.preprocessing.image_size
    size = fitting_size(own, data.short_side)
    if 2 * given < size:
        facts = _facts(own, data.short_side)
        yield f"Size    data.image_size={given} is small: {facts}; data.image_size={size} shows more"
    space = config.space()
    epochs, batch = max(values_of(space, "epochs")), min(values_of(space, "batch_size"))
    updates = epochs * math.ceil(len(data.train) / batch)
    if updates < _FEW_UPDATES:
        needed = math.ceil(_FEW_UPDATES / math.ceil(len(data.train) / batch))
        yield (
            f"Updates {updates} in {counted(epochs, 'epoch')} of {counted(len(data.train), 'image')}, which may be too "
            "few to learn from; "
            f"strategy.epochs={needed} gives {_FEW_UPDATES}, and so does a smaller strategy.batch_size"
        )


def _own(weights: Mapping[str, Weights]) -> int:
    return min(trained_size(name, found) for name, found in weights.items())


def _facts(own: int, side: int | None) -> str:
    return f"the weights were trained at {own} px, the images' median short side is {side or 'unknown'} px"


def fitting_size(own: int, side: int | None) -> int:
    """A size that suits images and weights.

    Args:
        own: The size that the weights were trained at.
        side: The median short side of the images; None if unknown.

    Returns:
        The weights' size, or the images' short side if that is less, as a multiple of 32; at least 64, since small
        images gain from being enlarged.
    """
    if side is None or side >= own:
        return own
    return min(own, max(LEAST_SIZE, side // _STEP * _STEP))
