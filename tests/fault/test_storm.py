"""Storms, a kill in the middle of one, and a queue of the kernel that overflows: the fold equals the disk after all.

The soak (tests/soak.py) does this for as long as one likes; here it is short, and always the same seeds.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.bed.storm import Ledger, premature, read_ledgers, start_storm, write_file
from tests.soak import RunningFold, max_queued

# A full sweep would hide what was missed.
NO_SWEEP = {"TRACKWATCH_SWEEP_S": "3600"}
BASE_FILES = 600


def write(ledger: Ledger, path: Path, content: bytes) -> None:
    """Write a file, and that it is finished."""
    write_file(ledger, "write", os.fsencode(path), os.O_CREAT, lambda _: 0, [(0, content)], truncate=True)


def test_a_storm_with_a_kill_in_the_middle_ends_in_an_equal_fold(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root, outside = tmp_path / "music", tmp_path / "outside"
    outside.mkdir()
    ledgers = [tmp_path / f"ledger-{number}.jsonl" for number in range(4)]
    with ledgers[0].open("w") as stream:
        for number in range(BASE_FILES):
            directory = root / f"base {number % 10}"
            directory.mkdir(parents=True, exist_ok=True)
            write(Ledger(stream), directory / f"{number}.mp3", b"base %d" % number)
    running = daemon(root, env=NO_SWEEP)
    running.start()
    writers = [
        start_storm([root], outside, seconds=6, seed=number, ledger=ledgers[number], odd_names=True)
        for number in (1, 2, 3)
    ]
    time.sleep(3)
    running.kill()
    running.start(wait=False)
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    running.wait_until(running.is_ready, 60, "to be watching")
    fold = RunningFold(running)
    fold.wait_equal([root], 60)
    assert_equal_fold(running.events(), root)
    finished, operations = read_ledgers(ledgers)
    assert operations.total() > BASE_FILES + 500
    assert premature(fold.events, finished) == []
    assert "Traceback" not in running.stderr()


@pytest.mark.timeout(240)
def test_an_overflow_of_the_kernels_queue_loses_nothing(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    files = max(50_000, max_queued() + 10_000)
    root = tmp_path / "music"
    known = [root / f"{number}" / "known.mp3" for number in range(50)]
    for number, path in enumerate(known):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"known %d" % number)
    running = daemon(root, env=NO_SWEEP, measured=False)
    running.start()
    running.freeze()
    for number in range(files):
        (known[number % 50].parent / f"{number}.mp3").write_bytes(b"%d" % number)
    # The queue is full: nothing tells of these, and the directories' times only of some.
    for path in known[:10]:
        path.write_bytes(b"other content")
    known[10].rename(known[10].with_name("renamed.mp3"))
    known[11].unlink()
    known[12].parent.rename(root / "moved")
    late = root / "new" / "er" / "late.mp3"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"late")
    running.thaw()
    fold = RunningFold(running)
    fold.wait_equal([root], 150)
    late.write_bytes(b"later")  # the new directory is watched as well
    assert running.wait_for_event(
        lambda event: (event["event_type"], event["file_path"]) == ("modified", str(late)), 20, "a later change"
    )
    fold.wait_equal([root], 20)
    assert_equal_fold(running.events(), root)


def test_a_write_by_one_of_several_names_is_told_for_each(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    (root / "other").mkdir(parents=True)
    one, other, unwanted = root / "one.mp3", root / "other" / "other.mp3", root / "other" / "other.bak"
    one.write_bytes(b"first")
    for link in (other, unwanted):
        link.hardlink_to(one)
    running = daemon(root, env=NO_SWEEP)
    running.start()
    fold = RunningFold(running)
    for path, content in ((other, b"second"), (unwanted, b"the third")):
        path.write_bytes(content)
        fold.wait_equal([root], 20)
    assert sorted(fold.by_type.items()) == [("created", 2), ("modified", 4)]
