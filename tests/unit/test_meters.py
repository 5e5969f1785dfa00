"""Totals and histograms of durations."""

from hypothesis import given
from hypothesis import strategies as st

from trackwatch.meters import Histogram, Total

BOUNDS = (0.1, 1.0, 10.0)


def test_a_total_counts_and_adds() -> None:
    total = Total()
    total.note(0.5)
    total.note(0.25)
    assert (total.count, total.seconds) == (2, 0.75)


def test_a_duration_as_long_as_a_bound_belongs_to_it() -> None:
    histogram = Histogram(BOUNDS)
    for seconds in (0.1, 1.0, 1.001, 11):
        histogram.note(seconds)
    assert histogram.cumulated() == [1, 2, 3, 4]


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_says_how_many_were_at_most_so_long(durations: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for seconds in durations:
        histogram.note(seconds)
    assert histogram.cumulated() == [*(sum(s <= bound for s in durations) for bound in BOUNDS), len(durations)]
    assert histogram.seconds == sum(durations)
