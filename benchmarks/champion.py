"""Nights of promotion, simulated: how often a champion falls to a model that is no better, how soon to a better one.

``python -m benchmarks.champion`` draws test images, a champion and a different challenger for each night, and decides
with the functions of ``search/winner/``. "before" is a fixed significance level for each night and images taken for
independent, as it was in earlier versions; "after" is the level of the challenger's look, and groups are kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import write_json
from search.winner.looks import look_of
from search.winner.significance import p_value_of
from trainers import TASKS, Groups

ALPHA = 0.05
# A model's accuracy, how much of an image's difficulty is common to all models, and to the images of a group.
ACCURACY, COMMON, OF_GROUP, GROUP_SIZE = 0.9, 0.75, 0.6, 6
# The wait is asked of a champion that is new, and of one that so many equal challengers have failed against.
EARLIER_LOOKS = (0, 20)
GAINS = (0.005, 0.01, 0.02)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated.

    Args:
        images: Number of test images.
        is_grouped: Whether images come in groups of about six, which are hard or easy together.
        rule: ``before`` or ``after``.
    """

    images: int
    is_grouped: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it, over all repetitions.

    Args:
        setting: What was simulated.
        falsely: Share of repetitions in which a model that is no better was ever promoted.
        inflation: By how much the last champion's score on the test images is above its true one, on average.
        nights: By gain in accuracy and earlier looks, the nights until the better model was promoted; the last night
            and one more where it was not.
    """

    setting: Setting
    falsely: float
    inflation: float
    nights: dict[str, list[int]] = field(default_factory=dict)


class World:
    """Test images and models of any accuracy on them.

    Args:
        images: Number of test images.
        is_grouped: Whether they come in groups.
        seed: Draws images and models.
    """

    def __init__(self, images: int, is_grouped: bool, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        count = max(2, images // GROUP_SIZE)
        self.groups: Groups | None = self._rng.integers(0, count, images) if is_grouped else None
        self._images, self._groups = images, count
        self._difficulty = self._drawn()

    def _drawn(self) -> NDArray[np.float64]:
        """A number for each image, standard normal; alike within a group."""
        own = self._rng.standard_normal(self._images)
        if self.groups is None:
            return own
        of_group = self._rng.standard_normal(self._groups)[self.groups]
        return np.sqrt(OF_GROUP) * of_group + np.sqrt(1 - OF_GROUP) * own

    def model(self, accuracy: float) -> NDArray[np.bool_]:
        """Whether a new model of some true accuracy is right about each image."""
        from scipy.special import ndtri

        latent = np.sqrt(COMMON) * self._difficulty + np.sqrt(1 - COMMON) * self._drawn()
        return latent < ndtri(accuracy)

    def p_value(self, old: NDArray[np.bool_], new: NDArray[np.bool_], alpha: float, keeps_groups: bool) -> float:
        """The project's p-value that the new model is no better."""
        targets = torch.ones(self._images, dtype=torch.int64)
        logits = [torch.nn.functional.one_hot(torch.from_numpy(hits).long(), 2).float() for hits in (old, new)]
        groups = self.groups if keeps_groups else None
        return p_value_of(TASKS["classification"], "accuracy", *logits, targets, alpha, groups)


def is_promoted(world: World, old: NDArray[np.bool_], new: NDArray[np.bool_], number: int, rule: str) -> bool:
    """Whether the challenger of a look is promoted."""
    if new.sum() <= old.sum():
        # Spared the test, by which p is above a half.
        return False
    if rule == "before":
        # A two-sided test: half of alpha was for the better.
        return world.p_value(old, new, ALPHA / 2, keeps_groups=False) <= ALPHA / 2
    level = look_of(number, ALPHA).alpha
    return world.p_value(old, new, level, keeps_groups=True) <= level


def equal_nights(setting: Setting, nights: int, seed: int) -> tuple[bool, float]:
    """Whether any of many equal challengers was promoted, and the last champion's inflation."""
    world = World(setting.images, setting.is_grouped, seed)
    first = champion = world.model(ACCURACY)
    number, falsely = 0, False
    for _ in range(nights):
        number += 1
        challenger = world.model(ACCURACY)
        if is_promoted(world, champion, challenger, number, setting.rule):
            champion, number, falsely = challenger, 0, True
    # The first was not chosen by these images, so its score is right on average.
    return falsely, float(champion.mean() - first.mean())


def wait(setting: Setting, gain: float, earlier: int, nights: int, seed: int) -> int:
    """Nights until the first promotion, where every challenger is better by a gain; one more if there is none."""
    world = World(setting.images, setting.is_grouped, seed)
    champion = world.model(ACCURACY)
    for night in range(1, nights + 1):
        if is_promoted(world, champion, world.model(ACCURACY + gain), earlier + night, setting.rule):
            return night
    return nights + 1


def simulate(setting: Setting, nights: int, repeats: int, gains: Sequence[float], earlier: Sequence[int]) -> Outcome:
    """Repeat the nights with other images and models.

    Args:
        setting: What is simulated.
        nights: Nights of a repetition.
        repeats: Number of repetitions.
        gains: By how much better challengers are, in shares of images.
        earlier: Looks that equal challengers had before the better ones come.
    """
    equal = [equal_nights(setting, nights, seed) for seed in range(repeats)]
    waits = {
        f"{gain:.3f} after {looks}": [wait(setting, gain, looks, nights, seed) for seed in range(repeats)]
        for gain in gains
        for looks in earlier
    }
    falsely, inflation = (float(np.mean(found)) for found in zip(*equal, strict=True))
    return Outcome(setting, falsely, inflation, waits)


def settings(images: Sequence[int]) -> Iterator[Setting]:
    """Independent and grouped images, by the old rule and the new one."""
    for count in images:
        for is_grouped in (False, True):
            for rule in ("before", "after"):
                yield Setting(count, is_grouped, rule)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[359, 2000], help="test images")
    parser.add_argument("--nights", type=int, default=200, help="nights of a repetition")
    parser.add_argument("--repeats", type=int, default=200, help="repetitions")
    parser.add_argument("--quick", action="store_true", help="few nights and repetitions, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    nights, repeats = (5, 3) if options.quick else (options.nights, options.repeats)
    found = [simulate(setting, nights, repeats, GAINS, EARLIER_LOOKS) for setting in settings(options.images)]
    write_json({"nights": nights, "repeats": repeats, "outcomes": [asdict(one) for one in found]}, options.json)
    show(found, nights, repeats)


def show(found: Sequence[Outcome], nights: int, repeats: int) -> None:
    """Print a table of promotions that were wrong, and one of the waits for better models."""
    title = f"{nights} nights with equal models, {repeats} repetitions"
    table = Table("images", "rule", "ended with a false promotion", "champion's inflation, points", title=title)
    for one in found:
        table.add_row(*_names(one), f"{one.falsely:.1%}", f"{100 * one.inflation:+.2f}")
    console = Console()
    console.print(table)
    gains = list(found[0].nights)
    table = Table(
        *("images", "rule", *(f"+{100 * float(name.split()[0]):g}, {name.partition(' ')[2]} looks" for name in gains)),
        title="median nights until a better model is promoted (promoted within 5 nights)",
    )
    for one in found:
        table.add_row(*_names(one), *(_waited(one.nights[name], nights) for name in gains))
    console.print(table)


def _waited(waits: Sequence[int], nights: int) -> str:
    middle = float(np.median(waits))
    return f"{f'{middle:g}' if middle <= nights else f'above {nights}'} ({np.mean(np.array(waits) <= 5):.0%})"


def _names(one: Outcome) -> tuple[str, str]:
    return f"{one.setting.images:,}{' grouped' if one.setting.is_grouped else ''}", one.setting.rule


if __name__ == "__main__":
    main()
