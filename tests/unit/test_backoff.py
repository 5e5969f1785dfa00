"""Backoff: longer and longer, never too long, never in step."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackwatch.backoff import Backoff


class Highest(random.Random):
    """Draws the most that is allowed."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Lowest(random.Random):
    """Draws the least that is allowed."""

    def uniform(self, a: float, b: float) -> float:
        return a


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    """And stays there."""
    backoff = Backoff(base_s=0.5, cap_s=5.0, uniform=Highest().uniform)
    assert [backoff.next_s() for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_there_is_always_some_delay() -> None:
    """A tenth of the ceiling at least, so that an unlucky draw does not become a busy loop."""
    backoff = Backoff(base_s=0.5, cap_s=5.0, uniform=Lowest().uniform)
    assert [backoff.next_s() for _ in range(6)] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_a_success_begins_again() -> None:
    """The next trouble is a new one."""
    backoff = Backoff(base_s=1.0, cap_s=60.0, uniform=Highest().uniform)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.attempt == 0
    assert backoff.next_s() == 1.0


def test_a_thousand_failures_do_not_overflow() -> None:
    """A broker may be away for weeks."""
    backoff = Backoff(base_s=1.0, cap_s=60.0, attempt=100_000)
    assert 6.0 <= backoff.next_s() <= 60.0


@given(seed=st.integers(), attempt=st.integers(0, 2000))
def test_every_delay_lies_below_its_ceiling(seed: int, attempt: int) -> None:
    """Whatever is drawn, at any attempt."""
    delay_s = Backoff(base_s=0.2, cap_s=30.0, uniform=random.Random(seed).uniform, attempt=attempt).next_s()
    ceiling_s = min(30.0, 0.2 * 2.0 ** min(attempt, 30))
    assert ceiling_s / 10 <= delay_s <= ceiling_s


def test_two_instances_are_not_in_step() -> None:
    """Full jitter: those that lost the same broker come back one by one."""
    one, other = (Backoff(base_s=1.0, cap_s=60.0, uniform=random.Random(seed).uniform) for seed in (1, 2))
    assert [one.next_s() for _ in range(10)] != [other.next_s() for _ in range(10)]
