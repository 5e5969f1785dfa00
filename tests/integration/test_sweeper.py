"""The sweeper at work on real folders (see `test_reconcile` for the bed): what is found without a single notification.

The times between its rounds are shortened; what the watch says is withheld where a round is to be seen at work.
"""

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.bed.probe import describe_in_thread
from tests.integration.test_reconcile import (
    DEADLINE_S,
    FOREVER_S,
    Bed,
    _sigio_ignored,
    music,
    named,
    running,
    whole,
    write,
)
from trackwatch import catalogue, reconcile, sweep, sweeper
from trackwatch.probe import Request
from trackwatch.root import RootWord
from trackwatch.settle import Rest
from trackwatch.sweep import Directory, Unlistable, Wanted
from trackwatch.track import Observation
from trackwatch.watch import Watch, Watched

__all__ = ["_sigio_ignored", "music"]  # fixtures


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round comes by itself, unless a test shortens its time: what is found was found by what is tested."""
    for name in ("BLIND_S", "ROUND_S", "ROOT_RETRY_S"):
        monkeypatch.setattr(sweeper, name, FOREVER_S)


def blind(bed: Bed) -> set[bytes]:
    """Return the directories that cannot be watched, below the root."""
    found = {bed.root.relative(path) for path in bed.state.blind}
    return {path for path in found if path is not None}


def known_content(bed: Bed, path: bytes) -> bytes | None:
    """Return the hash of what the catalogue takes a file's content for."""
    with bed.store.open_reader() as reader:
        entry = catalogue.find(reader.connection, bed.at(path))
    return entry and entry.sha256


# Roots


async def test_a_missing_root_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "ROOT_RETRY_S", 0.1)
    async with running(tmp_path) as bed:
        assert bed.state.word is RootWord.UNAVAILABLE
        assert "no such directory; is the volume mounted?" in bed.state.reason
        assert not bed.state.is_swept
        write(tmp_path / "music.new", "a.bin", "b/c.bin")
        os.rename(tmp_path / "music.new", bed.root.path)
        await bed.until(lambda: bed.state.word is RootWord.OK)
        await bed.idle()
        assert bed.told("created") == whole("a.bin", "b/c.bin")
        write(bed.root.path, b"b/new.bin")
        await bed.until(lambda: bed.told("created") == whole("a.bin", "b/c.bin", "b/new.bin"))


async def test_a_root_that_is_no_directory_is_unavailable(tmp_path: Path) -> None:
    write(tmp_path, "music")
    async with running(tmp_path) as bed:
        assert bed.state.word is RootWord.UNAVAILABLE
        assert "is not a directory" in bed.state.reason


async def test_a_sweep_counts_what_it_meets(tmp_path: Path, music: Path) -> None:
    write(music, "a.bin", "b/c.bin", "b/d.txt")
    async with running(tmp_path, wanted=Wanted(lambda path: path.endswith(b".bin"))) as bed:
        sizes = sum((music / name).stat().st_size for name in ("a.bin", "b/c.bin"))
        assert (bed.state.files, bed.state.files_listed, bed.state.size_bytes) == (2, 2, sizes)
        assert bed.state.is_swept
        assert set(bed.state.mtimes) == {bed.root.path, bed.absolute(b"b")}
        assert (bed.state.blind, bed.state.unlistable) == (set(), set())


async def test_what_changed_while_nobody_was_there_is_found_at_the_start(tmp_path: Path, music: Path) -> None:
    write(music, "changed.bin", "gone.bin", "old.bin", "same.bin")
    async with running(tmp_path) as bed:
        before = len(bed.events())
    (music / "changed.bin").write_bytes(b"other")
    (music / "gone.bin").unlink()
    (music / "old.bin").rename(music / "new.bin")
    write(music, "d/born.bin")
    async with running(tmp_path) as bed:
        await bed.until(lambda: len(bed.events()) == before + 4)
        await bed.idle()
        assert sorted(bed.events()[before:]) == [
            ("created", "music/d/born.bin", None),
            ("deleted", "music/gone.bin", None),
            ("modified", "music/changed.bin", None),
            ("renamed", "music/new.bin", "music/old.bin"),
        ]


async def test_a_root_is_swept_again_from_time_to_time(tmp_path: Path, music: Path) -> None:
    """Writes through a mapping or a hard link outside are told by nothing else."""
    write(music, "a.bin", "b.bin")
    os.link(music / "a.bin", tmp_path / "outside.bin")
    async with running(tmp_path, sweep_s=0.2) as bed:
        (tmp_path / "outside.bin").write_bytes(b"through the link")
        await bed.until(lambda: bed.told("modified") == whole("a.bin"))


# Haste: whether something is about to be found that may explain what vanished


async def test_a_sweep_that_somebody_asked_for_is_hasty_until_it_has_seen_everything(
    tmp_path: Path, music: Path
) -> None:
    seen: list[bool] = []
    beds: list[Bed] = []

    def note(_path: bytes) -> bool:
        """Called for each file that a sweep meets, in its thread."""
        seen.extend(bed.sweeper.is_hasty(bed.root.id) for bed in beds)
        return True

    write(music, "a.bin")
    async with running(tmp_path, wanted=Wanted(note)) as bed:
        assert not bed.sweeper.is_hasty(bed.root.id), "it is done"
        beds.append(bed)
        bed.sweeper.ask(bed.at(b""))
        assert bed.sweeper.is_hasty(bed.root.id), "it is asked for"
        await bed.until(lambda: bool(seen) and not bed.state.is_sweeping)
        assert all(seen), "it is under way"
        assert not bed.sweeper.is_hasty(bed.root.id)


async def test_a_sweep_that_comes_by_itself_is_not_hasty(tmp_path: Path, music: Path) -> None:
    seen: list[bool] = []
    beds: list[Bed] = []

    def note(_path: bytes) -> bool:
        seen.extend(
            bed.sweeper.is_hasty(bed.root.id) for bed in beds if bed.state.is_sweeping and not bed.state.is_concluding
        )
        return True

    write(music, "a.bin")
    async with running(tmp_path, wanted=Wanted(note), sweep_s=0.1) as bed:
        beds.append(bed)
        await bed.until(lambda: len(seen) > 3)
        assert not any(seen)


async def test_a_hint_about_a_directory_sweeps_it(tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(music, "a/b/c.bin", "z.bin")
    async with running(tmp_path) as bed:
        bed.deafen(monkeypatch)
        write(music, "a/b/new.bin", "a/d/e/new.bin", "unseen.bin")
        (music / "a" / "b" / "c.bin").unlink()
        bed.reconcile.hint(bed.at(b"a"))
        await bed.until(lambda: bed.told("deleted") == whole("a/b/c.bin"))
        await bed.until(lambda: bed.told("created") == whole("a/b/c.bin", "z.bin", "a/b/new.bin", "a/d/e/new.bin"))
        await bed.idle()
        assert whole("unseen.bin").isdisjoint(bed.told("created")), "beside it nothing was looked at"


# Rounds: directories whose modification time has changed


async def test_rounds_find_what_the_watch_has_missed(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROUND_S", 0.1)
    write(music, "a/gone.bin", "a/old.bin", "a/replaced.bin", "a/same.bin", "b/same.bin")
    async with running(tmp_path) as bed:
        bed.deafen(monkeypatch)
        before = len(bed.events())
        write(music, "new.bin", "a/new.bin", "a/d/e/deep.bin")
        (music / "a" / "gone.bin").unlink()
        (music / "a" / "old.bin").rename(music / "b" / "moved.bin")
        write(tmp_path, "replacement")
        (tmp_path / "replacement").rename(music / "a" / "replaced.bin")
        await bed.until(lambda: len(bed.events()) >= before + 6)
        await bed.idle()
        assert sorted(bed.events()[before:]) == [
            ("created", "music/a/d/e/deep.bin", None),
            ("created", "music/a/new.bin", None),
            ("created", "music/new.bin", None),
            ("deleted", "music/a/gone.bin", None),
            ("modified", "music/a/replaced.bin", None),
            ("moved", "music/b/moved.bin", "music/a/old.bin"),
        ]


async def test_rounds_find_a_directory_that_has_gone_and_one_that_has_come(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROUND_S", 0.1)
    write(music, "a/b/1.bin", "a/2.bin", "keep.bin")
    write(tmp_path, "prepared/x/3.bin")
    async with running(tmp_path) as bed:
        bed.deafen(monkeypatch)
        shutil.rmtree(music / "a")
        await bed.until(lambda: bed.told("deleted") == whole("a/b/1.bin", "a/2.bin"))
        (tmp_path / "prepared").rename(music / "c")
        await bed.until(lambda: "music/c/x/3.bin" in bed.told("created"))


async def test_rounds_find_a_directory_in_the_place_of_a_file(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROUND_S", 0.1)
    write(music, "a", "keep.bin")
    async with running(tmp_path) as bed:
        bed.deafen(monkeypatch)
        (music / "a").unlink()
        write(music, "a/b.bin")
        await bed.until(lambda: bed.told("deleted") == whole("a"))
        await bed.until(lambda: "music/a/b.bin" in bed.told("created"))


async def test_a_directory_that_a_round_has_found_is_watched(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROUND_S", 0.1)
    write(music, "a.bin")
    async with running(tmp_path) as bed:
        with monkeypatch.context() as patch:
            bed.deafen(patch)
            write(music, "d/e/1.bin")
            await bed.until(lambda: "music/d/e/1.bin" in bed.told("created"))
            await bed.until(lambda: bed.watch.statistics()["directories"] == 4)  # other, music, d, e
            await bed.idle()
        with (music / "d" / "e" / "1.bin").open("ab") as file:
            file.write(b"a write in place, which no round can see")
        await bed.until(lambda: bed.told("modified") == whole("d/e/1.bin"))


# Directories that cannot be watched


async def test_a_directory_with_an_odd_name_in_it_is_compared_all_the_time(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BLIND_S", 0.1)
    write(music, b"odd/\xff.bin", b"odd/same.bin", b"odd/plain/x.bin", b"fine/y.bin")
    async with running(tmp_path) as bed:
        assert blind(bed) == {b"odd"}
        before = len(bed.events())
        write(music, b"odd/new.bin", b"odd/d/deep.bin")
        with (music / "odd" / "same.bin").open("ab") as file:
            file.write(b"a write in place, seen by its signature")
        await bed.until(lambda: len(bed.events()) >= before + 3)
        os.unlink(os.path.join(bed.absolute(b"odd"), b"\xff.bin"))
        await bed.until(lambda: len(bed.events()) >= before + 4)
        await bed.idle()
        kinds = sorted(kind for kind, _, _ in bed.events()[before:])
        assert kinds == ["created", "created", "deleted", "modified"]
        assert whole("odd/new.bin", "odd/d/deep.bin") < bed.told("created")


async def test_a_directory_below_an_odd_name_is_compared_as_well(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BLIND_S", 0.1)
    write(music, b"\xfe/plain/x.bin")
    async with running(tmp_path) as bed:
        assert blind(bed) == {b"", b"\xfe", b"\xfe/plain"}
        before = len(bed.events())
        write(music, b"\xfe/plain/new.bin", b"\xfe/later/y.bin")
        await bed.until(lambda: len(bed.events()) >= before + 2)
        await bed.until(lambda: blind(bed) == {b"", b"\xfe", b"\xfe/plain", b"\xfe/later"})
        os.unlink(os.path.join(bed.absolute(b"\xfe/later"), b"y.bin"))
        await bed.until(lambda: len(bed.events()) == before + 3)


async def test_an_odd_name_that_comes_while_watching_makes_its_directory_blind_and_loses_nothing(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch dies of it; the sweep that follows finds what it knew."""
    monkeypatch.setattr(sweeper, "BLIND_S", 0.1)
    write(music, "a/1.bin", "b/2.bin")
    async with running(tmp_path) as bed:
        write(music, b"a/\xff.bin", b"b/new.bin", b"a/new.bin")
        await bed.until(lambda: blind(bed) == {b"a"})
        await bed.until(lambda: len(bed.told("created")) == 5)
        write(music, b"a/later.bin", b"b/later.bin")
        await bed.until(lambda: len(bed.told("created")) == 7)


async def test_a_directory_whose_odd_name_has_gone_is_watched_again_after_a_sweep(tmp_path: Path, music: Path) -> None:
    write(music, b"a/\xff.bin", b"a/1.bin")
    async with running(tmp_path) as bed:
        assert blind(bed) == {b"a"}
        os.unlink(bed.absolute(b"a/\xff.bin"))
        await bed.sweep()
        assert blind(bed) == set()
        write(music, b"a/2.bin")
        await bed.until(lambda: "music/a/2.bin" in bed.told("created"))


# What was listed before it was watched


async def test_a_sweep_of_a_known_library_lists_each_directory_once(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(music, "a/1.bin", "a/b/2.bin", "c/d/3.bin")
    listed: list[bytes] = []
    scandir = os.scandir

    def noting(path: bytes) -> Iterator[os.DirEntry[bytes]]:
        listed.append(path)
        return scandir(path)

    async with running(tmp_path) as bed:
        monkeypatch.setattr(os, "scandir", noting)
        await bed.sweep()
        monkeypatch.setattr(os, "scandir", scandir)
        absolute = [bed.absolute(path) for path in (b"a", b"a/b", b"c", b"c/d")]
    assert sorted(path for path in listed if path in absolute) == absolute


MANY_OR_FEW = pytest.mark.parametrize("late_max", [0, 50], ids=["many: begun again", "few: compared one by one"])


def when_it_is_to_be_watched(monkeypatch: pytest.MonkeyPatch, directory: Path, act: Callable[[], object]) -> list[bool]:
    """Act once, right before a directory is watched; return a list in which something stands afterwards."""
    cover = Watch.cover
    done: list[bool] = []

    async def late(watch: Watch, directories: Iterable[Watched]) -> int:
        asked = list(directories)
        if any(each.path == os.fsencode(directory) for each in asked) and not done:
            done.append(True)
            act()
        return await cover(watch, asked)

    monkeypatch.setattr(Watch, "cover", late)
    return done


@MANY_OR_FEW
async def test_what_happens_to_a_new_directory_between_its_listing_and_its_watch_is_found(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, late_max: int
) -> None:
    """At a start only what the catalogue knows is watched before it is listed."""
    monkeypatch.setattr(sweeper, "LATE_MAX", late_max)
    write(music, "known/1.bin")
    async with running(tmp_path):
        pass
    write(music, "new/deep/1.bin", "new/deep/2.bin", "known/3.bin")
    (music / "empty").mkdir()
    changed = b"another content"

    def act() -> None:
        (music / "new/deep/1.bin").write_bytes(changed)
        write(music, b"new/deep/late.bin", b"new/later/4.bin", b"empty/5.bin")

    acted = when_it_is_to_be_watched(monkeypatch, music / "new/deep", act)
    async with running(tmp_path) as bed:
        assert acted
        names = ("known/1.bin", "known/3.bin", "new/deep/1.bin", "new/deep/2.bin", "new/deep/late.bin")
        await bed.until(lambda: bed.told("created") == whole(*names, "new/later/4.bin", "empty/5.bin"))
        await bed.until(lambda: known_content(bed, b"new/deep/1.bin") == hashlib.sha256(changed).digest())
        write(music, "empty/6.bin")
        await bed.until(lambda: "music/empty/6.bin" in bed.told("created"))


async def test_names_in_between_are_found_though_the_directory_keeps_its_time(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever copies a library puts the times back when it is done with a directory."""
    monkeypatch.setattr(sweeper, "RECENT_S", -FOREVER_S)  # as if all had been made long ago
    write(music, "known/1.bin")
    async with running(tmp_path):
        pass
    (music / "new/empty").mkdir(parents=True)
    for directory in (music / "new/empty", music / "new"):
        os.utime(directory, (1e9, 1e9))

    def act() -> None:
        write(music, "new/empty/5.bin")
        os.utime(music / "new/empty", (1e9, 1e9))

    acted = when_it_is_to_be_watched(monkeypatch, music / "new/empty", act)
    async with running(tmp_path) as bed:
        assert acted
        await bed.until(lambda: bed.told("created") == whole("known/1.bin", "new/empty/5.bin"))


async def test_a_directory_that_may_be_read_only_since_its_listing_is_found(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is made up."""
    monkeypatch.setattr(sweeper, "RECENT_S", -FOREVER_S)
    write(music, "known/1.bin")
    async with running(tmp_path):
        pass
    write(music, "new/shut/1.bin")
    listing, is_shut = sweep._list, True

    def refusing(root: bytes, path: bytes, wanted: Wanted) -> object:
        return (
            ([], Unlistable(path, "permission denied"))
            if is_shut and path == b"new/shut"
            else listing(root, path, wanted)
        )

    def act() -> None:
        nonlocal is_shut
        is_shut = False
        (music / "new/shut").chmod(0o755)

    monkeypatch.setattr(sweep, "_list", refusing)
    acted = when_it_is_to_be_watched(monkeypatch, music / "new", act)
    async with running(tmp_path) as bed:
        assert acted
        await bed.until(lambda: bed.told("created") == whole("known/1.bin", "new/shut/1.bin"))


@MANY_OR_FEW
async def test_a_change_in_a_new_directory_is_told_while_others_wait_to_be_read(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch, late_max: int
) -> None:
    for name, value in (("LATE_MAX", late_max), ("RECENT_S", -FOREVER_S), ("LOT", 5)):
        monkeypatch.setattr(sweeper, name, value)
    monkeypatch.setattr(reconcile, "BULK_MAX", 10)
    write(music, "known/1.bin")
    async with running(tmp_path):
        pass
    write(music, "a/1.bin", *named(range(60), "zz/"))
    go_on = threading.Event()

    async def slow(request: Request, *, size_bytes: int, is_live: bool) -> Observation | Rest:
        if b"/zz/" in request.path:
            await trio.to_thread.run_sync(go_on.wait)
        return await describe_in_thread(request, size_bytes=size_bytes, is_live=is_live)

    monkeypatch.setattr("tests.integration.test_reconcile.describe_in_thread", slow)
    async with running(tmp_path, is_first_idle=False) as bed:
        try:
            await bed.until(lambda: "music/a/1.bin" in bed.told("created"))
            (music / "a/1.bin").write_bytes(b"a tag edited by hand")
            await bed.until(lambda: bed.told("modified") == whole("a/1.bin"))
        finally:
            go_on.set()


async def test_the_files_that_an_import_has_met_never_become_fewer(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a library is being copied in: its progress would fall back."""
    monkeypatch.setattr(sweeper, "LATE_MAX", 5)
    write(music, *(f"{number:03}/1.bin" for number in range(20)))
    when_it_is_to_be_watched(
        monkeypatch, music / "000", lambda: write(music, *(f"n{number:03}/1.bin" for number in range(20)))
    )
    met: list[int] = []
    beds: list[Bed] = []

    def note(_path: bytes) -> bool:
        met.extend(bed.state.files for bed in beds)
        return True

    async with running(tmp_path, wanted=Wanted(note), is_first_idle=False) as bed:
        beds.append(bed)
        await bed.until(lambda: len(bed.told("created")) == 40)
        assert met == sorted(met)
        assert met[-1] > 0


# What a start knows of names that cannot be watched


@pytest.mark.parametrize("inside", [b"x.bin", b"cover.txt"], ids=["known", "unknown"])
async def test_a_start_with_an_odd_directory_does_not_kill_the_watch(
    tmp_path: Path, music: Path, inside: bytes
) -> None:
    """To list `\xfe` is news of it where its parent is watched, and the watch dies of the name."""
    wanted = Wanted(lambda path: path.endswith(b".bin"))
    write(music, b"a/1.bin", b"p/2.bin", b"p/\xfe/" + inside)
    for start in range(3):
        async with running(tmp_path, wanted=wanted) as bed:
            write(music, f"a/later{start}.bin")  # told after whatever the start has caused
            await bed.until(lambda: f"music/a/later{start}.bin" in bed.told("created"))  # noqa: B023 # awaited here
            assert bed.watch.statistics()["deaths"] == 0
            assert b"p" in blind(bed)


async def test_an_unwanted_odd_name_that_somebody_reads_does_not_kill_the_watch_of_a_later_start(
    tmp_path: Path, music: Path
) -> None:
    wanted = Wanted(lambda path: path.endswith(b".bin"))
    write(music, b"a/1.bin", b"b/2.bin", b"a/\xff.txt")
    for start in range(2):
        async with running(tmp_path, wanted=wanted) as bed:
            await trio.to_thread.run_sync((music / os.fsdecode(b"a/\xff.txt")).read_bytes)
            write(music, f"b/later{start}.bin")
            await bed.until(lambda: f"music/b/later{start}.bin" in bed.told("created"))  # noqa: B023 # awaited here
            assert bed.watch.statistics()["deaths"] == 0


async def test_a_directory_that_becomes_blind_during_a_sweep_stays_compared(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move into it is a move, and what is written in it is told."""
    monkeypatch.setattr(sweeper, "BLIND_S", 0.2)
    write(music, "a/1.bin", "a/3.bin", "z/2.bin")
    listing = sweep._list
    go_on, reached = threading.Event(), threading.Event()

    def slow(root: bytes, path: bytes, wanted: Wanted) -> object:
        if path == b"z" and wanted.file(b"x.bin") and not go_on.is_set():  # the walk has passed the rest
            reached.set()
            go_on.wait()
        return listing(root, path, wanted)

    async with running(tmp_path) as bed:
        monkeypatch.setattr(sweep, "_list", slow)
        try:
            bed.sweeper.ask(bed.at(b""))
            await bed.until(reached.is_set)
            write(tmp_path, b"prepared/\xff.bin", b"prepared/same.bin")
            (tmp_path / "prepared").rename(music / "new")
            await bed.until(lambda: "music/new/same.bin" in bed.told("created"))
        finally:
            go_on.set()
        await bed.until(lambda: not bed.sweeper.is_hasty(bed.root.id) and not bed.state.is_sweeping)
        await bed.idle()
        (music / "a/1.bin").rename(music / "new/1.bin")
        await bed.until(lambda: bool(bed.told("moved") | bed.told("deleted")))
        assert bed.told("deleted") == set()
        (music / "new/same.bin").write_bytes(b"written in place")
        await bed.until(lambda: bed.told("modified") == whole("new/same.bin"))


async def test_a_watched_directory_in_which_a_round_saw_an_odd_name_is_not_blind_for_ever(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network mount, where the watch is told of nothing: the name came and went."""
    monkeypatch.setattr(sweeper, "ROUND_S", 0.1)
    write(music, "a/1.bin")
    listing = sweep._list

    def with_odd_name(root: bytes, path: bytes, wanted: Wanted) -> object:
        found, sight = listing(root, path, wanted)
        return found, replace(sight, is_odd=True) if isinstance(sight, Directory) and path == b"a" else sight

    async with running(tmp_path) as bed:
        with monkeypatch.context() as patch:
            patch.setattr(sweep, "_list", with_odd_name)
            os.utime(music / "a", (1e9, 1e9))
            await bed.until(lambda: blind(bed) == {b"a"})
        await bed.sweep()
        assert blind(bed) == set()


async def test_a_blind_directory_that_has_gone_is_not_counted_after_a_sweep(
    tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(lambda path: path.endswith(b".bin"))
    write(music, b"odd/\xff.txt", b"odd/x/y.txt", b"keep.bin")
    async with running(tmp_path, wanted=wanted) as bed:
        assert blind(bed) == {b"odd"}
        bed.deafen(monkeypatch)
        shutil.rmtree(music / "odd")
        await bed.sweep()
        assert bed.state.directories == 1
        assert blind(bed) == set()


# Parts that are mounts


@pytest.fixture
def bind(tmp_path: Path) -> Iterator[Callable[[Path, Path], None]]:
    """Mount a directory at another place, and unmount what is left of that."""
    points: list[Path] = []

    def mount(source: Path, point: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        done = subprocess.run(["mount", "--bind", source, point], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        points.append(point)

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "--lazy", point], capture_output=True)


async def test_a_mount_below_a_root_that_falls_off_removes_nothing_until_it_is_back(
    tmp_path: Path, music: Path, bind: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BLIND_S", 0.1)
    monkeypatch.setattr(sweeper, "ROOT_RETRY_S", 0.1)
    disk, point = tmp_path / "disk", music / "nas"
    write(disk, *named(range(30)))
    write(music, "a.bin", "b.bin")
    point.mkdir()
    bind(disk, point)
    async with running(tmp_path) as bed:
        before = len(bed.events())
        assert before == 32
        subprocess.run(["umount", point], check=True)  # noqa: ASYNC221 # returns at once
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        assert "nothing is mounted there" in bed.state.reason
        assert "30 files are kept" in bed.state.reason
        for name in named(range(30)):
            bed.reconcile.hint(bed.at(b"nas/" + os.fsencode(name)))
        (music / "a.bin").unlink()
        await bed.until(lambda: bed.told("deleted") == whole("a.bin"))
        (disk / "000.bin").write_bytes(b"changed elsewhere")
        bind(disk, point)
        await bed.until(lambda: bed.state.word is RootWord.OK)
        await bed.until(lambda: bed.told("modified") == whole("nas/000.bin"))
        await bed.idle()
        assert bed.told("deleted") == whole("a.bin")


async def test_a_mount_over_known_files_removes_nothing(
    tmp_path: Path, music: Path, bind: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BLIND_S", 0.1)
    monkeypatch.setattr(sweeper, "ROOT_RETRY_S", 0.1)
    write(tmp_path, "disk/new.bin")
    write(music, *named(range(5), "a/"), "b.bin")
    async with running(tmp_path) as bed:
        bind(tmp_path / "disk", music / "a")
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        assert "was mounted over it" in bed.state.reason
        await bed.until(lambda: "music/a/new.bin" in bed.told("created"))
        assert bed.told("deleted") == set()
        monkeypatch.setattr(sweeper, "ACCEPT_LOOK_S", 0.05)
        await bed.accept()
        await bed.until(lambda: bed.told("deleted") == whole(*named(range(5), "a/")))
        await bed.until(lambda: bed.state.word is RootWord.OK)
        with trio.fail_after(DEADLINE_S):
            while await bed.is_accepted():
                await trio.lowlevel.checkpoint()


async def test_files_of_a_mount_that_is_away_do_not_make_another_removal_a_mass(
    tmp_path: Path, music: Path, bind: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BLIND_S", 0.1)
    write(tmp_path, *named(range(30), "disk/"))
    write(music, "a.bin", "b.bin")
    (music / "nas").mkdir()
    bind(tmp_path / "disk", music / "nas")
    async with running(tmp_path) as bed:
        suspected: list[int] = []
        monkeypatch.setattr(bed.sweeper, "suspect", lambda _root_id, missing: suspected.append(missing))
        subprocess.run(["umount", music / "nas"], check=True)  # noqa: ASYNC221 # returns at once
        await bed.until(lambda: bed.state.word is RootWord.UNAVAILABLE)
        (music / "a.bin").unlink()
        await bed.until(lambda: bed.reconcile.statistics()["vanished"] == 1)
        for name in named(range(30)):
            bed.reconcile.hint(bed.at(b"nas/" + os.fsencode(name)))
        await bed.until(lambda: bed.told("deleted") == whole("a.bin") or bool(suspected))
        assert suspected == []
