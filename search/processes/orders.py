"""What workers and ranks are told at their beginning."""

from pathlib import Path

from pydantic import BaseModel

from search.config import StudyConfig


class Orders(BaseModel):
    """What a worker is told at its beginning.

    Args:
        config: The study's, but that its ``threads`` are those of this worker.
        cores: That it runs on; none for any.
        seconds: Until the hours are over; None for no end.
        log_level: Of our own packages.
    """

    config: StudyConfig
    cores: tuple[int, ...] = ()
    seconds: float | None
    log_level: int


class RankOrders(BaseModel):
    """What a rank is told at its beginning.

    Args:
        config: The study's, but that ``device`` and ``threads`` are those of this rank.
        meeting: The file by which ranks find each other.
        seconds: How long ranks wait for one another.
    """

    config: StudyConfig
    meeting: Path
    seconds: float
