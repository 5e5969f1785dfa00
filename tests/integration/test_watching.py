"""The whole daemon on real files, its events read from standard output."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold

AUDIO = Path(__file__).parent.parent / "data" / "audio"


def types_of(events: list[Any], *paths: Path) -> list[tuple[str, str, str | None]]:
    """Return (type, path, old path) of the events about some paths, in order."""
    names = {str(path) for path in paths}
    return [
        (event["event_type"], event["file_path"], event["old_path"])
        for event in events
        if event["file_path"] in names or event["old_path"] in names
    ]


def wait_until_old(directory: Path) -> None:
    """Wait until the files of a directory count as old: a sweep takes them for settled 3 s after their last change."""
    newest = max(file.stat().st_ctime for file in directory.iterdir())
    while time.time() - newest < 3.5:
        time.sleep(0.1)


def wait_for_fold(running: Daemon, root: Path, what: str = "the fold to equal the disk") -> None:
    """Wait until what the daemon has told is what is on the disk."""

    def is_equal() -> bool:
        try:
            assert_equal_fold(running.events(), root)
        except AssertionError:
            return False
        return True

    running.wait_until(is_equal, 30, what)


def test_an_import_prints_each_file_with_the_hashes_that_openssl_gives(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(60)
    running = daemon(root)
    running.start()
    events = running.wait_for_events(60)
    assert len(events) == 60
    printed = subprocess.run(
        ["openssl", "dgst", "-sha256", "-r", *[event["file_path"] for event in events]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in printed.stdout.splitlines()] == [event["sha256_hash"] for event in events]
    assert_equal_fold(events, root)


def test_each_live_change_prints_its_event(daemon: Callable[..., Daemon], library: Callable[..., Path]) -> None:
    root = library(3)
    running = daemon(root)
    running.start()
    song, renamed, moved = root / "new söng.mp3", root / "renamed.mp3", root / "album one" / "renamed.mp3"

    def wait(kind: str, path: Path) -> Any:
        return running.wait_for_event(
            lambda event: (event["event_type"], event["file_path"]) == (kind, str(path)), 20, f"{kind} {path}"
        )

    shutil.copy(AUDIO / "track.mp3", song)
    created = wait("created", song)
    with song.open("ab") as file:
        file.write(b"more")
    modified = wait("modified", song)
    assert modified["previous"]["sha256_hash"] == created["sha256_hash"]
    song.rename(renamed)
    assert wait("renamed", renamed)["metadata"] == modified["metadata"]
    moved.parent.mkdir()
    renamed.rename(moved)
    wait("moved", moved)
    moved.unlink()
    assert wait("deleted", moved)["previous"]["sha256_hash"] == modified["sha256_hash"]
    assert types_of(running.events(), song, renamed, moved) == [
        ("created", str(song), None),
        ("modified", str(song), None),
        ("renamed", str(renamed), str(song)),
        ("moved", str(moved), str(renamed)),
        ("deleted", str(moved), None),
    ]
    assert_equal_fold(running.events(), root)


def test_names_that_were_never_announced_are_no_source_of_a_move(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(3)
    running = daemon(root)
    running.start()
    download, song, backup = root / "song.mp3.part", root / "song.mp3", root / "song.bak"
    shutil.copy(AUDIO / "track.mp3", download)
    download.rename(song)
    running.wait_for_event(lambda event: event["file_path"] == str(song))
    replacement = root / ".song.mp3.a1B2c3"
    shutil.copy(AUDIO / "track.flac", replacement)
    replacement.rename(song)
    running.wait_for_event(lambda event: event["event_type"] == "modified")
    song.rename(backup)
    running.wait_for_event(lambda event: event["event_type"] == "deleted")
    assert types_of(running.events(), download, song, backup, replacement) == [
        ("created", str(song), None),
        ("modified", str(song), None),
        ("deleted", str(song), None),
    ]


def test_a_touched_file_is_no_news(daemon: Callable[..., Daemon], library: Callable[..., Path]) -> None:
    root = library(3)
    running = daemon(root)
    running.start()
    touched = next(root.rglob("*.flac"))
    os.utime(touched, (1, 1))
    shutil.copy(AUDIO / "track.mp3", root / "later.mp3")
    running.wait_for_event(lambda event: event["file_path"] == str(root / "later.mp3"))
    assert [kind for kind, _, _ in types_of(running.events(), touched)] == ["created"]


def test_directories_that_come_go_and_move_are_told_file_by_file(
    daemon: Callable[..., Daemon], library: Callable[..., Path], tmp_path: Path
) -> None:
    root = library(30)
    running = daemon(root)
    running.start()
    (artist,) = root.iterdir()
    moved = root / "moved"
    artist.rename(moved)
    wait_for_fold(running, root)
    assert [event["event_type"] for event in running.events()].count("moved") == 30
    shutil.copytree(moved, root / "deep" / "er" / "copy")
    wait_for_fold(running, root)
    moved.rename(tmp_path / "elsewhere")
    wait_for_fold(running, root)
    assert [event["event_type"] for event in running.events()].count("deleted") == 30
    (tmp_path / "elsewhere").rename(moved)
    (moved / "new").mkdir()
    shutil.copy(AUDIO / "track.ogg", moved / "new" / "inside.ogg")
    wait_for_fold(running, root)


def test_changes_while_it_was_down_are_told_at_the_next_start(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(40)
    running = daemon(root)
    running.start()
    assert running.stop() == 0
    files = sorted(root.rglob("*.*"))
    changed, renamed, removed, *_ = files
    with changed.open("ab") as file:
        file.write(b"while nobody looked")
    renamed.rename(renamed.with_name("renamed" + renamed.suffix))
    removed.unlink()
    shutil.copy(AUDIO / "track.opus", root / "added.opus")
    (root / "other").mkdir()
    files[10].rename(root / "other" / files[10].name)
    told = len(running.events())
    running.start()
    wait_for_fold(running, root)
    later = running.events()[told:]
    assert sorted(event["event_type"] for event in later) == ["created", "deleted", "modified", "moved", "renamed"]
    assert {event["instance_id"] for event in running.events()} == {later[0]["instance_id"]}
    running.stop()
    running.start()
    assert len(running.events()) == told + 5, "a start without changes tells nothing"


def test_odd_files_are_told_or_shown_as_problems_and_the_others_go_on(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(5)
    (root / "empty.mp3").touch()
    (root / "broken.flac").write_bytes(b"fLaC" + bytes(range(256)) * 20)
    undecodable = os.fsencode(root) + b"/\xff\xfe.mp3"
    shutil.copy(os.fsencode(AUDIO / "track.mp3"), undecodable)
    (root / "fifo.mp3").symlink_to("/dev/null")
    os.mkfifo(root / "pipe.mp3")
    running = daemon(root)
    running.start()
    wait_for_fold(running, root)
    told = {event["file_path"]: event for event in running.events()}
    assert len(told) == 8
    assert told[str(root / "empty.mp3")]["metadata_error"]
    assert told[str(root / "broken.flac")]["metadata_error"]
    assert told[f"{root}/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.mp3"]["file_path_bytes"]
    code, status = running.status()
    assert (code, status["problems"]["count"]) == (0, 2)
    os.unlink(undecodable)
    shutil.copy(os.fsencode(AUDIO / "track.mp3"), os.fsencode(root) + b"/again\xff.mp3")
    wait_for_fold(running, root, "a change beside undecodable names")


def test_an_unreadable_file_is_a_problem_until_it_can_be_read(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    shutil.copytree(AUDIO, root)
    secret = root / "track.mp3"
    secret.chmod(0o000)
    running = daemon(root, unprivileged=True)
    running.start()
    running.wait_until(lambda: len(running.events()) == 14)
    code, status = running.status()
    assert code == 0
    assert status["problems"]["recent"] == [{"path": str(secret), "reason": "not readable (permission denied)"}]
    secret.chmod(0o644)
    running.wait_for_event(lambda event: event["file_path"] == str(secret))
    assert running.status()[1]["problems"]["count"] == 0
    assert_equal_fold(running.events(), root)


def test_a_root_that_falls_off_is_unavailable_and_its_files_are_kept(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(10)
    running = daemon(root)
    running.start()
    away = root.with_name("away")
    root.rename(away)
    running.wait_until(lambda: running.status()[1]["roots"][0]["state"] == "unavailable", 30, "unavailable")
    root.mkdir()  # the empty mount point
    shutil.copy(AUDIO / "track.mp3", away / "meanwhile.mp3")
    assert running.status()[0] == 1
    root.rmdir()
    away.rename(root)
    running.wait_for_event(lambda event: event["file_path"] == str(root / "meanwhile.mp3"))
    assert [event["event_type"] for event in running.events()] == ["created"] * 11
    running.wait_until(lambda: running.status()[0] == 0, 30, "healthy again")


def test_files_of_priority_are_told_before_the_others(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(400)
    urgent = root / "zz last" / "new release"
    urgent.mkdir(parents=True)
    for number in range(20):
        (urgent / f"{number}.mp3").write_bytes((AUDIO / "track.mp3").read_bytes() + b"%d" % number)
    # Older than what still settles, so that all of it goes through the sweep's lane. One file at a time: what is begun
    # first is then told first, while of several in flight any may be ready before another.
    running = daemon(root, env={"TRACKWATCH_PRIORITY": "zz last/", "MAX_CONCURRENT_FILES": "1"})
    wait_until_old(urgent)
    running.start()
    first = [event["relative_path"] for event in running.wait_for_events(420)[:20]]
    assert all(path.startswith("zz last/") for path in first), first
    assert_equal_fold(running.events(), root)


def test_once_imports_delivers_and_ends(
    daemon: Callable[..., Daemon], library: Callable[..., Path], tmp_path: Path
) -> None:
    root = library(20)
    target = tmp_path / "library.jsonl"
    running = daemon(root, args=["--once", "--to", str(target)])
    running.start(wait=False)
    assert running.wait_for_exit() == 0
    assert_equal_fold([json.loads(line) for line in target.read_text().splitlines()], root)
    assert running.events() == []


def test_a_closed_pipe_ends_it_quietly_and_the_rest_is_still_pending(
    daemon: Callable[..., Daemon], library: Callable[..., Path]
) -> None:
    root = library(400)
    idle = daemon(root)
    ended = subprocess.run(
        f"'{idle.environ()['PATH'].split(':')[0]}/trackwatch' run '{root}' | head -n 1",
        shell=True,
        env=idle.environ(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stdout.count("\n") == 1
    assert "Traceback" not in ended.stderr
    idle.start()
    idle.wait_until(lambda: len(idle.events()) >= 200)
    code, status = idle.status()
    assert code == 0
    assert status["outbox"]["kept"] == 400
