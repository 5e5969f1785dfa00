"""Brings the catalogue and the disk together: settles hints, looks at paths at rest, decides what is done about each.

What needs reading goes to the workers through the one bounded channel; moves, links and removals are recorded here,
without reading a byte. A path that vanished is held for a grace: what appears elsewhere may be what it was.
"""

import math
import sqlite3
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile

import structlog
import trio

from trackwatch import catalogue
from trackwatch.look import Kind, Lookout, Sighting
from trackwatch.record import Absent, Change, Ledger, Present
from trackwatch.root import RootState
from trackwatch.settle import DirtySet, Due, Rest
from trackwatch.store import Reader, Store
from trackwatch.sweep import Wanted
from trackwatch.sweeper import Findings, Sweeper
from trackwatch.track import Location, Observation, Root
from trackwatch.trust import Trust
from trackwatch.watch import Watch

# How long a vanished file may turn up elsewhere (a copy to another file system, then the removal).
VANISH_GRACE_S = 2.0
# Work that may explain a removal holds it back, but no longer than this.
VANISH_MAX_S = 60.0
# A removal that is held back is thought over this often.
VANISH_LOOK_S = 0.05
# More than half of a root, and at least this many files, that vanish within this time are a mount that fell off, or a
# mistake, until it is said again.
MASS_FILES, MASS_S = 20, 60.0
# Paths looked at in one hop to a thread.
LOOK_MAX = 500
# The first sweep may find files that are not at rest: they are waited for as long as their number goes down this often.
SETTLE_PATIENCE_S = 5.0
# A sweep of a root waits while this many of its findings are not taken: the rest is still on the disk.
BULK_MAX = 1000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Job:
    """A file to be described by a worker."""

    due: Due
    path: bytes  # absolute
    size_bytes: int


class Reconcile:
    """See the module's docstring. `hint` may be called at any time from the event loop, and never blocks."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        roots: Sequence[Root],
        *,
        wanted: Wanted,
        settle: DirtySet,
        jobs: trio.MemorySendChannel[Job],
        probes_max: int,
        sweep_s: float,
        grace_s: float = VANISH_GRACE_S,
    ) -> None:
        self._store = store
        self._reader = reader
        self._roots = {root.id: root for root in roots}
        self._settle = settle
        self._jobs = jobs
        self._probes_max = probes_max
        self._probing = 0
        self._had_files = False  # at the start: a first import has nothing to compare with
        self._ready_live: OrderedDict[Location, Job] = OrderedDict()
        self._ready_bulk: OrderedDict[Location, Job] = OrderedDict()
        self._to_read_bytes: dict[Location, int] = {}  # what is ready, or in a worker's hand
        self._vanished: dict[Location, float] = {}  # when its grace ends; in that order
        self._goes_first = wanted.priority or (lambda _path: False)
        self._trust = Trust(roots)
        self._lookout = Lookout(self._roots, wanted, self._trust, settle.is_in_hand, settle.quiet_s)
        self._believed: set[int] = set()  # roots whose vanished files are told however many they are
        self._other_names: dict[Location, tuple[Location, ...]] = {}  # of files in a worker's hand; see Sighting.also
        self._no_mass: dict[int, int] = {}  # of a root: how many vanished files were found to be no mass
        self._removed: deque[tuple[float, int]] = deque()  # when, and in which root: the removals of late
        self._grace_s = grace_s
        self._watch = Watch(self.hint_path, lambda paths: self._sweeper.doubt(paths))
        self._sweeper = Sweeper(
            store,
            roots,
            wanted=wanted,
            watch=self._watch,
            trust=self._trust,
            findings=Findings(
                self.hint, self._offer, self._drained, self._vanish, self._wait_let_go, lambda: self._work.set()
            ),
            sweep_s=sweep_s,
        )
        self.is_held_back = False
        self._work = trio.Event()  # something for the dispatch loop to do
        self._turn = trio.Event()  # the dispatch loop has gone round once more

    @property
    def roots(self) -> list[RootState]:
        """The state of each root."""
        return list(self._sweeper.states.values())

    def hint_path(self, path: bytes, quiet_s: float = 0.0) -> None:
        """Note that something may have happened at an absolute path, which may have been quiet for so long since."""
        for root in self._roots.values():
            relative = root.relative(path)
            if relative is not None:
                self._hint(Location(root.id, relative), trio.current_time() - quiet_s)
                return

    def hint(self, location: Location) -> None:
        """Note that something may have happened at a location."""
        self._hint(location, trio.current_time())

    def _hint(self, location: Location, at: float) -> None:
        self._settle.hint(location, at)
        if self._ready_bulk.pop(location, None) is not None:
            self.finished(location, Rest.DONE)  # nobody has begun to read it, and now it is live
        self._work.set()

    def hold_back(self, hold: bool) -> None:
        """Take no more work for now (the outbox is full), or go on; hints go on merging, and nothing is lost."""
        if hold is self.is_held_back:
            return
        self.is_held_back = hold
        self._work.set()
        if hold:
            reason = "as many events wait as TRACKWATCH_OUTBOX_MAX allows; changes are found once they are published"
            log.warning("intake held back", reason=reason)
        else:
            log.info("intake goes on")

    def probed(self) -> None:
        """Called by a worker that has read its file and has only to record it: another may begin to read."""
        self._probing -= 1
        self._work.set()

    def finished(self, location: Location, rest: Rest) -> None:
        """Called by a worker that is done with a file."""
        self._other_names.pop(location, None)
        self._to_read_bytes.pop(location, None)
        self._settle.finished(location, rest, trio.current_time())
        self._work.set()

    async def place(self, location: Location, seen: Observation) -> Change:
        """Say what a described file is: present at its place, or one that has vanished from another file system."""
        # Only now, and not when it was looked at: names that cannot be read would send us to each other for ever.
        for other in self._other_names.pop(location, ()):
            self.hint(other)
        # That it has vanished may not have been looked at yet. Only the import of a new library is spared the question.
        if self._vanished or self._had_files or not self._sweeper.is_sweeping:
            moved = await self._reader.read(partial(self._lookout.content_origin, location, seen))
            if moved is not None:
                return moved
        return Present(location, seen)

    async def wait_swept(self) -> None:
        """Wait until every root was swept once, or is known to be unavailable, and what that found was recorded."""
        while not all(state.is_swept or state.reason for state in self.roots):
            await self._turn.wait()
        swept_at = trio.current_time()
        while self._settle.oldest_at() <= swept_at:
            left = self._left()
            with trio.move_on_after(SETTLE_PATIENCE_S) as patience:
                while self._left() >= left:
                    await self._turn.wait()
            if patience.cancelled_caught:
                return  # what is left is still being written, and has its own time

    def _left(self) -> int:
        settle = self._settle.statistics()
        return settle.live + settle.in_hand

    async def wait_idle(self) -> None:
        """Wait until every root was swept, or is known to be unavailable, and no work is left."""
        while not self._is_idle():
            await self._turn.wait()

    def done_of(self, files: int, size_bytes: int) -> tuple[int, int]:
        """Return how many files and bytes of those that sweeps have met are not waiting.

        Of what is in a worker's hand, or ready for one, the size is known; what has not been looked at yet (a thousand
        files of a root at most) is taken for average.
        """
        settle = self._settle.statistics()
        waiting = settle.live + settle.bulk + settle.in_hand
        known, known_bytes = len(self._to_read_bytes), sum(self._to_read_bytes.values())
        done_files, rest_bytes = max(0, files - waiting), max(0, size_bytes - known_bytes)
        return done_files, rest_bytes * done_files // max(1, files - known)

    def statistics(self) -> dict[str, int]:
        """Return how much work waits at each stage, and how much is watched."""
        settle, watch = self._settle.statistics(), self._watch.statistics()
        return {
            "dirty": settle.live + settle.bulk,
            "in_hand": settle.in_hand,
            "in_flight": len(self._to_read_bytes) - len(self._ready_live) - len(self._ready_bulk),
            "probing": self._probing,
            "vanished": len(self._vanished),
            "watched_directories": watch["directories"],
            "watch_instances": watch["instances"],
            "watch_deaths": watch["deaths"],
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile until cancelled, then close the channel to the workers."""
        with self._jobs:
            self._had_files = await self._reader.read(_has_files)
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch.run)
                nursery.start_soon(self._sweeper.run)
                task_status.started()
                await self._dispatch()

    async def _dispatch(self) -> None:
        while True:
            self._work = trio.Event()
            for root_id in self._settle.take_flooded():
                reason = "too many changes wait to be looked at one by one: sweeping instead"
                log.warning("root flooded", root=self._roots[root_id].path, reason=reason)
                self._sweeper.ask(Location(root_id, b""))
            if self.is_held_back:
                await self._work.wait()
                continue
            await self._let_go()
            due = self._settle.take_due(trio.current_time(), LOOK_MAX, bulk=not self._ready_bulk)
            if due:
                await self._act(await self._reader.read(partial(self._lookout.look_at_all, due)))
            self._hand_out()
            self._turn.set()
            self._turn = trio.Event()
            if not due:
                with trio.move_on_at(self._next_moment()):
                    await self._work.wait()

    def _next_moment(self) -> float:
        due_at = self._settle.next_due_at(bulk=not self._ready_bulk)
        moments = [] if due_at is None else [due_at]
        if self._vanished:
            grace_ends_at = next(iter(self._vanished.values()))
            moments.append(max(grace_ends_at, trio.current_time() + VANISH_LOOK_S))
        return min(moments, default=float("inf"))

    def _hand_out(self) -> None:
        """Give ready files to idle workers: live ones at once, others while the probes have room."""
        for ready, probing_max in ((self._ready_live, float("inf")), (self._ready_bulk, self._probes_max)):
            while ready and self._probing < probing_max:
                location, job = next(iter(ready.items()))
                try:
                    self._jobs.send_nowait(job)
                except (trio.WouldBlock, trio.BrokenResourceError):
                    return  # every worker has a file in hand; `finished` wakes us; or all have just been cancelled
                del ready[location]
                self._probing += 1

    async def _act(self, sightings: Iterable[Sighting]) -> None:
        now = trio.current_time()
        elsewhere: list[Sighting] = []
        for seen in sightings:
            location = seen.due.location
            self._hold(Location(location.root_id, path) for path in seen.gone)
            match seen.kind:
                case Kind.CHANGED:
                    job = Job(seen.due, self._roots[location.root_id].absolute(location.path), seen.size_bytes)
                    ready = self._ready_live if seen.due.is_live else self._ready_bulk
                    ready[location] = job
                    self._to_read_bytes[location] = seen.size_bytes
                    ready.move_to_end(location, last=not self._goes_first(location.path))
                    if seen.also:
                        self._other_names[location] = seen.also
                    continue
                case Kind.ELSEWHERE:
                    elsewhere.append(seen)
                    continue
                case Kind.DIRECTORY:
                    self._sweeper.ask(location)
                case Kind.GONE:
                    for other in seen.also:  # written by a name that no pattern wants
                        self.hint(other)
                case Kind.UNCHANGED | Kind.LATER:
                    pass
            self._settle.finished(location, Rest.LATER if seen.kind is Kind.LATER else Rest.DONE, now)
        if elsewhere:
            changes = [seen.change for seen in elsewhere if seen.change is not None]
            fits = await self._store.write(partial(_record_all, changes))
            for seen, fit in zip(elsewhere, fits, strict=True):
                # What did not fit was overtaken by other news of its old path: look again.
                self._settle.finished(seen.due.location, Rest.DONE if fit else Rest.LATER, trio.current_time())
            doubtful = [
                seen.due.location for seen, fit in zip(elsewhere, fits, strict=True) if fit and seen.is_doubtful
            ]
            self._settle.bulk(doubtful, trio.current_time())

    # Vanished files

    def _grace_ends_at(self) -> float:
        # What moved into a directory that cannot be watched turns up when that is compared.
        return trio.current_time() + self._grace_s + self._sweeper.blindness_s

    def _hold(self, locations: Iterable[Location]) -> None:
        until = self._grace_ends_at()
        for location in locations:
            if self._sweeper.states[location.root_id].suspect_since is None:  # else a sweep decides
                self._add_vanished(location, until)

    def _vanish(self, locations: Iterable[Location], believed: bool) -> None:
        """Take what a sweep found missing; a mass of it is only told if it is `believed`."""
        until = self._grace_ends_at()
        for location in locations:
            if believed:
                self._believed.add(location.root_id)
            if believed or self._sweeper.states[location.root_id].suspect_since is None:
                self._add_vanished(location, until)
        self._work.set()

    def _add_vanished(self, location: Location, until: float) -> None:
        self._vanished.setdefault(location, until)

    async def _wait_let_go(self, root_id: int) -> None:
        while any(location.root_id == root_id for location in self._vanished):
            await self._turn.wait()

    async def _let_go(self) -> None:
        """Record the removal of what vanished and did not turn up elsewhere within its grace."""
        now = trio.current_time()
        ended = list(islice(takewhile(lambda item: item[1] <= now, self._vanished.items()), LOOK_MAX))
        if not ended:
            return
        oldest_at = -math.inf if self._sweeper.has_subtrees else self._settle.oldest_at()
        growing = self._growing(now)
        released = [
            location
            for location, until in ended
            if not self._settle.is_in_hand(location)
            and (
                until + VANISH_MAX_S <= now
                or (
                    until - self._grace_s < oldest_at
                    and location.root_id not in growing
                    and not self._sweeper.is_hasty(location.root_id)
                )
            )
        ]
        if released:
            gone, doubtful = await self._reader.read(partial(self._lookout.still_gone, released))
            for root_id in doubtful:
                self._sweeper.ask(Location(root_id, b""))  # which says what is the matter with it
            # What the patterns no longer want may be there all the same: no disk is lost, however much it is.
            lost = {location for location in gone if self._lookout.wanted.file(location.path)}
            mass = {root_id for root_id in {location.root_id for location in lost} if await self._is_mass(root_id)}
            believable = [location for location in gone if location not in lost or location.root_id not in mass]
            await self._store.write(partial(_record_all, [Absent(location) for location in believable]))
            for location in released:
                self._vanished.pop(location, None)
            now = trio.current_time()
            self._removed.extend((now, location.root_id) for location in believable if location in lost)
        holding = {location.root_id for location in self._vanished}
        self._believed &= holding
        self._no_mass = {root_id: count for root_id, count in self._no_mass.items() if root_id in holding}

    def _growing(self, now: float) -> set[int]:
        """Return the roots of which many files go on vanishing: the end of it shows whether it is a mass."""
        # Only what is within its grace: what was held back before must not let a mere trickle count as many.
        recent = takewhile(lambda item: item[1] > now, reversed(self._vanished.items()))
        counts = Counter(location.root_id for location, _ in recent)
        return {root_id for root_id, count in counts.items() if count >= MASS_FILES and root_id not in self._believed}

    async def _is_mass(self, root_id: int) -> bool:
        """Whether so much of a root vanishes at once that it is not believed; if so, it is held from now on."""
        if root_id in self._believed or self._sweeper.states[root_id].suspect_since is not None:
            return self._sweeper.states[root_id].suspect_since is not None and root_id not in self._believed
        recently = trio.current_time() - MASS_S
        while self._removed and self._removed[0][0] < recently:
            self._removed.popleft()
        removed = sum(root == root_id for _, root in self._removed)
        vanished = [
            location
            for location in self._vanished
            if location.root_id == root_id and self._lookout.wanted.file(location.path)
        ]
        if len(vanished) + removed < MASS_FILES or len(vanished) <= self._no_mass.get(root_id, 0):
            return False
        # Not what has turned up elsewhere, and not what is only in doubt because its mount is away.
        gone, _ = await self._reader.read(partial(self._lookout.still_gone, vanished))
        missing = len(gone)
        # More than half of what there was: missing + removed > (known + removed) / 2.
        limit = 2 * missing + removed
        is_mass = missing + removed >= MASS_FILES and await self._reader.read(
            partial(catalogue.has_fewer, root_id=root_id, count=limit)
        )
        # What is let go counts as removed from now on, so the sum stays as it is until more vanishes.
        self._no_mass[root_id] = 0 if is_mass else len(vanished)
        if is_mass:
            self._sweeper.suspect(root_id, missing)
            for location in vanished:
                del self._vanished[location]
        return is_mass

    # The sweeper's door

    async def _offer(self, locations: Sequence[Location]) -> None:
        self._settle.bulk(locations, trio.current_time())
        self._work.set()
        while self._settle.statistics().bulk >= BULK_MAX:
            await self._turn.wait()

    async def _drained(self) -> None:
        self._work.set()
        while (settle := self._settle.statistics()).bulk or settle.bulk_in_hand:
            await self._turn.wait()

    def _is_idle(self) -> bool:
        settle = self._settle.statistics()
        states = self._sweeper.states.values()
        return (
            all(not state.is_sweeping and (state.is_swept or state.reason) for state in states)
            and not self._sweeper.has_subtrees
            and not (settle.live or settle.bulk or settle.in_hand or self._vanished)
        )


def _has_files(conn: sqlite3.Connection) -> bool:
    return any(total.files for total in catalogue.totals(conn))


def _record_all(changes: Sequence[Change], ledger: Ledger) -> list[bool]:
    return [ledger.record(change) for change in changes]
