"""Moves and renames of all kinds, through the whole daemon: what is told, and that no byte is read for it."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.integration.test_watching import AUDIO, wait_for_fold


def told(running: Daemon, after: int) -> list[tuple[str, str, str | None]]:
    """Return (type, name, old name) of the events after the first so many."""

    def name(path: Any) -> str | None:
        return None if path is None else Path(path).name

    return [
        (event["event_type"], str(name(event["file_path"])), name(event["old_path"]))
        for event in running.events()[after:]
    ]


def bytes_read(pid: int) -> int:
    """Return how many bytes a process has asked to read so far, from wherever."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def started(daemon: Callable[..., Daemon], root: Path, *names: str) -> Daemon:
    """Return a daemon that has told some small files, all of different content."""
    for number, name in enumerate(names):
        (root / name).write_bytes((AUDIO / "track.mp3").read_bytes() + b"%d" % number)
    running = daemon(root)
    running.start()
    running.wait_for_events(len(names))
    return running


def test_a_chain_of_renames_is_one_rename(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "a.mp3")
    (root / "a.mp3").rename(root / "b.mp3")
    (root / "b.mp3").rename(root / "c.mp3")
    wait_for_fold(running, root)
    assert told(running, 1) == [("renamed", "c.mp3", "a.mp3")]


def test_files_that_take_each_others_names_in_turn_are_renamed(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "1.mp3", "2.mp3", "3.mp3")
    for number in (3, 2, 1):
        (root / f"{number}.mp3").rename(root / f"{number + 1}.mp3")
    wait_for_fold(running, root)
    assert sorted(told(running, 3)) == [
        ("renamed", "2.mp3", "1.mp3"),
        ("renamed", "3.mp3", "2.mp3"),
        ("renamed", "4.mp3", "3.mp3"),
    ]


def test_two_files_that_swap_names_are_modified_without_reading_them(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "a.mp3", "b.mp3")
    (root / "a.mp3").rename(root / "c.tmp")
    (root / "b.mp3").rename(root / "a.mp3")
    (root / "c.tmp").rename(root / "b.mp3")
    wait_for_fold(running, root)
    assert sorted(told(running, 2)) == [("modified", "a.mp3", None), ("modified", "b.mp3", None)]


def test_a_rename_over_a_known_file_deletes_it_first(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "a.mp3", "b.mp3")
    (root / "a.mp3").rename(root / "b.mp3")
    wait_for_fold(running, root)
    assert told(running, 2) == [("deleted", "b.mp3", None), ("renamed", "b.mp3", "a.mp3")]


def test_a_change_of_letter_case_is_a_rename(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "song.mp3")
    (root / "song.mp3").rename(root / "Song.MP3")
    wait_for_fold(running, root)
    assert told(running, 1) == [("renamed", "Song.MP3", "song.mp3")]


def test_the_old_name_may_be_taken_again_at_once(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "a.mp3")
    (root / "a.mp3").rename(root / "b.mp3")
    shutil.copy(AUDIO / "track.flac", root / "a.mp3")
    wait_for_fold(running, root)
    assert sorted(told(running, 1)) == [("created", "a.mp3", None), ("renamed", "b.mp3", "a.mp3")]


def test_a_hard_link_is_created_with_the_known_hashes(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "a.mp3")
    (root / "b.mp3").hardlink_to(root / "a.mp3")
    wait_for_fold(running, root)
    (root / "a.mp3").unlink()
    wait_for_fold(running, root)
    assert told(running, 1) == [("created", "b.mp3", None), ("deleted", "a.mp3", None)]


def test_moves_between_two_roots_are_moves(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    roots = [tmp_path / "incoming", tmp_path / "music"]
    for root in roots:
        root.mkdir()
    shutil.copy(AUDIO / "track.mp3", roots[0] / "a.mp3")
    running = daemon(roots)
    running.start()
    (roots[0] / "a.mp3").rename(roots[1] / "b.mp3")
    moved = running.wait_for_event(lambda event: event["event_type"] == "moved")
    assert (moved["root"], moved["relative_path"], moved["old_path"]) == (
        str(roots[1]),
        "b.mp3",
        str(roots[0] / "a.mp3"),
    )
    assert_equal_fold(running.events(), roots)


def test_a_move_to_another_file_system_is_a_move(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    memory = Path("/dev/shm") / f"trackwatch-{os.getpid()}"
    roots = [tmp_path / "music", memory]
    try:
        for root in roots:
            root.mkdir()
        assert roots[0].stat().st_dev != memory.stat().st_dev
        shutil.copy(AUDIO / "track.mp3", roots[0] / "a.mp3")
        running = daemon(roots)
        running.start()
        running.wait_for_events(1)
        shutil.move(roots[0] / "a.mp3", memory / "a.mp3")
        running.wait_for_event(lambda event: event["event_type"] == "moved")
        assert [event["event_type"] for event in running.events()] == ["created", "moved"]
        assert_equal_fold(running.events(), roots)
    finally:
        shutil.rmtree(memory, ignore_errors=True)


def test_a_directory_moved_while_a_file_in_it_is_written_ends_in_an_equal_fold(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    (root / "album").mkdir(parents=True)
    running = started(daemon, root, "album/1.mp3", "album/2.mp3")
    with (root / "album" / "2.mp3").open("ab") as file:
        file.write(b"one")
        (root / "album").rename(root / "renamed album")
        file.write(b"two")
    wait_for_fold(running, root)
    assert ("moved", "1.mp3", "1.mp3") in told(running, 2)


def test_a_moved_directory_of_a_thousand_files_is_told_without_reading_them(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(1000, size_bytes=50_000)
    running = daemon(root)
    running.start()
    before = bytes_read(running.pid)
    (artist,) = root.iterdir()
    artist.rename(root / "moved")
    wait_for_fold(running, root)
    read = bytes_read(running.pid) - before
    assert [event["event_type"] for event in running.events()[1000:]] == ["moved"] * 1000
    # The database and /proc are read as well: a small part of the 50 MB that the files hold.
    assert read < 10_000_000


def test_a_device_that_got_another_number_meanwhile_makes_no_file_unknown(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    """As disks do over a reboot: nothing is told, nothing is read, and moves are told without reading as before."""
    root = library(100, size_bytes=500_000)
    running = daemon(root)
    running.start()
    running.wait_for_events(100)
    running.stop()
    conn = sqlite3.connect(running.state_dir / "trackwatch.db")
    with conn:
        conn.execute("UPDATE catalogue SET dev = dev + 1")
    conn.close()
    running.start()
    wait_for_fold(running, root)
    (artist,) = root.iterdir()
    artist.rename(root / "moved")
    wait_for_fold(running, root)
    assert [event["event_type"] for event in running.events()[100:]] == ["moved"] * 100
    assert bytes_read(running.pid) < 40_000_000  # since its start, with its own code; the files hold 50 MB


def tag_in_secret(file: Path, new_name: str) -> None:
    """Do what tag editors can be told to: write within the padding, put the times back, rename after the tags."""
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"#")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    file.rename(file.with_name(new_name))


def test_a_file_whose_tags_were_changed_in_secret_before_it_was_renamed_has_moved_and_changed(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Size and modification time are what they were, and a new name changes the ctime like a new content does."""
    root = tmp_path / "music"
    root.mkdir()
    running = started(daemon, root, "a.mp3", "other.mp3")
    tag_in_secret(root / "a.mp3", "b.mp3")
    wait_for_fold(running, root)
    assert told(running, 2) == [("renamed", "b.mp3", "a.mp3"), ("modified", "b.mp3", None)]
    running.stop()
    tag_in_secret(root / "other.mp3", "c.mp3")
    running.start()
    wait_for_fold(running, root)
    assert told(running, 4) == [("renamed", "c.mp3", "other.mp3"), ("modified", "c.mp3", None)]
