"""The daemon killed with SIGKILL at any moment: nothing is lost, nothing is told twice under another id."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.bed.recorder import Recorder, distinct
from trackwatch.sweeper import RECENT_S


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_a_kill_in_the_middle_of_an_import_loses_nothing(
    daemon: Callable[..., Daemon],
    library: Callable[..., Path],
    recorder: Callable[..., Recorder],
    vhost_url: str,
    share: float,
) -> None:
    files = 1000
    root = library(files)
    recorded = recorder(vhost_url)
    # Few at a time, so that the kill does come in the middle.
    running = daemon(root, args=["--to", vhost_url], env={"MAX_CONCURRENT_FILES": "4"})
    running.start(wait=False)
    recorded.wait_until(lambda messages: len(messages) >= files * share, 60, "a part of the import")
    running.kill()
    assert distinct(recorded.messages) < files, "it was over before the kill"
    running.start()
    recorded.wait_for(files, 60)
    running.wait_until(lambda: running.status()[1]["outbox"]["pending"] == 0)
    # The checker demands sequences from 1 without a gap, and that doubles have their old id and body.
    folded = assert_equal_fold(recorded.messages, root)
    assert folded is not None
    assert running.stop() == 0


def test_kills_at_random_moments_of_a_changing_library_leave_an_equal_fold(
    daemon: Callable[..., Daemon], library: Callable[..., Path], recorder: Callable[..., Recorder], vhost_url: str
) -> None:
    root = library(100)
    recorded = recorder(vhost_url)
    running = daemon(root, args=["--to", vhost_url])
    running.start()
    for number, file in enumerate(sorted(root.rglob("*.*"))[:15]):
        with file.open("ab") as stream:
            stream.write(b"changed")
        file.rename(file.with_name(f"renamed {number}{file.suffix}"))
        if number % 5 == 0:
            running.kill()
            running.start(wait=False)
    running.wait_until(running.is_ready)

    def is_equal() -> bool:
        try:
            assert_equal_fold(recorded.messages, root)
        except AssertionError:
            return False
        return True

    running.wait_until(is_equal, 60, "an equal fold")


def test_processes_that_read_files_do_not_outlive_a_daemon_that_is_killed(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    root.mkdir()
    endless = root / "endless.wav"
    with endless.open("wb") as file:
        file.truncate(1 << 40)  # nothing but a hole, and hours to read
    running = daemon(root)
    running.start(wait=False)
    readers: list[int] = []

    def is_read() -> bool:
        readers[:] = [pid for pid in running.descendants() if os.fsencode(endless) in _open_files(pid)]
        return bool(readers)

    running.wait_until(is_read, what="a process that reads the file")
    running.kill()
    while any(_open_files(pid) for pid in readers):
        time.sleep(0.01)


def test_an_import_that_was_killed_goes_on_where_it_was_and_says_so(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(30)
    with (root / "endless.wav").open("wb") as file:
        file.truncate(1 << 40)  # so that the import does not come to its end
    # What was made just now is a change that somebody waits for, and no part of an import.
    made_at = (root / "endless.wav").stat().st_ctime
    time.sleep(max(0.0, made_at + RECENT_S - time.time()))
    running = daemon(root)

    def progress() -> dict[str, Any]:
        status = running.status()[1]
        is_its_own = status["intake"] is not None and status["pid"] == running.pid
        return (status["intake"]["import"] or {}) if is_its_own else {}

    running.start(wait=False)
    running.wait_for_events(30)
    size_bytes = sum(file.stat().st_size for file in root.rglob("*/*.*"))
    far: dict[str, Any] = {
        "files": 30,
        "files_total": 31,
        "size_bytes": size_bytes,
        "total_bytes": size_bytes + (1 << 40),
    }
    running.wait_until(lambda: far.items() <= progress().items(), what="all but the endless one")
    running.kill()
    running.start(wait=False)
    far |= {"bytes_per_s": 0, "left_s": None}  # it has read nothing of it by itself
    running.wait_until(lambda: far.items() <= progress().items(), what="the same after a kill")
    assert len(running.events()) == 30, "none was told again"


def _open_files(pid: int) -> set[bytes]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
        return {os.readlink(os.fsencode(f"/proc/{pid}/fd/{number}")) for number in numbers}
    except OSError:
        return set()  # it has ended, or closed one just now
