"""A full outbox drains into a broker that has come back: what it takes of memory, and whether it slows down.

The rows are written by SQL beforehand, each with a message of about 1.5 KB and a path of its own. The real daemon sends
them into a private RabbitMQ node, to one queue that nobody reads.
"""

import itertools
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import trio

from tests.bed.daemon import Daemon
from tests.bench.broker import count, declare_queue
from tests.bench.measure import Memory, a_daemon, cpu_s, memory
from tests.bench.puts import event
from tests.bench.run import Run
from trackwatch.clock import wall_clock_us
from trackwatch.database import open_beside, running_pid
from trackwatch.event import first_event_id
from trackwatch.store import open_store

TENTHS = 10
LOOK_S, MEMORY_LOOK_S = 0.02, 0.5
# Nothing was sent for so long: something is wrong, and to wait longer is no use.
STUCK_S = 60.0
START_S = 60.0


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
                memories.append(memory(daemon.pid))
            time.sleep(LOOK_S)
    return looks, memories


def when(looks: Sequence[Look], marked: float) -> float:
    """Return when so many had been sent, between two looks in proportion."""
    for before, after in itertools.pairwise(looks):
        if after.sent >= marked:
            share = (marked - before.sent) / (after.sent - before.sent)
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


@dataclass(frozen=True)
class Drain:
    """What it took to send everything that waited."""

    rows: int
    size_bytes: int  # of the messages
    arrived: int
    seconds: float
    tenths_per_s: list[float]
    peak_pss_bytes: float
    cpu_s: float


def drain(run: Run, rows: int, queue: str) -> Drain:
    """Fill an outbox, and let the daemon send it."""
    root, state = run.fresh("root"), run.fresh("state")
    root.mkdir()
    state.mkdir()
    size_bytes = fill(state, rows)
    with run.vhost() as url:
        declare_queue(url, queue)
        with a_daemon(root, state, env={"RABBITMQ_URL": url}) as daemon:
            daemon.start(wait=False)
            # Before it has the state, a reader would be given the database as it is now, for good.
            daemon.wait_until(lambda: running_pid(state) is not None, START_S, "to open its state")
            looks, memories = watch(daemon, state, rows)
            spent_s = cpu_s(daemon.pid)
            daemon.stop()
        came = count(url)
    assert came >= rows, f"{came} of {rows} have arrived"
    shutil.rmtree(state)
    peak = max(each.pss_bytes for each in memories)
    return Drain(rows, size_bytes, came, looks[-1].at_s - looks[0].at_s, rates(looks, rows), peak, spent_s)
