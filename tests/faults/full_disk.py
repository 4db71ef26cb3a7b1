"""A disk that fills up while a process trains; as a script, a study that meets one: EPOCHS DISK ARGUMENTS."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.run import main
from trainers import EpochResult, Trainer

FILLER = "filler"


def fill(disk: Path) -> None:
    """Take all the room that is left."""
    with (disk / FILLER).open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@contextmanager
def full_after(epochs: int, disk: Path) -> Iterator[None]:
    """Have a disk be full once this process has trained so many epochs.

    What was on its way out when the disk was filled leaves room behind, so it is filled again before each epoch.
    """
    train, done = Trainer.__next__, 0

    def filling(trainer: Trainer) -> EpochResult:
        nonlocal done
        # The call that ends a training comes before its trial is told.
        if done >= epochs and trainer.epoch < trainer.strategy.epochs:
            fill(disk)
        result = train(trainer)
        done += 1
        return result

    Trainer.__next__ = filling
    try:
        yield
    finally:
        Trainer.__next__ = train


if __name__ == "__main__":
    with full_after(int(sys.argv[1]), Path(sys.argv[2])):
        code = main(sys.argv[3:])
    sys.exit(code)
