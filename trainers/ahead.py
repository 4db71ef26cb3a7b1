"""Work done one piece ahead, in a thread, while the caller uses the piece before."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def one_ahead(work: Callable[[A], B], pieces: Sequence[A]) -> Iterator[B]:
    """The results of ``work`` for pieces, in their order, each begun when the one before is handed out."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = [thread.submit(work, piece) for piece in pieces[:1]]
        for piece in pieces[1:]:
            found = waiting.pop().result()
            waiting.append(thread.submit(work, piece))
            yield found
        for last in waiting:
            yield last.result()
