"""Files of the Hugging Face hub: from the library's cache, or downloaded into it, or the reason for a failure."""

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

_PROBE_SECONDS = 3.0
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


class HubError(Exception):
    """The hub did not give the requested file; the message is the bare reason."""


def model_file(model_name: str, progress: Progress | None = None) -> tuple[str, Path]:
    """The file of pretrained weights that timm names for a model.

    The library's cache is searched first, which needs no network. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
    HF_ENDPOINT and HF_TOKEN are honoured. A partial file of an interrupted download is not used.

    Args:
        model_name: A timm model, with or without a pretrained tag.
        progress: Called with the name of the download, the bytes received and the bytes in all. Without it the library
            shows a bar on a terminal and nothing elsewhere.

    Returns:
        The repository and the local file.

    Raises:
        HubError: There is no such file, or it may not be read, or it cannot be downloaded or written.
    """
    pretrained_cfg = timm.get_pretrained_cfg(model_name)
    if pretrained_cfg is None or not pretrained_cfg.hf_hub_id:
        raise HubError(f"timm names no pretrained weights of {model_name} on the hub")
    repo, _, tag = pretrained_cfg.hf_hub_id.partition("@")
    revision = tag or None
    names = _file_names(pretrained_cfg.hf_hub_filename)
    return repo, _cached(repo, names, revision) or _download(repo, names, revision, progress)


def repository_file(repo: str, names: Sequence[str], progress: Progress | None = None) -> Path:
    """The first of some files that a repository has, from the library's cache or downloaded into it.

    Args:
        repo: The repository.
        names: The files, the preferred first.
        progress: As for :func:`model_file`.

    Raises:
        HubError: There is no such file, or it may not be read, or it cannot be downloaded or written.
    """
    return _cached(repo, names, None) or _download(repo, names, None, progress)


def hub_obstacle() -> str | None:
    """The reason why the hub cannot be reached, in at most about three seconds; None if it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return obstacle_at(constants.ENDPOINT)


def obstacle_at(address: str) -> str | None:
    """The reason why a server cannot be reached, in at most about three seconds; None if it answers."""
    outcome = [f"{address} did not answer within {_PROBE_SECONDS:g} s"]

    def probe() -> None:
        try:
            status = huggingface_hub.get_session().head(address, timeout=_PROBE_SECONDS).status_code
            outcome[0] = f"{address} answered with status {status}" if status >= 500 else ""
        except Exception as error:
            outcome[0] = f"{address}: {_first_line(error)}"

    # In a thread: no HTTP library's time-out covers the look-up of a host name, which can take half a minute.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0] or None


def _file_names(named: str | None) -> list[str]:
    """File names to look for, safetensors first; ``named`` is the name in timm's configuration."""
    if named is None:
        return ["model.safetensors", "pytorch_model.bin"]
    return [named.removesuffix(".bin") + ".safetensors", named] if named.endswith(".bin") else [named]


def _cached(repo: str, names: Sequence[str], revision: str | None) -> Path | None:
    for name in names:
        path = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def _download(repo: str, names: Sequence[str], revision: str | None, progress: Progress | None) -> Path:
    elsewhere = f"download {names[0]} of {repo} on a machine with access and pass model.weights=/path/to/{names[0]}"
    # huggingface_hub retries for about 50 s before it gives up on a host that does not answer, so this asks first.
    if obstacle := hub_obstacle():
        raise HubError(f"could not reach the hub ({obstacle}); {elsewhere}")
    try:
        name, size = _look_up(repo, names, revision)
        cache = Path(constants.HF_HUB_CACHE)
        _check_space(size or 0, cache)
        logger.info("downloading %s %s, %s, into %s", repo, name, _megabytes(size), cache)
        bar = _bar_class(f"downloading {repo}", progress)
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, tqdm_class=bar))
    except HubError:
        raise
    except Exception as error:  # the kinds depend on huggingface_hub's version and its HTTP library
        raise HubError(_explain(error, repo, revision, elsewhere)) from error


def _look_up(repo: str, names: Sequence[str], revision: str | None) -> tuple[str, int | None]:
    """The first of the names that the repository has, and its size in bytes if the hub tells it."""
    for name in names:
        url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
        try:
            metadata = huggingface_hub.get_hf_file_metadata(url)
        except EntryNotFoundError:
            continue
        if metadata.commit_hash is None:
            raise HubError(f"{constants.ENDPOINT} does not answer as a hub; is it HF_ENDPOINT, a proxy, a login page?")
        return name, metadata.size
    raise HubError(f"{repo} on the hub has no {' or '.join(names)}")


def _check_space(size: int, cache: Path) -> None:
    """Refuse a file that does not fit on the disk; the library only warns, and then fills the disk."""
    folder = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise HubError(
            f"the file takes {_megabytes(size)}, {cache} has {_megabytes(free)} free; "
            "set HF_HOME to a folder with more space"
        )


def _bar_class(what: str, progress: Progress | None) -> type[tqdm]:
    """The class of the library's progress bar: its own, or a hidden bar that calls ``progress``."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **how: Any) -> None:
            shown = how if progress is None else how | {"disable": True}
            super().__init__(*args, **shown)  # type: ignore[no-untyped-call]
            self.done: int = how.get("initial") or 0
            self.received = 0

        def update(self, n: int = 1) -> bool | None:
            self.done += n
            self.received += max(n, 0)
            # If a server breaks off and cannot resume, the library (2.4.0) starts anew without end.
            if self.total and self.received > 3 * self.total:
                raise ConnectionError("the connection broke off again and again")
            if progress is not None:
                progress(what, self.done, max(self.total or 0, self.done))
            shown: bool | None = super().update(n)
            return shown

        # With these two methods the library feeds one bar, and does not open a second for the bytes on the wire (Xet).
        def update_transfer(self, n: int) -> None:
            pass

        def set_transfer_postfix_str(self, text: str) -> None:
            pass

    return Bar


def _explain(error: Exception, repo: str, revision: str | None, elsewhere: str) -> str:
    """The reason of an error, and what the user can do about it."""
    match error:
        case GatedRepoError():
            reason = f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo}, then {_LOG_IN}"
        case RepositoryNotFoundError():
            reason = f"the hub has no repository {repo} that you may read; if it is private, {_LOG_IN}"
        case RevisionNotFoundError():
            reason = f"{repo} on the hub has no revision {revision or constants.DEFAULT_REVISION}"
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            reason = f"the hub refused {repo} (status {response.status_code}); {_LOG_IN} with a token that may read it"
        case HfHubHTTPError(response=response):
            reason = f"the hub answered with status {response.status_code}; {elsewhere}"
        case OSError(strerror=str() as problem) if not isinstance(error, ConnectionError):
            reason = f"could not write to {constants.HF_HUB_CACHE}: {problem}; set HF_HOME to another folder"
        case _:
            reason = f"could not download from the hub ({_first_line(error)}); {elsewhere}"
    return reason


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:200].rstrip(": ")
