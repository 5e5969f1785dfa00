"""The publisher: moves events from the outbox to the sink in the outbox's order, and marks what was confirmed.

It opens the sink again whenever it is lost, after a delay; nothing it does or suffers stops the intake. An event leaves
the outbox's pending rows only when the sink has confirmed it, or is set aside there, with its reason, for a person.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import NoReturn, Protocol

import structlog
import trio

from trackwatch import outbox
from trackwatch.backoff import Backoff
from trackwatch.errors import BrokerRefused, BrokerUnavailable, SinkClosed
from trackwatch.event import Outcome, Outgoing, Verdict
from trackwatch.meters import Histogram
from trackwatch.record import Ledger
from trackwatch.store import LogMark, Reader, Store
from trackwatch.values import Unroutable

# Enough to keep the connection busy while confirms are on their way, little to send again when it breaks.
BATCH_EVENTS = 200
# Batches smaller than this begin so far apart: each costs a look, a commit and three thread hops, as much as a dozen
# events. (A replay's are larger, see outbox.REPLAY_BATCH.)
SMALL_BATCH, APART_S = 50, 0.025
# Rows may become pending without a commit of ours: `trackwatch replay` writes beside the daemon. Looking at the log's
# file is enough to notice; the database itself is asked as well, now and then.
POLL_S, POLL_MAX_S = 1.0, 10.0
# How soon a broker's alarm shows in status.
ALARM_LOOK_S = 1.0
# First and longest delay before trying again, of which a random part is waited: a broker that is back shall be noticed
# within two seconds, and a mended password or binding soon enough for the person who watches.
AWAY_S, REFUSED_S, HELD_S = (0.2, 1.5), (2.0, 10.0), (0.3, 1.5)
# A session that published nothing and lasted this long was a good one with nothing to do.
LASTED_S = 60.0
# Confirmed events are marked even while everything stops, if the store takes them within this.
MARK_S = 3.0
# How long events take from their record to their confirm: tens of milliseconds, or as long as the broker was away.
LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

log = structlog.get_logger()


class Sink(Protocol):
    """What takes a batch of events and returns when it has confirmed them."""

    async def publish(self, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        """Send the batch in order; put sequence -> outcome into `outcomes` as each is known.

        What has no outcome when it returns, raises or is cancelled is to be sent again.

        Raises:
            BrokerUnavailable, BrokerRefused, SinkClosed: the session is lost.
        """
        ...

    async def wait_lost(self) -> NoReturn:
        """Wait until the session is lost, then raise as `publish` does."""
        ...

    @property
    def blocked(self) -> str | None:
        """Why the other side takes nothing for now, None if it does."""
        ...


class BrokerWord(StrEnum):
    """The state of the sink in one word, the same in status, log, metrics and runbook."""

    STARTING = "starting"
    CONNECTED = "connected"
    UNAVAILABLE = "unavailable"  # comes back by itself
    REFUSED = "refused"  # a person must act
    BLOCKED = "blocked"  # the broker's alarm
    UNROUTABLE = "unroutable"  # nobody has bound a queue
    REJECTED = "rejected"  # a queue is full
    CLOSED = "closed"  # whoever read our output has gone


@dataclass(slots=True)
class BrokerState:
    """How the sink stands; written by the publisher alone."""

    since_us: int
    word: BrokerWord = BrokerWord.STARTING
    reason: str = ""
    published: int = 0  # since the start of this process
    sessions_lost: int = 0  # that had been opened
    latency: Histogram = field(default_factory=partial(Histogram, LATENCY_BOUNDS_S))  # of what was sent once


class Publisher:
    """See the module's docstring."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        open_sink: Callable[[], AbstractAsyncContextManager[Sink]],
        *,
        unroutable: Unroutable = Unroutable.HOLD,
    ) -> None:
        self.state = BrokerState(store.now_us())
        self._store = store
        self._reader = reader
        self._open_sink = open_sink
        self._unroutable = unroutable
        self._waiting_for_empty: list[trio.Event] = []
        self._waiting_for_no_new: list[trio.Event] = []
        self._held = Backoff(*HELD_S)

    async def run(self) -> None:
        """Publish until cancelled; return when the sink has gone for good."""
        away, refused = Backoff(*AWAY_S), Backoff(*REFUSED_S)
        while True:
            published = self.state.published
            try:
                async with self._open_sink() as sink:
                    self._say(BrokerWord.CONNECTED)
                    opened_at = trio.current_time()
                    try:
                        await self._keep_session(sink)
                    finally:
                        self.state.sessions_lost += 1
                        # Only a session that was of use begins the delays anew: a broker may let us in and refuse
                        # every event (no permission to write), or fall over each time.
                        if self.state.published > published or trio.current_time() - opened_at >= LASTED_S:
                            away.reset()
                            refused.reset()
            except BrokerUnavailable as error:
                delay_s = away.next_s()
                self._say(BrokerWord.UNAVAILABLE, str(error), retry_s=delay_s)
            except BrokerRefused as error:
                delay_s = refused.next_s()
                self._say(BrokerWord.REFUSED, str(error), retry_s=delay_s)
            except SinkClosed as error:
                self._say(BrokerWord.CLOSED, str(error))
                return
            await trio.sleep(delay_s)

    async def wait_empty(self, *, replays: bool = True) -> None:
        """Wait until nothing is pending that was appended before this call; without `replays`, nothing never sent."""
        empty = trio.Event()
        (self._waiting_for_empty if replays else self._waiting_for_no_new).append(empty)
        self._store.wake()
        await empty.wait()

    async def _keep_session(self, sink: Sink) -> None:
        """Publish with one sink until it is lost, then raise what ended it."""
        loss: BrokerUnavailable | BrokerRefused | SinkClosed | None = None

        async def guarded(work: Callable[[], Awaitable[NoReturn]], scope: trio.CancelScope) -> None:
            nonlocal loss
            try:
                await work()
            except (BrokerUnavailable, BrokerRefused, SinkClosed) as error:
                # The first to notice decides; events without an outcome are pending, and are sent by the next session.
                loss = loss or error
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for work in (sink.wait_lost, partial(self._watch_alarm, sink), partial(self._pump, sink)):
                nursery.start_soon(guarded, work, nursery.cancel_scope)
        if loss is not None:
            raise loss

    async def _watch_alarm(self, sink: Sink) -> NoReturn:
        while True:
            await trio.sleep(ALARM_LOOK_S)
            if sink.blocked is not None:
                self._say(BrokerWord.BLOCKED, f"{sink.blocked}; events wait here, none is lost")
            elif self.state.word is BrokerWord.BLOCKED:
                self._say(BrokerWord.CONNECTED)

    async def _pump(self, sink: Sink) -> NoReturn:
        limit, next_at = BATCH_EVENTS, -math.inf
        while True:
            await trio.sleep_until(next_at)
            committed, log_mark = self._store.next_commit(), self._store.log_mark()
            waiting, waiting_for_no_new = len(self._waiting_for_empty), len(self._waiting_for_no_new)
            if waiting_for_no_new and not await self._reader.read(outbox.has_new):
                _set_first(self._waiting_for_no_new, waiting_for_no_new)
            batch = await self._reader.read(partial(outbox.pending, limit=limit))
            if not batch:
                _set_first(self._waiting_for_empty, waiting)
                await self._wait_for_commit(committed, log_mark)
                continue
            together = one_for_each_path(batch)
            next_at = trio.current_time() + APART_S if len(together) == len(batch) < SMALL_BATCH else -math.inf
            held = await self._publish(sink, together)
            if held is None:
                limit = BATCH_EVENTS
                self._held.reset()
                if self.state.word in (BrokerWord.UNROUTABLE, BrokerWord.REJECTED):
                    self._say(BrokerWord.CONNECTED)
            else:
                # Later events must not overtake the one that is held: ask with that one alone until it goes.
                limit = 1
                self._say(*held)
                await self._hold()

    async def _hold(self) -> None:
        """Wait before asking with a held event again; but a new event does not wait for one that is sent again."""
        with trio.move_on_after(self._held.next_s()):
            while True:
                committed = self._store.next_commit()
                if await self._reader.read(outbox.has_new):
                    await trio.sleep_forever()
                await committed.wait()
                if await self._reader.read(outbox.has_new):
                    return

    async def _wait_for_commit(self, committed: trio.Event, log_mark: LogMark) -> None:
        """Return after a commit of ours, and soon after one of another process (`trackwatch replay`)."""
        with trio.move_on_after(POLL_MAX_S):
            while not committed.is_set() and self._store.log_mark() == log_mark:
                with trio.move_on_after(POLL_S):
                    await committed.wait()

    async def _publish(self, sink: Sink, batch: Sequence[Outgoing]) -> tuple[BrokerWord, str] | None:
        """Send one batch and mark its outcomes; return why some of it must be held, if so."""
        outcomes: dict[int, Outcome] = {}
        try:
            await sink.publish(batch, outcomes)
            # However long the store takes: to go on without it would send the same events again and again.
            await self._mark(batch, outcomes)
        except BaseException:
            # The session broke, or everything stops: what was confirmed need not be sent again. Marking is idempotent.
            with trio.move_on_after(MARK_S, shield=True):
                await self._mark(batch, outcomes)
            raise
        for verdict, word in _HELD.items():
            reasons = [outcome.reason for outcome in outcomes.values() if outcome.verdict is verdict]
            if reasons and (verdict is Verdict.REJECTED or self._unroutable is Unroutable.HOLD):
                return word, f"{reasons[0]}; {_REMEDIES[word]}"
        return None

    async def _mark(self, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        confirmed: list[tuple[int, int]] = []
        parked: list[tuple[int, int, str]] = []
        sent_first: list[int] = []
        for event in batch:
            outcome = outcomes.get(event.sequence)
            match outcome and outcome.verdict:
                case Verdict.CONFIRMED:
                    confirmed.append((event.sequence, event.generation))
                    if not event.generation:  # what is sent again has waited for as long as a person liked
                        sent_first.append(event.at_us)
                case Verdict.UNROUTABLE if self._unroutable is Unroutable.DROP:
                    confirmed.append((event.sequence, event.generation))
                case Verdict.UNROUTABLE if self._unroutable is Unroutable.PARK:
                    parked.append((event.sequence, event.generation, outcome.reason if outcome else ""))
                case Verdict.UNSENDABLE:
                    parked.append((event.sequence, event.generation, outcome.reason if outcome else ""))
                    log.error("event parked", sequence=event.sequence, reason=outcome.reason if outcome else "")
                case _:
                    pass  # stays pending
        if confirmed or parked:
            await self._store.write(partial(_mark, confirmed, parked))
            self.state.published += len(confirmed)
            now_us = self._store.now_us()
            for at_us in sent_first:
                self.state.latency.note(max(0, now_us - at_us) / 1e6)

    def _say(self, word: BrokerWord, reason: str = "", retry_s: float = 0.0) -> None:
        changed = self.state.word is not word
        if changed:
            self.state.since_us = self._store.now_us()
        self.state.word, self.state.reason = word, reason
        if changed:
            _tell(word, reason, retry_s)


def _tell(word: BrokerWord, reason: str, retry_s: float) -> None:
    match word:
        case BrokerWord.CONNECTED:
            log.info("broker connected")
        case BrokerWord.UNAVAILABLE:
            log.warning("broker unavailable", reason=reason, retry_s=round(retry_s, 2))
        case BrokerWord.REFUSED:
            log.error("broker refused", reason=reason, retry_s=round(retry_s, 2))
        case BrokerWord.BLOCKED:
            log.warning("broker blocked", reason=reason)
        case BrokerWord.UNROUTABLE:
            log.error("broker unroutable", reason=reason)
        case BrokerWord.REJECTED:
            log.warning("broker rejected", reason=reason)
        case _:
            pass  # starting; and whoever closed our output has done so on purpose


def _set_first(events: list[trio.Event], count: int) -> None:
    for event in events[:count]:
        event.set()
    del events[:count]


def one_for_each_path(batch: Sequence[Outgoing]) -> Sequence[Outgoing]:
    """Return the beginning of a batch up to where a path comes up again.

    The events of a batch are on their way together: one that is returned or rejected would be overtaken by later ones.
    Those must not be about its file.
    """
    seen: set[bytes] = set()
    for number, event in enumerate(batch):
        if not seen.isdisjoint(event.paths):
            return batch[:number]
        seen.update(event.paths)
    return batch


_HELD = {Verdict.UNROUTABLE: BrokerWord.UNROUTABLE, Verdict.REJECTED: BrokerWord.REJECTED}
_REMEDIES = {
    BrokerWord.UNROUTABLE: "bind one, or set TRACKWATCH_UNROUTABLE to park or drop",
    BrokerWord.REJECTED: "make its consumers keep up, or raise its limit",
}


def _mark(confirmed: Sequence[tuple[int, int]], parked: Sequence[tuple[int, int, str]], ledger: Ledger) -> None:
    outbox.confirm(ledger.conn, confirmed)
    for sequence, generation, reason in parked:
        outbox.park(ledger.conn, sequence, generation, reason)
