"""The ledger and the outbox as one state machine, on a real database that crashes and is opened again.

Whatever happens in whatever order: each recorded event is published, pending or visibly parked; it never changes; there
is no gap; and folding what consumers have got and what is still to come gives the catalogue.
"""

import json
import shutil
import sqlite3
import tempfile
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trackwatch import catalogue, outbox
from trackwatch.event import MetadataForm, Outgoing
from trackwatch.record import Absent, Change, Ledger, Linked, Moved, Present, Unreadable
from trackwatch.store import Store, _open_for_writing, _Request
from trackwatch.track import Location, Metadata, Observation, Signature

NOW_US = 1_795_000_000_000_000
PATHS = st.sampled_from([b"a.mp3", b"b.mp3", b"d/a.mp3", b"d/b.mp3", b"d.mp3", b"\xff.mp3"])
LOCATIONS = st.builds(Location, st.sampled_from([1, 2]), PATHS)
CONTENTS = st.sampled_from([b"one", b"two", b"six", b"four"])
INODES = st.sampled_from([1, 2, (1 << 64) - 1])
SIGNATURES = st.builds(Signature, st.just(5), INODES, st.sampled_from([3, 4]), st.just(10), st.integers(0, 3))


def digests(content: bytes) -> tuple[bytes, bytes]:
    """Return both hashes of a content."""
    return sha256(content).digest(), sha256(content).digest()[:16]


def described(location: Location, content: bytes, inode: int, ctime_ns: int) -> Present:
    """Return the change that a file with this content is."""
    metadata = Metadata("audio/mpeg", tags={"title": content.decode()})
    signature = Signature(5, inode, len(content), 10, ctime_ns)
    return Present(location, Observation(signature, *digests(content), metadata))


CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(described, LOCATIONS, CONTENTS, INODES, st.integers(0, 3)),
    st.builds(Absent, LOCATIONS),
    st.builds(Moved, LOCATIONS, LOCATIONS, SIGNATURES),
    st.builds(
        Moved, LOCATIONS, LOCATIONS, SIGNATURES, CONTENTS.map(lambda content: digests(content)[0])
    ),
    st.builds(Linked, LOCATIONS, LOCATIONS, SIGNATURES),
    st.builds(Unreadable, LOCATIONS, st.just("denied")),
)  # fmt: skip


class Broken(Exception):
    """A piece of work that fails after it has recorded something."""


class OutboxMachine(RuleBasedStateMachine):
    """What the daemon, its publisher, an operator and a failing machine do to one state."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="trackwatch-"))
        self.clock = count(NOW_US, 1000)
        self.recorded: dict[int, tuple[bytes, bytes]] = {}  # sequence -> id and payload, of all that was committed
        self.delivered: dict[int, tuple[bytes, bytes]] = {}  # first copies, in the order of their delivery
        self.taken: list[Outgoing] = []  # on its way, not confirmed
        self.earlier: list[Outgoing] = []  # delivered by earlier batches, whose confirms may still come
        self.owed: set[int] = set()  # replayed, and not delivered since
        self.overtaken: set[int] = set()  # were parked once: later ones may come first
        self.open()
        self.write(lambda ledger: ledger.claim_roots((b"/music", b"/more")))

    def open(self) -> None:
        """Open the state as a start of the daemon does."""
        self.conn = _open_for_writing(self.folder / "trackwatch.db")
        self.conn.execute("PRAGMA synchronous = OFF")  # processes crash here, not machines
        self.ledger = Ledger(self.conn, "here", MetadataForm.STRUCTURED, lambda: next(self.clock))
        self.ledger.next_sequence = outbox.last_sequence(self.conn) + 1
        self.ledger.roots = {root.id: root for root in catalogue.roots(self.conn)}
        self.store = Store(self.folder / "trackwatch.db", self.conn, self.ledger)
        self.taken = []

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.conn.close()
        shutil.rmtree(self.folder)

    def write(self, *works: Any) -> list[_Request]:
        """Do pieces of work in one commit, as the store's writer does."""
        requests = [_Request(work) for work in works]
        self.store._apply(requests)
        for seq, event_id, payload in self.conn.execute("SELECT seq, event_id, payload FROM outbox"):
            self.recorded.setdefault(seq, (event_id, payload))
        return requests

    # The intake

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=6))
    def record(self, changes: list[Change]) -> None:
        """Several workers' changes in one commit."""
        for request in self.write(*(lambda ledger, change=change: ledger.record(change) for change in changes)):
            assert request.error is None

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=4), data=st.data())
    def record_what_is_known(self, changes: list[Change], data: st.DataObject) -> None:
        """Move or link a file that is known, with its signature, so that it fits."""
        entries = [
            entry
            for root_id in (1, 2)
            for path in catalogue.find_below(self.conn, Location(root_id, b""))
            if (entry := catalogue.find(self.conn, Location(root_id, path))) is not None
        ]
        if not entries:
            return
        entry = data.draw(st.sampled_from(entries))
        to = data.draw(LOCATIONS)
        kind = data.draw(st.sampled_from([Moved, Linked]))
        fitting = kind(entry.location, to, entry.signature)
        (first, *_) = self.write(
            *(lambda ledger, change=change: ledger.record(change) for change in [fitting, *changes])
        )
        assert first.result or to == entry.location

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=4), bad=st.integers(0, 3))
    def record_with_a_failing_one(self, changes: list[Change], bad: int) -> None:
        """One piece of work fails after it has recorded; the others of its commit do not."""

        def fail(ledger: Ledger) -> None:
            for change in changes:
                ledger.record(change)
            raise Broken

        works: list[Any] = [lambda ledger, change=change: ledger.record(change) for change in changes]
        works.insert(bad, fail)
        requests = self.write(*works)
        assert [type(request.error) for request in requests if request.error] == [Broken]

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=4))
    def crash_in_a_transaction(self, changes: list[Change]) -> None:
        """Killed before the commit: none of it has happened."""
        self.conn.execute("BEGIN IMMEDIATE")
        for change in changes:
            self.ledger.record(change)
        outbox.replay(self.conn, list(self.recorded)[:3])
        outbox.confirm(self.conn, [(event.sequence, event.generation) for event in self.taken])
        self.reopen()

    @rule()
    def reopen(self) -> None:
        """Killed, or stopped: what was on its way is forgotten here, and may have arrived there."""
        self.conn.close()
        self.open()

    # The publisher

    @precondition(lambda self: not self.taken)
    @rule(limit=st.integers(1, 10), arrive=st.integers(0, 10))
    def send(self, limit: int, arrive: int) -> None:
        """Take a batch; some of it arrives before the session breaks."""
        batch = outbox.pending(self.conn, limit)
        assert [event.sequence for event in batch] == sorted({event.sequence for event in batch})
        self.taken = batch[:arrive]
        for event in self.taken:
            copy = (event.event_id.bytes, event.payload)
            assert self.recorded.get(event.sequence) == copy, "delivered, but never recorded so"
            assert self.delivered.get(event.sequence, copy) == copy
            if event.sequence not in self.delivered and event.sequence not in self.overtaken:
                assert all(event.sequence > other for other in self.delivered if other not in self.overtaken)
            self.delivered[event.sequence] = copy
            self.owed.discard(event.sequence)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        """All of the batch or some of it, in any order; the rest is sent again."""
        confirmed = data.draw(st.lists(st.sampled_from(self.taken), unique=True))
        pairs = [(event.sequence, event.generation) for event in confirmed]
        self.write(lambda ledger: outbox.confirm(ledger.conn, pairs))
        self.earlier += self.taken
        self.taken = []

    @precondition(lambda self: self.earlier)
    @rule(data=st.data())
    def confirm_late(self, data: st.DataObject) -> None:
        """A confirm that was given up comes true after all."""
        event = data.draw(st.sampled_from(self.earlier))
        self.write(lambda ledger: outbox.confirm(ledger.conn, [(event.sequence, event.generation)]))

    @precondition(lambda self: not self.taken)
    @rule(back=st.integers(0, 3))
    def park(self, back: int) -> None:
        """One of the next events cannot be sent."""
        batch = outbox.pending(self.conn, back + 1)
        if batch:
            event = batch[-1]
            self.write(lambda ledger: outbox.park(ledger.conn, event.sequence, event.generation, "cannot be sent"))
            self.overtaken.add(event.sequence)
            self.owed.discard(event.sequence)

    # The operator

    @precondition(lambda self: self.recorded)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Beside the daemon, through a connection of its own."""
        sequences = data.draw(st.lists(st.sampled_from(sorted(self.recorded)), max_size=5, unique=True))
        beside = sqlite3.connect(self.folder / "trackwatch.db", isolation_level=None)
        beside.execute("BEGIN IMMEDIATE")
        kept = {seq for (seq,) in beside.execute("SELECT seq FROM outbox")}
        outbox.replay(beside, sequences)
        beside.execute("COMMIT")
        beside.close()
        self.owed |= kept & set(sequences)

    @rule(age=st.integers(0, 200), limit=st.integers(1, 20))
    def prune(self, age: int, limit: int) -> None:
        """Forget what is old."""
        self.write(lambda ledger: outbox.prune(ledger.conn, next(self.clock) - age * 1000, limit))

    # What holds always

    @invariant()
    def nothing_is_lost(self) -> None:
        """Each recorded event was delivered, or waits, or is parked with its reason."""
        rows = self.conn.execute("SELECT seq, parked, last_error FROM outbox_pending").fetchall()
        waiting = {seq for seq, _, _ in rows}
        assert all(error for _, parked, error in rows if parked)
        assert self.recorded.keys() - waiting <= self.delivered.keys()
        assert self.owed <= {seq for seq, parked, _ in rows if not parked}, "a replay was forgotten"

    @invariant()
    def events_never_change(self) -> None:
        """Nor are there gaps, or numbers that are used twice."""
        assert sorted(self.recorded) == list(range(1, len(self.recorded) + 1))
        assert outbox.last_sequence(self.conn) == len(self.recorded) == self.ledger.next_sequence - 1
        for seq, event_id, payload in self.conn.execute("SELECT seq, event_id, payload FROM outbox"):
            assert self.recorded[seq] == (event_id, payload)
        assert len({event_id for event_id, _ in self.recorded.values()}) == len(self.recorded)
        assert all(json.loads(payload)["sequence"] == seq for seq, (_, payload) in self.recorded.items())

    @invariant()
    def the_fold_is_the_catalogue(self) -> None:
        """What consumers have, together with what is still to come."""
        to_come = dict(
            self.conn.execute(
                "SELECT seq, payload FROM outbox WHERE seq IN (SELECT seq FROM outbox_pending)"
            ).fetchall()
        )
        payloads = {seq: payload for seq, (_, payload) in self.delivered.items()} | to_come
        rows = self.conn.execute(
            "SELECT root.path, catalogue.path, sha256 FROM catalogue JOIN root ON root.id = root_id"
        ).fetchall()
        known = {(root + b"/" + path).decode("utf-8", "replace"): digest.hex() for root, path, digest in rows}
        assert fold([json.loads(payloads[seq]) for seq in sorted(payloads)]) == known


def fold(events: list[dict[str, Any]]) -> dict[str, str]:
    """Return what a consumer believes after these events; it refuses what makes no sense."""
    files: dict[str, str] = {}
    for event in events:
        path, kind = event["file_path"], event["event_type"]
        if kind in ("modified", "deleted"):
            assert files[path] == event["previous"]["sha256_hash"]
        if kind in ("moved", "renamed"):
            assert files.pop(event["old_path"]) == event["sha256_hash"]
        if kind != "modified" and kind != "deleted":
            assert path not in files
        if kind == "deleted":
            del files[path]
        else:
            files[path] = event["sha256_hash"]
    return files


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,  # a slow disk is no failure
    suppress_health_check=[HealthCheck.too_slow],
)
