"""The ledger and the outbox as one state machine, on a real database that crashes and is opened again.

Beside it runs a model that shares no code with it: a list of events, each with the state that it must be in. Whatever
happens in whatever order (commits that fail, full disks, kills, batches that break off, late confirms, parkings,
replays, pruning, a clock that jumps): the two agree after each step, no event changes, there is no gap, and folding all
events gives the catalogue, as does folding what consumers have got together with what is still to come.
"""

import json
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from enum import Enum
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trackwatch import catalogue, outbox
from trackwatch.database import open_for_writing
from trackwatch.errors import StoreBusy
from trackwatch.event import MetadataForm, Outgoing
from trackwatch.record import Absent, Change, Ledger, Linked, Moved, Present, Unreadable
from trackwatch.store import Store, _Request
from trackwatch.track import Location, Metadata, Observation, Signature

NOW_US = 1_795_000_000_000_000
DAY_US = 86_400_000_000
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


class State(Enum):
    """Where an event must be, as the model has it."""

    NEW = "waits, and was never sent"
    AGAIN = "waits, to be sent again"
    PARKED = "is set aside"
    PUBLISHED = "is published, and kept"
    PRUNED = "is published, and forgotten"


WAITING = (State.NEW, State.AGAIN)


@dataclass
class Modelled:
    """One event of the model. `sending` is another one after each replay: confirms of earlier ones must not fit."""

    event_id: bytes
    payload: bytes
    at_us: int
    paths: frozenset[bytes]
    state: State = State.NEW
    sending: int = 0


class Sent(NamedTuple):
    """A copy of an event on its way, with the sending that it belongs to."""

    event: Outgoing
    sending: int

    @property
    def pair(self) -> tuple[int, int]:
        """What a confirm is marked by."""
        return self.event.sequence, self.event.generation


class OutboxMachine(RuleBasedStateMachine):
    """What the daemon, its publisher, an operator and a failing machine do to one state."""

    def __init__(self) -> None:
        super().__init__()
        self.folders = [Path(tempfile.mkdtemp(prefix="trackwatch-"))]
        self.now_us = NOW_US
        self.model: dict[int, Modelled] = {}
        self.delivered: dict[int, bytes] = {}  # first copies, in the order of their delivery
        self.taken: list[Sent] = []  # on their way, not confirmed
        self.earlier: list[Sent] = []  # delivered by earlier batches, whose confirms may still come
        self.overtaken: set[int] = set()  # were parked once: later ones may come first
        self.open()
        self.write(lambda ledger: ledger.claim_roots((b"/music", b"/more")))

    @property
    def path(self) -> Path:
        """Where the database is; after a kill, where its files were when that came."""
        return self.folders[-1] / "trackwatch.db"

    def tick(self) -> int:
        """Return what the wall clock says, a millisecond later each time."""
        self.now_us += 1000
        return self.now_us

    def open(self) -> None:
        """Open the state as a start of the daemon does."""
        self.conn = open_for_writing(self.path)
        self.conn.execute("PRAGMA synchronous = OFF")  # processes crash here, not machines
        self.ledger = Ledger(self.conn, "here", MetadataForm.STRUCTURED, self.tick)
        self.ledger.next_sequence = outbox.last_sequence(self.conn) + 1
        self.ledger.roots = {root.id: root for root in catalogue.roots(self.conn)}
        self.store = Store(self.path, self.conn, self.ledger)
        self.taken = []

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.conn.close()
        for folder in self.folders:
            shutil.rmtree(folder)

    def write(self, *works: Any) -> list[_Request]:
        """Do pieces of work in one commit, as the store's writer does, and learn which events came of them."""
        requests = [_Request(work) for work in works]
        self.store._apply(requests)
        for seq, event_id, payload, at_us, *paths in self.conn.execute(
            "SELECT seq, event_id, payload, created_us, path, old_path FROM outbox WHERE seq > ?", (len(self.model),)
        ):
            names = frozenset(path for path in paths if path is not None)
            self.model[seq] = Modelled(event_id, payload, at_us, names)
        return requests

    def those(self, *states: State) -> list[int]:
        """Return the sequences of the model's events in some states."""
        return [seq for seq, event in self.model.items() if event.state in states]

    # The intake

    @rule(changes=st.lists(st.tuples(CHANGES, st.sampled_from([0, 0, 0, -1, 1])), min_size=1, max_size=6))
    def record(self, changes: list[tuple[Change, int]]) -> None:
        """Several workers' changes in one commit, while somebody sets the clock, by days."""

        def record(change: Change, days: int, ledger: Ledger) -> bool:
            self.now_us += days * DAY_US
            return ledger.record(change)

        for request in self.write(*(partial(record, *change) for change in changes)):
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
    def record_on_a_full_disk(self, changes: list[Change]) -> None:
        """There is room for some of it; nothing of it has happened, and the same is done when there is more room."""
        works: list[Any] = [lambda ledger, change=change: ledger.record(change) for change in changes]
        pages = self.conn.execute("PRAGMA page_count").fetchone()[0]
        self.conn.execute(f"PRAGMA max_page_count = {pages + 1}")
        big = "INSERT OR REPLACE INTO setting VALUES ('big', zeroblob(50000) || 'text')"
        try:
            self.write(*works, lambda ledger: ledger.conn.execute(big))
        except StoreBusy as error:
            assert "make room on its disk" in str(error)  # noqa: PT017 - there may be room in what pruning has freed
        finally:
            self.conn.execute(f"PRAGMA max_page_count = {1 << 30}")
        self.no_event_has_changed_and_none_is_missing()
        self.write(*works)

    @rule(how=st.sampled_from(["stopped", "killed", "killed in a transaction"]), change=CHANGES)
    def end(self, how: str, change: Change) -> None:
        """Stop and start again; what is on its way may arrive, or have been confirmed, and nobody here knows."""
        self.earlier += self.taken
        if how == "killed in a transaction":
            # None of it has happened, though some of it reaches the log.
            self.conn.execute("PRAGMA cache_spill = 1")
            self.conn.execute("PRAGMA cache_size = 1")
            self.conn.execute("BEGIN IMMEDIATE")
            self.ledger.record(change)
            outbox.replay(self.conn, list(self.model)[:3])
            outbox.confirm(self.conn, [sent.pair for sent in self.taken])
            outbox.prune(self.conn, self.now_us, 5)
        if how != "stopped":
            # What is on the disk at this moment is what the next start finds.
            fresh = Path(tempfile.mkdtemp(prefix="trackwatch-"))
            for file in self.folders[-1].iterdir():
                if not file.name.endswith("-shm"):  # memory, which dies with the process
                    shutil.copy(file, fresh)
            self.folders.append(fresh)
        self.conn.close()
        self.open()

    # The publisher

    @precondition(lambda self: not self.taken)
    @rule(limit=st.sampled_from([1, 2, 5, 10, 20]), arrive=st.sampled_from([20, 20, 5, 1, 0]))
    def send(self, limit: int, arrive: int) -> None:
        """Take a batch; some of it arrives before the session breaks."""
        batch = outbox.pending(self.conn, limit)
        assert len(batch) <= limit
        self.check_order([event.sequence for event in batch])
        self.taken = [Sent(event, self.model[event.sequence].sending) for event in batch[:arrive]]
        for event, _ in self.taken:
            modelled = self.model[event.sequence]
            assert (event.event_id.bytes, event.payload) == (modelled.event_id, modelled.payload)
            assert frozenset(event.paths) == modelled.paths
            if event.sequence not in self.delivered:
                assert event.sequence in self.overtaken or all(
                    event.sequence > other for other in self.delivered if other not in self.overtaken
                )
                self.delivered[event.sequence] = event.payload

    def check_order(self, batch: list[int]) -> None:
        """Check that a batch holds what waits: new ones strictly in order, nothing before its file's earlier one."""
        waiting = set(self.those(*WAITING))
        assert batch or not waiting
        assert waiting.issuperset(batch)
        assert len(set(batch)) == len(batch)
        new = [seq for seq in batch if self.model[seq].state is State.NEW]
        assert new == sorted(self.those(State.NEW))[: len(new)], "a new event is left out, or comes too early"
        gone: set[int] = set()
        for seq in batch:
            earlier = {other for other in waiting if other < seq and self.model[other].paths & self.model[seq].paths}
            assert earlier <= gone, "an event overtakes one of its file"
            gone.add(seq)

    @precondition(lambda self: not self.taken)
    @rule(limit=st.sampled_from([5, 20]), data=st.data())
    def publish(self, limit: int, data: st.DataObject) -> None:
        """What nearly always happens."""
        self.send(limit, limit)
        if self.taken:
            self.confirm(data)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        """All of the batch, some of it or none, in any order; the rest is sent again."""
        some = st.lists(st.sampled_from(self.taken), unique=True)
        self.mark(data.draw(st.one_of(st.just(self.taken), st.permutations(self.taken), some)))
        self.earlier += self.taken
        self.taken = []

    @precondition(lambda self: self.earlier)
    @rule(data=st.data())
    def confirm_late(self, data: st.DataObject) -> None:
        """Confirms that were given up come true after all, or come twice."""
        self.mark(data.draw(st.one_of(st.just(self.earlier[-5:]), st.lists(st.sampled_from(self.earlier), max_size=4))))

    def mark(self, confirmed: list[Sent]) -> None:
        """Mark copies as published; one that was replayed after it was taken stays where it is."""
        self.write(lambda ledger: outbox.confirm(ledger.conn, [sent.pair for sent in confirmed]))
        for event, sending in confirmed:
            modelled = self.model[event.sequence]
            if modelled.sending == sending and modelled.state is not State.PRUNED:
                modelled.state = State.PUBLISHED

    @precondition(lambda self: not self.taken)
    @rule(back=st.integers(0, 3))
    def park(self, back: int) -> None:
        """One of the next events cannot be sent."""
        batch = outbox.pending(self.conn, back + 1)
        if batch:
            event = batch[-1]
            self.write(lambda ledger: outbox.park(ledger.conn, event.sequence, event.generation, "cannot be sent"))
            self.model[event.sequence].state = State.PARKED
            self.overtaken.add(event.sequence)

    @precondition(lambda self: self.earlier)
    @rule(data=st.data())
    def park_late(self, data: st.DataObject) -> None:
        """A refusal that belongs to an earlier sending, or to what is published by now, says nothing."""
        event, sending = data.draw(st.sampled_from(self.earlier))
        self.write(lambda ledger: outbox.park(ledger.conn, event.sequence, event.generation, "late"))
        modelled = self.model[event.sequence]
        if modelled.sending == sending and modelled.state in (*WAITING, State.PARKED):
            modelled.state = State.PARKED
            self.overtaken.add(event.sequence)

    # The operator, and time

    @precondition(lambda self: self.model)
    @rule(data=st.data(), killed=st.booleans(), late=st.booleans())
    def replay(self, data: st.DataObject, killed: bool, late: bool) -> None:
        """Beside the daemon, through a connection of its own; killed before its commit, it has done nothing.

        Confirms of what was sent before may come `late`, right after it.
        """
        some = st.lists(st.sampled_from(sorted(self.model)), max_size=5, unique=True)
        sequences = data.draw(st.one_of(st.just(self.those(State.PUBLISHED)), st.just(self.those(State.PARKED)), some))
        beside = sqlite3.connect(self.path, isolation_level=None)
        beside.execute("BEGIN IMMEDIATE")
        outbox.replay(beside, sequences)
        beside.execute("ROLLBACK" if killed else "COMMIT")
        beside.close()
        for modelled in [] if killed else [self.model[seq] for seq in sequences]:
            modelled.sending += modelled.state is not State.PRUNED
            if modelled.state in (State.PUBLISHED, State.PARKED):
                modelled.state = State.AGAIN
        if late:
            self.mark(self.earlier[-20:])

    @rule(age=st.sampled_from([0, 20, 43_200_000]), limit=st.sampled_from([1, 3, 100]))
    def prune(self, age: int, limit: int) -> None:
        """Forget what is published and older than so many milliseconds, the oldest first, and no more at a time."""
        now_us = self.tick()
        before_us = now_us - age * 1000
        kept = {seq: event for seq, event in self.model.items() if event.state is not State.PRUNED}
        # What comes after a young one is young, whatever its clock said; one from the future proves nothing.
        youngest = min((seq for seq, event in kept.items() if before_us <= event.at_us <= now_us), default=1 << 62)
        may_go = {
            seq: event.at_us
            for seq, event in kept.items()
            if event.state is State.PUBLISHED and event.at_us < before_us and seq < youngest
        }
        (request,) = self.write(lambda ledger: outbox.prune(ledger.conn, before_us, limit, now_us))
        left = {seq for (seq,) in self.conn.execute("SELECT seq FROM outbox")}
        gone = kept.keys() - left
        assert gone <= may_go.keys(), "pruned what waits, is set aside, or is too young"
        assert request.result == len(gone) == min(limit, len(may_go))
        assert max((may_go[seq] for seq in gone), default=0) <= min(
            (at_us for seq, at_us in may_go.items() if seq not in gone), default=1 << 62
        ), "the oldest go first"
        for seq in gone:
            self.model[seq].state = State.PRUNED

    # What holds always

    @invariant()
    def each_event_is_where_the_model_has_it(self) -> None:
        """Nothing that waits is lost, nothing that is published waits, and what is set aside has its reason."""
        pending = self.conn.execute("SELECT seq, parked, last_error FROM outbox_pending ORDER BY seq").fetchall()
        assert [seq for seq, parked, _ in pending if not parked] == self.those(State.NEW)
        assert [seq for seq, parked, error in pending if parked and error] == self.those(State.PARKED)
        again = [seq for (seq,) in self.conn.execute("SELECT seq FROM outbox_replay ORDER BY seq")]
        assert again == self.those(State.AGAIN)
        assert set(self.those(State.PUBLISHED, State.PRUNED)) <= self.delivered.keys(), "marked, and never delivered"
        totals = outbox.totals(self.conn)
        assert totals.events == len(self.model) - len(self.those(State.PRUNED))
        assert (totals.pending, totals.parked) == (len(self.those(*WAITING)), len(self.those(State.PARKED)))
        assert totals.published == len(self.those(State.PUBLISHED))

    @invariant()
    def no_event_has_changed_and_none_is_missing(self) -> None:
        """Nor are there gaps, or numbers or ids that are used twice."""
        assert list(self.model) == list(range(1, len(self.model) + 1))
        assert outbox.last_sequence(self.conn) == len(self.model) == self.ledger.next_sequence - 1
        rows = self.conn.execute("SELECT seq, event_id, payload FROM outbox ORDER BY seq").fetchall()
        kept = {seq: event for seq, event in self.model.items() if event.state is not State.PRUNED}
        assert rows == [(seq, event.event_id, event.payload) for seq, event in kept.items()]
        assert len({event.event_id for event in self.model.values()}) == len(self.model)
        assert all(json.loads(event.payload)["sequence"] == seq for seq, event in self.model.items())

    @invariant()
    def the_folds_are_the_catalogue(self) -> None:
        """That of all events ever, and that of what consumers have together with what is still to come."""
        rows = self.conn.execute(
            "SELECT root.path, catalogue.path, sha256 FROM catalogue JOIN root ON root.id = root_id"
        ).fetchall()
        known = {(root + b"/" + path).decode("utf-8", "replace"): digest.hex() for root, path, digest in rows}
        assert fold([json.loads(event.payload) for event in self.model.values()]) == known
        to_come = {seq: self.model[seq].payload for seq in self.those(*WAITING, State.PARKED)}
        both = self.delivered | to_come
        assert fold([json.loads(both[seq]) for seq in sorted(both)]) == known


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
    max_examples=60,
    stateful_step_count=50,
)
