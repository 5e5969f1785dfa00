"""How far an import is, how fast it goes, how long it will take."""

import pytest

from trackwatch.progress import PACE_S, ImportPace, Pace, Progress

MB = 1_000_000


def test_a_pace_is_that_of_the_last_seconds() -> None:
    """It begins at nothing, follows, and comes back to nothing."""
    pace = Pace()
    assert pace.note(0, 100) == 0
    assert pace.note(1, 200) == 100
    assert [pace.note(second, 200 + 50 * second) for second in range(2, 30)][-1] == 50
    assert pace.note(30 + 2 * PACE_S, 1650) < 50
    assert pace.note(30 + 4 * PACE_S, 1650) == 0


def noted(pace: ImportPace, now_s: float, files: int, before: int = 0) -> Progress:
    """Note so many files of 30 MB, of which the first ones were described before the import was interrupted."""
    size_bytes = 30 * MB
    return pace.note(
        now_s,
        files=files,
        files_total=1000,
        size_bytes=files * size_bytes,
        total_bytes=1000 * size_bytes,
        read_files=files - before,
        read_bytes=(files - before) * size_bytes,
    )


def test_what_is_left_takes_as_long_as_the_pace_says() -> None:
    pace = ImportPace()
    assert noted(pace, 0, 0).left_s is None, "nothing is known of its pace"
    far = noted(pace, 10, 100)
    assert far.bytes_per_s == 300 * MB
    assert far.left_s == pytest.approx(90)


def test_an_import_that_was_interrupted_goes_on_where_it_was() -> None:
    """What was done before says nothing of the pace."""
    pace = ImportPace()
    assert noted(pace, 0, 0).files == 0
    assert noted(pace, 1, 900, before=900).left_s is None
    far = noted(pace, 10, 910, before=900)
    assert (far.files, far.bytes_per_s) == (910, 30 * MB)
    assert far.left_s == pytest.approx(90)


def test_tiny_files_take_their_time_as_well() -> None:
    """A thousand files of next to nothing are left, and no bytes to speak of."""
    pace = ImportPace()
    for now_s, files in (0, 0), (1, 1000):
        far = pace.note(
            now_s, files=files, files_total=2000, size_bytes=files, total_bytes=2000, read_files=files, read_bytes=files
        )
    assert far.left_s == pytest.approx(1, rel=0.01)


def test_while_files_are_counted_nothing_is_said_of_the_time() -> None:
    pace = ImportPace()
    for now_s in (0, 1):
        far = pace.note(
            now_s, files=5, files_total=0, size_bytes=5 * MB, total_bytes=0, read_files=5 * now_s, read_bytes=5 * MB
        )
    assert far.left_s is None
