"""When and what to sweep, the directories to watch, and the state of each root.

A root is swept at the start, after every doubt, and from time to time; a subtree when a hint names its directory; one
directory alone when its modification time has changed, or when it cannot be watched. What is known is watched before it
is swept; what is met unwatched is watched then and compared again: so nothing that happens meanwhile is missed. What
sweeps find goes back as hints: all at once for a subtree, through a bounded lane for a root.
"""

import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
import trio

from trackwatch import catalogue
from trackwatch.errors import RootUnavailable
from trackwatch.mounts import mount_of, read_mounts
from trackwatch.record import Ledger
from trackwatch.root import REMOTE_SWEEP_S, RootState, RootWord
from trackwatch.store import Reader, Store
from trackwatch.sweep import (
    Difference,
    Differs,
    Directory,
    Found,
    Missing,
    Renumbered,
    Unlistable,
    Wanted,
    check_root,
    compare_directory,
    differences,
    directory_at,
    is_decodable,
    standing,
    walk,
)
from trackwatch.track import Location, Root
from trackwatch.trust import Away, Identity, Trust, root_mounts
from trackwatch.watch import Watch, Watched

# A file that changed this recently by its own word goes through the settling, like a hint.
RECENT_S = 3.0
# Directories that cannot be watched are compared this often, and mounts are looked at.
BLIND_S = 5.0
# Directories whose modification time has changed are compared this often; it shows what notifications may have missed.
ROUND_S = 60.0
# A root that is away is looked for this often; a suspect one is swept again after this long.
ROOT_RETRY_S, SUSPECT_S = 5.0, 60.0
# How soon a person's word (`trackwatch accept`) is noticed.
ACCEPT_LOOK_S = 1.0
# The share of a core that periodic sweeps take; those that somebody waits for take what they can.
PERIODIC_SHARE = 0.05
# Findings are handed from the sweeping thread to the event loop in lots of this many.
LOT = 500
# A sweep that meets more directories than that which were not watched before they were listed begins again, and lists
# and watches all directories first.
LATE_MAX = 50
# A sweeping thread looks this often (in files) whether it has been cancelled, and rests.
CANCEL_LOOK = 500

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Findings:
    """Where a sweep's findings go: the reconciling side's door for the sweeper."""

    hint: Callable[[Location], None]  # settles, then is looked at before any bulk
    offer: Callable[[Sequence[Location]], Awaitable[None]]  # the bulk lane; waits for room
    drained: Callable[[], Awaitable[None]]  # waits until the bulk lane was looked at
    vanished: Callable[[Iterable[Location], bool], None]  # known, and seen nowhere; and whether a mass is believed
    let_go: Callable[[int], Awaitable[None]]  # waits until nothing vanished of a root is held any more
    progressed: Callable[[], None]  # the sweeper's state has changed


class _ManyLateError(Exception):
    """Too much of a root was not known."""


@dataclass(slots=True, eq=False)
class _Met:
    """What a comparison has met."""

    late_max: float
    missing: list[bytes] = field(default_factory=list)
    fresh: int = 0  # directories that were not watched when they were listed
    late: list[Directory] = field(default_factory=list)  # those of them that are now
    blind: set[bytes] = field(default_factory=set)  # those that could not be watched before


class Sweeper:
    """See the module's docstring; `run` owns all its tasks."""

    def __init__(
        self,
        store: Store,
        roots: Iterable[Root],
        *,
        wanted: Wanted,
        watch: Watch,
        trust: Trust,
        findings: Findings,
        sweep_s: float,
    ) -> None:
        self.states = {root.id: RootState(root, store.now_us()) for root in roots}
        self._store = store
        self._wanted = wanted
        self._watch = watch
        self._trust = trust
        self._findings = findings
        self._sweep_s = sweep_s
        self._asked = {root_id: trio.Event() for root_id in self.states}
        self._subtrees: dict[Location, None] = {}
        self._subtree_asked = trio.Event()
        self._is_sweeping_subtree = False

    def ask(self, directory: Location) -> None:
        """Ask for a sweep of a directory, soon; an empty path means the whole root."""
        if not directory.path:
            self._asked[directory.root_id].set()
            return
        self._subtrees[directory] = None
        self._subtree_asked.set()

    def doubt(self, paths: Iterable[bytes]) -> None:
        """Ask for sweeps of the roots that hold these absolute paths: changes in them may have been missed."""
        doubtful = list(paths)
        for state in self.states.values():
            if any(state.root.relative(path) is not None for path in doubtful):
                self._asked[state.root.id].set()

    def suspect(self, root_id: int, missing: int) -> None:
        """Note that so much of a root vanished at once that it is not believed yet."""
        state = self.states[root_id]
        if state.suspect_since is not None:
            return
        state.suspect_since = trio.current_time()
        path = os.fsdecode(state.root.path)
        reason = (
            f"{missing:,} files vanished from {path!r} at once: nothing is told until a second sweep agrees, in"
            f" {SUSPECT_S:.0f} s, or you do (trackwatch accept {path})"
        )
        state.say(RootWord.SUSPECT, reason, now_us=self._store.now_us())
        self._asked[root_id].set()

    @property
    def has_subtrees(self) -> bool:
        """Whether sweeps that hints asked for are waiting or under way."""
        return bool(self._subtrees) or self._is_sweeping_subtree

    @property
    def blindness_s(self) -> float:
        """For how long a change may stay unnoticed: none, unless there are directories that cannot be watched."""
        return BLIND_S if any(state.blind for state in self.states.values()) else 0.0

    def is_hasty(self, root_id: int) -> bool:
        """Whether a sweep of a root is asked for, or under way for a reason: what vanished may turn up in it."""
        state = self.states[root_id]
        if state.is_sweeping and state.is_concluding:
            return False  # it waits for the removals itself: another one asked for meanwhile must not hold them back
        return self._asked[root_id].is_set() or (state.is_sweeping and state.in_haste)

    @property
    def is_sweeping(self) -> bool:
        """Whether a root is being swept."""
        return any(state.is_sweeping for state in self.states.values())

    async def run(self) -> None:
        """Sweep until cancelled."""
        async with trio.open_nursery() as nursery:
            for state in self.states.values():
                nursery.start_soon(self._keep_root, state)
            nursery.start_soon(self._sweep_subtrees)
            nursery.start_soon(self._keep_comparing, ROUND_S, self._changed_directories)
            nursery.start_soon(self._keep_comparing, BLIND_S, self._blind_directories)
            nursery.start_soon(self._watch_mounts)

    # Roots

    async def _keep_root(self, state: RootState) -> None:
        is_asked = True
        with self._store.open_reader() as reader:
            known = await reader.read(partial(catalogue.root_mounts, root_id=state.root.id))
            self._trust.learn(state.root.id, {path: Identity(*identity) for path, identity in known.items()})
            odd = await reader.read(partial(catalogue.odd_directories, root_id=state.root.id))
            state.odd = set(map(state.root.absolute, odd))
            state.blind = set(state.odd)
            while True:
                self._asked[state.root.id] = trio.Event()
                state.listed = len(state.mtimes)  # also what was found since the last sweep
                state.is_sweeping = True
                try:
                    await self._sweep_root(state, reader, in_haste=is_asked)
                except RootUnavailable as error:
                    # Its files stay in the catalogue, and nothing is told of them, until it is back.
                    state.suspect_since = None
                    state.say(RootWord.UNAVAILABLE, str(error), now_us=self._store.now_us())
                finally:
                    state.is_sweeping = False
                    self._findings.progressed()
                is_asked = await self._wait_for_reason(state, reader)

    async def _wait_for_reason(self, state: RootState, reader: Reader) -> bool:
        """Wait until a root is to be swept again; return whether somebody waits for that."""
        with trio.move_on_after(self._pause_s(state)):
            while not self._asked[state.root.id].is_set():
                if state.word in (RootWord.UNAVAILABLE, RootWord.SUSPECT):
                    if await reader.read(partial(catalogue.are_removals_accepted, root_id=state.root.id)):
                        break
                    with trio.move_on_after(ACCEPT_LOOK_S):
                        await self._asked[state.root.id].wait()
                else:
                    await self._asked[state.root.id].wait()
            return True
        return state.word is not RootWord.OK

    def _pause_s(self, state: RootState) -> float:
        if state.word is RootWord.UNAVAILABLE:
            return ROOT_RETRY_S
        if state.suspect_since is not None:
            return max(0.0, state.suspect_since + SUSPECT_S - trio.current_time())
        return min(self._sweep_s, REMOTE_SWEEP_S) if state.is_remote else self._sweep_s

    async def _sweep_root(self, state: RootState, reader: Reader, *, in_haste: bool) -> None:
        root, started_at = state.root, trio.current_time()
        state.in_haste, state.is_concluding = in_haste, False
        is_accepted = await reader.read(partial(catalogue.are_removals_accepted, root_id=root.id))
        self._trust.accept(root.id, is_accepted)
        try:
            await trio.to_thread.run_sync(check_root, root.path)
        except RootUnavailable:
            if is_accepted:
                state.is_concluding = True
                gone = await reader.read(partial(catalogue.find_below, directory=Location(root.id, b"")))
                await self._tell_missing(state, gone, is_believed=True)
                await self._store.write(lambda ledger: catalogue.accept_removals(ledger.conn, root.id, None))
            raise
        mounts = await trio.to_thread.run_sync(root_mounts, root)
        state.fstype, state.is_remote = await trio.to_thread.run_sync(_file_system, root.path)
        if lost := await self._watch.audit():
            reason = "unmounted, or taken away by the kernel; they are watched again"
            log.warning("watch lost", directories=len(lost), reason=reason)
        is_new = not await reader.read(partial(catalogue.was_swept, root_id=root.id))
        is_introduced = state.is_swept or state.word is not RootWord.STARTING
        share = 1.0 if in_haste else PERIODIC_SHARE
        if is_new:
            # Counted for the progress of an import, also of one that was interrupted: looking at all takes a while.
            directories = await self._list_directories(state, b"", counting=True)
            if not is_introduced:
                state.introduce(len(directories))
        else:
            # Listing all takes nearly as long as comparing does; most directories are known.
            directories = await self._known_directories(state, reader)
        state.unlistable = set()
        await self._cover(state, directories)
        state.listed = max(len(directories), len(state.mtimes))
        state.mtimes = {path: mtime for path, mtime in state.mtimes.items() if path in state.blind}
        looks: list[Wanted | None] = [None]
        if self._wanted.priority is not None:
            # A pass of its own: the lane is short, and what lies late in the order would come late into it.
            looks.insert(0, self._wanted.of_priority(self._wanted.priority))
        missing: list[bytes] = []
        late_max: float = math.inf if is_new else LATE_MAX
        for wanted in looks:
            compare = partial(self._compare, state, b"", reader, is_live=False, share=share, wanted=wanted)
            try:
                missing = await compare(late_max=late_max)
            except _ManyLateError:
                late_max = math.inf
                state.unlistable = set()
                await self._cover(state, await self._list_directories(state, b""))
                missing = await compare()
        if not (is_new or is_introduced):
            state.introduce(len(state.mtimes))
        problems = await reader.read(partial(catalogue.problem_paths, root_id=root.id))
        await self._findings.offer([Location(root.id, path) for path in problems])
        # What was found may be what is missing: only what is left when all of it has been looked at has vanished.
        await self._findings.drained()
        state.is_concluding = True
        state.sweep_seconds = trio.current_time() - started_at
        state.told_unlistable &= state.unlistable
        state.sweeps.note(state.sweep_seconds)
        believable, reason = await self._believable(state, missing, reader)
        agrees = state.suspect_since is not None and started_at >= state.suspect_since + SUSPECT_S
        await self._tell_missing(state, believable, is_believed=agrees or is_accepted)
        if reason:
            raise RootUnavailable(reason)
        swept_us = self._store.now_us()
        odd = {path for path in map(root.relative, state.odd) if path is not None}
        await self._store.write(partial(_note_sweep, root.id, swept_us, mounts, odd, is_accepted))
        self._trust.learn(root.id, mounts)
        self._trust.accept(root.id, False)
        state.is_swept = True
        if state.suspect_since is None or agrees or is_accepted or not missing:
            state.suspect_since = None
            state.say(RootWord.OK, now_us=self._store.now_us())

    async def _believable(self, state: RootState, missing: list[bytes], reader: Reader) -> tuple[list[bytes], str]:
        """Return which of the missing files may be called gone, and why the others may not."""
        root = state.root
        if not missing or self._trust.is_accepted(root.id):
            return missing, ""
        if await reader.read(partial(_is_emptied, root)):
            return [], (
                f"{os.fsdecode(root.path)!r} is empty, and files are known in it; is the volume mounted?"
                f" (if they are gone for good: trackwatch accept {os.fsdecode(root.path)})"
            )
        away: list[Away] = await trio.to_thread.run_sync(self._trust.away, root)
        if 2 * (state.files - state.differing) >= state.files + len(missing):
            # Most of what is known is there, by inode and change time: it is that disk, under another name.
            away = [part for part in away if part.path]
        believable = [path for path in missing if not any(part.holds(path) for part in away)]
        reasons = [part.reason for part in away if any(part.holds(path) for path in missing)]
        if not reasons:
            return believable, ""
        kept = len(missing) - len(believable)
        return believable, (
            f"{reasons[0]}; {kept:,} files are kept in the catalogue: mount it again"
            f" (if they are gone for good: trackwatch accept {os.fsdecode(root.path)})"
        )

    async def _tell_missing(self, state: RootState, missing: Iterable[bytes], *, is_believed: bool) -> None:
        self._findings.vanished((Location(state.root.id, path) for path in missing), is_believed)
        if is_believed:
            await self._findings.let_go(state.root.id)

    async def _watch_mounts(self) -> None:
        """Ask for a sweep when something was mounted or unmounted: notifications say nothing of that."""
        before = await trio.to_thread.run_sync(read_mounts)
        while True:
            await trio.sleep(BLIND_S)
            now = await trio.to_thread.run_sync(read_mounts)
            if now != before:
                changed = {mount.point for mount in set(now) ^ set(before)}
                for state in self.states.values():
                    if any(state.root.relative(point) is not None or _holds(point, state.root) for point in changed):
                        self._asked[state.root.id].set()
            before = now

    # Parts of a root

    async def _sweep_subtrees(self) -> None:
        with self._store.open_reader() as reader:
            while True:
                await self._subtree_asked.wait()
                self._subtree_asked = trio.Event()
                while self._subtrees:
                    directory = next(iter(self._subtrees))
                    del self._subtrees[directory]
                    self._is_sweeping_subtree = True
                    try:
                        await self._sweep_subtree(self.states[directory.root_id], directory.path, reader)
                    finally:
                        self._is_sweeping_subtree = False
                        self._findings.progressed()

    async def _sweep_subtree(self, state: RootState, top: bytes, reader: Reader) -> None:
        await self._cover(state, await self._list_directories(state, top))
        for path in await self._compare(state, top, reader, is_live=True):
            self._findings.hint(Location(state.root.id, path))

    async def _keep_comparing(self, every_s: float, choose: Callable[[RootState], list[bytes]]) -> None:
        """Compare some directories of each root, each by itself, now and then."""
        with self._store.open_reader() as reader:
            pause_s = every_s
            while True:
                await trio.sleep(pause_s)
                started_at = trio.current_time()
                for state in self.states.values():
                    if state.is_swept and not state.is_sweeping:
                        for path in await trio.to_thread.run_sync(choose, state):
                            await self._compare_directory(state, path, reader)
                pause_s = max(every_s, (trio.current_time() - started_at) / PERIODIC_SHARE)

    def _changed_directories(self, state: RootState) -> list[bytes]:
        """Return the directories whose modification time is not what it was; in a thread."""
        changed = []
        for path, mtime_ns in _cancellable(iter(list(state.mtimes.items()))):
            try:
                if os.stat(path).st_mtime_ns != mtime_ns:
                    changed.append(path)
            except OSError:
                changed.append(path)
        return changed

    def _blind_directories(self, state: RootState) -> list[bytes]:
        return list(state.blind)

    async def _compare_directory(self, state: RootState, absolute: bytes, reader: Reader) -> None:
        path = state.root.relative(absolute)
        assert path is not None, "directories are below their root"
        location = Location(state.root.id, path)

        def compared() -> list[Difference]:
            children = catalogue.children(reader.connection, location)
            return compare_directory(state.root.path, path, self._wanted, children)

        itself, *found = await trio.to_thread.run_sync(compared)
        if not isinstance(itself, Directory):
            state.mtimes.pop(absolute, None)
            state.blind.discard(absolute)
            self._findings.hint(location)  # it has gone, or cannot be listed
            return
        state.mtimes[absolute] = itself.mtime_ns
        if itself.is_odd:
            state.blind.add(absolute)
            state.odd.add(absolute)
        for item in found:
            if isinstance(item, Directory):
                child = state.root.absolute(item.path)
                if child not in state.blind and not self._watch.covers(Watched(child, item.inode)):
                    self.ask(Location(state.root.id, item.path))
            else:
                self._findings.hint(Location(state.root.id, item.path))

    # Listing, comparing, watching

    async def _list_directories(self, state: RootState, top: bytes, *, counting: bool = False) -> list[Directory]:
        wanted = self._wanted if counting else Wanted(lambda _path: False, self._wanted.directory)
        files = size_bytes = 0

        def listed() -> Iterator[Directory]:
            nonlocal files, size_bytes
            for sight in _cancellable(walk(state.root.path, top, wanted, with_files=counting)):
                match sight:
                    case Directory():
                        yield sight
                    case list():
                        files += len(sight)
                        size_bytes += sum(stat.st_size for _, stat in sight)

        directories = await trio.to_thread.run_sync(lambda: list(listed()))
        if counting:
            state.files_listed, state.bytes_listed = files, size_bytes
        return directories

    async def _known_directories(self, state: RootState, reader: Reader) -> list[Directory]:
        """Return the directories of known files, and those that could not be watched until now; none that is odd."""
        blind, odd = set(state.blind), set(state.odd)

        def known() -> Iterator[Directory]:
            for directory in standing(state.root.path, _cancellable(paths), self._wanted):
                absolute = state.root.absolute(directory.path)
                blind.discard(absolute)
                if absolute not in odd:
                    yield directory
            for path in map(state.root.relative, blind - odd):
                if path is not None and (found := directory_at(state.root.path, path)) is not None:
                    yield found

        paths = catalogue.paths(reader.connection, state.root.id)
        return await trio.to_thread.run_sync(lambda: list(known()))

    async def _compare(
        self,
        state: RootState,
        top: bytes,
        reader: Reader,
        *,
        is_live: bool,
        share: float = 1.0,
        wanted: Wanted | None = None,
        late_max: float = math.inf,
    ) -> list[bytes]:
        """Compare a part of a root with the catalogue, passing on what differs; return the paths that are missing.

        `wanted` makes it a look at some files before the others, after which all are compared.

        Raises:
            _ManyLateError: it met more than `late_max` directories that were not watched before they were listed, and
                has gone no further
        """
        met = _Met(late_max)
        was_blind = set(state.blind)
        if not is_live:
            state.files, state.size_bytes, state.differing = 0, 0, 0

        def count(files: Sequence[Found]) -> None:
            if not is_live:
                state.files += len(files)
                state.size_bytes += sum(stat.st_size for _, stat in files)

        def compared() -> None:
            sights = _cancellable(walk(state.root.path, top, wanted or self._wanted), share)
            known = catalogue.signatures(reader.connection, Location(state.root.id, top))
            found = differences(sights, known, count)
            if wanted is not None:  # a part of what is known: the rest of it is not missing
                found = (item for item in found if not isinstance(item, Missing))
            for lot in _lots(found):
                trio.from_thread.run(self._take_in, state, lot, met, is_live)

        began_s = self._store.now_us() / 1e6
        await trio.to_thread.run_sync(compared)
        if not top:
            for path in was_blind - met.blind:  # it has gone, or cannot be listed
                state.blind.discard(path)
                state.odd.discard(path)
                state.mtimes.pop(path, None)
        if wanted is None:
            # Listed before they were watched: what happened to them in between is found by comparing them again.
            closed = {os.path.dirname(path) for path in state.unlistable}
            for directory in await trio.to_thread.run_sync(_uncertain, state.root, met.late, began_s, closed):
                self.ask(Location(state.root.id, directory.path))
        return met.missing

    async def _take_in(self, state: RootState, lot: Sequence[Difference], met: "_Met", is_live: bool) -> None:
        now_s = self._store.now_us() / 1e6
        bulk: list[Location] = []
        fresh: list[Directory] = []
        renumbered: list[tuple[Location, int]] = []
        for item in lot:
            match item:
                case Differs(path, result):
                    state.differing += 0 if is_live else 1
                    if is_live or abs(now_s - result.st_ctime) < RECENT_S:
                        self._findings.hint(Location(state.root.id, path))
                    else:
                        bulk.append(Location(state.root.id, path))
                case Missing(path):
                    met.missing.append(path)
                case Renumbered(path, dev):
                    renumbered.append((Location(state.root.id, path), dev))
                case Directory():
                    watched = self._watched(state, item)
                    state.mtimes[self._watch.known(watched.path)] = item.mtime_ns
                    if watched.path in state.blind:
                        met.blind.add(watched.path)
                        if watched.path in state.odd and not item.is_odd:
                            fresh.append(item)
                    elif item.is_odd or not self._watch.covers(watched):
                        fresh.append(item)
                case Unlistable(path, reason, is_gone):
                    if path not in state.unlistable and not is_gone:
                        state.unlistable.add(path)
                        if path not in state.told_unlistable:
                            state.told_unlistable.add(path)
                            log.warning("directory cannot be listed", path=state.root.absolute(path), reason=reason)
        met.fresh += len(fresh)
        if met.fresh > met.late_max:
            raise _ManyLateError
        if fresh:  # before what is in them is told, which may take long: from then on each change of it is news
            met.late += await self._cover(state, fresh)
        if renumbered:  # or else a move would not be recognised without reading
            await self._store.write(partial(_renumber, renumbered))
        await self._findings.offer(bulk)

    async def _cover(self, state: RootState, directories: Iterable[Directory]) -> list[Directory]:
        """Watch directories; those that cannot be are compared all the time instead. Return those watched from now."""
        wanted: list[tuple[Directory, Watched, bool]] = []
        is_root_odd = not is_decodable(state.root.path)
        for directory in directories:
            watched = self._watched(state, directory)
            if directory.is_odd or is_root_odd:
                state.blind.add(watched.path)
                state.odd.add(watched.path)
            else:
                wanted.append((directory, watched, self._watch.covers(watched)))
        await self._watch.cover(watched for _, watched, was_covered in wanted if not was_covered)
        covered = []
        for directory, watched, was_covered in wanted:
            if not self._watch.covers(watched):
                state.blind.add(watched.path)
                continue
            state.blind.discard(watched.path)
            state.odd.discard(watched.path)
            if not was_covered:
                covered.append(directory)
        return covered

    def _watched(self, state: RootState, directory: Directory) -> Watched:
        return Watched(state.root.absolute(directory.path), directory.inode)


def _note_sweep(
    root_id: int,
    swept_us: int,
    mounts: dict[bytes, Identity],
    odd: set[bytes],
    was_accepted: bool,
    ledger: Ledger,
) -> None:
    catalogue.set_swept(ledger.conn, root_id, swept_us)
    if odd != catalogue.odd_directories(ledger.conn, root_id):
        catalogue.set_odd_directories(ledger.conn, root_id, odd)
    rows = {
        path: (identity.source, identity.fstype, identity.fsid, identity.inner) for path, identity in mounts.items()
    }
    if rows != catalogue.root_mounts(ledger.conn, root_id):
        catalogue.set_root_mounts(ledger.conn, root_id, rows)
    if was_accepted:
        catalogue.accept_removals(ledger.conn, root_id, None)


def _renumber(devices: Sequence[tuple[Location, int]], ledger: Ledger) -> None:
    for location, dev in devices:
        catalogue.renumber(ledger.conn, location, dev)


def _is_emptied(root: Root, conn: sqlite3.Connection) -> bool:
    """Whether nothing is left of a root in which several files are known; the last one can go like any other."""
    with os.scandir(root.path) as entries:
        return next(entries, None) is None and not catalogue.has_fewer(conn, root.id, 2)


def _holds(point: bytes, root: Root) -> bool:
    return root.path.startswith(point.rstrip(b"/") + b"/")


def _uncertain(
    root: Root, directories: Iterable[Directory], began_s: float, closed: Container[bytes]
) -> list[Directory]:
    """Return those in which something may have happened since they were listed, but for those below others of them.

    A directory's times tell of the names in it, unless they are as young as its listing; of files nothing tells. Of
    what lies in a child that could not be listed (its parent is in `closed`) nothing tells either.
    """
    uncertain: list[Directory] = []
    for directory in directories:  # parents before what is in them
        if uncertain and directory.path.startswith(uncertain[-1].path + b"/" if uncertain[-1].path else b""):
            continue
        try:
            now = os.stat(root.absolute(directory.path), follow_symlinks=not directory.path)
            is_same = (now.st_mtime_ns, now.st_ctime_ns) == (directory.mtime_ns, directory.ctime_ns)
        except OSError:
            is_same = False
        is_young = directory.ctime_ns / 1e9 > began_s - RECENT_S
        if directory.files or is_young or not is_same or directory.path in closed:
            uncertain.append(directory)
    return uncertain


def _file_system(path: bytes) -> tuple[str, bool]:
    """Return the type of a root's file system, and whether others change files there unnoticed."""
    mount = mount_of(os.path.realpath(path), read_mounts())
    return (mount.fstype.decode("ascii", "replace"), mount.is_remote) if mount else ("", False)


def _cancellable(items: Iterator[T], share: float = 1.0) -> Iterator[T]:
    """Yield the items, looking now and then whether the task that waits for this thread was cancelled.

    With a share below 1 it rests, so that the thread takes no more than that of a core.
    """
    began_at = time.monotonic()
    seen = 0
    for item in items:
        seen += len(item) if isinstance(item, list) else 1
        if seen >= CANCEL_LOOK:
            seen = 0
            trio.from_thread.check_cancelled()
            if share < 1:
                time.sleep(min(0.5, (time.monotonic() - began_at) * (1 / share - 1)))
                began_at = time.monotonic()
        yield item


def _lots(items: Iterable[T]) -> Iterator[list[T]]:
    lot: list[T] = []
    for item in items:
        lot.append(item)
        if len(lot) >= LOT:
            yield lot
            lot = []
    if lot:
        yield lot
