"""The dirty set against a model that is too simple to be wrong: no path in two hands, none lost, none too early."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trackwatch.settle import UNKNOWN_WRITER_QUIET_S, DirtySet, Due, Rest
from trackwatch.track import Location

# Binary fractions: sums of them are exact, and "not before" can be tested to the instant.
QUIET_S, CEILING_S = 0.25, 4.0
LATER_S = 0.05
LOCATIONS = [Location(root, name) for root in (1, 2) for name in (b"a", b"b", b"c")]

locations = st.sampled_from(LOCATIONS)
steps = st.one_of(st.integers(0, 8), st.integers(0, 64)).map(lambda eighths: eighths / 8)


class SettleMachine(RuleBasedStateMachine):
    """What is owed: paths that were hinted or found, and not looked at since."""

    def __init__(self) -> None:
        super().__init__()
        self.dirty = DirtySet(quiet_s=QUIET_S, ceiling_s=CEILING_S)
        self.now = 0.0
        self.owed: set[Location] = set()
        self.live: set[Location] = set()  # those of the owed that were hinted, not merely found
        self.heard_at: dict[Location, float] = {}  # the last hint
        self.held: dict[Location, Due] = {}

    @rule(step=steps)
    def time_passes(self, step: float) -> None:
        self.now += step

    @rule(location=locations)
    def hint(self, location: Location) -> None:
        self.dirty.hint(location, self.now)
        self.owed.add(location)
        self.live.add(location)
        self.heard_at[location] = self.now

    @rule(found=st.lists(locations))
    def sweep_finds(self, found: list[Location]) -> None:
        self.dirty.bulk(found, self.now)
        self.owed.update(found)
        for location in found:
            if location in self.held:
                # It comes back live when it is finished, and no quiet is owed for it: nothing was heard just now.
                self.live.add(location)
                self.heard_at.setdefault(location, -QUIET_S)

    @rule(limit=st.integers(0, 8), bulk=st.booleans())
    def take(self, limit: int, bulk: bool) -> None:
        taken = self.dirty.take_due(self.now, limit, bulk=bulk)
        assert len(taken) <= limit
        lanes = [due.is_live for due in taken]
        assert lanes == sorted(lanes, reverse=True), "live ones go first"
        for due in taken:
            assert due.location not in self.held, "in two hands"
            assert due.location in self.owed, "nobody asked for it"
            assert due.is_live == (due.location in self.live)
            assert due.is_live or bulk
            if due.is_live and not due.at_ceiling:
                assert self.now - self.heard_at[due.location] >= QUIET_S, "too early"
            assert due.is_live or not due.at_ceiling, "waiting in the bulk lane is no change"
            self.owed.discard(due.location)
            self.live.discard(due.location)
            self.held[due.location] = due

    @precondition(lambda self: self.held)
    @rule(data=st.data(), rest=st.sampled_from(Rest))
    def finish(self, data: st.DataObject, rest: Rest) -> None:
        location = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[location]
        self.dirty.finished(location, rest, self.now)
        if rest is not Rest.DONE:
            self.owed.add(location)
            self.live.add(location)
            # Nobody heard of it, if it came from the bulk lane: then no quiet is owed.
            self.heard_at.setdefault(location, -QUIET_S)
            if rest is Rest.MOVED_ON:
                self.heard_at[location] = self.now

    @invariant()
    def hands_are_known(self) -> None:
        assert {location for location in LOCATIONS if self.dirty.is_in_hand(location)} == self.held.keys()

    @invariant()
    def what_is_owed_waits(self) -> None:
        statistics = self.dirty.statistics()
        waiting = self.owed - self.held.keys()
        assert statistics.live == len(waiting & self.live)
        assert statistics.bulk == len(waiting - self.live)
        assert statistics.in_hand == len(self.held)
        assert statistics.bulk_in_hand == sum(not due.is_live for due in self.held.values())

    @invariant()
    def the_next_moment_is_known_and_near(self) -> None:
        due_at = self.dirty.next_due_at()
        waiting = self.owed - self.held.keys()
        assert (due_at is None) == (not waiting)
        if due_at is not None:
            assert due_at <= self.now + max(UNKNOWN_WRITER_QUIET_S, QUIET_S, LATER_S)

    def teardown(self) -> None:
        """Whatever was asked for is taken in the end, within the ceiling, even if hints never stop."""
        for location in sorted(self.held):
            self.dirty.finished(location, Rest.DONE, self.now)
        until = self.now + CEILING_S
        while self.now < until:
            for location in sorted(self.live):
                self.dirty.hint(location, self.now)
            self.now += QUIET_S / 2
            for due in self.dirty.take_due(self.now, len(LOCATIONS)):
                self.owed.discard(due.location)
                self.live.discard(due.location)
                self.dirty.finished(due.location, Rest.DONE, self.now)
        assert not self.owed
        assert self.dirty.next_due_at() is None


TestSettle = SettleMachine.TestCase
TestSettle.settings = settings(max_examples=80, stateful_step_count=30)
