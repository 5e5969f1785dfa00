"""Where a file that appeared came from: moved, linked, or nobody knows."""

import pytest

from trackwatch.catalogue import Entry
from trackwatch.correlate import Candidate, Holder, Origin, nearest, origin
from trackwatch.track import Location, Signature

SEEN = Signature(dev=1, inode=7, size_bytes=100, mtime_ns=5, ctime_ns=60, btime_ns=4)
NEW = Location(1, b"new/song.mp3")


def candidate(path: bytes, holder: Holder, signature: Signature = SEEN, root_id: int = 1) -> Candidate:
    known = signature._replace(ctime_ns=50)  # a rename changes it
    return Candidate(Entry(1, Location(root_id, path), known, bytes(32), bytes(16), 1), holder)


def test_a_file_that_left_its_place_has_moved() -> None:
    assert origin(NEW, SEEN, [candidate(b"old.mp3", Holder.OTHER)]) == Origin(Location(1, b"old.mp3"), is_link=False)


def test_a_file_that_is_still_at_its_place_was_linked() -> None:
    assert origin(NEW, SEEN, [candidate(b"old.mp3", Holder.SAME)]) == Origin(Location(1, b"old.mp3"), is_link=True)


def test_a_file_whose_old_place_cannot_be_seen_comes_from_nowhere() -> None:
    """Neither moved nor linked can be said, so its content has to be read."""
    assert origin(NEW, SEEN, [candidate(b"old.mp3", Holder.UNKNOWN)]) is None


def test_without_candidates_there_is_no_origin() -> None:
    assert origin(NEW, SEEN, []) is None


@pytest.mark.parametrize(
    "difference",
    [{"dev": 2}, {"inode": 8}, {"size_bytes": 101}, {"mtime_ns": 6}, {"btime_ns": 3}],
    ids=lambda difference: next(iter(difference)),
)
@pytest.mark.parametrize("holder", [Holder.OTHER, Holder.SAME])
def test_one_difference_is_enough_to_be_another_file(difference: dict[str, int], holder: Holder) -> None:
    """File systems hand a freed inode to the next file at once."""
    assert origin(NEW, SEEN, [candidate(b"old.mp3", holder, SEEN._replace(**difference))]) is None


@pytest.mark.parametrize("known_at", [None, 4])
@pytest.mark.parametrize("seen_at", [None, 4])
def test_a_birth_time_that_nobody_knows_does_not_count(known_at: int | None, seen_at: int | None) -> None:
    old = candidate(b"old.mp3", Holder.OTHER, SEEN._replace(btime_ns=known_at))
    assert origin(NEW, SEEN._replace(btime_ns=seen_at), [old]) is not None


def test_a_link_that_left_goes_before_one_that_stayed() -> None:
    """Of two names of a file one was renamed: the other one says nothing."""
    candidates = [candidate(b"new/stays.mp3", Holder.SAME), candidate(b"left.mp3", Holder.OTHER)]
    assert origin(NEW, SEEN, candidates) == Origin(Location(1, b"left.mp3"), is_link=False)


def test_of_several_that_left_the_nearest_is_taken() -> None:
    candidates = [candidate(b"a/x.mp3", Holder.OTHER), candidate(b"new/z.mp3", Holder.OTHER)]
    assert origin(NEW, SEEN, candidates) == Origin(Location(1, b"new/z.mp3"), is_link=False)


def test_the_nearest_has_the_same_root_then_directory_then_name() -> None:
    by_distance = [
        Location(1, b"new/song.mp3"),
        Location(1, b"new/a.mp3"),
        Location(1, b"old/song.mp3"),
        Location(1, b"old/a.mp3"),
        Location(1, b"old/b.mp3"),
        Location(2, b"new/song.mp3"),
        Location(2, b"new/a.mp3"),
    ]
    while by_distance:
        assert nearest(NEW, reversed(by_distance)) == by_distance.pop(0)
