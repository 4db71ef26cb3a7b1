"""Faster imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """A context for imports of large libraries, without garbage collection.

    The imports make a million objects and no garbage; a collection would take a second to find that, and a second again
    each later time. The objects that exist after the imports are therefore exempt from later collections.
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
