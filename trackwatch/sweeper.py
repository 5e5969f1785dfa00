"""When and what to sweep, the directories to watch, and the state of each root.

A root is swept at the start, after every doubt, and from time to time; a subtree when a hint names its directory.
Before a sweep all its directories are watched, so that what happens during it is not missed. What sweeps find goes back
as hints: all at once for a subtree, through a bounded lane for a root.
"""

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeVar

import structlog
import trio

from trackwatch import catalogue
from trackwatch.errors import RootUnavailable
from trackwatch.mounts import mount_of, read_mounts
from trackwatch.store import Reader, Store
from trackwatch.sweep import (
    Difference,
    Differs,
    Directory,
    Found,
    Missing,
    Unlistable,
    Wanted,
    check_root,
    differences,
    walk,
)
from trackwatch.track import Location, Root
from trackwatch.watch import Watch, Watched

# A file that changed this recently by its own word goes through the settling, like a hint.
RECENT_S = 3.0
# Directories that the watcher cannot bear are swept this often; a root that is away is looked for this often.
BLIND_SWEEP_S = 5.0
ROOT_RETRY_S = 5.0
# Findings are handed from the sweeping thread to the event loop in lots of this many.
LOT = 500
# A sweeping thread looks this often (in files) whether it has been cancelled.
CANCEL_LOOK = 1000

log = structlog.get_logger()
T = TypeVar("T")


class RootWord(StrEnum):
    """The state of a root in one word, the same in status, log, metrics and runbook."""

    STARTING = "starting"
    OK = "ok"
    UNAVAILABLE = "unavailable"


@dataclass(slots=True)
class RootState:
    """How one root stands; written by the sweeper's tasks, read by status."""

    root: Root
    since_us: int
    word: RootWord = RootWord.STARTING
    reason: str = ""
    fstype: str = ""
    is_sweeping: bool = False
    is_swept: bool = False  # to its end, at least once in this process
    files: int = 0  # wanted ones, met by the sweep under way or the last one
    size_bytes: int = 0
    directories: int = 0
    files_listed: int = 0  # wanted names, counted before the sweep compares them
    blind: set[bytes] = field(default_factory=set)  # directories that cannot be watched, relative to the root


@dataclass(slots=True, eq=False)
class Findings:
    """Where a sweep's findings go: the reconciling side's door for the sweeper."""

    hint: Callable[[Location], None]  # settles, then is looked at before any bulk
    offer: Callable[[Sequence[Location]], Awaitable[None]]  # the bulk lane; waits for room
    drained: Callable[[], Awaitable[None]]  # waits until the bulk lane was looked at
    vanished: Callable[[Iterable[Location]], None]  # known, and seen nowhere
    progressed: Callable[[], None]  # the sweeper's state has changed


class Sweeper:
    """See the module's docstring; `run` owns all its tasks."""

    def __init__(
        self,
        store: Store,
        roots: Iterable[Root],
        *,
        wanted: Wanted,
        watch: Watch,
        may_conclude: Callable[[Root, sqlite3.Connection], bool],
        findings: Findings,
        sweep_s: float,
    ) -> None:
        self.states = {root.id: RootState(root, store.now_us()) for root in roots}
        self._store = store
        self._wanted = wanted
        self._watch = watch
        self._may_conclude = may_conclude
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
        for path in paths:
            for state in self.states.values():
                if state.root.relative(path) is not None:
                    self._asked[state.root.id].set()

    @property
    def has_subtrees(self) -> bool:
        """Whether sweeps that hints asked for are waiting or under way."""
        return bool(self._subtrees) or self._is_sweeping_subtree

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
            nursery.start_soon(self._sweep_blind)

    # Roots

    async def _keep_root(self, state: RootState) -> None:
        with self._store.open_reader() as reader:
            while True:
                self._asked[state.root.id] = trio.Event()
                pause_s = self._sweep_s
                state.is_sweeping = True
                try:
                    await self._sweep_root(state, reader)
                    self._say(state, RootWord.OK)
                except RootUnavailable as error:
                    # Its files stay in the catalogue, and nothing is told of them, until it is back.
                    self._say(state, RootWord.UNAVAILABLE, str(error))
                    pause_s = ROOT_RETRY_S
                finally:
                    state.is_sweeping = False
                    self._findings.progressed()
                with trio.move_on_after(pause_s):
                    await self._asked[state.root.id].wait()

    async def _sweep_root(self, state: RootState, reader: Reader) -> None:
        root = state.root
        await trio.to_thread.run_sync(check_root, root.path)
        state.fstype = await trio.to_thread.run_sync(_fstype, root.path)
        listed = await self._list_directories(state, b"")
        state.directories, state.files_listed = len(listed), sum(directory.files for directory in listed)
        state.blind = set()
        if not state.is_swept and state.word is RootWord.STARTING:
            _introduce(state)
        await self._cover(state, listed)
        missing = await self._compare(state, b"", reader, is_live=False)
        if missing and not await reader.read(partial(self._may_conclude, root)):
            raise RootUnavailable(f"{_shown(root.path)} is empty, and files are known in it; is the volume mounted?")
        problems = await reader.read(partial(catalogue.problem_paths, root_id=root.id))
        await self._findings.offer([Location(root.id, path) for path in problems])
        # What was found may be what is missing: only what is left when all of it has been looked at has vanished.
        await self._findings.drained()
        self._findings.vanished(Location(root.id, path) for path in missing)
        swept_us = self._store.now_us()
        await self._store.write(lambda ledger: catalogue.set_swept(ledger.conn, root.id, swept_us))
        state.is_swept = True

    def _say(self, state: RootState, word: RootWord, reason: str = "") -> None:
        if (state.word, state.reason) == (word, reason):
            return
        was, state.word, state.reason, state.since_us = state.word, word, reason, self._store.now_us()
        if word is RootWord.UNAVAILABLE:
            log.error("root unavailable", root=os.fsdecode(state.root.path), reason=reason)
        elif was is RootWord.UNAVAILABLE:
            log.warning("root available again", root=os.fsdecode(state.root.path))

    # Subtrees

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

    async def _sweep_blind(self) -> None:
        while True:
            await trio.sleep(BLIND_SWEEP_S)
            for state in self.states.values():
                for path in state.blind:
                    self.ask(Location(state.root.id, path))

    # Listing, comparing, watching

    async def _list_directories(self, state: RootState, top: bytes) -> list[Directory]:
        def listed() -> list[Directory]:
            sights = walk(state.root.path, top, self._wanted, with_files=False)
            return [sight for sight in _cancellable(sights) if isinstance(sight, Directory)]

        return await trio.to_thread.run_sync(listed)

    async def _compare(self, state: RootState, top: bytes, reader: Reader, *, is_live: bool) -> list[bytes]:
        """Compare a part of a root with the catalogue, passing on what differs; return the paths that are missing."""
        missing: list[bytes] = []
        fresh: list[Directory] = []
        if not is_live:
            state.files, state.size_bytes = 0, 0

        def count(found: Found) -> None:
            if not is_live:
                state.files += 1
                state.size_bytes += found.stat.st_size

        def compared() -> None:
            sights = _cancellable(walk(state.root.path, top, self._wanted))
            known = catalogue.signatures(reader.connection, Location(state.root.id, top))
            for lot in _lots(differences(sights, known, count)):
                trio.from_thread.run(self._take_in, state, lot, missing, fresh, is_live)

        await trio.to_thread.run_sync(compared)
        if await self._cover(state, fresh):
            # Made since the directories were listed: what was put into them before they were watched is found now.
            for directory in fresh:
                self.ask(Location(state.root.id, directory.path))
        return missing

    async def _take_in(
        self,
        state: RootState,
        lot: Sequence[Difference],
        missing: list[bytes],
        fresh: list[Directory],
        is_live: bool,
    ) -> None:
        now_s = self._store.now_us() / 1e6
        bulk: list[Location] = []
        for item in lot:
            match item:
                case Differs(path, result):
                    if is_live or abs(now_s - result.st_ctime) < RECENT_S:
                        self._findings.hint(Location(state.root.id, path))
                    else:
                        bulk.append(Location(state.root.id, path))
                case Missing(path):
                    missing.append(path)
                case Directory():
                    if not self._watch.covers(self._watched(state, item)) and not item.is_odd:
                        fresh.append(item)
                case Unlistable(path, reason):
                    log.warning("cannot be listed", path=os.fsdecode(state.root.absolute(path)), reason=reason)
        await self._findings.offer(bulk)

    async def _cover(self, state: RootState, directories: Iterable[Directory]) -> int:
        """Watch directories, except those that the watcher cannot bear: they are swept all the time instead."""
        watchable = []
        for directory in directories:
            if directory.is_odd:
                state.blind.add(directory.path)
            else:
                watchable.append(self._watched(state, directory))
        return await self._watch.cover(watchable)

    def _watched(self, state: RootState, directory: Directory) -> Watched:
        return Watched(state.root.absolute(directory.path), directory.inode)


def _introduce(state: RootState) -> None:
    path = os.fsdecode(state.root.path)
    found = f"{state.files_listed:,} files in {state.directories:,} directories"
    words = " · ".join(part for part in (path, state.fstype, found) if part)
    log.info(
        "root", path=path, fstype=state.fstype, files=state.files_listed, directories=state.directories, words=words
    )


def _fstype(path: bytes) -> str:
    mount = mount_of(os.path.realpath(path), read_mounts())
    return mount.fstype.decode("ascii", "replace") if mount else ""


def _cancellable(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, and look now and then whether the task that waits for this thread was cancelled."""
    for number, item in enumerate(items):
        if number % CANCEL_LOOK == 0:
            trio.from_thread.check_cancelled()
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


def _shown(path: bytes) -> str:
    return repr(os.fsdecode(path))
