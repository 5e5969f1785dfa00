"""The publisher in virtual time: order, marking, backoff, and what each verdict of a sink does.

The sink is scripted; the outbox is a real database, read and written inline.
"""

import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from trackwatch import outbox
from trackwatch.backoff import Backoff
from trackwatch.errors import BrokerRefused, BrokerUnavailable, SinkClosed
from trackwatch.event import CONFIRMED, Event, EventType, MetadataForm, Outcome, Outgoing, Verdict, new_event_id
from trackwatch.publisher import (
    APART_S,
    AWAY_S,
    BATCH_EVENTS,
    HELD_S,
    LASTED_S,
    MARK_S,
    POLL_MAX_S,
    POLL_S,
    REFUSED_S,
    BrokerWord,
    Publisher,
    one_for_each_path,
)
from trackwatch.record import Ledger
from trackwatch.store import LogMark, Reader, Store
from trackwatch.values import Unroutable

T = TypeVar("T")
NOW_US = 1_795_000_000_000_000
UNROUTABLE = Outcome(Verdict.UNROUTABLE, "no queue is bound to file.created")
REJECTED = Outcome(Verdict.REJECTED, "a queue is full")
UNSENDABLE = Outcome(Verdict.UNSENDABLE, "not a message")


class InlineReader:
    """Reads in the same thread, so that virtual time does not run away."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work(self._conn)


class InlineStore:
    """Writes in the same thread; `stalled` while the disk is full."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self.ledger = Ledger(conn, "here", MetadataForm.STRUCTURED, self.now_us)
        self.writes = 0
        self.foreign_commits = 0
        self.stalled = False
        self._go_on = trio.Event()
        self._committed = trio.Event()

    async def write(self, work: Callable[[Ledger], T]) -> T:
        await trio.lowlevel.checkpoint()
        while self.stalled:
            await self._go_on.wait()
        result = work(self.ledger)
        self.writes += 1
        self.wake()
        return result

    def unstall(self) -> None:
        self.stalled = False
        self._go_on.set()

    def next_commit(self) -> trio.Event:
        return self._committed

    def log_mark(self) -> LogMark:
        return 0, self.foreign_commits

    def wake(self) -> None:
        self._committed.set()
        self._committed = trio.Event()

    def now_us(self) -> int:
        return NOW_US


def attempts(delays_s: tuple[float, float], until_s: float) -> list[float]:
    """Return when something is tried, from now on, with the delays of a backoff, drawn as long as they get."""
    backoff, moments = Backoff(*delays_s), [0.0]
    while (moment := moments[-1] + backoff.next_s()) <= until_s:
        moments.append(moment)
    return moments


# What a sink does with a batch: fills in outcomes, waits, raises.
Script = Callable[[Sequence[Outgoing], dict[int, Outcome]], Any]


async def confirm(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
    """Confirm each event."""
    await trio.lowlevel.checkpoint()
    outcomes.update({event.sequence: CONFIRMED for event in batch})


def verdicts(**by_sequence: Outcome) -> Script:
    """Confirm each event but those named (`_3=UNROUTABLE`)."""

    async def publish(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        await trio.lowlevel.checkpoint()
        outcomes.update({event.sequence: by_sequence.get(f"_{event.sequence}", CONFIRMED) for event in batch})

    return publish


@dataclass
class Bed:
    """A publisher with its outbox and the other side."""

    conn: sqlite3.Connection
    script: Script = confirm
    opening: Exception | None = None
    blocked: str | None = None
    opened: list[float] = field(default_factory=list)
    closed: int = 0
    batches: list[tuple[float, list[int]]] = field(default_factory=list)
    sent: list[Outgoing] = field(default_factory=list)
    unroutable: Unroutable = Unroutable.HOLD

    def __post_init__(self) -> None:
        self.store = InlineStore(self.conn)
        self.reader = InlineReader(self.conn)
        self.lost: list[trio.Event] = []
        self.loss: Exception = BrokerUnavailable("connection lost")
        self.publisher = Publisher(
            cast("Store", self.store), cast("Reader", self.reader), self.open, unroutable=self.unroutable
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Bed"]:
        self.opened.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.opening is not None:
            raise self.opening
        self.lost.append(trio.Event())
        try:
            yield self
        finally:
            self.closed += 1

    async def publish(self, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        self.batches.append((trio.current_time(), [event.sequence for event in batch]))
        self.sent += batch
        await self.script(batch, outcomes)

    async def wait_lost(self) -> NoReturn:
        await self.lost[-1].wait()
        raise self.loss

    def append(self, *names: str, kind: EventType = EventType.CREATED, old: str | None = None) -> None:
        """Append an event for each name, as a commit of the store does."""
        for name in names:
            sequence = outbox.last_sequence(self.conn) + 1
            event = Event(
                new_event_id(NOW_US + sequence),
                kind,
                sequence,
                NOW_US + sequence,
                "here",
                b"/music",
                name.encode(),
                None if old is None else b"/music/" + old.encode(),
            )
            outbox.append(self.conn, event, MetadataForm.STRUCTURED)
        self.store.wake()

    def append_many(self, count: int) -> None:
        """Append events of as many files."""
        self.append(*(f"{number}.mp3" for number in range(count)))

    @property
    def pending(self) -> list[int]:
        """What is still to be sent."""
        return [event.sequence for event in outbox.pending(self.conn, 10_000)]

    @property
    def word(self) -> BrokerWord:
        """How the sink stands."""
        return self.publisher.state.word


@pytest.fixture
def conn(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """A new state in memory; every backoff draws its ceiling."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    return conn


async def seconds(count: float) -> None:
    """Let virtual time pass, and what is due then be done."""
    await trio.sleep(count)
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def bed(conn: sqlite3.Connection) -> Bed:
    """A publisher that is not running yet."""
    return Bed(conn)


# ---- order and marking


async def test_events_are_sent_in_order_and_marked_a_batch_at_a_time(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """One transaction for each batch, however many events it has."""
    bed.append_many(BATCH_EVENTS + 50)
    nursery.start_soon(bed.publisher.run)
    await seconds(0)
    assert [event.sequence for event in bed.sent] == list(range(1, BATCH_EVENTS + 51))
    assert [len(batch) for _, batch in bed.batches] == [BATCH_EVENTS, 50]
    assert bed.store.writes == 2
    assert bed.pending == []
    assert bed.publisher.state.published == BATCH_EVENTS + 50
    assert bed.word is BrokerWord.CONNECTED


async def test_a_commit_is_noticed_at_once(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Not at the next poll."""
    nursery.start_soon(bed.publisher.run)
    await seconds(POLL_S * 3.5)
    bed.append("a.mp3")
    await seconds(0)
    assert bed.batches == [(POLL_S * 3.5, [1])]


@pytest.mark.parametrize(("shows", "within_s"), [(True, POLL_S), (False, POLL_MAX_S)])
async def test_what_is_replayed_by_another_process_is_noticed(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, shows: bool, within_s: float
) -> None:
    """Nobody tells us, but the log nearly always shows it; the event goes out under its own id."""
    bed.append("a.mp3", "b.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(0.5)
    outbox.replay(bed.conn, [2])
    bed.store.foreign_commits += shows
    await seconds(within_s)
    (first, second, again) = bed.sent
    assert [first.sequence, second.sequence, again.sequence] == [1, 2, 2]
    assert (second.event_id, second.payload) == (again.event_id, again.payload)
    assert bed.pending == []


async def test_a_replay_while_the_event_is_on_its_way_sends_it_again(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The confirm of the first sending is void."""

    async def slow(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        await trio.sleep(1)
        await confirm(batch, outcomes)

    bed.script = slow
    bed.append("a.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(0.5)
    outbox.replay(bed.conn, [1])
    await seconds(3)
    assert [batch for _, batch in bed.batches] == [[1], [1]]
    assert bed.pending == []


async def test_two_events_of_one_file_are_never_on_their_way_together(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The first might come back, and the second have overtaken it."""
    bed.append("a.mp3", "b.mp3", "a.mp3", "c.mp3")
    bed.append("d.mp3", kind=EventType.RENAMED, old="c.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(0)
    assert [batch for _, batch in bed.batches] == [[1, 2], [3, 4], [5]]


def test_a_batch_ends_where_a_path_comes_up_again(bed: Bed) -> None:
    """Old names of moves count."""
    bed.append("a.mp3", "b.mp3")
    bed.append("c.mp3", kind=EventType.MOVED, old="a.mp3")
    bed.append("a.mp3")
    batch = outbox.pending(bed.conn, 10)
    assert [event.sequence for event in one_for_each_path(batch)] == [1, 2]
    assert [event.sequence for event in one_for_each_path(batch[1:])] == [2, 3]
    assert one_for_each_path(batch[:1]) == batch[:1]
    assert one_for_each_path([]) == []


async def test_while_the_store_cannot_mark_nothing_is_sent_again(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A disk that is full for an hour must not mean an hour of doubles."""
    bed.append("a.mp3")
    bed.store.stalled = True
    nursery.start_soon(bed.publisher.run)
    await seconds(3600)
    assert len(bed.batches) == 1
    bed.store.unstall()
    await seconds(1)
    assert len(bed.batches) == 1
    assert bed.pending == []


# ---- sessions


async def test_a_broker_that_is_away_is_tried_again_with_longer_and_longer_delays(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Up to one that nobody minds; then everything goes out, in order."""
    bed.opening = BrokerUnavailable("connection refused")
    bed.append("a.mp3", "b.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(17)
    assert bed.opened == pytest.approx(attempts(AWAY_S, 17))
    state = bed.publisher.state
    assert (state.word, state.reason) == (BrokerWord.UNAVAILABLE, "connection refused")
    bed.opening = None
    await seconds(AWAY_S[1])
    assert [batch for _, batch in bed.batches] == [[1, 2]]
    assert bed.batches[0][0] == pytest.approx(attempts(AWAY_S, 17 + AWAY_S[1])[-1])
    assert bed.publisher.state.word is BrokerWord.CONNECTED
    assert bed.publisher.state.reason == ""


async def test_a_broker_that_refuses_us_is_asked_slowly(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A person has to act."""
    bed.opening = BrokerRefused("wrong password")
    nursery.start_soon(bed.publisher.run)
    await seconds(200)
    assert bed.opened == pytest.approx(attempts(REFUSED_S, 200))
    assert bed.word is BrokerWord.REFUSED


async def test_the_log_tells_a_change_once(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Not each try."""
    bed.opening = BrokerUnavailable("connection refused")
    with capture_logs() as logs:
        nursery.start_soon(bed.publisher.run)
        await seconds(60)
        bed.opening = BrokerRefused("wrong password")
        await seconds(60)
        bed.opening = None
        await seconds(60)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("broker unavailable", "warning"),
        ("broker refused", "error"),
        ("broker connected", "info"),
    ]


async def test_a_session_that_is_lost_begins_again_at_its_first_unconfirmed_event(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """What was confirmed before it broke is marked, also behind a gap."""

    async def breaks(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        outcomes.update({1: CONFIRMED, 2: CONFIRMED, 4: CONFIRMED})
        bed.script = confirm
        raise BrokerUnavailable("connection reset")

    bed.script = breaks
    bed.append("a.mp3", "b.mp3", "c.mp3", "d.mp3", "e.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(0)
    assert bed.pending == [3, 5]
    assert bed.word is BrokerWord.UNAVAILABLE
    await seconds(1)
    assert [batch for _, batch in bed.batches] == [[1, 2, 3, 4, 5], [3, 5]]
    assert [at for at, _ in bed.batches] == pytest.approx([0, 0.2])
    assert bed.pending == []
    assert bed.closed == 1


async def test_a_session_that_is_lost_while_idle_is_opened_again(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing has to be sent for it to be noticed."""
    nursery.start_soon(bed.publisher.run)
    await seconds(1)
    bed.lost[0].set()
    await seconds(1)
    assert bed.opened == pytest.approx([0, 1.2])
    assert bed.closed == 1


async def test_a_session_that_is_lost_in_the_middle_of_a_batch_keeps_what_was_confirmed(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The sink is cancelled where it waits."""

    async def waits(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        outcomes[1] = CONFIRMED
        await trio.sleep_forever()

    bed.script = waits
    bed.append("a.mp3", "b.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(1)
    bed.script = confirm
    bed.lost[0].set()
    await seconds(1)
    assert [batch for _, batch in bed.batches] == [[1, 2], [2]]
    assert [at for at, _ in bed.batches] == pytest.approx([0, 1.2])
    assert bed.pending == []


async def test_a_session_that_never_publishes_does_not_begin_the_delays_anew(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A broker may let us in and refuse each event (no permission to write): no storm of log-ins."""

    async def refuses(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        raise BrokerRefused("no permission to write")

    bed.script = refuses
    bed.append("a.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(200)
    assert bed.opened == pytest.approx(attempts(REFUSED_S, 200))


@pytest.mark.parametrize("good", ["published", "lasted"])
async def test_a_good_session_begins_the_delays_anew(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, good: str
) -> None:
    """It published something, or was there for a minute with nothing to do."""
    bed.opening = BrokerUnavailable("connection refused")
    nursery.start_soon(bed.publisher.run)
    await seconds(10)
    bed.opening = None
    if good == "published":
        bed.append("a.mp3")
    await seconds(2)
    assert bed.opened[-1] == pytest.approx(attempts(AWAY_S, 10 + AWAY_S[1])[-1])
    if good == "lasted":
        await seconds(LASTED_S)
    lost_at = trio.current_time()
    bed.lost[0].set()
    await seconds(3)
    assert bed.opened[-1] == pytest.approx(lost_at + AWAY_S[0])


async def test_a_sink_that_is_closed_for_good_ends_the_publisher(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    """Quietly; what was not read stays pending."""

    async def closed(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        outcomes[1] = CONFIRMED
        raise SinkClosed("nobody reads our output")

    bed.script = closed
    bed.append("a.mp3", "b.mp3")
    await bed.publisher.run()
    assert bed.word is BrokerWord.CLOSED
    assert bed.pending == [2]


async def test_an_unknown_exception_is_not_swallowed(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    """A bug ends the daemon with its traceback."""

    async def bug(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        raise ZeroDivisionError

    bed.script = bug
    bed.append("a.mp3")
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await bed.publisher.run()


# ---- verdicts


async def test_while_an_event_is_held_nothing_later_is_sent(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """It is asked for alone, slower and slower, and all goes on once somebody has bound a queue."""
    bed.script = verdicts(_1=UNROUTABLE)
    bed.append("a.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(0)
    bed.append("b.mp3", "c.mp3")
    await seconds(40)
    assert [batch for _, batch in bed.batches] == [[1]] * len(bed.batches)
    assert [at for at, _ in bed.batches] == pytest.approx(attempts(HELD_S, 40))
    assert bed.word is BrokerWord.UNROUTABLE
    assert bed.publisher.state.reason == (
        "no queue is bound to file.created; bind one, or set TRACKWATCH_UNROUTABLE to park or drop"
    )
    bed.script = confirm
    await seconds(10)
    assert [batch for _, batch in bed.batches[-2:]] == [[1], [2, 3]]
    assert bed.pending == []
    assert bed.publisher.state.word is BrokerWord.CONNECTED


async def test_what_was_confirmed_beside_a_held_event_is_not_sent_again(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """They were on their way together, and are about other files."""
    bed.script = verdicts(_2=UNROUTABLE)
    bed.append("a.mp3", "b.mp3", "c.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(5)
    assert bed.pending == [2]
    assert [batch for _, batch in bed.batches] == [[1, 2, 3], *[[2]] * (len(attempts(HELD_S, 5)) - 1)]


async def test_held_events_begin_their_delays_anew(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Each trouble is a new one."""
    bed.script = verdicts(_1=REJECTED, _2=REJECTED)
    bed.append("a.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(10)
    bed.script = verdicts(_2=REJECTED)
    await seconds(10)
    assert bed.pending == []
    bed.append("b.mp3")
    start = trio.current_time()
    await seconds(2)
    assert [at - start for at, batch in bed.batches if batch == [2]] == pytest.approx(attempts(HELD_S, 2))


async def test_a_full_queue_is_waited_for(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever is done about unroutable events; the word says what is the matter."""
    bed.script = verdicts(_1=REJECTED)
    bed.append("a.mp3", "b.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(2)
    assert bed.word is BrokerWord.REJECTED
    assert "make its consumers keep up" in bed.publisher.state.reason
    assert bed.pending == [1]
    bed.script = confirm
    await seconds(5)
    assert bed.pending == []
    assert bed.publisher.state.word is BrokerWord.CONNECTED


@pytest.mark.parametrize("policy", [Unroutable.PARK, Unroutable.DROP])
async def test_unroutable_events_are_set_aside_or_dropped_if_so_wished(
    conn: sqlite3.Connection, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, policy: Unroutable
) -> None:
    """Later ones go on at once; a parked one comes back by a replay."""
    bed = Bed(conn, verdicts(_1=UNROUTABLE), unroutable=policy)
    bed.append("a.mp3", "b.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(0)
    bed.append("a.mp3")
    await seconds(APART_S)
    assert [batch for _, batch in bed.batches] == [[1, 2], [3]]
    totals = outbox.totals(conn)
    assert (totals.pending, totals.parked) == (0, 1 if policy is Unroutable.PARK else 0)
    assert bed.word is BrokerWord.CONNECTED
    if policy is Unroutable.PARK:
        assert conn.execute("SELECT last_error FROM outbox_pending").fetchone() == (UNROUTABLE.reason,)
        bed.script = confirm
        outbox.replay(conn, [1])
        bed.store.foreign_commits += 1
        await seconds(POLL_S)
        assert outbox.totals(conn).parked == 0
        assert bed.sent[-1].sequence == 1


async def test_a_full_queue_holds_even_where_unroutable_events_are_dropped(
    conn: sqlite3.Connection, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """That it is full will pass."""
    bed = Bed(conn, verdicts(_1=UNROUTABLE, _2=REJECTED), unroutable=Unroutable.DROP)
    bed.append("a.mp3", "b.mp3")
    nursery.start_soon(bed.publisher.run)
    await seconds(1)
    assert bed.word is BrokerWord.REJECTED
    assert bed.pending == [2]


async def test_an_event_that_can_never_be_sent_is_parked_and_the_rest_goes_on(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """An operator is told; it is in nobody's way."""
    bed.script = verdicts(_1=UNSENDABLE)
    bed.append("a.mp3", "b.mp3")
    with capture_logs() as logs:
        nursery.start_soon(bed.publisher.run)
        await seconds(5)
    assert len(bed.batches) == 1
    assert outbox.totals(bed.conn).parked == 1
    parked = [entry for entry in logs if entry["event"] == "event parked"]
    assert [(entry["sequence"], entry["reason"], entry["log_level"]) for entry in parked] == [
        (1, "not a message", "error")
    ]


async def test_a_broker_s_alarm_is_told_while_it_lasts(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Publishing waits in the sink meanwhile, and nothing is lost."""
    nursery.start_soon(bed.publisher.run)
    await seconds(1)
    bed.blocked = "the broker is low on memory"
    await seconds(1)
    state = bed.publisher.state
    assert (state.word, state.reason) == (
        BrokerWord.BLOCKED,
        "the broker is low on memory; events wait here, none is lost",
    )
    bed.blocked = None
    await seconds(1)
    assert bed.publisher.state.word is BrokerWord.CONNECTED


# ---- the end


async def test_waiting_for_empty_ends_when_all_is_confirmed(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Not before; at once when there is nothing."""

    async def slow(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        await trio.sleep(5)
        await confirm(batch, outcomes)

    nursery.start_soon(bed.publisher.run)
    await bed.publisher.wait_empty()
    assert trio.current_time() < POLL_S
    bed.script = slow
    bed.append("a.mp3")
    start = trio.current_time()
    await bed.publisher.wait_empty()
    assert trio.current_time() - start == pytest.approx(5)
    assert bed.pending == []


async def test_what_is_sent_again_is_waited_for_only_where_that_is_wanted(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A stop does not wait for a large replay, `run --once` does."""

    async def slow(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        await trio.sleep(5)
        await confirm(batch, outcomes)

    bed.append_many(150)
    nursery.start_soon(bed.publisher.run)
    await bed.publisher.wait_empty()
    outbox.replay(bed.conn, range(1, 151))
    bed.script = slow
    await bed.publisher.wait_empty(replays=False)
    assert len(bed.pending) == 150
    await seconds(1)
    bed.append("new.mp3")
    start = trio.current_time()
    await bed.publisher.wait_empty(replays=False)
    assert trio.current_time() - start == pytest.approx(9), "the batch under way, and its own"
    await bed.publisher.wait_empty()
    assert bed.pending == []


async def test_a_new_event_is_in_the_batch_after_the_one_under_way_however_large_a_replay_is(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """And what is sent again of its own file goes with it, before it."""

    async def slow(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        await trio.sleep(1)
        await confirm(batch, outcomes)

    bed.append_many(1000)
    nursery.start_soon(bed.publisher.run)
    await bed.publisher.wait_empty()
    bed.batches.clear()
    bed.script = slow
    outbox.replay(bed.conn, range(1, 1001))
    bed.store.wake()
    await seconds(0.5)
    bed.append("new.mp3")
    bed.append("998.mp3", kind=EventType.MODIFIED)
    await seconds(3)
    (_, first), (_, second), (_, third), *_ = bed.batches
    assert first[:2] == [1, 2]
    assert second == [999, 1001], "a batch ends where a path comes up again"
    assert third[0] == 1002


async def test_a_new_event_does_not_wait_for_a_held_one_that_is_sent_again(
    bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody wants deletions any more; what is created is told at once all the same."""
    bed.append("a.mp3", kind=EventType.DELETED)
    nursery.start_soon(bed.publisher.run)
    await bed.publisher.wait_empty()
    bed.script = verdicts(_1=UNROUTABLE)
    outbox.replay(bed.conn, [1])
    bed.store.wake()
    await seconds(30)
    words = [bed.word]
    bed.append("new.mp3")
    await seconds(0)
    assert bed.pending == [1]
    bed.script = confirm
    await seconds(11)
    assert bed.pending == []
    assert [*words, bed.word] == [BrokerWord.UNROUTABLE, BrokerWord.CONNECTED]


async def test_parked_events_are_not_waited_for(
    conn: sqlite3.Connection, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """They wait for a person."""
    bed = Bed(conn, verdicts(_1=UNROUTABLE), unroutable=Unroutable.PARK)
    bed.append("a.mp3")
    nursery.start_soon(bed.publisher.run)
    with trio.fail_after(1):
        await bed.publisher.wait_empty()


async def test_two_may_wait_for_empty(bed: Bed, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """None of them for ever."""
    nursery.start_soon(bed.publisher.run)
    with trio.fail_after(10):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(bed.publisher.wait_empty)
            waiting.start_soon(bed.publisher.wait_empty)


async def test_a_cancelled_publisher_marks_what_was_confirmed(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    """In the middle of a batch, so that it is not sent again at the next start."""

    async def waits(batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        outcomes.update({1: CONFIRMED, 2: CONFIRMED})
        await trio.sleep_forever()

    bed.script = waits
    bed.append("a.mp3", "b.mp3", "c.mp3")
    with trio.move_on_after(1):
        await bed.publisher.run()
    assert bed.pending == [3]
    assert bed.closed == 1


async def test_a_cancelled_publisher_does_not_wait_for_a_stalled_store(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    """Not longer than agreed; the events are sent again at the next start, under their old ids."""
    bed.append("a.mp3")
    bed.store.stalled = True
    with trio.move_on_after(1):
        await bed.publisher.run()
    assert trio.current_time() == pytest.approx(1 + MARK_S)
    assert bed.pending == [1]


async def test_small_batches_are_sent_apart_so_that_what_comes_meanwhile_shares_one(
    conn: sqlite3.Connection, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The first one at once."""
    bed = Bed(conn, confirm)
    nursery.start_soon(bed.publisher.run)
    await seconds(1)
    bed.append("a.mp3")
    await seconds(0)
    bed.append("b.mp3")
    await seconds(0)
    bed.append("c.mp3")
    await seconds(0)
    assert [batch for _, batch in bed.batches] == [[1]]
    await seconds(APART_S)
    assert [batch for _, batch in bed.batches] == [[1], [2, 3]]
