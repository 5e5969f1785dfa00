"""How much is told about one thing, in virtual time: the clock is a number that the test turns."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trackwatch.throttle import BURST, EVERY_S, Throttle


def told_of(throttle: Throttle[float], times: list[float], name: str = "broker unavailable") -> list[tuple[float, int]]:
    """Take a line at each of these times, telling what was held back each second; return (line, others) as told."""
    told = []
    for before, now in pairwise([0.0, *times]):
        for second in range(int(before) + 1, int(now) + 1):
            told += list(throttle.take_held(second))
        held = throttle.take("broker", name, now, now)
        if held is not None:
            told.append((now, held))
    return told


def test_what_happens_now_and_then_is_told_each_time() -> None:
    """Once a minute, or ten times in ten minutes, for ever."""
    for times in (range(1, 36000, 60), [start + step for start in range(1, 36000, 600) for step in range(10)]):
        assert told_of(Throttle(), [float(at) for at in times]) == [(at, 0) for at in times]


def test_what_happens_all_the_time_is_told_ten_times_then_once_a_minute_with_how_many_there_were() -> None:
    """An hour of five a second is 69 lines instead of 18,000; and one of five a minute is no more."""
    for every_s in (0.2, 12):
        times = [number * every_s for number in range(1, int(3600 / every_s))]
        told = told_of(Throttle(), times)
        assert [others for _, others in told[:BURST]] == [0] * BURST
        assert BURST + 58 <= len(told) <= BURST + 60
        assert sum(1 + others for _, others in told) == times.index(told[-1][0]) + 1, "none is forgotten"


def test_each_line_that_is_told_late_is_the_last_there_was() -> None:
    """So the log says how things are, not how they were in between."""
    throttle: Throttle[str] = Throttle()
    for number in range(100):
        throttle.take("broker", "broker unavailable", f"down {number}", number / 10)
        throttle.take("broker", "broker connected", f"up {number}", number / 10)
    assert list(throttle.take_held(59)) == []
    assert list(throttle.take_held(61)) == [("up 99", 200 - BURST - 1)]
    assert list(throttle.take_held(1000)) == []


def test_the_first_line_of_a_kind_is_told_at_once() -> None:
    """The first refusal in a row of breaks must not hide among them; and it says how many were held back."""
    throttle: Throttle[str] = Throttle()
    for _ in range(BURST + 7):
        throttle.take("broker", "broker unavailable", "down", 1)
    assert throttle.take("broker", "broker refused", "refused", 2) == 7
    assert throttle.take("broker", "broker refused", "refused", 2) is None, "the second one does not"
    assert list(throttle.take_all()) == [("refused", 0)]
    assert list(throttle.take_held(100)) == [], "what came before it would be no news after it"


def test_one_subject_does_not_silence_another() -> None:
    """A root that is mounted each second says nothing of the other one."""
    throttle: Throttle[str] = Throttle()
    for _ in range(100):
        throttle.take("root /a", "root unavailable", "", 1)
    assert throttle.take("root /b", "root unavailable", "", 1) == 0


def test_after_ten_quiet_minutes_all_is_forgotten() -> None:
    """The next trouble is told like the first; nothing is kept of what is well."""
    throttle: Throttle[float] = Throttle()
    told_of(throttle, [1.0] * 50)
    assert len(list(throttle.take_held(EVERY_S + 1))) == 1
    assert list(throttle.take_held(2 * EVERY_S + 1)) == []
    assert len(throttle._subjects) == 1
    assert list(throttle.take_held((BURST + 1) * EVERY_S + 1)) == []
    assert throttle._subjects == {}
    assert told_of(throttle, [1000.0] * BURST) == [(1000.0, 0)] * BURST


def test_at_the_end_everything_is_told() -> None:
    """Nothing is held back for good."""
    throttle: Throttle[float] = Throttle()
    told_of(throttle, [1.0] * 50)
    assert list(throttle.take_all()) == [(1.0, 50 - BURST - 1)]
    assert list(throttle.take_all()) == []


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["a x", "a y", "b x"])), max_size=200))
def test_no_line_is_lost_and_the_last_of_each_subject_is_told_last(steps: list[tuple[float, str]]) -> None:
    """Whatever comes when: every line is told or counted, a subject's in order, and no minute has too many."""
    throttle: Throttle[int] = Throttle()
    now, told, kinds = 0.0, [], []
    for number, (pause_s, name) in enumerate(steps):
        now += pause_s
        told += [(now, line, others) for line, others in throttle.take_held(now)]
        kinds.append(name)
        held = throttle.take(name[0], name, number, now)
        if held is not None:
            told.append((now, number, held))
    told += [(now, line, others) for line, others in throttle.take_all()]
    assert sum(1 + others for _, _, others in told) == len(steps)
    for subject in "ab":
        lines = [line for _, line, _ in told if kinds[line][0] == subject]
        assert lines == sorted(lines)
        assert lines[-1:] == [number for number, kind in enumerate(kinds) if kind[0] == subject][-1:]
        at = [at for at, line, _ in told[:-2] if kinds[line][0] == subject]
        assert all(sum(start <= other < start + EVERY_S for other in at) <= BURST + 3 for start in at)
