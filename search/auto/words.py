"""Words of the command line that ask for a study to be chosen."""

from collections.abc import Sequence

from strategies import ConfigError, nearest

AUTO = "auto"
#: What may be asked for with the time that there is; the default is in the middle.
EFFORTS = ("quick", "good", "best")
# Keys that say where images are. With one of them and no study, the study is chosen.
_PLACES = ("root", "manifest", "annotations", "shards", "dataset", "masks", "source")


def key_of(word: str) -> str:
    """The key that a word sets; empty for a word that leaves a key out."""
    return "" if word.startswith("~") else word.lstrip("+").partition("=")[0]


def asks_for_auto(words: Sequence[str], is_multirun: bool) -> bool:
    """Whether a study is to be chosen: ``study=auto``, or images and no study.

    Args:
        words: The words of the command line.
        is_multirun: Whether all combinations of several values are asked for.

    Raises:
        ConfigError: An effort is asked for of a study that is not chosen, or several studies are to be chosen at once.
    """
    studies = [word.partition("=")[2] for word in words if key_of(word) == "study"]
    places = {f"data.{name}" for name in _PLACES}
    is_auto = studies == [AUTO] or (not studies and any(key_of(word) in places for word in words))
    if is_auto and is_multirun:
        raise ConfigError("study: auto chooses one study at a time; leave out --multirun")
    if not is_auto and any(key_of(word) == "effort" for word in words):
        raise ConfigError("effort: only study=auto chooses by it; a study file says itself what is done")
    return is_auto


def effort_of(words: Sequence[str]) -> str:
    """The effort that is asked for.

    Raises:
        ConfigError: There is no such effort.
    """
    asked = [word.partition("=")[2] for word in words if key_of(word) == "effort"]
    effort = asked[-1] if asked else "good"
    if effort not in EFFORTS:
        raise ConfigError(f"effort: {effort!r} is not one of {', '.join(EFFORTS)}; {nearest(effort, EFFORTS)}")
    return effort
