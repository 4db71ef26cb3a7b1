import time

import pytest
from sqlalchemy.exc import OperationalError

from search.storage.retrying import retried

AWAY = OperationalError("SELECT 1", {}, Exception("the server closed the connection"))


@pytest.fixture
def pauses(monkeypatch):
    """Seconds of the pauses, which take no time; the clock moves on by them."""
    clock, found = [1000.0], []

    def sleep(seconds):
        found.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return found


def failing(*errors):
    """What raises the errors in turn and then gives 7."""
    rest = iter(errors)

    def do():
        for error in rest:
            raise error
        return 7

    return do


def test_a_lost_connection_is_replaced_without_a_word(pauses, caplog):
    assert retried(failing(AWAY)) == 7
    assert (pauses, caplog.messages) == ([0.1], [])


def test_an_outage_that_lasts_is_said_once_and_so_is_its_end(pauses, caplog):
    assert retried(failing(*8 * [AWAY])) == 7
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert caplog.messages == [
        "the study's store does not answer; it is asked again for 10 minutes",
        "the study's store answers again",
    ]


def test_the_original_error_is_raised_ten_minutes_after_the_first_failure(pauses):
    started = time.monotonic()

    def do():
        # A lock may be waited for longer than an outage.
        if not pauses:
            time.sleep(3600)
        raise AWAY

    with pytest.raises(OperationalError) as raised:
        retried(do)
    assert raised.value is AWAY
    assert 600 <= time.monotonic() - started - 3600 < 605


@pytest.mark.parametrize("error", [ValueError("no such study"), KeyboardInterrupt()])
def test_what_is_no_outage_is_raised_at_once(pauses, error):
    # An interrupt within a failed call carries the failure as its context.
    error.__context__ = AWAY if isinstance(error, KeyboardInterrupt) else None
    with pytest.raises(type(error)):
        retried(failing(error))
    assert pauses == []
