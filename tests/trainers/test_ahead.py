"""Work that is done one piece ahead."""

import threading

import pytest

from trainers.ahead import one_ahead


def test_results_come_in_order_and_the_next_is_begun_when_one_is_handed_out():
    begun = [threading.Event() for _ in range(4)]

    def work(piece: int) -> int:
        begun[piece].set()
        return 10 * piece

    results = one_ahead(work, range(4))
    assert next(results) == 0
    assert begun[1].wait(60)
    assert not begun[2].is_set()
    assert list(results) == [10, 20, 30]
    assert list(one_ahead(work, [])) == []


def test_an_error_is_raised_where_its_result_would_come():
    results = one_ahead(lambda piece: 6 // piece, [3, 0, 2])
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
