"""First line of input of workers and ranks."""

from pathlib import Path

from pydantic import BaseModel

from search.config import StudyConfig


class Orders(BaseModel):
    """First line of a worker's input.

    Args:
        config: Configuration of the study, with the ``threads`` of this worker.
        cores: CPU cores that the worker runs on; none for any.
        seconds: Time until the hours of the search are over; None for no end.
        log_level: Level of our own packages.
    """

    config: StudyConfig
    cores: tuple[int, ...] = ()
    seconds: float | None
    log_level: int


class RankOrders(BaseModel):
    """First line of a rank's input.

    Args:
        config: Configuration of the study, with the ``device`` and ``threads`` of this rank.
        meeting: File by which ranks find each other.
        seconds: How long ranks wait for one another.
    """

    config: StudyConfig
    meeting: Path
    seconds: float
