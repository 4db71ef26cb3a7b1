"""Imports of large libraries, in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """A context in which large libraries are imported, without the garbage collector's looking through them.

    They make a million objects and no garbage; the collector takes a second to find that, and as much again every time
    that it looks later. What is there once they are imported it never looks at again.
    """
    if gc.get_freeze_count() > 0 or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
