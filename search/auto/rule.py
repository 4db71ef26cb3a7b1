"""The rule by which model, image size, epochs and batch size are chosen, from measured speeds and the time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

# Depths are drawn, and frozen blocks are read from the cache: on average a trial takes this share of a full one. With
# masks and boxes most blocks are trained.
_SHARE = {False: 0.6, True: 0.9}
# Full trials that have to fit into the time: of the first model, and of a heavier one, which costs trials.
_FULL_TRIALS = {"quick": (1, 3), "good": (5, 15), "best": (5, 10)}
# For so many full trials epochs and pixels give way, and for so many images too, which cost the score most: the presets
# come first, and one that is trained enough is worth more than several that are not.
_LEAST_TRIALS = {"quick": (1.0, 1.0), "good": (1.3, 0.9), "best": (1.3, 0.9)}
# Updates that a trial should make, and the bounds of its epochs: of labels of whole images, and of masks and boxes.
_UPDATES, _EPOCHS = {False: 160, True: 300}, {False: (5, 15), True: (2, 15)}
_FEWEST_EPOCHS = {False: 3, True: 2}
# Fewest images that a subset has, a class.
_LEAST_IMAGES, _LEAST_OF_CLASS = 200, 20
# Sides of images are multiples of this, as patches and maps that are halved five times want it.
_STEP, _LEAST_SIZE = 32, 64


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known before the choice.

    Args:
        dense: Whether masks or boxes are learnt.
        counts: Images of each split.
        train: Training images that can be read in the time.
        val: Validation images that can.
        test: Test images that can.
        classes: Classes or targets.
        seconds: Time to search.
        has_gpu: Whether there is a GPU.
        effort: ``quick``, ``good`` or ``best``.
    """

    dense: bool
    counts: Mapping[str, int]
    train: int
    val: int
    test: int
    classes: int
    seconds: float
    has_gpu: bool
    effort: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A model that can be had, and its speed.

    Args:
        name: Its name in timm.
        weights: Where its weights are.
        size: Side of the images that suit the model and the data, in pixels.
        train_seconds: Seconds to train all blocks on an image of that size.
        score_seconds: Seconds to score one.
    """

    name: str
    weights: str
    size: int
    train_seconds: float
    score_seconds: float

    def at(self, size: int) -> "Measured":
        """The same for images of another size: the seconds of convolutions grow with the pixels."""
        scale = (size / self.size) ** 2
        return replace(
            self,
            size=size,
            train_seconds=self.train_seconds * scale,
            score_seconds=self.score_seconds * scale,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen.

    Args:
        model: The model, at the chosen size.
        epochs: Epochs of a trial.
        batch_size: Images a batch.
        train: Training images of a trial; fewer than there are where the time is short.
        val: Validation images.
        full_seconds: Seconds of a trial that trains all blocks.
        trials: Trials that are expected to fit into the time.
        why: Why this model and size, in a few words.
    """

    model: Measured
    epochs: int
    batch_size: int
    train: int
    val: int
    full_seconds: float
    trials: float
    why: str


def batch_of(train: int, dense: bool, has_gpu: bool) -> int:
    """A batch size: small sets need the updates, and large ones fill a GPU."""
    if dense:
        return 8 if train < 200 else 16
    if train < 400:
        return 16
    return 64 if has_gpu and train >= 5000 else 32


def epochs_of(train: int, batch_size: int, dense: bool) -> int:
    """Epochs that make enough updates."""
    fewest, most = _EPOCHS[dense]
    return min(most, max(fewest, math.ceil(_UPDATES[dense] / math.ceil(train / batch_size))))


def choose(facts: Facts, models: Sequence[Measured]) -> Choice:
    """The heaviest model of which enough trials fit into the time; else smaller images, fewer epochs, fewer images.

    Args:
        facts: What is known.
        models: From the lightest to the heaviest; the first is the usual one.
    """
    batch = batch_of(facts.train, facts.dense, facts.has_gpu)
    epochs = epochs_of(facts.train, batch, facts.dense)
    usual, heavier = _FULL_TRIALS[facts.effort]
    for place in reversed(range(len(models))):
        found = _choice(facts, models[place], epochs, batch)
        needed = heavier if place else usual
        if found.full_seconds * needed <= facts.seconds:
            why = f"{needed} of its full trials fit into the time"
            return replace(found, why=why)
    first = models[0]
    # Fewer epochs before smaller images: enlarged or shrunken images change what can be seen.
    fewest = _FEWEST_EPOCHS[facts.dense]
    tried = [(first, count) for count in range(epochs, fewest - 1, -1)]
    tried += [(first.at(size), fewest) for size in _smaller(first.size)]
    for model, count in tried:
        found = _choice(facts, model, count, batch)
        if facts.seconds >= _LEAST_TRIALS[facts.effort][0] * found.full_seconds:
            return replace(found, why="the lightest, since the time is short")
    return _on_fewer_images(facts, *tried[-1], batch)


def _smaller(size: int) -> Iterator[int]:
    """Sizes down to half of one."""
    least = max(_LEAST_SIZE, size // 2)
    yield from range((size - 1) // _STEP * _STEP, least - 1, -_STEP)


def _choice(facts: Facts, model: Measured, epochs: int, batch: int) -> Choice:
    seconds = epochs * (facts.train * model.train_seconds + facts.val * model.score_seconds)
    trials = facts.seconds / max(1e-9, seconds * _SHARE[facts.dense])
    return Choice(model, epochs, batch, facts.train, facts.val, seconds, trials, "")


def _on_fewer_images(facts: Facts, model: Measured, epochs: int, batch: int) -> Choice:
    """The choice with so many images that a few trials fit into the time."""
    whole = _choice(facts, model, epochs, batch)
    share = min(1.0, facts.seconds / (_LEAST_TRIALS[facts.effort][1] * whole.full_seconds))
    least = max(_LEAST_IMAGES, _LEAST_OF_CLASS * facts.classes)
    train = min(facts.train, max(least, int(facts.train * share)))
    val = min(facts.val, max(least // 2, int(facts.val * share)))
    found = _choice(replace(facts, train=train, val=val), model, epochs, batch)
    part = " and a part of the images" if share < 1 else ""
    return replace(found, why=f"the lightest{part}, since the time is short")
