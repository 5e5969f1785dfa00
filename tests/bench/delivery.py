"""How fast confirmed, persistent messages get out: from the outbox, with it, beside clients that have none.

The ways, each to the same kind of queue with the same bodies, each in a process of its own:

- ours: rows of a real outbox, read, published in order, confirmed, marked as published and committed (the daemon's own
  publisher, store and session);
- session: our session alone, in batches, without an outbox;
- gather: a plain asyncio program with aio-pika that gathers 1,000 publishes at a time;
- blocking: pika's blocking connection with confirms;
- socket: frames made beforehand, written to a bare socket, confirms counted: what the node takes.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pamqp.base
import pamqp.commands
import pamqp.frame
import pika
import trio

from tests.bench import apart
from tests.bench.broker import EXCHANGE, purge
from tests.bench.measure import cpu_s
from tests.bench.run import Run
from trackwatch import outbox
from trackwatch.amqp import Broker, open_amqp
from trackwatch.event import Content, Event, EventType, MetadataForm, Outcome, Outgoing, metadata_text, new_event_id
from trackwatch.frames import Encoder
from trackwatch.publisher import BATCH_EVENTS, Publisher, Sink
from trackwatch.record import Ledger
from trackwatch.store import open_store
from trackwatch.track import Metadata

GATHERED = 1000
TAGS = {
    "title": "Ein Lied über Bäume, die im Regen stehen",
    "artist": "Erste Sängerin; Zweiter Sänger",
    "album": "Gesammelte Lieder",
    "album_artist": "Verschiedene",
    "date": "2004-05-01",
    "genre": "Chanson",
    "track": "3",
    "track_total": "12",
    "composer": "Unbekannt",
}


def event(number: int, more_bytes: int) -> Event:
    """Return an event as an import tells it, with so many bytes more in its tags."""
    at_us = 1_795_000_000_000_000 + number * 1000
    tags = {**TAGS, "comment": "x" * more_bytes} if more_bytes else TAGS
    metadata = metadata_text(Metadata("audio/mpeg", 187.26, 320_000, 44_100, 2, tags=tags))
    content = Content(number.to_bytes(32), number.to_bytes(16), 7_512_345 + number, at_us * 1000, metadata, None)
    name = b"Verschiedene/Gesammelte Lieder (%d)/03 - Ein Lied.mp3" % number
    return Event(new_event_id(at_us), EventType.CREATED, number, at_us, "bench", b"/srv/music", name, content=content)


def payload_bytes(more_bytes: int) -> int:
    """Return how long the body of such an event is."""
    return len(event(1, more_bytes).to_json(MetadataForm.STRUCTURED))


def rows(count: int, more_bytes: int) -> Iterator[Outgoing]:
    """Yield events as the outbox hands them out."""
    for number in range(1, count + 1):
        told = event(number, more_bytes)
        body = told.to_json(MetadataForm.STRUCTURED)
        yield Outgoing(number, 0, told.event_id, told.event_type, told.at_us, body, (told.path,))


# --- the ways; each returns the seconds from the first message to the last confirm ---


async def ours(url: str, count: int, more_bytes: int, folder: Path) -> float:
    """Drain an outbox that was filled beforehand."""
    async with open_store(folder) as store, trio.open_nursery() as nursery:
        await nursery.start(store.run)
        with store.open_reader() as reader:
            for start in range(1, count + 1, 5000):
                await store.write(partial(_append, range(start, min(start + 5000, count + 1)), more_bytes))
            opened_at: list[float] = []

            def open_sink() -> AbstractAsyncContextManager[Sink]:
                opened_at.append(time.perf_counter())
                return open_amqp(Broker(url), instance_id="bench")

            publisher = Publisher(store, reader, open_sink)
            nursery.start_soon(publisher.run)
            await publisher.wait_empty()
            took_s = time.perf_counter() - opened_at[0]
        nursery.cancel_scope.cancel()
    assert publisher.state.published == count
    return took_s


def _append(numbers: range, more_bytes: int, ledger: Ledger) -> None:
    for number in numbers:
        outbox.append(ledger.conn, event(number, more_bytes), MetadataForm.STRUCTURED)


async def session(url: str, count: int, more_bytes: int, batch: int) -> float:
    """Publish batches through our session."""
    messages = list(rows(count, more_bytes))
    async with open_amqp(Broker(url), instance_id="bench") as sink:
        began_s = time.perf_counter()
        for start in range(0, count, batch):
            outcomes: dict[int, Outcome] = {}
            await sink.publish(messages[start : start + batch], outcomes)
            assert len(outcomes) == len(messages[start : start + batch])
        return time.perf_counter() - began_s


async def gather(url: str, count: int, more_bytes: int) -> float:
    """Publish with aio-pika as its documentation does, many at a time."""
    messages = [
        aio_pika.Message(
            row.payload,
            message_id=str(row.event_id),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        for row in rows(count, more_bytes)
    ]
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        began_s = time.perf_counter()
        for start in range(0, count, GATHERED):
            part = messages[start : start + GATHERED]
            await asyncio.gather(*(exchange.publish(message, "file.created", mandatory=True) for message in part))
        return time.perf_counter() - began_s


def blocking(url: str, count: int, more_bytes: int) -> float:
    """Publish with pika, each confirmed before the next."""
    messages = list(rows(count, more_bytes))
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        began_s = time.perf_counter()
        for row in messages:
            properties = pika.BasicProperties("application/json", delivery_mode=2, message_id=str(row.event_id))
            channel.basic_publish(EXCHANGE, "file.created", row.payload, properties, mandatory=True)
        return time.perf_counter() - began_s


def bare(url: str, count: int, more_bytes: int) -> float:
    """Write frames that were made beforehand to a socket, a batch ahead of the confirms."""
    where = urlsplit(url)
    encoder = Encoder(EXCHANGE, "bench", channel=1, frame_max=131072)
    batches: list[list[bytes]] = [[]]
    for row in rows(count, more_bytes):
        if len(batches[-1]) == GATHERED:
            batches.append([])
        batches[-1].append(encoder.encode(row))
    basic, channel, connection = pamqp.commands.Basic, pamqp.commands.Channel, pamqp.commands.Connection
    with socket.create_connection((where.hostname, where.port)) as line:
        line.sendall(b"AMQP\x00\x00\x09\x01")
        stream = line.makefile("rb")

        def receive() -> object:
            kind, number, size = struct.unpack(">BHI", stream.read(7))
            data = struct.pack(">BHI", kind, number, size) + stream.read(size + 1)
            return pamqp.frame.unmarshal(data)[2]

        def ask(frame: pamqp.base.Frame, number: int, answer: type) -> None:
            line.sendall(pamqp.frame.marshal(frame, number))
            while not isinstance(receive(), answer):
                pass

        receive()
        ask(connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), 0, connection.Tune)
        line.sendall(pamqp.frame.marshal(connection.TuneOk(2047, 131072, 0), 0))
        ask(connection.Open(virtual_host=where.path.lstrip("/").replace("%2F", "/") or "/"), 0, connection.OpenOk)
        ask(channel.Open(), 1, channel.OpenOk)
        ask(pamqp.commands.Confirm.Select(), 1, pamqp.commands.Confirm.SelectOk)
        began_s = time.perf_counter()
        sent, confirmed = 0, 0
        for batch in batches:
            line.sendall(b"".join(batch))
            sent += len(batch)
            while confirmed < sent - GATHERED // 2 or (sent == count and confirmed < count):
                frame = receive()
                assert isinstance(frame, basic.Ack)
                confirmed = frame.delivery_tag if frame.multiple else confirmed + 1
        return time.perf_counter() - began_s


def run_here(way: str, url: str, count: int, more_bytes: int, batch: int, folder: str) -> float:
    """Do it in this process."""
    match way:
        case "ours":
            Path(folder).mkdir()
            return trio.run(ours, url, count, more_bytes, Path(folder))
        case "session":
            return trio.run(session, url, count, more_bytes, batch)
        case "gather":
            return asyncio.run(gather(url, count, more_bytes))
        case "blocking":
            return blocking(url, count, more_bytes)
        case "socket":
            return bare(url, count, more_bytes)
    raise ValueError(way)


@dataclass(frozen=True)
class Sent:
    """What came of one turn."""

    per_s: float
    broker_cpu_s_each: float  # for each message


def send(run: Run, url: str, way: str, count: int, *, more_bytes: int = 0, batch: int = BATCH_EVENTS) -> Sent:
    """Send so many messages in one of the ways; the queue has to hold them all, and is emptied."""
    before_s = cpu_s(run.node.pid)
    took_s = apart.call(run_here, way, url, count, more_bytes, batch, str(run.fresh("sent")))
    broker_s = cpu_s(run.node.pid) - before_s
    arrived = purge(url)
    assert arrived == count, f"{way}: {arrived} of {count} have arrived"
    return Sent(count / took_s, broker_s / count)


WAYS = ("ours", "gather", "session", "socket", "blocking")
