"""How many workers train at once, decided from figures alone."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from search.executors.packing import Level, Limits, Packer, decide

MIB = 2**20
ROOMY = Limits(100_000 * MIB, 64)


def measured(*rates: float) -> list[Level]:
    """Levels of 1, 2, ... workers with these images a second of all."""
    return [Level(n, 8, round(1000 * rate), 1000.0 * n) for n, rate in enumerate(rates, start=1)]


def test_one_more_is_tried_as_long_as_each_brings_a_tenth():
    assert decide(measured(100), 1, ROOMY).workers == 2
    assert decide(measured(100, 180), 1, ROOMY).workers == 3
    assert not decide(measured(100, 180), 1, ROOMY).is_final
    last = decide(measured(100, 180, 190), 1, ROOMY)
    assert (last.workers, last.is_final) == (2, True)
    assert last.reason.startswith("100 with 1, 180 with 2, 190 with 3 images a second; one takes ")


def test_memory_keeps_a_fifth_free():
    first = decide(measured(100), 1000 * MIB, Limits(2499 * MIB, 64))
    assert (first.workers, first.is_final) == (1, True)
    assert decide(measured(100), 1000 * MIB, Limits(2500 * MIB, 64)).workers == 2


def test_a_peak_that_came_late_takes_workers_back():
    late = decide(measured(100, 200, 300), 1000 * MIB, Limits(2600 * MIB, 64))
    assert (late.workers, late.is_final) == (2, True)


rates = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=8)
peaks, memories, counts = st.integers(1, 10**12), st.integers(0, 10**13), st.integers(1, 64)


@given(rates, peaks, memories, counts)
def test_never_more_than_fit_and_never_more_than_one_more(found, peak, memory, most):
    levels = measured(*found)
    decision = decide(levels, peak, Limits(memory, most))
    assert 1 <= decision.workers <= min(most, len(levels) + 1)
    assert decision.workers == 1 or decision.workers * peak <= 0.8 * memory
    assert decision.is_final or decision.workers == len(levels) + 1


@given(st.lists(st.floats(0.1, 1e4), min_size=64, max_size=64), peaks, memories, counts)
def test_it_comes_to_an_end_and_no_step_to_what_stays_was_small(speeds, peak, memory, most):
    """A device on which n workers train speeds[n - 1] images a second."""
    packer = Packer(Limits(memory, most))
    for _ in range(10_000):
        if packer.is_final:
            break
        rate = speeds[packer.workers - 1]
        packer.trial_ended(10**9, 10**9 * packer.workers / rate, peak)
    assert packer.is_final
    seen = [level.images_per_second for level in packer.levels]
    kept = seen[: packer.workers]
    assert all(after >= 1.099 * before for before, after in pairwise(kept))
    beyond = seen[packer.workers :]
    assert not beyond or beyond[0] < 1.101 * kept[-1]


def test_after_memory_ran_out_there_is_one_less_for_good():
    packer = Packer(ROOMY)
    assert packer.ran_out() is None
    for _ in range(4):
        decision = packer.trial_ended(100, 1.0, MIB)
    assert (decision.workers, packer.workers) == (2, 2)
    assert packer.ran_out().workers == 1
    assert packer.is_final
    assert [packer.trial_ended(100, 1.0, MIB) for _ in range(20)] == [None] * 20


def test_a_number_is_judged_by_two_trials_of_each_worker():
    packer = Packer(ROOMY)
    needed = []
    while packer.workers < 5:
        trials, workers = 0, packer.workers
        while packer.workers == workers:
            packer.trial_ended(100, 1.0, MIB)
            trials += 1
        needed.append(trials)
    assert needed == [4, 4, 6, 8]
