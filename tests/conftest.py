import gc
import os
import shutil
from pathlib import Path

# Models this small only lose by threads, and two processes that each use every core lose much more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# MLflow would wait some 5 s before it asks a server for the third time that is not there.
os.environ |= {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}

# Torch would compile a program for each kind of the processor's vectors, and import itself anew to try it.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"

# SQLite waits for the disk at each of a study's hundreds of commits. In memory there is nothing to wait for.
_MEMORY, _NEEDED_BYTES = Path("/dev/shm"), 4 * 2**30
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _NEEDED_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


def pytest_collection_finish() -> None:
    """Leave what the tests have imported out of garbage collections, each of which takes up to a second with it."""
    gc.collect()
    gc.freeze()
