import os
import signal
import weakref

import pytest

from search.processes import stop_if_asked, stopped_by_signals


class Thing:
    pass


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_raises_where_it_arrives(number, raised):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(raised), stopped_by_signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
            stop_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_was_swallowed_is_raised_at_the_next_chance():
    with stopped_by_signals():
        stop_if_asked()
        thing = Thing()
        # As in a finalizer of a database driver: Python reports the exception and drops it.
        reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        del thing
        assert reference() is None
        with pytest.raises(SystemExit) as found:
            stop_if_asked()
        assert found.value.code == 143
    with stopped_by_signals():
        stop_if_asked()
