"""Old checkpoints and caches removed: ``python -m search.housekeeping [STUDY ...] --days 30 --gib 50``."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from search.config import HousekeepingConfig
from search.imports import importing
from search.run import exit_code
from strategies import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from search.known import Known

_USAGE = """\
A study is named as for search.run, or by the name it has in the store; without one, all studies of the store are meant.

Checkpoints are those of the best trials of each study, which only further choosing among them needs. A winner's
stays, as do all models, and everything of studies that are running. Cached images and activations are made anew where
they are needed."""

_CACHE = "mlruns/cache"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that may go.

    Args:
        study: Its study.
        trial: Its trial.
        uri: Folder of its run's artifacts.
        bytes: Its size.
        ended: When the trial did.
    """

    study: str
    trial: int
    uri: str
    bytes: int
    ended: datetime


def tidy(studies: Sequence["Known"], cache: Path, how: HousekeepingConfig, only_says: bool = False) -> list[str]:
    """Remove what is too old, and of checkpoints the oldest until they are within their bound.

    Args:
        studies: Whose checkpoints are meant.
        cache: Folder of cached images and activations.
        how: What is too old and too much.
        only_says: Nothing is removed.

    Returns:
        What was removed, or would be, a line each.
    """
    said = []
    for found in too_many(list(_checkpoints(studies)), how):
        if not only_says:
            _remove(found)
        said.append(f"checkpoint of trial {found.trial} of {found.study}, {_size(found.bytes)}")
    if how.days is not None:
        from trainers import drop_unused

        before = time.time() - timedelta(days=how.days).total_seconds()
        for path, size in drop_unused(cache, before, only_says):
            said.append(f"{path}, {_size(size)}")
    return said


def too_many(checkpoints: Sequence[Checkpoint], how: HousekeepingConfig) -> list[Checkpoint]:
    """The checkpoints that go, the oldest first."""
    in_order = sorted(checkpoints, key=lambda one: one.ended)
    left = sum(one.bytes for one in in_order)
    oldest = datetime.min if how.days is None else datetime.now() - timedelta(days=how.days)
    most = float("inf") if how.gib is None else how.gib * 2**30
    going = []
    for one in in_order:
        if one.ended < oldest or left > most:
            going.append(one)
            left -= one.bytes
    return going


def _checkpoints(studies: Sequence["Known"]) -> Iterator[Checkpoint]:
    """Those of trials of studies that are not running, but for winners'."""
    from optuna.trial import TrialState

    from search.outcome import CHECKPOINT, RUN_ID
    from search.winner import WINNER

    for known in studies:
        trials = known.study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.RUNNING for trial in trials):
            continue
        winner = known.study.user_attrs.get(WINNER, {}).get("trial")
        with known.reading_runs() as client:
            for trial in trials:
                if CHECKPOINT not in trial.user_attrs or trial.number == winner or trial.datetime_complete is None:
                    continue
                stored = _stored(client, trial.user_attrs[RUN_ID])
                if stored is not None:
                    yield Checkpoint(known.name, trial.number, *stored, trial.datetime_complete)


def _stored(client: "MlflowClient", run: str) -> tuple[str, int] | None:
    """Folder and size of a run's checkpoint; None where that, or the whole run, is gone."""
    from mlflow.exceptions import MlflowException

    from search.delivery import CHECKPOINT_FILE, find_run, is_absent

    run_id = find_run(client, run)
    if run_id is None:
        return None
    try:
        files = client.list_artifacts(run_id)
        uri = str(client.get_run(run_id).info.artifact_uri)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return None
    sizes = [file.file_size or 0 for file in files if file.path == CHECKPOINT_FILE]
    return (uri, sizes[0]) if sizes else None


def _remove(checkpoint: Checkpoint) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from search.delivery import CHECKPOINT_FILE

    get_artifact_repository(checkpoint.uri).delete_artifacts(CHECKPOINT_FILE)  # type: ignore[no-untyped-call]


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def housekeeping(words: Sequence[str], cache: Path, days: float | None, gib: float | None, only_says: bool) -> int:
    """Remove, and say what.

    Raises:
        ConfigError: Neither an age nor a size is given, one of them cannot be, or a study is nowhere.
    """
    if days is None and gib is None:
        raise ConfigError("say what is too old or too much: --days N, --gib N")
    if days is not None and not days > 0:
        raise ConfigError(f"--days: {days:g} is not above 0")
    if gib is not None and not gib >= 0:
        raise ConfigError(f"--gib: {gib:g} is not at least 0")
    how = HousekeepingConfig(days=days, gib=gib)
    # Only here: it takes seconds to import.
    with importing():
        from search.known import open_known

    said = tidy(open_known(words), cache, how, only_says)
    for line in said:
        print(line)
    print(f"{len(said)} {'would be' if only_says else 'were'} removed")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.housekeeping",
        description="Remove old checkpoints, and cached images and activations that nobody used for long.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="studies, and where their stores are")
    parser.add_argument("--days", type=float, metavar="N", help="what was made, or used last, before so many days goes")
    parser.add_argument(
        "--gib", type=float, metavar="N", help="checkpoints go, the oldest first, until they are so few"
    )
    parser.add_argument("--cache", type=Path, default=Path(_CACHE), metavar="FOLDER", help=f"{_CACHE} by default")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(
        lambda: housekeeping(options.words, options.cache, options.days, options.gib, options.dry_run),
        "what was removed is gone, the rest is there",
    )


if __name__ == "__main__":
    sys.exit(main())
