"""The family of errors whose messages are written for people."""

from collections.abc import Iterable
from difflib import get_close_matches


class UnfreezeError(Exception):
    """Base of every error that a user can cause and fix; the command line prints it without a traceback."""


class ConfigError(UnfreezeError):
    """A key, a value or a range of the configuration is wrong."""


class DataError(UnfreezeError):
    """The images, labels or splits cannot be used as they are."""


class WeightsError(UnfreezeError):
    """Pretrained weights cannot be found, read or fitted to the model."""


class TrialError(UnfreezeError):
    """A single trial cannot go on, for instance because its loss is not finite; the study itself goes on."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def counted(count: int, noun: str) -> str:
    """``1 trial``, ``2,000 trials``; the noun is given in the singular."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to ``word``, in upper or lower case, or all of them when none is close.

    Returns:
        ``"did you mean 'lr'?"`` or ``"known: a, b, c"``.
    """
    names = sorted(known)
    by_lower = {name.lower(): name for name in reversed(names)}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean '{by_lower[close[0]]}'?" if close else f"known: {', '.join(names)}"
