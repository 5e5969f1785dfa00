"""The watch alone, over real directories: what happens in the moments when its arms change, and when they die."""

import os
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trackwatch import watch
from trackwatch.watch import Watch, Watched

DEADLINE_S = 10.0


class Bed:
    """A watch that runs, and what it has said."""

    def __init__(self) -> None:
        self.hints: list[bytes] = []
        self.doubts: list[bytes] = []
        self.watch = Watch(lambda path, _quiet_s: self.hints.append(path), self.doubts.extend)

    async def cover(self, *paths: Path) -> None:
        await self.watch.cover([Watched(os.fsencode(path), path.stat().st_ino) for path in paths])

    async def hinted(self, path: Path) -> None:
        """Wait until it has said something of a path."""
        with trio.fail_after(DEADLINE_S):
            while os.fsencode(path) not in self.hints:  # noqa: ASYNC110 # hints come as calls, from many places
                await trio.sleep(0.01)


@asynccontextmanager
async def watching() -> AsyncIterator[Bed]:
    async with trio.open_nursery() as nursery:
        bed = Bed()
        await nursery.start(bed.watch.run)
        yield bed
        nursery.cancel_scope.cancel()


def make(*paths: Path) -> None:
    for path in paths:
        path.mkdir()


async def test_a_change_is_hinted_after_a_long_silence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it takes longer steps."""
    monkeypatch.setattr(watch, "IDLE_MS", 100)
    monkeypatch.setattr(watch, "IDLE_CALL_MS", 300)
    async with watching() as bed:
        await bed.cover(tmp_path)
        await trio.sleep(1)  # some calls of each kind
        (tmp_path / "a").touch()
        await bed.hinted(tmp_path / "a")
        (tmp_path / "b").touch()
        await bed.hinted(tmp_path / "b")


async def test_an_idle_watch_ends_at_once_when_it_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IDLE_MS", 50)
    with trio.fail_after(DEADLINE_S):  # by then all threads have ended: they are waited for, and a call takes a minute
        async with watching() as bed:
            await bed.cover(tmp_path)
            await trio.sleep(0.2)
        while watch._inotify_descriptors():  # noqa: ASYNC110 # the library's own thread closes them, when it comes to it
            await trio.sleep(0.01)


async def test_arming_binds_none_of_our_threads_to_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they start would stay there; the thread that is bound meanwhile ends with it, and the engine's is freed."""
    bind, bound = os.sched_setaffinity, set[int]()

    def noting(thread: int, processors: Iterable[int]) -> None:
        bound.add(thread or threading.get_native_id())
        bind(thread, processors)

    allowed = os.sched_getaffinity(0)
    ours = set(map(int, os.listdir("/proc/self/task")))
    monkeypatch.setattr(os, "sched_setaffinity", noting)
    async with watching() as bed:
        await bed.cover(tmp_path)
        assert bound
        assert not bound & ours
        threads = map(int, os.listdir("/proc/self/task"))
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset(allowed)}


async def test_where_no_thread_may_be_bound_it_watches_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_thread: int, _processors: Iterable[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    async with watching() as bed:
        await bed.cover(tmp_path)
        (tmp_path / "a").touch()
        await bed.hinted(tmp_path / "a")


async def test_a_directory_that_goes_during_an_audit_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    make(first, second)
    async with watching() as bed:
        await bed.cover(first)
        await bed.cover(second)
        looked: list[int] = []

        def nothing_is_watched(descriptor: int) -> set[int]:
            """Say what the kernel says after its limit was reached, or an unmount; meanwhile a directory goes."""
            looked.append(descriptor)
            if len(looked) == 2:
                first.rmdir()
                deadline = time.monotonic() + DEADLINE_S
                while os.fsencode(first) not in bed.hints and time.monotonic() < deadline:
                    time.sleep(0.01)
            return set()

        monkeypatch.setattr(watch, "_watched_inodes", nothing_is_watched)
        assert set(await bed.watch.audit()) == {os.fsencode(first), os.fsencode(second)}
        assert len(looked) == 2
        assert bed.watch.statistics()["directories"] == 0


async def test_what_a_dying_arm_had_not_told_yet_is_doubted_though_another_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An undecodable name kills the old arm, in the moments in which it tells what happened before the new one."""
    first, second = tmp_path / "1", tmp_path / "2"
    make(first, second)
    monkeypatch.setattr(watch, "ARMS_MAX", 1)
    async with watching() as bed:
        await bed.cover(first)
        (first / "told by nobody").touch()
        (first / os.fsdecode(b"\xff")).touch()
        await bed.cover(second)  # a second arm, and one for both
        with trio.fail_after(DEADLINE_S):
            while os.fsencode(first) not in bed.doubts:  # noqa: ASYNC110 # doubts come as calls
                await trio.sleep(0.01)
        assert bed.watch.covers(Watched(os.fsencode(second), second.stat().st_ino))
