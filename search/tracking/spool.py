"""Spools: writes of this process, and of processes that have ended, that wait on disk until MLflow is back."""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from search.tracking.writes import Upload, Write, as_line, from_line
from trainers import sync

REFUSED_FILE = "refused.jsonl"
_WRITES, _DELIVERED = "writes.jsonl", "delivered"

logger = logging.getLogger(__name__)


class Spool:
    """One process's folder of waiting writes: a line for each write, in order, and checkpoints as files.

    The folder is made when it is first needed, and removed when nothing waits in it. Its process holds a lock beside
    it; after the process has ended, by ``kill -9`` too, another can take the spool over. The process that delivers the
    writes makes a note after each, so that at most the last write is delivered twice.

    Args:
        folder: Folder of the spools of all processes that work on one study.
        name: Name of the spool's folder; empty for a new one.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        # Sorted by name, spools are in the order in which they were made.
        self.folder = folder / (name or f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}")
        # The training thread and the background writer share the lock.
        self._lock = FileLock(f"{self.folder}.lock", thread_local=False)

    def open(self) -> None:
        """Make the folder; also anew, if someone has removed the cache.

        Raises:
            OSError: The folder cannot be made.
        """
        if self._lock.is_locked and not Path(self._lock.lock_file).exists():
            # A lock on a removed file keeps no other process from locking a new one.
            self.release()
        if not self._lock.is_locked:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            # Before the folder is made: a folder whose lock is free passes for one that an ended process has left.
            self._lock.acquire()
        self.folder.mkdir(exist_ok=True)

    @property
    def is_gone(self) -> bool:
        """Whether the file of waiting writes is missing."""
        return not (self.folder / _WRITES).exists()

    def checkpoints_of(self, run: str) -> Path:
        """Folder of a run's waiting checkpoints, each of which has a folder of its own in it."""
        return self.folder / run

    def add(self, writes: Sequence[Write]) -> None:
        """Append writes, which then survive this process; after :meth:`sync` they survive the machine too.

        Raises:
            OSError: They cannot be written, such as on a full disk; then none of them is appended.
        """
        self.open()
        path = self.folder / _WRITES
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write("".join(f"{as_line(write)}\n" for write in writes).encode())
            for write in writes:
                if isinstance(write, Upload):
                    for one in (self.checkpoints_of(write.run) / write.place).glob("*"):
                        sync(one)
        except OSError:
            if path.exists():
                os.truncate(path, before)
            raise

    def sync(self) -> None:
        """Wait until the added writes are on the disk itself."""
        if (self.folder / _WRITES).exists():
            sync(self.folder / _WRITES)
            sync(self.folder)

    def read(self) -> list[Write | None]:
        """The writes that wait, ``None`` for a line that cannot be read, as after a power cut.

        A copy of a file with such a line is kept beside the folder. At the end are the checkpoints that its lines do
        not name: the lost line may have.
        """
        path = self.folder / _WRITES
        if not path.exists():
            return []
        # A last line without its end was never completely written; its write was not waited for by a trial.
        *lines, torn = path.read_bytes().split(b"\n")
        found: list[Write | None] = []
        for line in lines[self._count_delivered() :]:
            try:
                found.append(from_line(line))
            except ValueError:
                found.append(None)
        damaged = self.folder.parent / f"damaged-{self.folder.name}.jsonl"
        if None in found:
            shutil.copyfile(path, damaged)
            logger.warning("not all writes that waited for MLflow can be read; they are kept in %s", damaged)
        if damaged.exists() or torn:
            named = {write.place for write in found if isinstance(write, Upload)}
            found += [Upload(run=one.parent.name, place=one.name) for one in self._places() if one.name not in named]
        return found

    def _places(self) -> list[Path]:
        """Folders of the checkpoints that wait, the oldest first."""
        return sorted((one for one in self.folder.glob("*/*") if one.is_dir()), key=lambda one: one.stat().st_mtime)

    def _count_delivered(self) -> int:
        path = self.folder / _DELIVERED
        return path.stat().st_size if path.exists() else 0

    def delivered(self) -> None:
        """Note that the first waiting write was delivered, set aside, or cannot be read."""
        with (self.folder / _DELIVERED).open("ab") as file:
            file.write(b".")

    def set_aside(self, write: Write, reason: str) -> None:
        """Keep a write that MLflow has refused in ``refused.jsonl`` beside the folder, so that later writes go on."""
        if isinstance(write, Upload):
            place = self.checkpoints_of(write.run) / write.place
            if place.exists():
                shutil.move(place, self.folder.parent / f"refused-{write.place}")
        self._note_refused(reason, as_line(write))

    def _note_refused(self, reason: str, line: str) -> None:
        path = self.folder.parent / REFUSED_FILE
        logger.warning("MLflow has refused a write, which is kept in %s: %s", path, reason)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def clear(self) -> None:
        """Remove all writes after they were delivered."""
        for name in (_WRITES, _DELIVERED):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the folder to other processes, or remove it where nothing waits."""
        if self._lock.is_locked:
            if not (self.folder / _WRITES).exists():
                self.remove()
            self.release()

    def take(self) -> bool:
        """Take over an ended process's spool, until :meth:`release`; False where another process has or removed it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        if not self.folder.is_dir():
            self.release()
            return False
        return True

    def release(self) -> None:
        """Let other processes take the spool over."""
        # Both threads may have locked it.
        self._lock.release(force=True)

    def remove(self) -> None:
        """Remove the folder and its lock, which stays held."""
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)


def left_in(folder: Path) -> list[Spool]:
    """Spools in a folder, the oldest first; those of ended processes can be taken."""
    if not folder.is_dir():
        return []
    return [Spool(folder, place.name) for place in sorted(folder.iterdir()) if Path(f"{place}.lock").exists()]
