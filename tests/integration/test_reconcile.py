"""Reconciling a real folder with a real store, in this process: what is told of it, when, and what is not.

Real time, because threads and the kernel's notifications are part of it; the graces are short, and every wait is for a
condition.
"""

import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.bed.probe import describe_in_thread
from trackwatch import catalogue, settle, sweeper
from trackwatch.reconcile import Job, Reconcile
from trackwatch.root import RootState, RootWord
from trackwatch.settle import DirtySet
from trackwatch.store import Store, open_store
from trackwatch.sweep import Wanted
from trackwatch.sweeper import Sweeper
from trackwatch.track import Location, Root
from trackwatch.watch import Watch
from trackwatch.workers import Workers, WorkerStatistics

QUIET_S, GRACE_S = 0.05, 0.3
DEADLINE_S = 15.0
# A grace that no test outlasts: what is told before it ends was not told because of it.
FOREVER_S = 1000.0
EVERYTHING = Wanted(lambda _path: True)


@pytest.fixture(autouse=True)
def _sigio_ignored() -> Iterator[None]:
    """As in the daemon: a lease that is broken would end the process."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


class Bed:
    """A reconciling daemon's inside, and its first root."""

    def __init__(self, store: Store, reconcile: Reconcile, roots: Sequence[Root]) -> None:
        self.store = store
        self.reconcile = reconcile
        self.roots = roots
        self.root = roots[0]

    @property
    def state(self) -> RootState:
        return self.reconcile.roots[0]

    @property
    def sweeper(self) -> Sweeper:
        return self.reconcile._sweeper

    @property
    def watch(self) -> Watch:
        return self.reconcile._watch

    def at(self, path: bytes) -> Location:
        return Location(self.root.id, path)

    def absolute(self, path: bytes) -> bytes:
        return self.root.absolute(path)

    def events(self) -> list[tuple[str, str, str | None]]:
        """Return type, path and old path of every event, below the roots' common folder."""
        folder = os.fsdecode(os.path.dirname(self.root.path)) + "/"
        with self.store.open_reader() as reader:
            rows = reader.connection.execute(
                "SELECT event_type, payload ->> 'file_path', payload ->> 'old_path' FROM"
                " (SELECT seq, event_type, CAST(payload AS TEXT) AS payload FROM outbox) ORDER BY seq"
            ).fetchall()
        return [(kind, path.removeprefix(folder), old and old.removeprefix(folder)) for kind, path, old in rows]

    def told(self, kind: str) -> set[str]:
        """Return the paths that events of one type were about."""
        return {path for event, path, _ in self.events() if event == kind}

    def deafen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the watch miss everything, as it may; patched, because no real loss can be provoked each time."""
        monkeypatch.setattr(self.watch, "_take", lambda _arm, _batch, *, quiet_s: None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with trio.fail_after(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 # what is waited for has many owners, and some have no event
                await trio.sleep(0.005)

    async def idle(self) -> None:
        with trio.fail_after(DEADLINE_S):
            await self.reconcile.wait_idle()

    async def sweep(self) -> None:
        """Have the whole root swept once more, and wait for what comes of that."""
        self.sweeper.ask(self.at(b""))
        await self.until(lambda: not self.sweeper.is_hasty(self.root.id) and not self.state.is_sweeping)
        await self.idle()

    async def accept(self) -> None:
        """Say what `trackwatch accept` says."""
        await self.store.write(lambda ledger: catalogue.accept_removals(ledger.conn, self.root.id, 1))

    async def is_accepted(self) -> bool:
        return await self.store.write(lambda ledger: catalogue.are_removals_accepted(ledger.conn, self.root.id))


def write(folder: bytes | Path, *paths: str | bytes) -> None:
    for path in map(os.fsencode, paths):
        absolute = os.path.join(os.fsencode(folder), path)
        os.makedirs(os.path.dirname(absolute), exist_ok=True)
        with open(absolute, "wb") as file:
            file.write(b"content of " + path)


def named(names: range, folder: str = "") -> list[str]:
    return [f"{folder}{number:03}.bin" for number in names]


def whole(*paths: str) -> set[str]:
    """Paths below the root, as events tell them here."""
    return {f"music/{path}" for path in paths}


@asynccontextmanager
async def running(
    folder: Path,
    *,
    wanted: Wanted = EVERYTHING,
    grace_s: float = GRACE_S,
    sweep_s: float = FOREVER_S,
    is_first_idle: bool = True,
    hands: int = 4,
) -> AsyncIterator[Bed]:
    """Reconcile `music` and `other` in a folder until the block ends, from when they were swept on."""
    paths = tuple(os.fsencode(folder / name) for name in ("music", "other"))
    os.makedirs(paths[1], exist_ok=True)
    async with open_store(folder / "state") as store, trio.open_nursery() as writing:
        await writing.start(store.run)
        roots = await store.write(lambda ledger: ledger.claim_roots(paths))
        send, receive = trio.open_memory_channel[Job](0)
        with store.open_reader() as reader:
            async with trio.open_nursery() as nursery:
                reconcile = Reconcile(
                    store,
                    reader,
                    roots,
                    wanted=wanted,
                    settle=DirtySet(quiet_s=QUIET_S, ceiling_s=60),
                    jobs=send,
                    probes_max=2,
                    sweep_s=sweep_s,
                    grace_s=grace_s,
                )
                workers = Workers(
                    store,
                    describe_in_thread,
                    reconcile.place,
                    reconcile.probed,
                    reconcile.finished,
                    WorkerStatistics(),
                )
                for _ in range(hands):
                    nursery.start_soon(workers.work, receive.clone())
                receive.close()
                await nursery.start(reconcile.run)
                bed = Bed(store, reconcile, roots)
                if is_first_idle:
                    await bed.idle()
                yield bed
                nursery.cancel_scope.cancel()
        writing.cancel_scope.cancel()


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """The first root, made and still empty."""
    path = tmp_path / "music"
    path.mkdir()
    return path


# Removals and moves


async def test_what_is_there_at_the_start_is_told_once_and_a_restart_tells_nothing(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin", "b/c.bin")
    async with running(tmp_path) as bed:
        assert bed.told("created") == whole("a.bin", "b/c.bin")
    async with running(tmp_path) as bed:
        assert len(bed.events()) == 2


async def test_a_removal_is_told_after_its_grace_and_not_before(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin", "keep.bin")
    async with running(tmp_path, grace_s=1.0) as bed:
        removed_at = trio.current_time()
        (music / "a.bin").unlink()
        await bed.until(lambda: bed.reconcile.statistics()["vanished"] == 1)
        assert bed.told("deleted") == set()
        await bed.until(lambda: bed.told("deleted") == whole("a.bin"))
        assert trio.current_time() - removed_at >= 1.0
        await bed.idle()
    assert bed.state.word is RootWord.OK


async def test_a_file_that_comes_back_within_the_grace_was_never_gone(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin", "keep.bin")
    async with running(tmp_path, grace_s=0.5) as bed:
        before = bed.events()
        (music / "a.bin").rename(tmp_path / "a.bin")
        await bed.until(lambda: bed.reconcile.statistics()["vanished"] == 1)
        (tmp_path / "a.bin").rename(music / "a.bin")
        await bed.idle()
        assert bed.events() == before


@pytest.mark.parametrize(("new", "kind"), [("b.bin", "renamed"), ("d/a.bin", "moved")])
async def test_a_move_is_told_as_a_move_whatever_the_grace(tmp_path: Path, music: Path, new: str, kind: str) -> None:
    write(music, "a.bin", "d/keep.bin")
    async with running(tmp_path, grace_s=FOREVER_S) as bed:
        before = bed.events()
        (music / "a.bin").rename(music / new)
        await bed.until(lambda: bed.events()[len(before) :] == [(kind, f"music/{new}", "music/a.bin")])


async def test_a_move_by_way_of_another_place_within_the_grace_is_a_move(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin", "d/keep.bin")
    async with running(tmp_path, grace_s=FOREVER_S) as bed:
        before = bed.events()
        (music / "a.bin").rename(tmp_path / "somewhere")
        await bed.until(lambda: bed.reconcile.statistics()["vanished"] == 1)
        (tmp_path / "somewhere").rename(music / "d" / "b.bin")
        await bed.until(lambda: bed.events()[len(before) :] == [("moved", "music/d/b.bin", "music/a.bin")])


async def test_a_copy_whose_original_vanished_within_the_grace_is_a_move(tmp_path: Path, music: Path) -> None:
    """As from one file system to another: another inode, the same content."""
    write(music, "a.bin", "keep.bin")
    async with running(tmp_path, grace_s=FOREVER_S) as bed:
        before = bed.events()
        content = (music / "a.bin").read_bytes()
        (music / "a.bin").unlink()
        await bed.until(lambda: bed.reconcile.statistics()["vanished"] == 1)
        (tmp_path / "other" / "b.bin").write_bytes(content)
        await bed.until(lambda: bed.events()[len(before) :] == [("moved", "other/b.bin", "music/a.bin")])


async def test_every_file_of_a_moved_directory_has_moved(tmp_path: Path, music: Path) -> None:
    files = named(range(60))
    write(music, *(f"a/{name}" for name in files), "keep.bin")
    async with running(tmp_path, grace_s=FOREVER_S) as bed:
        before = bed.events()
        (music / "a").rename(music / "b")
        await bed.until(lambda: len(bed.events()) >= len(before) + len(files))
        assert set(bed.events()[len(before) :]) == {("moved", f"music/b/{name}", f"music/a/{name}") for name in files}
    assert bed.state.word is RootWord.OK, "what moves does not vanish"


async def test_intake_that_is_held_back_tells_nothing_and_loses_nothing(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin")
    async with running(tmp_path) as bed:
        bed.reconcile.hold_back(True)
        write(music, "b.bin")
        await bed.until(lambda: bed.reconcile.statistics()["dirty"] > 0)
        assert bed.told("created") == whole("a.bin")
        bed.reconcile.hold_back(False)
        await bed.until(lambda: bed.told("created") == whole("a.bin", "b.bin"))


# Masses


@pytest.mark.parametrize(("known", "removed"), [(60, 25), (16, 15)], ids=["less than half", "few"])
async def test_a_smaller_removal_is_told_at_once(tmp_path: Path, music: Path, known: int, removed: int) -> None:
    write(music, *named(range(known)))
    async with running(tmp_path) as bed:
        for name in named(range(removed)):
            (music / name).unlink()
        await bed.until(lambda: bed.told("deleted") == whole(*named(range(removed))))
        await bed.idle()
        assert (bed.state.word, bed.state.reason) == (RootWord.OK, "")


async def test_a_trickle_of_removals_does_not_hold_earlier_ones_back(tmp_path: Path, music: Path) -> None:
    first, later = named(range(25)), named(range(25, 45))
    write(music, *named(range(100)))
    async with running(tmp_path, grace_s=0.8) as bed:
        for name in first:
            (music / name).unlink()
        trickled: list[str] = []
        # Each of these is within its grace when the next one comes.
        while not whole(*first) <= bed.told("deleted"):
            trickled.append(later[len(trickled)])
            (music / trickled[-1]).unlink()
            await trio.sleep(0.2)
        await bed.until(lambda: bed.told("deleted") == whole(*first, *trickled))


async def test_a_mass_removal_is_told_when_a_second_sweep_agrees(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SUSPECT_S", 1.0)
    write(music, *named(range(30)))
    async with running(tmp_path) as bed:
        for name in named(range(25)):
            (music / name).unlink()
        await bed.until(lambda: bed.state.word is RootWord.SUSPECT)
        suspect_at = trio.current_time()
        assert bed.told("deleted") == set()
        assert "25 files vanished" in bed.state.reason
        assert f"trackwatch accept {os.fsdecode(bed.root.path)}" in bed.state.reason
        await bed.until(lambda: bool(bed.told("deleted")))
        assert trio.current_time() >= suspect_at + 1.0 - 0.05
        await bed.until(lambda: bed.state.word is RootWord.OK)
        await bed.idle()
        assert bed.told("deleted") == whole(*named(range(25)))
        assert bed.state.reason == ""


async def test_a_mass_removal_is_told_at_once_when_a_person_accepts_it(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SUSPECT_S", FOREVER_S)
    monkeypatch.setattr(sweeper, "ACCEPT_LOOK_S", 0.05)
    write(music, *named(range(30)))
    async with running(tmp_path) as bed:
        for name in named(range(25)):
            (music / name).unlink()
        await bed.until(lambda: bed.state.word is RootWord.SUSPECT)
        await bed.accept()
        await bed.until(lambda: bed.told("deleted") == whole(*named(range(25))))
        await bed.until(lambda: bed.state.word is RootWord.OK)
        assert not await bed.is_accepted(), "it is for this time only"
        await bed.idle()


async def test_a_mass_that_comes_back_while_its_root_is_suspect_was_never_gone(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SUSPECT_S", 0.5)
    write(music, *named(range(30), "a/"), "keep.bin")
    async with running(tmp_path) as bed:
        before = bed.events()
        (music / "a").rename(tmp_path / "away")
        await bed.until(lambda: bed.state.word is RootWord.SUSPECT)
        (tmp_path / "away").rename(music / "a")
        await bed.until(lambda: bed.state.word is RootWord.OK)
        await bed.idle()
        assert bed.events() == before


async def test_a_mass_that_is_missing_at_the_start_is_suspect_as_well(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SUSPECT_S", 0.5)
    write(music, *named(range(30), "a/"), "keep.bin")
    async with running(tmp_path):
        pass
    shutil.rmtree(music / "a")
    async with running(tmp_path, is_first_idle=False) as bed:
        await bed.until(lambda: bed.state.word is RootWord.SUSPECT)
        assert bed.told("deleted") == set()
        await bed.until(lambda: bed.told("deleted") == whole(*named(range(30), "a/")))
        await bed.until(lambda: bed.state.word is RootWord.OK)


async def test_a_change_in_a_suspect_root_is_told_without_waiting(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SUSPECT_S", FOREVER_S)
    write(music, *named(range(30)))
    async with running(tmp_path) as bed:
        for name in named(range(25)):
            (music / name).unlink()
        await bed.until(lambda: bed.state.word is RootWord.SUSPECT)
        write(music, "new.bin")
        await bed.until(lambda: "music/new.bin" in bed.told("created"))
        assert bed.told("deleted") == set()


# Roots that are away


async def test_an_emptied_root_is_unavailable_until_a_person_accepts_it(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rm -rf of all that is in it, and an unmounted volume, look alike."""
    monkeypatch.setattr(sweeper, "ACCEPT_LOOK_S", 0.05)
    monkeypatch.setattr(sweeper, "ROOT_RETRY_S", 0.1)
    files = [*named(range(5)), *named(range(5), "a/b/")]
    write(music, *files)
    async with running(tmp_path) as bed:
        shutil.rmtree(music / "a")
        for name in named(range(5)):
            (music / name).unlink()
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        assert "is empty" in bed.state.reason
        assert "trackwatch accept" in bed.state.reason
        await bed.sweep()
        assert bed.told("deleted") == set()
        await bed.accept()
        await bed.until(lambda: bed.told("deleted") == whole(*files))
        await bed.until(lambda: bed.state.word is RootWord.OK)
        assert not await bed.is_accepted()


async def test_the_last_file_of_a_root_is_told_like_any_other(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin")
    async with running(tmp_path) as bed:
        (music / "a.bin").unlink()
        await bed.until(lambda: bed.told("deleted") == whole("a.bin"))
        await bed.idle()
        assert bed.state.word is RootWord.OK


async def test_hints_for_what_is_gone_from_a_root_that_is_away_tell_nothing(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROOT_RETRY_S", 0.1)
    write(music, "a.bin", "b/c.bin", "b/d.bin")
    async with running(tmp_path, grace_s=0.1) as bed:
        before = bed.events()
        os.rename(bed.root.path, tmp_path / "away")
        for path in (b"a.bin", b"b", b"b/c.bin", b""):
            bed.reconcile.hint(bed.at(path))
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        assert "no such directory" in bed.state.reason
        bed.reconcile.hint(bed.at(b"b/d.bin"))
        await bed.idle()
        (tmp_path / "away").rename(music)
        await bed.until(lambda: bed.state.word is RootWord.OK)
        await bed.idle()
        assert bed.events() == before


async def test_a_root_that_is_gone_for_good_tells_its_removals_when_accepted(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROOT_RETRY_S", 0.1)
    monkeypatch.setattr(sweeper, "ACCEPT_LOOK_S", 0.05)
    write(music, *named(range(25)))
    async with running(tmp_path) as bed:
        shutil.rmtree(music)
        bed.reconcile.hint(bed.at(b""))
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        assert bed.told("deleted") == set()
        await bed.accept()
        await bed.until(lambda: bed.told("deleted") == whole(*named(range(25))))
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        with trio.fail_after(DEADLINE_S):
            while await bed.is_accepted():
                await trio.lowlevel.checkpoint()


async def test_a_root_that_is_away_says_nothing_of_another(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin", "b.bin")
    write(tmp_path / "other", "c.bin", "d.bin")
    async with running(tmp_path) as bed:
        shutil.move(music, tmp_path / "away")
        bed.reconcile.hint(bed.at(b"a.bin"))
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        (tmp_path / "other" / "c.bin").unlink()
        await bed.until(lambda: bed.told("deleted") == {"other/c.bin"})
        await bed.idle()
        assert bed.told("deleted") == {"other/c.bin"}


# Floods


async def test_a_flooded_root_is_swept_instead(tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hints were dropped; those that name nothing stand for a storm elsewhere in it."""
    write(music, "a.bin")
    async with running(tmp_path) as bed:
        bed.deafen(monkeypatch)
        monkeypatch.setattr(settle, "FLOOD_MAX", 20)
        write(music, *named(range(10), "new/"))
        for number in range(21):
            bed.reconcile.hint(bed.at(b"storm/%d" % number))
        await bed.until(lambda: bed.told("created") == whole("a.bin", *named(range(10), "new/")))
        await bed.idle()


async def test_a_file_of_the_bulk_that_changes_goes_before_the_bulk(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken with hundreds of others that wait for a worker; nobody has begun to read it."""
    monkeypatch.setattr(sweeper, "RECENT_S", 0.0)  # or else all of it would settle as if it were live
    write(music, *named(range(50)))
    async with running(tmp_path, is_first_idle=False, hands=0) as bed:
        waiting = bed.reconcile._ready_bulk
        await bed.until(lambda: len(waiting) == 50)
        last = next(reversed(waiting))
        bed.reconcile.hint(last)
        assert last not in waiting
        await bed.until(lambda: list(bed.reconcile._ready_live) == [last])
