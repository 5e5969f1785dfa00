"""Every way we know of in which the watcher library loses changes, provoked; each ends in an equal fold all the same.

The real daemon on real files. An overflow of the kernel's queue is provoked elsewhere, with the storms.
"""

import json
import mmap
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bed.daemon import Daemon
from tests.integration.test_watching import AUDIO, wait_for_fold

# Where nothing notifies of a change, only a sweep finds it: each 15 minutes unless told otherwise.
SWEEP_OFTEN = {"TRACKWATCH_SWEEP_S": "1"}


def music(path: Path, content: str = "") -> Path:
    """Write a small file (no audio, which is no matter here) with a content of its own, and return its path."""
    path.write_bytes(os.fsencode(f"{path.name} {content}"))
    return path


def many(directory: Path, directories: int, files: int) -> Path:
    """Make directories, nested three deep, with some files in each."""
    for number in range(directories):
        made = directory / f"{number % 5}" / f"{number % 25 // 5}" / f"{number}"
        made.mkdir(parents=True)
        for name in range(files):
            music(made / f"{name}.mp3", str(number))
    return directory


def kinds(events: list[Any]) -> Counter[str]:
    """Return how many events of each type these are."""
    return Counter(event["event_type"] for event in events)


def about(path: Path) -> Callable[[Any], bool]:
    """Return whether an event is about a path, as a predicate."""
    return lambda event: bool(event["file_path"] == str(path))


def started(daemon: Callable[..., Daemon], root: Path, **options: Any) -> Daemon:
    """Return a daemon that watches a root, in which one file is that stays."""
    root.mkdir(exist_ok=True)
    music(root / "stays.mp3")
    running = daemon(root, **options)
    running.start()
    return running


def root_state(running: Daemon) -> str:
    """Return the word that status has for the first root."""
    return str(running.status()[1]["roots"][0]["state"])


def deaths(running: Daemon) -> int:
    """Return how many watchers have died, or could not be had, as the daemon tells status."""
    return int(json.loads((running.state_dir / "status.json").read_text())["intake"]["watch_deaths"])


def unlistable(running: Daemon) -> int:
    """Return how many directories of the first root cannot be listed, as status has it."""
    return int(running.status()[1]["roots"][0]["unlistable_directories"])


@contextmanager
def changing(change: Callable[[int], None]) -> Iterator[None]:
    """Change something in a thread, again and again, while the block runs; at least 50 times."""
    done = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        try:
            number = 0
            while number < 50 or not done.wait(0.002):
                change(number)
                number += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not errors


# --- new directories lose files; whole directories come and go with one event ---


def test_new_directories_with_files_in_them_at_once(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    running = started(daemon, root)
    deep = root.joinpath("a", "b", "c")
    deep.mkdir(parents=True)
    for number in range(300):
        music(deep / f"{number}.mp3")
    many(root / "more", 60, 5)
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 601}


def test_a_recursive_copy_of_many_directories(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    source = many(tmp_path / "source", 150, 4)
    running = started(daemon, root)
    subprocess.run(["cp", "-r", source, root / "copy"], check=True)
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 601}


def test_a_populated_directory_moved_in_and_out_and_in_again(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root, outside = tmp_path / "music", many(tmp_path / "outside", 50, 4)
    many(root / "enough that the others are no mass", 50, 6)
    running = started(daemon, root)
    outside.rename(root / "in")
    wait_for_fold(running, root)
    (root / "in").rename(outside)
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 501, "deleted": 200}
    music(outside / "0" / "0" / "0" / "0.mp3", "changed while it was outside, under a watch that went with it")
    music(outside / "0" / "0" / "0" / "new.mp3")
    outside.rename(root / "in")
    wait_for_fold(running, root)
    for file in sorted((root / "in").rglob("*.mp3"))[::7]:
        music(file, "changed where it is watched again")
    wait_for_fold(running, root)


def test_directories_that_come_and_go_beside_others(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    running = started(daemon, root)

    def churn(number: int) -> None:
        directory = root / f"comes and goes {number % 3}"
        directory.mkdir()
        music(directory / "1.mp3", str(number))
        if number % 2:
            directory.rename(root / "renamed")
            directory = root / "renamed"
        shutil.rmtree(directory)

    with changing(churn):
        many(root / "stays", 80, 2)
    wait_for_fold(running, root)
    for file in sorted((root / "stays").rglob("*.mp3"))[::5]:
        music(file, "changed later")
    wait_for_fold(running, root)


def test_changes_while_watches_are_merged(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """Each new directory gets a watch of its own, and several of them are replaced by one now and then."""
    root = tmp_path / "music"
    (root / "old").mkdir(parents=True)
    for number in range(20):
        music(root / "old" / f"{number}.mp3")
    running = started(daemon, root)

    def write(number: int) -> None:
        music(root / "old" / f"{number % 20}.mp3", f"changed {number}")

    with changing(write):
        for number in range(12):
            (root / f"new {number}").mkdir()
            file = music(root / f"new {number}" / "1.mp3", str(number))
            # Told, so it was met by the sweep that follows the arming of its directory.
            running.wait_for_event(about(file))
            music(root / f"new {number // 2}" / "2.mp3", f"changed {number}")
    wait_for_fold(running, root)
    assert running.status()[1]["intake"]["watch_instances"] <= 8


# --- nothing notifies of these ---


def test_a_write_through_a_memory_map_is_found_by_the_next_sweep(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    song = root / "song.mp3"
    shutil.copy(AUDIO / "track.mp3", song)
    running = started(daemon, root, env=SWEEP_OFTEN)
    with song.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        content[-1] ^= 0xFF
        content.flush()
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 2, "modified": 1}


def test_a_write_through_a_hard_link_outside_is_found_by_the_next_sweep(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    root.mkdir()
    (tmp_path / "outside.mp3").hardlink_to(music(root / "song.mp3"))
    running = started(daemon, root, env=SWEEP_OFTEN)
    (tmp_path / "outside.mp3").write_text("written outside")
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 2, "modified": 1}


def test_a_symlink_to_a_file_outside_is_none_of_ours(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root, target = tmp_path / "music", music(tmp_path / "target.mp3")
    root.mkdir()
    (root / "link.mp3").symlink_to(target)
    running = started(daemon, root, env=SWEEP_OFTEN)
    target.write_text("written outside")
    (root / "new link.mp3").symlink_to(target)
    (root / "link.mp3").write_text("written through it")
    music(root / "later.mp3")
    swept = last_sweep(running)
    running.wait_until(lambda: last_sweep(running) != swept, 30, "a sweep after that")
    wait_for_fold(running, root)
    assert [Path(event["file_path"]).name for event in running.events()] == ["stays.mp3", "later.mp3"]


def last_sweep(running: Daemon) -> Any:
    """Return when the first root was last swept to its end."""
    return running.status()[1]["roots"][0]["swept_at"]


def test_a_root_whose_parent_was_renamed_is_unavailable_and_its_files_are_kept(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "parent" / "music"
    root.parent.mkdir()
    many(root, 10, 3)
    running = started(daemon, root, env=SWEEP_OFTEN)
    root.parent.rename(tmp_path / "renamed")
    music(tmp_path / "renamed" / "music" / "new.mp3")
    running.wait_until(lambda: root_state(running) == "unavailable", 30, "unavailable")
    music(tmp_path / "renamed" / "music" / "stays.mp3", "changed")
    (tmp_path / "renamed").rename(root.parent)
    wait_for_fold(running, root)
    running.wait_until(lambda: root_state(running) == "ok", 30, "ok again")
    assert kinds(running.events()) == {"created": 32, "modified": 1}


def test_a_root_that_is_unmounted_keeps_its_files_and_what_changed_meanwhile_is_found(
    daemon: Callable[..., Daemon], tmp_path: Path, mount: Callable[..., Callable[[], None]]
) -> None:
    disk, root = many(tmp_path / "disk", 10, 4), tmp_path / "music"
    root.mkdir()
    unmount = mount("--bind", disk, root)
    running = started(daemon, root)
    unmount()
    running.wait_until(lambda: root_state(running) == "unavailable", 30, "unavailable")
    music(disk / "stays.mp3", "changed")
    music(disk / "new.mp3")
    (disk / "0" / "0" / "0" / "0.mp3").unlink()
    mount("--bind", disk, root)
    wait_for_fold(running, root)
    running.wait_until(lambda: root_state(running) == "ok", 30, "ok again")
    assert kinds(running.events()) == {"created": 42, "modified": 1, "deleted": 1}
    music(disk / "1" / "0" / "1" / "0.mp3", "watched again?")
    wait_for_fold(running, root)


def test_a_root_that_is_mounted_over_keeps_its_files(
    daemon: Callable[..., Daemon], tmp_path: Path, mount: Callable[..., Callable[[], None]]
) -> None:
    root = tmp_path / "music"
    many(root, 10, 4)
    running = started(daemon, root)
    unmount = mount("-t", "tmpfs", "-o", "size=1m", "none", root)
    music(root / "on top.mp3")
    running.wait_until(lambda: root_state(running) == "unavailable", 30, "unavailable")
    unmount()
    music(root / "stays.mp3", "changed")
    wait_for_fold(running, root)
    running.wait_until(lambda: root_state(running) == "ok", 30, "ok again")
    assert not [event for event in running.events() if event["event_type"] == "deleted" and "on top" not in str(event)]


def test_a_disk_below_the_root_that_falls_off_keeps_its_files(
    daemon: Callable[..., Daemon], tmp_path: Path, mount: Callable[..., Callable[[], None]]
) -> None:
    disk, root = many(tmp_path / "disk", 2, 4), tmp_path / "music"
    (root / "disk").mkdir(parents=True)
    many(root / "own", 10, 4)
    unmount = mount("--bind", disk, root / "disk")
    running = started(daemon, root)
    unmount()
    running.wait_until(lambda: root_state(running) == "unavailable", 30, "unavailable")
    music(disk / "new.mp3")
    gone = next((root / "own").rglob("0.mp3"))
    gone.unlink()
    running.wait_for_event(lambda event: event["event_type"] == "deleted" and event["file_path"] == str(gone))
    mount("--bind", disk, root / "disk")
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 50, "deleted": 1}


# --- names that kill the watcher, and links that lead it astray ---


def test_undecodable_names_appear_in_a_watched_directory_and_in_a_fresh_one(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    (root / "known").mkdir(parents=True)
    running = started(daemon, root)
    raw = os.fsencode(root)
    for directory in (b"known", b"fresh", b"fresh/\xfe"):
        os.makedirs(raw + b"/" + directory, exist_ok=True)
        for name in (b"\xff.mp3", b"plain.mp3"):
            music(Path(os.fsdecode(raw + b"/" + directory + b"/" + name)))
        # What the watch had not told yet when it died of the name is lost with it.
        music(root / f"beside {len(directory)}.mp3")
    wait_for_fold(running, root)
    for directory in (b"known", b"fresh", b"fresh/\xfe"):
        for name in (b"\xff.mp3", b"plain.mp3", b"new.mp3"):
            music(Path(os.fsdecode(raw + b"/" + directory + b"/" + name)), "changed")
    wait_for_fold(running, root, "changes in directories that cannot be watched")
    os.rename(raw + b"/known/\xff.mp3", raw + b"/known/decodable.mp3")
    shutil.rmtree(raw + b"/fresh")
    music(root / "known" / "plain.mp3", "changed again")
    wait_for_fold(running, root)


def test_undecodable_directories_that_are_there_at_the_start(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    odd = os.path.join(os.fsencode(root), b"odd \xff\xfe")
    os.makedirs(odd + b"/below")
    (root / "plain").mkdir()
    files = [Path(os.fsdecode(odd + name)) for name in (b"/1.mp3", b"/below/\xe9.mp3")] + [root / "plain" / "1.mp3"]
    for file in files:
        music(file)
    running = started(daemon, root)
    wait_for_fold(running, root)
    for file in files:
        music(file, "changed")
    wait_for_fold(running, root)
    os.rename(odd, os.path.join(os.fsencode(root), b"plain too"))
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 4, "modified": 3, "moved": 2}


def test_a_symlinked_directory_is_not_followed_and_what_it_leads_to_is_watched(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root, outside = tmp_path / "music", tmp_path / "outside"
    (root / "real").mkdir(parents=True)
    outside.mkdir()
    music(outside / "not ours.mp3")
    song = music(root / "real" / "song.mp3")
    (root / "alias").symlink_to(root / "real")
    (root / "away").symlink_to(outside)
    running = started(daemon, root)
    (root / "new alias").symlink_to("real")
    for directory in ("alias", "new alias", "real"):
        music(root / directory / f"{directory}.mp3")
    music(root / "alias" / "song.mp3", "changed through the alias")
    music(outside / "not ours either.mp3")
    wait_for_fold(running, root)
    music(song, "changed once more")
    wait_for_fold(running, root)
    directories = {str(Path(event["file_path"]).parent) for event in running.events()}
    assert directories == {str(root), str(root / "real")}
    # A directory that gives way to a symlink to it: its files are under their new names, and there alone.
    (root / "real").rename(root / "moved")
    (root / "real").symlink_to("moved")
    wait_for_fold(running, root)


# --- limits ---


class LimitedDaemon(Daemon):
    """A daemon in a user namespace of its own, which has limits of its own: those of the machine stay as they are."""

    limits: tuple[tuple[str, int], ...] = ()

    def _command(self, *args: str | bytes) -> list[str | bytes]:
        lowered = "".join(f"echo {limit} > /proc/sys/user/{name} && " for name, limit in self.limits)
        # Everything here replaces itself by the next: the process id stays.
        return [
            "unshare",
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            f'{lowered}exec "$@"',
            "sh",
            *super()._command(*args),
        ]


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Make a daemon with limits of its own: `limited(root, max_inotify_watches=5)`."""
    with ExitStack() as stack:

        def make(root: Path, **limits: int) -> Daemon:
            made = stack.enter_context(LimitedDaemon(root, tmp_path / "state"))
            made.limits = tuple(limits.items())
            tried = subprocess.run(made._command("--version"), check=False, capture_output=True, text=True)
            if tried.returncode:
                pytest.skip(f"no limits of our own here (user namespaces): {tried.stderr.strip()}")
            return made

        yield make


def test_directories_beyond_the_watch_limit_are_swept_and_the_remedy_is_logged(
    limited: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    many(root, 20, 2)
    running = started(limited, root, max_inotify_watches=12)
    assert "fs.inotify.max_user_watches" in running.stderr()
    for file in root.rglob("0.mp3"):
        music(file, "changed")
    many(root / "new", 10, 2)
    wait_for_fold(running, root)
    for file in root.rglob("1.mp3"):
        file.rename(file.with_name("renamed.mp3"))
    wait_for_fold(running, root)
    assert running.status()[1]["roots"][0]["unwatched_directories"] > 0


def test_watches_that_cannot_be_merged_for_want_of_an_instance_go_on(
    limited: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "music"
    running = started(limited, root, max_inotify_instances=7)
    for number in range(9):
        (root / f"{number}").mkdir()
        running.wait_for_event(about(music(root / f"{number}" / "1.mp3")))
    assert "fs.inotify.max_user_instances" in running.stderr()
    assert running.stderr().count("watch unavailable") == 1, "a change of state"
    assert deaths(running) < 20, "each attempt is followed by a sweep"
    for file in root.rglob("1.mp3"):
        music(file, "changed")
    wait_for_fold(running, root)


@pytest.mark.parametrize("instances", [0, 1])
def test_without_inotify_instances_everything_is_swept_and_the_remedy_is_logged(
    limited: Callable[..., Daemon], tmp_path: Path, instances: int
) -> None:
    root = tmp_path / "music"
    many(root, 10, 2)
    running = started(limited, root, max_inotify_instances=instances)
    for file in root.rglob("0.mp3"):
        music(file, "changed")
    many(root / "new", 10, 2)  # a watch of their own, for which there is no instance
    wait_for_fold(running, root)
    assert "fs.inotify.max_user_instances" in running.stderr()
    assert running.stderr().count("watch unavailable") == 1, "a change of state"
    assert deaths(running) < 20, "each attempt is followed by a sweep"


def test_paths_that_are_too_long_to_open_are_said_and_do_not_hurt_others(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Nobody can open such a path as one string, a consumer neither: its files are not told, but it is not silent."""
    root = tmp_path / "music"
    root.mkdir()
    for number in range(2):
        make_deep(root / str(number))
    running = started(daemon, root)
    assert "cannot be listed" in running.stderr()
    make_deep(root / "2")
    for directory in (root / "0", root / "2", root):
        music(directory / "beside.mp3")
        running.wait_for_event(about(directory / "beside.mp3"))
    running.wait_until(
        lambda: running.status()[1]["roots"][0]["unlistable_directories"] == 3, 10, "all three in status"
    )
    shutil.rmtree(root / "1")
    shutil.rmtree(root / "2")
    rename_deep(root / "0", 12, root / "short")
    wait_for_fold(running, root, "what can be opened now")
    assert sum(event["file_path"].endswith("/deep.mp3") for event in running.events()) == 6
    before = len(running.events())
    rename_deep(root / "0", 12, root / "short", back=True)
    running.wait_until(lambda: len(running.events()) > before)
    assert kinds(running.events()[before:]) == {"deleted": 1}


LONG_NAME = "n" * 250


def make_deep(top: Path) -> None:
    """Make a directory whose path is longer than 4096 bytes, step by step as one has to, and a file on the way."""
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for level in range(20):
        os.mkdir(LONG_NAME, dir_fd=descriptor)
        below = os.open(LONG_NAME, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
        if level in (5, 19):
            made = os.open("deep.mp3", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
            os.write(made, f"{top} {level}".encode())
            os.close(made)
    os.close(descriptor)


def rename_deep(top: Path, level: int, other: Path, *, back: bool = False) -> None:
    """Rename what is so many levels below `top` to another path, or back."""
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(level):
        below = os.open(LONG_NAME, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    if back:
        os.rename(other, LONG_NAME, dst_dir_fd=descriptor)
    else:
        os.rename(LONG_NAME, other, src_dir_fd=descriptor)
    os.close(descriptor)


# --- the same name, the same number, another thing ---


def test_a_directory_removed_and_made_again_with_the_same_inode(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    album = root / "album"
    album.mkdir(parents=True)
    music(album / "1.mp3")
    running = started(daemon, root)
    inodes = [album.stat().st_ino]
    for number in range(20):
        shutil.rmtree(album)
        album.mkdir()
        inodes.append(album.stat().st_ino)
        if number % 3:
            music(album / f"{number}.mp3")
    wait_for_fold(running, root)
    music(album / "later.mp3")
    music(album / "19.mp3", "changed")
    wait_for_fold(running, root)
    if len(set(inodes)) == len(inodes):
        pytest.skip("this file system did not hand any inode to the next directory")


def test_a_renamed_directory_and_a_new_one_under_its_old_name(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    for directory in ("album", "album/disc"):
        (root / directory).mkdir(parents=True)
        music(root / directory / "1.mp3", directory)
    running = started(daemon, root)
    for number in range(3):
        (root / "album").rename(root / f"album {number}")
        (root / "album" / "disc").mkdir(parents=True)
        music(root / "album" / "1.mp3", f"new {number}")
        music(root / "album" / "disc" / "1.mp3", f"newer {number}")
    wait_for_fold(running, root)
    for file in root.rglob("1.mp3"):
        music(file, f"changed in {file.parent}")
        music(file.with_name("2.mp3"), str(file))
    wait_for_fold(running, root)


def test_a_file_moved_out_and_in(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    song = music(root / "song.mp3")
    running = started(daemon, root)
    song.rename(tmp_path / "away.mp3")
    running.wait_for_event(lambda event: event["event_type"] == "deleted")
    (tmp_path / "away.mp3").rename(song)
    wait_for_fold(running, root)
    song.rename(tmp_path / "away.mp3")
    (tmp_path / "away.mp3").rename(song)
    music(root / "later.mp3")
    running.wait_for_event(about(root / "later.mp3"))
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 4, "deleted": 1}


def test_a_freed_inode_with_the_old_size_and_time_is_no_move(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    old = [music(root / f"{number}.mp3", "old") for number in range(10)]
    running = started(daemon, root)
    before = [file.stat() for file in old]
    reused = 0
    for number, (file, was) in enumerate(zip(old, before, strict=True)):
        file.unlink()
        # Others on this machine may be quicker to take it, and give it back.
        for attempt in range(20):
            new = root / f"{number} {attempt}.tmp"
            new.write_text(f"{number}.mp3 new")
            if new.stat().st_ino == was.st_ino:
                break
        reused += new.stat().st_ino == was.st_ino
        os.utime(new, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert new.stat().st_size == was.st_size
        new.rename(root / f"{number}.flac")
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 21, "deleted": 10}
    if not reused:
        pytest.skip("this file system did not hand any inode to the next file")


def test_an_unreadable_directory_keeps_its_files(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "music"
    secret = root / "secret"
    secret.mkdir(parents=True)
    for number in range(5):
        music(secret / f"{number}.mp3")
    running = started(daemon, root, unprivileged=True, env=SWEEP_OFTEN)
    secret.chmod(0o000)
    try:
        running.wait_until(lambda: "cannot be listed" in running.stderr(), 30, "a word about it")
        with ExitStack() as stack:
            # Root may do all this all the same; another user has to open it for a moment.
            if os.geteuid() != 0:
                secret.chmod(0o700)
                stack.callback(secret.chmod, 0o000)
            (secret / "0.mp3").unlink()
            (secret / "1.mp3").rename(root / "moved out.mp3")
            music(secret / "2.mp3", "changed")
        running.wait_for_event(about(root / "moved out.mp3"))
        running.wait_until(lambda: unlistable(running) == 1, 30, "a count of one")
        if os.geteuid() == 0:
            assert kinds(running.events()) == {"created": 7}, "nothing that nobody can see is told"
    finally:
        secret.chmod(0o755)
    wait_for_fold(running, root)
    running.wait_until(lambda: unlistable(running) == 0, 30, "a count of none")


def test_a_root_whose_own_name_is_not_utf8_is_compared_instead_of_watched(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / os.fsdecode(b"m\xff")
    root.mkdir()
    (root / "a.mp3").write_bytes(b"one")
    running = daemon(root)
    running.start()
    (root / "b.mp3").write_bytes(b"two")
    wait_for_fold(running, root)
    assert kinds(running.events()) == {"created": 2}
