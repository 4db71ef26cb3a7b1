"""The time of a search as a whole: when training has to end, so that the winner and the report come in time."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from search.config import StudyConfig
from search.reporting import duration
from search.storage import END, storage_of
from search.trials import OpenStudy
from search.winner import scored_images
from trainers import seconds_to_score

#: Seconds from the last trial to the end of the command, without the scoring of images, where nothing was measured yet.
FIRST_END = 8.0
# Seconds to close the stores and to leave, which nobody can note in them.
_LEAVING = 1.0
# Of a time that is too short for everything, the end gets so much at most.
_MOST_OF_TIME = 0.4


def with_seconds(config: StudyConfig, began: float) -> StudyConfig:
    """The configuration with ``budget.hours`` in place of ``budget.until``.

    Args:
        config: The study's.
        began: When the command began, on ``time.monotonic``.
    """
    if config.budget.until is None:
        return config
    now = datetime.now() - timedelta(seconds=time.monotonic() - began)
    hour, minute = map(int, config.budget.until.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if end <= now:
        end += timedelta(days=1)
    # Timestamps, since a night in which the clocks change is an hour shorter or longer.
    hours = (end.timestamp() - now.timestamp()) / 3600
    return config.model_copy(update={"budget": config.budget.model_copy(update={"until": None, "hours": hours})})


@dataclass(frozen=True, slots=True)
class End:
    """The end of a search, as it was expected at its start.

    Args:
        scoring_seconds: Seconds to score all images that the end scores; None where no time was given.
    """

    scoring_seconds: float | None = None


def with_deadline(open_study: OpenStudy, began: float | None) -> tuple[OpenStudy, End]:
    """The study with the time at which training has to end, and what was expected of its end.

    Args:
        open_study: The study.
        began: When the command began, on ``time.monotonic``: the time then holds for all that the command does. None
            where the time is that of the search alone, and begins now.
    """
    seconds = open_study.config.budget.seconds
    if seconds is None:
        return open_study, End()
    now = time.monotonic()
    if began is None:
        return replace(open_study, deadline=now + seconds), End()
    scoring = _scoring_seconds(open_study)
    kept = min(_fixed_seconds(open_study) + scoring + _LEAVING, _MOST_OF_TIME * seconds)
    deadline = began + seconds - kept
    clock = datetime.now() + timedelta(seconds=began + seconds - now)
    open_study.watcher.say(
        f"Time    ends at {clock:%H:%M:%S}, {duration(seconds)} after the start: {duration(max(0.0, deadline - now))} "
        f"to search, and {duration(kept)} to score the winner and write the report"
    )
    return replace(open_study, deadline=deadline), End(scoring)


def note_end(open_study: OpenStudy, end: End, seconds: float) -> None:
    """Store how long the end of a search with a time has taken on this machine, for later searches.

    Args:
        open_study: The study.
        end: What was expected.
        seconds: From the last training to the end.
    """
    if end.scoring_seconds is None:
        return
    fixed = max(1.0, seconds - end.scoring_seconds)
    open_study.study.set_user_attr(END, {"host": socket.gethostname(), "seconds": fixed})


def _fixed_seconds(open_study: OpenStudy) -> float:
    """Seconds that the end takes besides the scoring of images: as last time on this machine."""
    here = socket.gethostname()
    stored: list[Mapping[str, Any]] = [open_study.study.user_attrs.get(END, {})]
    others = storage_of(open_study.study).get_all_studies()
    stored += [study.user_attrs.get(END, {}) for study in reversed(others)]
    return next((float(one["seconds"]) for one in stored if one.get("host") == here), FIRST_END)


def _scoring_seconds(open_study: OpenStudy) -> float:
    """Seconds to score all images that the end scores, with the slowest of the models."""
    materials = open_study.materials
    each = [seconds_to_score(source, materials.data, materials.device) for source in materials.sources.values()]
    return max(each) * scored_images(open_study)
