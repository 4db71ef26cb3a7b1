"""Owner of a trial or folder: the process that works on it, named so that others can tell whether it still runs."""

import json
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil

# Linux draws a new one at each start of the machine.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def owner() -> str:
    """Name this process by host, boot, process number and start time, so that others can tell whether it still runs."""
    process = psutil.Process()
    facts = {"host": socket.gethostname(), "pid": process.pid, "started": _started(process), "boot": _boot()}
    return json.dumps(facts)


def process_began() -> float:
    """When this process began, on ``time.monotonic``."""
    return time.monotonic() - (time.time() - psutil.Process().create_time())


def _boot() -> str | None:
    """Id of the host's present boot; None where the system has none."""
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return None


def _started(process: psutil.Process) -> float:
    """Start of a process in seconds after its host's: the host's clock may be set while the process runs."""
    # In this order: psutil 6 computes the creation time with the boot time that was read last.
    since = psutil.boot_time()
    return process.create_time() - since


def is_gone(owner_text: str) -> bool:
    """Whether the owner ran on this host and has ended; False for owners on other hosts."""
    if not is_here(owner_text):
        return False
    found = json.loads(owner_text)
    # Earlier versions wrote no boot.
    before, now = found.get("boot"), _boot()
    if before is not None and now is not None and before != now:
        return True
    try:
        process = psutil.Process(found["pid"])
        # A recycled process number has another start time; a zombie has ended, but its parent has not waited for it.
        recycled = abs(_started(process) - found["started"]) > 2.0
        return bool(recycled or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def is_here(owner_text: str) -> bool:
    """Whether an owner, named by :func:`owner`, runs or ran on this host."""
    return bool(json.loads(owner_text)["host"] == socket.gethostname())
