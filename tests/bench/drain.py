"""A full outbox drains into a broker that has come back: what it takes of memory, and whether it slows down.

The rows are written by SQL beforehand, each with a message of about 1.5 KB and a path of its own. The real daemon sends
them into a private RabbitMQ node, to one queue that nobody reads (a lazy classic one, unless told otherwise). Goals for
a million: the daemon never takes more than 150 MB (PSS, its whole process group), and the last tenth goes at 0.9 of the
rate of the first one at least.
"""

import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pika
import trio

from tests.bed.daemon import Daemon
from tests.bed.rabbit import RabbitNode
from tests.bench.measure import Memory, Noise, Spread, a_daemon, arguments, bench, cpu_s, memory, report
from tests.bench.outbox import event
from trackwatch.clock import wall_clock_us
from trackwatch.database import open_beside
from trackwatch.event import first_event_id
from trackwatch.store import open_store

MEMORY_GOAL_BYTES, RATE_GOAL = 150_000_000, 0.9
TENTHS = 10
LOOK_S, MEMORY_LOOK_S = 0.05, 0.5
QUEUES = {
    "lazy": {"x-queue-mode": "lazy"},
    "classic": {},
    "quorum": {"x-queue-type": "quorum"},
    "stream": {"x-queue-type": "stream"},
}
# Nothing was sent for so long: something is wrong, and to wait longer is no use.
STUCK_S = 60.0


class Look(NamedTuple):
    """How far the daemon was, and when (monotonic clock)."""

    at_s: float
    sent: int


def fill(state: Path, rows: int) -> int:
    """Make a state with so many pending events; return the bytes of their messages."""

    async def make() -> None:
        async with open_store(state, instance_id="bench"):
            pass

    trio.run(make)
    # A real message, with its number wherever messages differ, and the path that it is about.
    first = event(1)
    template, path = (
        text.replace(b"%", b"%%").replace(b'"sequence":1,', b'"sequence":%d,').replace(b"0000001 Der", b"%07d Der")
        for text in (first.to_json(), first.path)
    )
    marks = template.replace(b"%%", b"").count(b"%")
    assert marks == 3, "the sequence, the path and the relative path"
    start_us = wall_clock_us() - rows * 10
    size_bytes = 0

    def made() -> Iterator[tuple[object, ...]]:
        nonlocal size_bytes
        for number in range(1, rows + 1):
            at_us = start_us + number * 10
            payload = template % (*(number,) * marks,)
            size_bytes += len(payload)
            event_id = first_event_id(at_us)[:12] + number.to_bytes(4)
            yield number, event_id, "created", path % number, at_us, payload

    with open_beside(state, writing=True) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(
            "INSERT INTO outbox(seq, event_id, event_type, path, created_us, payload) VALUES (?, ?, ?, ?, ?, ?)", made()
        )
        conn.execute("COMMIT")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return size_bytes


def declare(node: RabbitNode, queue: str) -> None:
    """Declare the exchange, and bind one queue to all of it."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url()))
    channel = connection.channel()
    channel.exchange_declare("file_events", "topic", durable=True)
    channel.queue_declare("library", durable=True, arguments=QUEUES[queue])
    channel.queue_bind("library", "file_events", "file.*")
    connection.close()


def arrived(node: RabbitNode) -> int:
    """Return how many messages are in the queue."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url()))
    count: int = connection.channel().queue_declare("library", passive=True).method.message_count
    connection.close()
    return count


def sent(conn: sqlite3.Connection, rows: int) -> int:
    """Return how many events were sent and marked: they go in order, so the first one that waits tells."""
    first = conn.execute("SELECT min(seq) FROM outbox_pending").fetchone()[0]
    return rows if first is None else first - 1


def watch(daemon: Daemon, state: Path, rows: int) -> tuple[list[Look], list[Memory]]:
    """Look at a daemon until it has sent everything; the first look is the last one before anything was sent."""
    looks: list[Look] = []
    memories: list[Memory] = []
    with open_beside(state) as conn:
        while not looks or looks[-1].sent < rows:
            look = Look(time.monotonic(), sent(conn, rows))
            if not look.sent:
                looks.clear()
            if not looks or look.sent > looks[-1].sent:
                looks.append(look)
            assert daemon.running, daemon.stderr()
            assert look.at_s < looks[-1].at_s + STUCK_S, daemon.status()
            if len(memories) * MEMORY_LOOK_S <= look.at_s - looks[0].at_s:
                memories.append(memory(daemon))
            time.sleep(LOOK_S)
    return looks, memories


def when(looks: Sequence[Look], count: float) -> float:
    """Return when so many had been sent, between two looks in proportion."""
    for before, after in itertools.pairwise(looks):
        if after.sent >= count:
            share = (count - before.sent) / (after.sent - before.sent)
            return before.at_s + share * (after.at_s - before.at_s)
    return looks[-1].at_s


def rates(looks: Sequence[Look], rows: int) -> list[float]:
    """Return the events a second of each tenth."""
    # The first batch comes with the opening of the session, which is no part of the rate.
    marks = [looks[1].sent, *(rows * tenth / TENTHS for tenth in range(1, TENTHS + 1))]
    times = [when(looks, mark) for mark in marks]
    return [
        (end - start) / (until - since)
        for (start, end), (since, until) in zip(itertools.pairwise(marks), itertools.pairwise(times), strict=True)
    ]


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        rows=(1_000_000, "events that wait"),
        queue=("lazy", f"kind of the queue that nobody reads: {', '.join(QUEUES)}"),
    )
    noise = Noise()
    with bench(options.dir) as folder:
        root, state = folder / "root", folder / "state"
        root.mkdir()
        state.mkdir()
        began_s = time.monotonic()
        size_bytes = fill(state, options.rows)
        print(f"{options.rows:,} rows with {size_bytes / 1e6:,.0f} MB in {time.monotonic() - began_s:.0f} s")
        with RabbitNode(folder / "rabbit") as node:
            declare(node, options.queue)
            with a_daemon(root, state, env={"RABBITMQ_URL": node.url()}) as daemon:
                daemon.start(wait=False)
                looks, memories = watch(daemon, state, options.rows)
                cpu = cpu_s(daemon)
                daemon.stop()
            came = arrived(node)
    of_tenth = rates(looks, options.rows)
    took_s = looks[-1].at_s - looks[0].at_s
    pss = Spread.of(float(each.pss_bytes) for each in memories)
    ratio = of_tenth[-1] / of_tenth[0]
    row = {
        "rows": options.rows,
        "arrived": came,
        "seconds": took_s,
        "events/s": options.rows / took_s,
        "first tenth/s": of_tenth[0],
        "last tenth/s": of_tenth[-1],
        "last to first": ratio,
        "largest PSS MB": pss.largest / 1e6,
        "median PSS MB": pss.median / 1e6,
        "CPU s": cpu,
    }
    report("drain: a full outbox", [row], noise, options.json, tenths=of_tenth, memories=memories, queue=options.queue)
    print("Each tenth, events/s: " + ", ".join(f"{rate:,.0f}" for rate in of_tenth))
    met = pss.largest < MEMORY_GOAL_BYTES and ratio >= RATE_GOAL and came >= options.rows
    print(f"Goals (150 MB, 0.9, all arrived): {'met' if met else 'MISSED'}.")


if __name__ == "__main__":
    main()
