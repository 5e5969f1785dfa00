"""One contract for every sink: what the publisher relies on, whoever is on the other side.

`SUITE` holds the checks; each takes a `Bench`, a kind of sink together with the place where its events arrive. A fake
sink has to pass them as the real ones do.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import pytest
import trio

from trackwatch.event import CONFIRMED, EventType, Outcome, Outgoing, new_event_id
from trackwatch.publisher import Sink

PATIENCE_S = 30  # for anything that should take a moment; a slow machine is no failure
AT_US = 1_700_000_000_123_456


class Bench(Protocol):
    """A kind of sink, and where its events arrive."""

    def open(self) -> AbstractAsyncContextManager[Sink]: ...

    async def arrived(self, wanted: Iterable[bytes]) -> list[bytes]:
        """Wait until all these payloads have arrived; return everything that has so far, in order."""
        ...


def rows(count: int, *, start: int = 1, payload: Callable[[int], bytes] | None = None) -> list[Outgoing]:
    """Return rows as an outbox would hand them out, with a payload that tells one from another."""
    return [
        Outgoing(
            sequence=sequence,
            generation=0,
            event_id=new_event_id(AT_US + sequence),
            event_type=list(EventType)[sequence % len(EventType)],
            at_us=AT_US + sequence,
            payload=payload(sequence) if payload else b'{"sequence":%d,"padding":"%s"}' % (sequence, b"x" * 100),
        )
        for sequence in range(start, start + count)
    ]


async def confirms_every_row(bench: Bench) -> None:
    """A batch that is published without an error has an outcome for each row."""
    batch = rows(250)
    outcomes: dict[int, Outcome] = {}
    async with bench.open() as sink:
        await sink.publish(batch, outcomes)
    assert outcomes == {row.sequence: CONFIRMED for row in batch}


async def delivers_payloads_byte_for_byte(bench: Bench) -> None:
    """Nothing is decoded, escaped or cut on the way, up to sizes beyond any pipe or frame."""
    odd = ['{"a":"\u00e9\ufffd\U0001f3b5"}'.encode(), b"{}", b'{"a":"\\n\\u0000\\r"}', b'{"a":"%s"}' % (b"y" * 300_000)]
    batch = rows(len(odd), payload=lambda sequence: odd[sequence - 1])
    outcomes: dict[int, Outcome] = {}
    async with bench.open() as sink:
        await sink.publish(batch, outcomes)
    assert await bench.arrived(odd) == odd
    assert set(outcomes.values()) == {CONFIRMED}


async def keeps_the_order_over_batches_and_sessions(bench: Bench) -> None:
    """Rows arrive as they were given, also when another session goes on where the last one ended."""
    batch = rows(300)
    for session in (batch[:200], batch[200:]):
        async with bench.open() as sink:
            for start in range(0, len(session), 50):
                await sink.publish(session[start : start + 50], {})
    payloads = [row.payload for row in batch]
    assert await bench.arrived(payloads) == payloads


async def takes_an_empty_batch(bench: Bench) -> None:
    """Nothing to send is no error, and the session goes on."""
    outcomes: dict[int, Outcome] = {}
    async with bench.open() as sink:
        await sink.publish([], outcomes)
        assert outcomes == {}
        await sink.publish(rows(1), outcomes)
    assert outcomes == {1: CONFIRMED}


async def keeps_what_the_caller_noted_before(bench: Bench) -> None:
    """Outcomes are added to those that are there."""
    batch = rows(4)
    outcomes: dict[int, Outcome] = {}
    async with bench.open() as sink:
        await sink.publish(batch[:2], outcomes)
        await sink.publish(batch[2:], outcomes)
    assert sorted(outcomes) == [1, 2, 3, 4]


async def is_neither_lost_nor_blocked_while_all_is_well(bench: Bench) -> None:
    """`wait_lost` waits as long as the session lives, and can be cancelled."""
    ended = False

    async def watch(sink: Sink) -> None:
        nonlocal ended
        try:
            await sink.wait_lost()
        finally:
            ended = True

    async with bench.open() as sink, trio.open_nursery() as nursery:
        nursery.start_soon(watch, sink)
        await sink.publish(rows(10), {})
        assert sink.blocked is None
        assert not ended
        nursery.cancel_scope.cancel()


async def leaves_only_true_outcomes_when_cancelled(bench: Bench) -> None:
    """Whatever is marked as confirmed has arrived; the rest, sent again in another session, completes the stream."""
    batch = rows(2000)
    outcomes: dict[int, Outcome] = {}
    async with bench.open() as sink:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sink.publish, batch, outcomes)
                while not outcomes and nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    confirmed = dict(outcomes)
    assert set(confirmed.values()) <= {CONFIRMED}
    await bench.arrived(row.payload for row in batch if row.sequence in confirmed)

    rest = [row for row in batch if row.sequence not in confirmed]
    async with bench.open() as sink:
        await sink.publish(rest, outcomes)
    assert len(outcomes) == len(batch)
    # The cut may have doubled some rows, but it cannot have changed the order of their first arrivals.
    payloads = [row.payload for row in batch]
    assert list(dict.fromkeys(await bench.arrived(payloads))) == payloads


async def lets_an_error_of_its_user_out_as_it_is(bench: Bench) -> None:
    """What the body of `async with` raises is what its caller catches, a group too: no wrapping, no translation."""

    async def use(problem: Exception) -> None:
        async with bench.open() as sink:
            await sink.publish(rows(1), {})
            raise problem

    for problem in (LookupError("of the body"), ExceptionGroup("of the body", [LookupError(), ValueError()])):
        with pytest.raises(type(problem)) as caught:
            await use(problem)
        assert caught.value is problem


Check: TypeAlias = Callable[[Bench], Awaitable[None]]

SUITE: tuple[Check, ...] = (
    confirms_every_row,
    delivers_payloads_byte_for_byte,
    keeps_the_order_over_batches_and_sessions,
    takes_an_empty_batch,
    keeps_what_the_caller_noted_before,
    is_neither_lost_nor_blocked_while_all_is_well,
    leaves_only_true_outcomes_when_cancelled,
    lets_an_error_of_its_user_out_as_it_is,
)
