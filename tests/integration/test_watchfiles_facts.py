"""What watchfiles does and does not do, as far as our design rests on it: a version that does otherwise is news.

Only facts that can be provoked each time; the other losses (files of new directories, overflow) come and go.
"""

import mmap
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from watchfiles import Change, awatch
from watchfiles._rust_notify import WatchfilesRustInternalError  # not exported; `watch` catches it by this name

from trackwatch.mounts import mount_of, read_mounts
from trackwatch.watch import IDLE_CALL_MS, STEP_MS, _inotify_descriptors, _watched_inodes

DEADLINE_S = 15.0
Seen = set[tuple[Change, Path]]


@asynccontextmanager
async def watching(
    *paths: Path, recursive: bool = False, ignore_permission_denied: bool = True
) -> AsyncIterator[list[tuple[Change, Path]]]:
    """Watch as the daemon does, and collect what is said, from when the kernel was asked on."""
    seen: list[tuple[Change, Path]] = []
    stop = trio.Event()

    async def listen() -> None:
        changes = awatch(
            *paths,
            watch_filter=None,
            debounce=10 * STEP_MS,
            step=STEP_MS,
            stop_event=stop,
            rust_timeout=IDLE_CALL_MS,
            force_polling=False,
            recursive=recursive,
            ignore_permission_denied=ignore_permission_denied,
        )
        async with aclosing(changes):
            async for batch in changes:
                seen.extend((kind, Path(path)) for kind, path in batch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        try:
            yield seen
        finally:
            stop.set()


async def until_told(seen: list[tuple[Change, Path]], path: Path) -> None:
    """Wait until a file was told as added."""
    with trio.fail_after(DEADLINE_S):
        while (Change.added, path) not in seen:  # noqa: ASYNC110 # watchfiles has no event to wait for
            await trio.sleep(STEP_MS / 1000)


async def told(folder: Path, deed: Callable[[], object], *, recursive: bool = False) -> Seen:
    """Return what is said of a deed in a folder, and nothing that is said of later ones.

    One inotify instance tells things in their order: what was not told before the mark is not told at all.
    """
    mark = folder / "mark"
    async with watching(folder, recursive=recursive) as seen:
        deed()
        mark.touch()
        await until_told(seen, mark)
    return {(kind, path) for kind, path in seen if path != mark}


async def test_a_plain_write_is_told(tmp_path: Path) -> None:
    """The measure for the tests below that see nothing: this is how something looks."""
    song = tmp_path / "a.bin"
    song.touch()
    assert await told(tmp_path, lambda: song.write_bytes(b"new")) == {(Change.modified, song)}


async def test_a_rename_is_a_deletion_and_an_addition_without_a_tie(tmp_path: Path) -> None:
    """So moves are found by inode and content (`correlate`), never by what the watch says of them."""
    old, new = tmp_path / "a.bin", tmp_path / "b.bin"
    old.touch()
    assert await told(tmp_path, lambda: old.rename(new)) == {(Change.deleted, old), (Change.added, new)}


async def test_a_file_that_is_replaced_by_a_rename_is_told_as_added(tmp_path: Path) -> None:
    """So the kind is never believed: a path is looked at, and the catalogue says whether it is new."""
    song, other = tmp_path / "a.bin", tmp_path / "b.bin"
    song.touch()
    other.touch()
    seen = await told(tmp_path, lambda: other.rename(song))
    assert seen == {(Change.deleted, other), (Change.added, song)}


@pytest.mark.parametrize("recursive", [False, True])
async def test_of_a_populated_directory_that_is_moved_in_only_itself_is_told(tmp_path: Path, recursive: bool) -> None:
    """So every hint that names a directory is a sweep of all that lies below it, watched recursively or not."""
    root, album = tmp_path / "root", tmp_path / "album"
    (album / "cd").mkdir(parents=True)
    root.mkdir()
    for number in range(5):
        (album / f"{number}.bin").touch()
        (album / "cd" / f"{number}.bin").touch()
    seen = await told(root, lambda: album.rename(root / "album"), recursive=recursive)
    assert seen == {(Change.added, root / "album")}


async def test_of_a_populated_directory_that_is_moved_out_only_itself_is_told(tmp_path: Path) -> None:
    """So a path that has gone takes with it all that is known below it."""
    root, album = tmp_path / "root", tmp_path / "root" / "album"
    album.mkdir(parents=True)
    (album / "a.bin").touch()
    assert await told(root, lambda: album.rename(tmp_path / "away")) == {(Change.deleted, album)}


async def test_without_recursion_new_directories_are_told_and_not_entered(tmp_path: Path) -> None:
    """So a directory that appears is watched first and swept then; its files are told by nothing else."""

    def make() -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c.bin").touch()

    seen = await told(tmp_path, make)
    assert {path for _, path in seen} == {tmp_path / "a"}


async def test_writes_through_a_mapping_are_not_told(tmp_path: Path) -> None:
    """So whole roots are swept from time to time: nothing else finds these."""
    song = tmp_path / "a.bin"
    song.write_bytes(b"old")

    def store() -> None:
        with song.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[:3] = b"new"
            mapped.flush()

    assert await told(tmp_path, store) == set()
    assert song.read_bytes() == b"new"


async def test_writes_through_a_hard_link_outside_are_not_told(tmp_path: Path) -> None:
    """So whole roots are swept from time to time: nothing else finds these."""
    root, outside = tmp_path / "root", tmp_path / "outside.bin"
    root.mkdir()
    (root / "a.bin").write_bytes(b"old")
    os.link(root / "a.bin", outside)
    assert await told(root, lambda: outside.write_bytes(b"new")) == set()
    assert (root / "a.bin").read_bytes() == b"new"


async def test_an_undecodable_name_kills_the_watch_and_what_it_had_to_say(tmp_path: Path) -> None:
    """So directories with such names are never watched but compared, and a watch that died is a doubt: a sweep."""
    died: list[BaseException] = []
    seen: list[tuple[Change, Path]] = []
    with trio.fail_after(DEADLINE_S):
        try:
            async with watching(tmp_path) as seen:
                (tmp_path / "before.bin").touch()
                os.close(os.open(os.path.join(os.fsencode(tmp_path), b"\xff.bin"), os.O_CREAT))
                await trio.sleep_forever()
        except* WatchfilesRustInternalError as group:
            died.extend(group.exceptions)
    assert died
    assert seen == [], "the change before it was told to nobody"


async def test_a_directory_that_has_gone_is_swallowed_with_the_errors_of_permission(tmp_path: Path) -> None:
    """So one vanished directory does not keep thousands from being watched; what is watched is read from fdinfo."""
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    async with watching(gone, there) as seen:
        (there / "a.bin").touch()
        await until_told(seen, there / "a.bin")


async def test_a_directory_that_has_gone_ends_a_watch_that_swallows_nothing(tmp_path: Path) -> None:
    """So `ignore_permission_denied` stays on."""
    died: list[BaseException] = []
    try:
        async with watching(tmp_path / "gone", tmp_path, ignore_permission_denied=False):
            with trio.fail_after(DEADLINE_S):
                await trio.sleep_forever()
    except* FileNotFoundError as group:
        died.extend(group.exceptions)
    assert died


async def test_what_the_kernel_watches_is_read_from_fdinfo(tmp_path: Path) -> None:
    """So a limit that was reached, and watches that went with their file system, are noticed: nothing else tells."""
    mount = mount_of(os.fsencode(tmp_path), read_mounts())
    if mount is None or mount.fstype == b"overlay":
        pytest.skip("no /proc, or a file system whose watches bear other inode numbers than stat tells")
    kept, removed = tmp_path / "kept", tmp_path / "removed"
    kept.mkdir()
    removed.mkdir()
    inodes = {path: path.stat().st_ino for path in (kept, removed)}
    before = _inotify_descriptors()
    async with watching(kept, removed, tmp_path / "gone"):
        (descriptor,) = _inotify_descriptors() - before
        assert _watched_inodes(descriptor) == set(inodes.values())
        removed.rmdir()
        assert _watched_inodes(descriptor) == {inodes[kept]}
    with trio.fail_after(DEADLINE_S):
        while _inotify_descriptors() != before:  # noqa: ASYNC110 # its thread closes it soon after its generator
            await trio.sleep(STEP_MS / 1000)
