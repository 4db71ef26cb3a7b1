"""Who trains a trial: a process that is named so that others can tell whether it still runs."""

import json
import socket

import psutil


def owner() -> str:
    """The current process, so that another can tell whether it still lives: host, process number and start time."""
    process = psutil.Process()
    return json.dumps({"host": socket.gethostname(), "pid": process.pid, "started": _started(process)})


def _started(process: psutil.Process) -> float:
    """When a process began, in seconds since its host did: the host's clock may be set while the process runs."""
    # In this order: psutil 6 adds the boot time that it read last.
    since = psutil.boot_time()
    return process.create_time() - since


def is_gone(owner_text: str) -> bool:
    """Whether the owner ran on this host and has ended; of other hosts nothing is known."""
    if not is_here(owner_text):
        return False
    found = json.loads(owner_text)
    try:
        process = psutil.Process(found["pid"])
        # A recycled process number has another start time; a zombie has ended, its parent only did not ask yet.
        recycled = abs(_started(process) - found["started"]) > 2.0
        return bool(recycled or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def is_here(owner_text: str) -> bool:
    """Whether a process runs, or ran, on this host; it is named as :func:`owner` does."""
    return bool(json.loads(owner_text)["host"] == socket.gethostname())
