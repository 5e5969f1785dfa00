"""The dirty set: which paths may have changed, and when each is at rest long enough to be looked at. Pure.

A path is dirty (waiting, in one of two lanes) or in hand (taken, until `finished`); hints for a path in hand are kept
for afterwards, so that a path is never in two hands. Live hints wait for quiet and go first; the bulk lane holds what a
sweep of a whole root found, goes in the order it came, and only when no live path is due.
When one root floods the set, its waiting hints are dropped and the root is reported once as flooded: sweep it instead.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from trackwatch.track import Location

# Past this a sweep of the root is cheaper than more entries here; a directory of 10,000 files moved in is no flood.
FLOOD_MAX = 50_000
# Where nothing tells whether a writer still has the file open, only this much quiet was seen to be safe.
UNKNOWN_WRITER_QUIET_S = 2.0


class Rest(Enum):
    """What came of a path that was taken."""

    DONE = "done"
    MOVED_ON = "moved on"  # it changed, or is still being written: wait for quiet again
    UNSURE = "unsure"  # nobody can tell whether it is still being written: wait for a longer quiet
    LATER = "later"  # somebody else's work comes first: look again soon


# What is looked at again for no new reason rests a while first.
_NOT_BEFORE_S = {Rest.LATER: 0.05, Rest.UNSURE: 0.25}


class Due(NamedTuple):
    """A path taken for a look."""

    location: Location
    is_live: bool
    quiet_s: float  # for how long nothing was heard of it; infinite if nobody was listening (bulk)
    at_ceiling: bool  # it has been changing for so long that it is to be described as it is


@dataclass(slots=True)
class _Dirty:
    first_at: float
    last_at: float
    due_at: float
    is_live: bool
    again_at: float | None = None  # when it was first hinted again while in hand


@dataclass(frozen=True, slots=True)
class SettleStatistics:
    """How many paths wait in each lane, how many are in hand, and how many of these came from the bulk lane."""

    live: int
    bulk: int
    in_hand: int
    bulk_in_hand: int


class DirtySet:
    """See the module's docstring. Times are seconds of a monotonic clock."""

    def __init__(self, *, quiet_s: float, ceiling_s: float) -> None:
        self.quiet_s = quiet_s
        self._ceiling_s = ceiling_s
        self._waiting: dict[Location, _Dirty] = {}  # live lane
        self._bulk: OrderedDict[Location, _Dirty] = OrderedDict()
        self._in_hand: dict[Location, _Dirty] = {}
        self._bulk_in_hand = 0  # counted as they come and go: somebody asks at each turn, and thousands may be in hand
        self._heap: list[tuple[float, Location]] = []  # may hold outdated entries of the live lane
        self._flooded: set[int] = set()
        self._live_per_root: dict[int, int] = {}

    def hint(self, location: Location, now: float) -> None:
        """Note that something may have happened at a path just now."""
        held = self._in_hand.get(location)
        if held is not None:
            held.again_at = now if held.again_at is None else held.again_at
            held.last_at = now
            return
        first_at = now
        bulk = self._bulk.pop(location, None)
        dirty = self._waiting.get(location) or bulk
        if dirty is not None and dirty.is_live:
            first_at = dirty.first_at
        self._wait(location, first_at, now, self.quiet_s)

    def bulk(self, locations: Iterable[Location], now: float) -> None:
        """Put paths that a sweep found into the bulk lane; those that are dirty already stay as they are."""
        for location in locations:
            held = self._in_hand.get(location)
            if held is not None:
                held.again_at = now if held.again_at is None else held.again_at  # it may have changed behind the look
            elif location not in self._waiting and location not in self._bulk:
                self._bulk[location] = _Dirty(now, now, now, is_live=False)

    def take_due(self, now: float, limit: int, *, bulk: bool = True) -> list[Due]:
        """Take at most `limit` paths that are at rest, live ones first; each must be `finished` later."""
        taken: list[Due] = []
        while self._heap and len(taken) < limit and self._heap[0][0] <= now:
            due_at, location = heapq.heappop(self._heap)
            dirty = self._waiting.get(location)
            if dirty is not None and dirty.due_at == due_at:
                del self._waiting[location]
                self._count(location, -1)
                taken.append(self._take(location, dirty, now))
        while bulk and self._bulk and len(taken) < limit:
            location, dirty = self._bulk.popitem(last=False)
            taken.append(self._take(location, dirty, now))
        return taken

    def finished(self, location: Location, rest: Rest, now: float) -> None:
        """Say what came of a path that was taken."""
        dirty = self._in_hand.pop(location)
        self._bulk_in_hand -= not dirty.is_live
        if rest is Rest.DONE:
            if dirty.again_at is not None:
                self._wait(location, dirty.again_at, dirty.last_at, self.quiet_s)
            return
        quiet_s = UNKNOWN_WRITER_QUIET_S if rest is Rest.UNSURE else self.quiet_s
        last_at = now if rest is Rest.MOVED_ON else dirty.last_at
        # After the ceiling was reached and the look failed all the same, a new period begins; and what a path waited in
        # the bulk lane was no change of it.
        is_new_period = not dirty.is_live or now >= dirty.first_at + self._ceiling_s
        first_at = now if is_new_period else dirty.first_at
        self._wait(location, first_at, last_at, quiet_s, not_before=now + _NOT_BEFORE_S.get(rest, 0.0))

    def next_due_at(self, *, bulk: bool = True) -> float | None:
        """Return when a path will be at rest (a moment in the past: there is one), None if nothing waits."""
        if bulk and self._bulk:
            return 0.0
        while self._heap:
            due_at, location = self._heap[0]
            dirty = self._waiting.get(location)
            if dirty is not None and dirty.due_at == due_at:
                return due_at
            heapq.heappop(self._heap)
        return None

    def is_in_hand(self, location: Location) -> bool:
        """Whether a path is taken and not finished."""
        return location in self._in_hand

    def oldest_at(self) -> float:
        """Return when the oldest path that waits in the live lane or is in hand was first hinted; infinity if none."""
        lanes = (self._waiting.values(), self._in_hand.values())
        return min((dirty.first_at for lane in lanes for dirty in lane), default=math.inf)

    def take_flooded(self) -> set[int]:
        """Return the roots whose hints were dropped since the last call: they must be swept."""
        flooded, self._flooded = self._flooded, set()
        return flooded

    def statistics(self) -> SettleStatistics:
        """Return how many paths wait and are in hand."""
        return SettleStatistics(len(self._waiting), len(self._bulk), len(self._in_hand), self._bulk_in_hand)

    def _take(self, location: Location, dirty: _Dirty, now: float) -> Due:
        self._in_hand[location] = dirty
        self._bulk_in_hand += not dirty.is_live
        dirty.again_at = None
        at_ceiling = dirty.is_live and now >= dirty.first_at + self._ceiling_s
        return Due(location, dirty.is_live, now - dirty.last_at if dirty.is_live else math.inf, at_ceiling)

    def _wait(
        self,
        location: Location,
        first_at: float,
        last_at: float,
        quiet_s: float,
        *,
        not_before: float = 0.0,
    ) -> None:
        due_at = max(min(last_at + quiet_s, first_at + self._ceiling_s), not_before)
        dirty = self._waiting.get(location)
        if dirty is None:
            if self._live_per_root.get(location.root_id, 0) >= FLOOD_MAX:
                self._drop_root(location.root_id)
                return
            self._count(location, +1)
            self._waiting[location] = _Dirty(first_at, last_at, due_at, is_live=True)
        else:
            dirty.first_at, dirty.last_at, dirty.due_at = first_at, last_at, due_at
        heapq.heappush(self._heap, (due_at, location))
        if len(self._heap) > 2 * len(self._waiting) + 1000:
            # A path that is written all the time leaves an outdated entry with each hint.
            self._heap = [(dirty.due_at, location) for location, dirty in self._waiting.items()]
            heapq.heapify(self._heap)

    def _count(self, location: Location, by: int) -> None:
        self._live_per_root[location.root_id] = self._live_per_root.get(location.root_id, 0) + by

    def _drop_root(self, root_id: int) -> None:
        self._flooded.add(root_id)
        self._waiting = {at: dirty for at, dirty in self._waiting.items() if at.root_id != root_id}
        self._heap = [(dirty.due_at, at) for at, dirty in self._waiting.items()]
        heapq.heapify(self._heap)
        self._live_per_root[root_id] = 0
