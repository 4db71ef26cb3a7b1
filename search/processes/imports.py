"""Imports: faster ones of large libraries, and those of this package in processes that are started."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Whether this process, or the process that it is a fork of, has come here.
_done: list[bool] = []


@contextmanager
def importing() -> Iterator[None]:
    """A context for imports of large libraries, without garbage collection.

    The imports make a million objects and no garbage; a collection would take a second to find that, and a second again
    each later time. The objects that exist after the imports are therefore exempt from later collections.
    """
    # Once a process. Python tells it too, by counting the exempt objects, which takes a tenth of a second.
    if _done or not gc.isenabled():
        yield
        return
    _done.append(True)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def with_this_package() -> str:
    """A PYTHONPATH with which a started Python finds this package, wherever it is installed.

    It is to be started with ``-P`` as well: in the current folder, a file of the user's may have the name of one of our
    packages.
    """
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
