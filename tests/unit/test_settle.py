"""When a path is at rest, in which order paths are taken, and what becomes of them afterwards."""

import math

import pytest

from trackwatch import settle
from trackwatch.settle import UNKNOWN_WRITER_QUIET_S, DirtySet, Due, Rest
from trackwatch.track import Location

QUIET_S, CEILING_S = 0.25, 60.0
A, B, C = Location(1, b"a.mp3"), Location(1, b"b.mp3"), Location(1, b"c.mp3")
OTHER_ROOT = Location(2, b"a.mp3")


@pytest.fixture
def dirty() -> DirtySet:
    return DirtySet(quiet_s=QUIET_S, ceiling_s=CEILING_S)


def taken(dirty: DirtySet, now: float, limit: int = 100, *, bulk: bool = True) -> list[Location]:
    return [due.location for due in dirty.take_due(now, limit, bulk=bulk)]


def take_one(dirty: DirtySet, now: float) -> Due:
    (due,) = dirty.take_due(now, 100)
    return due


def test_a_path_is_taken_after_its_quiet_and_not_before(dirty: DirtySet) -> None:
    dirty.hint(A, 10.0)
    assert dirty.next_due_at() == 10.25
    assert taken(dirty, 10.24) == []
    assert take_one(dirty, 10.25) == Due(A, is_live=True, quiet_s=0.25, at_ceiling=False)


def test_many_hints_of_a_path_are_one_and_each_begins_the_quiet_again(dirty: DirtySet) -> None:
    for tenth in range(10):
        dirty.hint(A, tenth / 10)
        assert taken(dirty, tenth / 10) == []
    assert dirty.next_due_at() == pytest.approx(1.15)
    assert taken(dirty, 1.15) == [A]
    assert taken(dirty, 100.0) == []


def test_a_path_that_never_gets_quiet_is_taken_at_the_ceiling(dirty: DirtySet) -> None:
    now = 0.0
    while not (due := dirty.take_due(now, 1)):
        dirty.hint(A, now)
        now += 0.125
    assert now == CEILING_S
    assert due[0].at_ceiling


def test_an_attempt_at_the_ceiling_that_fails_begins_a_new_period(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert take_one(dirty, 60.0).at_ceiling
    dirty.finished(A, Rest.MOVED_ON, 61.0)
    assert not take_one(dirty, 61.25).at_ceiling
    dirty.finished(A, Rest.MOVED_ON, 120.9)
    assert take_one(dirty, 121.0).at_ceiling


def test_a_path_that_moved_on_waits_for_quiet_again_but_keeps_its_ceiling(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 0.25) == [A]
    dirty.finished(A, Rest.MOVED_ON, 1.0)
    assert taken(dirty, 1.24) == []
    assert take_one(dirty, 1.25).quiet_s == 0.25
    dirty.finished(A, Rest.MOVED_ON, 59.9)
    assert dirty.next_due_at() == 60.0


def test_an_unsure_path_waits_for_the_longer_quiet_since_its_last_hint(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 0.25) == [A]
    dirty.finished(A, Rest.UNSURE, 0.3)
    assert dirty.next_due_at() == UNKNOWN_WRITER_QUIET_S
    assert take_one(dirty, 2.0).quiet_s == UNKNOWN_WRITER_QUIET_S


def test_an_unsure_path_that_is_hinted_again_is_asked_after_the_short_quiet(dirty: DirtySet) -> None:
    """The file system may have leases that only this moment's writer kept from telling."""
    dirty.hint(A, 0.0)
    assert taken(dirty, 0.25) == [A]
    dirty.hint(A, 0.5)
    dirty.finished(A, Rest.UNSURE, 0.6)
    assert dirty.next_due_at() == 2.5
    dirty.hint(A, 1.0)
    assert taken(dirty, 1.25) == [A]


def test_a_path_for_later_comes_again_soon_without_a_busy_loop(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 5.0) == [A]
    dirty.finished(A, Rest.LATER, 5.0)
    assert dirty.next_due_at() == pytest.approx(5.05)
    assert taken(dirty, 5.05) == [A]


def test_a_path_that_is_done_is_forgotten(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    dirty.finished(A, Rest.DONE, 1.0)
    assert dirty.next_due_at() is None
    assert dirty.oldest_at() == math.inf
    assert not dirty.is_in_hand(A)


def test_a_path_in_hand_is_never_taken_again_before_it_is_finished(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    dirty.hint(A, 1.5)
    assert dirty.is_in_hand(A)
    assert taken(dirty, 100.0) == []
    dirty.finished(A, Rest.DONE, 100.0)
    assert taken(dirty, 100.0) == [A]


def test_a_hint_while_in_hand_counts_from_when_it_came(dirty: DirtySet) -> None:
    """What vanished before this path is looked at again may be what it is now, so its age is that of the hint."""
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    dirty.hint(A, 10.0)
    dirty.hint(A, 20.0)
    dirty.finished(A, Rest.DONE, 20.1)
    assert dirty.oldest_at() == 10.0
    assert dirty.next_due_at() == 20.25


def test_hints_from_before_a_path_was_taken_do_not_bring_it_back(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    dirty.hint(A, 1.1)
    dirty.finished(A, Rest.DONE, 1.2)
    assert taken(dirty, 2.0) == [A]
    dirty.finished(A, Rest.DONE, 2.0)
    assert taken(dirty, 100.0) == []


def test_live_paths_go_before_bulk_and_bulk_keeps_its_order(dirty: DirtySet) -> None:
    dirty.bulk([C, B], 0.0)
    dirty.hint(A, 0.0)
    assert dirty.next_due_at() == 0.0
    assert taken(dirty, 0.25) == [A, C, B]


def test_live_paths_go_in_the_order_in_which_they_came_to_rest(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    dirty.hint(B, 0.1)
    dirty.hint(A, 0.2)
    assert taken(dirty, 1.0) == [B, A]


def test_bulk_waits_for_no_quiet_and_can_be_left_out(dirty: DirtySet) -> None:
    dirty.bulk([A], 5.0)
    assert dirty.next_due_at(bulk=False) is None
    assert taken(dirty, 5.0, bulk=False) == []
    assert take_one(dirty, 5.0) == Due(A, is_live=False, quiet_s=math.inf, at_ceiling=False)


def test_no_more_than_the_limit_is_taken(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    dirty.bulk([B, C], 0.0)
    assert taken(dirty, 1.0, limit=2) == [A, B]
    assert taken(dirty, 1.0, limit=0) == []
    assert taken(dirty, 1.0, limit=2) == [C]


def test_a_hint_takes_a_path_out_of_the_bulk_lane(dirty: DirtySet) -> None:
    dirty.bulk([A, B], 0.0)
    dirty.hint(A, 1.0)
    assert taken(dirty, 1.0) == [B]
    assert take_one(dirty, 1.25).is_live


def test_bulk_leaves_alone_what_is_dirty(dirty: DirtySet) -> None:
    dirty.hint(B, 1.0)
    dirty.bulk([C], 1.0)
    dirty.bulk([B, C], 1.0)
    assert dirty.next_due_at(bulk=False) == 1.25
    assert taken(dirty, 1.0) == [C]
    dirty.finished(C, Rest.DONE, 1.0)
    assert taken(dirty, 2.0) == [B]
    dirty.finished(B, Rest.DONE, 2.0)
    assert taken(dirty, 100.0) == []


def test_bulk_brings_back_what_is_in_hand_once_it_is_finished(dirty: DirtySet) -> None:
    """A sweep that finds it different may have seen what the look at it came too early for."""
    dirty.hint(A, 0.0)
    assert taken(dirty, 0.25) == [A]
    dirty.bulk([A], 1.0)
    dirty.bulk([A], 1.5)
    assert taken(dirty, 100.0) == []
    dirty.finished(A, Rest.DONE, 2.0)
    assert dirty.oldest_at() == 1.0
    assert take_one(dirty, 2.0).is_live
    dirty.finished(A, Rest.DONE, 2.0)
    assert taken(dirty, 100.0) == []


def test_of_a_bulk_path_nobody_knows_how_long_it_was_quiet(dirty: DirtySet) -> None:
    """However long it waited for its turn: the file's own word has to tell. Once it is live, somebody listens."""
    dirty.bulk([A], 0.0)
    assert take_one(dirty, 50.0).quiet_s == math.inf
    dirty.finished(A, Rest.MOVED_ON, 50.0)
    assert take_one(dirty, 50.25).quiet_s == 0.25


def test_an_unsure_path_is_never_asked_again_at_once(dirty: DirtySet) -> None:
    """Its quiet may be long over while its ctime is not: without a rest this would be a busy loop."""
    dirty.hint(A, 0.0)
    assert taken(dirty, 10.0) == [A]
    dirty.finished(A, Rest.UNSURE, 10.0)
    assert dirty.next_due_at() == 10.25


def test_waiting_in_the_bulk_lane_does_not_count_for_the_ceiling(dirty: DirtySet) -> None:
    """A long import: a file that waited for its turn for minutes may still be half written when it comes."""
    dirty.bulk([A], 0.0)
    assert not take_one(dirty, 2 * CEILING_S).at_ceiling
    dirty.finished(A, Rest.MOVED_ON, 121.0)
    due = take_one(dirty, 121.25)
    assert due.is_live
    assert not due.at_ceiling
    dirty.finished(A, Rest.MOVED_ON, 180.9)
    assert take_one(dirty, 181.0).at_ceiling


def test_almost_a_ceiling_in_the_bulk_lane_leaves_a_whole_period(dirty: DirtySet) -> None:
    dirty.bulk([A], 0.0)
    assert taken(dirty, 59.0) == [A]
    dirty.finished(A, Rest.UNSURE, 59.0)
    assert not take_one(dirty, 61.0).at_ceiling


def test_a_bulk_path_that_is_done_and_was_hinted_in_hand_comes_back_live(dirty: DirtySet) -> None:
    dirty.bulk([A], 0.0)
    assert taken(dirty, 0.0) == [A]
    dirty.hint(A, 0.5)
    dirty.finished(A, Rest.DONE, 0.6)
    assert take_one(dirty, 0.75).is_live


def test_roots_have_paths_of_their_own(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    dirty.hint(OTHER_ROOT, 0.0)
    assert sorted(taken(dirty, 1.0)) == [A, OTHER_ROOT]


def test_the_oldest_path_is_the_oldest_of_the_live_lane_and_of_those_in_hand(dirty: DirtySet) -> None:
    dirty.bulk([C], 0.0)
    assert dirty.oldest_at() == math.inf
    dirty.hint(A, 1.0)
    dirty.hint(B, 2.0)
    dirty.hint(A, 3.0)
    assert dirty.oldest_at() == 1.0
    assert taken(dirty, 10.0, bulk=False) == [B, A]
    dirty.finished(A, Rest.DONE, 10.0)
    assert dirty.oldest_at() == 2.0


def test_statistics_count_each_lane(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    dirty.bulk([B, C], 1.0)
    assert taken(dirty, 1.0, limit=1) == [B]
    dirty.hint(OTHER_ROOT, 1.0)
    assert dirty.statistics() == settle.SettleStatistics(live=1, bulk=1, in_hand=2, bulk_in_hand=1)


def test_a_flooded_root_drops_its_hints_and_is_reported_once(dirty: DirtySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "FLOOD_MAX", 3)
    dirty.hint(OTHER_ROOT, 0.0)
    for number in range(3):
        dirty.hint(Location(1, b"%d.mp3" % number), 0.0)
    assert dirty.take_flooded() == set()
    dirty.hint(A, 0.0)
    assert dirty.take_flooded() == {1}
    assert dirty.take_flooded() == set()
    assert taken(dirty, 1.0) == [OTHER_ROOT]


def test_a_flooded_root_keeps_what_is_in_hand_and_can_fill_again(
    dirty: DirtySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "FLOOD_MAX", 2)
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    for number in range(3):
        dirty.hint(Location(1, b"%d.mp3" % number), 1.0)
    assert dirty.take_flooded() == {1}
    assert dirty.is_in_hand(A)
    dirty.finished(A, Rest.MOVED_ON, 1.0)
    dirty.hint(B, 1.0)
    assert dirty.take_flooded() == set()
    assert sorted(taken(dirty, 2.0)) == [A, B]


def test_taking_makes_room_before_a_flood(dirty: DirtySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "FLOOD_MAX", 2)
    for number in range(10):
        dirty.hint(Location(1, b"%d.mp3" % number), float(number))
        assert len(taken(dirty, number + 0.5)) == 1
    assert dirty.take_flooded() == set()


def test_the_bulk_lane_never_floods(dirty: DirtySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "FLOOD_MAX", 2)
    dirty.bulk([Location(1, b"%d.mp3" % number) for number in range(10)], 0.0)
    assert dirty.take_flooded() == set()
    assert len(taken(dirty, 0.0)) == 10


def test_hints_without_end_take_no_memory_without_end(dirty: DirtySet) -> None:
    """Each hint outdates an entry of the heap; the outdated ones are swept out now and then."""
    for number in range(20_000):
        dirty.hint(A, number / 1000)
    assert len(dirty._heap) <= 1010
    assert taken(dirty, 20.249) == [A]


def test_outdated_entries_never_tell_a_wrong_next_moment(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    dirty.hint(A, 0.2)
    dirty.hint(B, 0.1)
    assert dirty.next_due_at() == pytest.approx(0.35)
    assert taken(dirty, 0.4) == [B]
    assert dirty.next_due_at() == pytest.approx(0.45)


def test_two_hints_at_the_same_moment_are_taken_once(dirty: DirtySet) -> None:
    dirty.hint(A, 0.0)
    dirty.hint(A, 0.0)
    assert taken(dirty, 1.0) == [A]
    assert taken(dirty, 1.0) == []
