"""The one gate to SQLite: opens the state, keeps it for this process alone, and groups writes into durable commits.

A piece of work given to `write` runs in one transaction with others that were waiting, and its caller is woken once
that transaction is on the disk. When the disk is full or the database is held by another program, nothing is lost and
nobody is told a lie: the same group is tried again until it goes through, and callers wait (that is the back-pressure).
What the work says about tracks and events is none of this file's business.
"""

import os
import sqlite3
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from trackwatch import catalogue, database, outbox
from trackwatch.backoff import Backoff
from trackwatch.clock import wall_clock_us
from trackwatch.database import (
    DAMAGED,
    PASSING,
    RETRYABLE,
    connect,
    is_one_of,
    locked,
    open_for_writing,
    translated,
)
from trackwatch.errors import StoreBusy, StoreError
from trackwatch.event import MetadataForm
from trackwatch.record import Ledger

T = TypeVar("T")
LogMark = tuple[int, int] | None

# Beyond some hundreds a commit the fsync is no longer what costs, and the first caller of the group only waits longer.
GROUP_MAX = 500
# Callers beyond this many wait for a place; with MAX_CONCURRENT_FILES workers it is never reached in normal work.
WAITING_MAX = 1000
# Room that pruning has freed in the file serves what comes next; beyond this much of it, some is given back each time.
FREE_KEPT_BYTES, FREED_AT_ONCE_BYTES = 32 * 1024 * 1024, 4 * 1024 * 1024
TEND_S = 60.0

log = structlog.get_logger()


@dataclass(slots=True)
class StoreStatistics:
    """Counters since the start; written by the writer task, read by status."""

    commits: int = 0
    writes: int = 0
    waiting_since_us: int | None = None  # set while commits fail
    trouble: str = ""


@dataclass(slots=True, eq=False)
class _Request:
    work: Callable[[Ledger], Any]
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: Exception | None = None


class Reader:
    """A connection that only reads, used by one task; a thread of its own limit runs what it is given."""

    def __init__(self, path: Path, conn: sqlite3.Connection) -> None:
        self._path = path
        self._conn = conn
        self._limiter = trio.CapacityLimiter(1)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a thread and return its result; if cancelled, the thread is waited for (reads are short).

        Where the state cannot be read now, it is tried again until it can. Raises StoreError when it is damaged.
        """
        backoff = Backoff(base_s=0.1, cap_s=5)
        while True:
            try:
                found = await trio.to_thread.run_sync(_in_one_look, work, self._conn, limiter=self._limiter)
                if backoff.attempt:
                    log.info("state can be read again")
                return found
            except sqlite3.Error as error:
                if is_one_of(error, DAMAGED):
                    raise translated(error, self._path) from error
                if not is_one_of(error, PASSING):
                    raise  # a defect of ours: a write, or what is no SQL
                if not backoff.attempt:
                    log.warning("state cannot be read", reason=str(translated(error, self._path, "read")))
            await trio.sleep(backoff.next_s())

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection itself, for long work in a thread of the caller's."""
        return self._conn


def _in_one_look(work: Callable[[sqlite3.Connection], T], conn: sqlite3.Connection) -> T:
    """Run `work` in a transaction: all of it sees the same state, and locks are taken once, not for each statement."""
    conn.execute("BEGIN")
    try:
        return work(conn)
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")


class Store:
    """The open state. `run` must be running for `write` to return."""

    def __init__(self, path: Path, conn: sqlite3.Connection, ledger: Ledger) -> None:
        self.path = path
        self.instance_id = ledger.instance_id
        self.statistics = StoreStatistics()
        self.appended: Counter[str] = Counter()
        self._conn = conn
        self._ledger = ledger
        self._log_path = f"{path}-wal"
        # SQLite itself goes on writing into files that were deleted. Without the other two, commits would still be in
        # the database once it is closed, but not after a crash, and other programs would not see the locks.
        self._files = (path, Path(self._log_path), Path(f"{path}-shm"))
        self._identities = [_identity(file) for file in self._files]
        self._is_log_large = False
        self._send, self._receive = trio.open_memory_channel[_Request](WAITING_MAX)
        self._limiter = trio.CapacityLimiter(1)
        self._committed = trio.Event()

    async def write(self, work: Callable[[Ledger], T]) -> T:
        """Run `work` in the writer's next transaction; return its result once that is on the disk.

        If cancelled, the work may or may not be done: it must be such that doing it again is harmless.
        Raises what `work` raises; its own changes are then undone, those of others are not.
        """
        request = _Request(work)
        await self._send.send(request)
        await request.done.wait()
        if request.error is not None:
            raise request.error
        result: T = request.result
        return result

    def now_us(self) -> int:
        """Return the time in microseconds since 1970 UTC, by the clock that the events are stamped with."""
        return wall_clock_us()

    def next_commit(self) -> trio.Event:
        """Return what will be set by the next commit of this process; take it before looking, then wait."""
        return self._committed

    def log_mark(self) -> LogMark:
        """Return what is different after each commit of any process, nearly always: two may fall into one tick."""
        try:
            stat = os.stat(self._log_path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def wake(self) -> None:
        """Wake whoever waits for the next commit, to look again now."""
        self._committed.set()
        self._committed = trio.Event()

    @contextmanager
    def open_reader(self) -> Iterator[Reader]:
        """Open a connection that only reads. Raises StoreError when the database is no longer there."""
        try:
            conn = connect(self.path, "ro")
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot open the state database {str(self.path)!r} again: {error}; was it deleted while in use?"
                " Restore a backup if you have one, and start again"
            ) from error
        try:
            yield Reader(self.path, conn)
        finally:
            conn.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit what `write` is given, until cancelled. Raises StoreError when the database is no longer ours."""
        task_status.started()
        tend_at = trio.current_time() + TEND_S
        async for first in self._receive:
            group = [first]
            while len(group) < GROUP_MAX:
                try:
                    group.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await self._commit(group)
            # Not in a task of its own: the daemon writes each ten seconds, and two would have to take turns anyway.
            if trio.current_time() >= tend_at:
                await trio.to_thread.run_sync(self._tend, limiter=self._limiter)
                tend_at = trio.current_time() + TEND_S

    async def _commit(self, group: list[_Request]) -> None:
        backoff = Backoff(base_s=0.1, cap_s=1.5)
        while True:
            try:
                await trio.to_thread.run_sync(self._apply, group, limiter=self._limiter)
                break
            except StoreBusy as error:
                if self.statistics.waiting_since_us is None:
                    self.statistics.waiting_since_us = wall_clock_us()
                    log.error("state cannot be written", reason=str(error))
                self.statistics.trouble = str(error)
                await trio.sleep(backoff.next_s())
        if self.statistics.waiting_since_us is not None:
            log.info("state can be written again")
            self.statistics.waiting_since_us, self.statistics.trouble = None, ""
        self.statistics.commits += 1
        self.statistics.writes += len(group)
        self.appended = Counter({kind.value: count for kind, count in self._ledger.appended.items()})
        self.wake()
        for request in group:
            request.done.set()

    def _apply(self, group: list[_Request]) -> None:
        """Run a group in one transaction, in the writer's thread."""
        try:
            self._transact(group, apart=False)
        except _WorkFailed:
            # One of them cannot be done (its row breaks a rule of the schema): again, each in its own savepoint.
            self._transact(group, apart=True)
        for file, identity in zip(self._files, self._identities, strict=True):
            if _identity(file) != identity:
                raise StoreError(
                    f"the state database {str(file)!r} was deleted or replaced while in use: nothing written since can"
                    " be trusted; stop whatever did that, restore a backup if you have one, and start again"
                )
        self._watch_log()

    def _watch_log(self) -> None:
        """Say so when another program's long look keeps the log from being put away: it fills the disk."""
        mark = self.log_mark()
        is_large = mark is not None and mark[1] > 2 * database.WAL_LIMIT_BYTES
        if is_large and not self._is_log_large:
            log.warning(
                "state log grows",
                path=self._log_path,
                reason="another program has the state open and looks at an old state of it; end that program",
            )
        self._is_log_large = is_large

    def _tend(self) -> None:
        """Give back to the disk what pruning has freed, some of it at a time; in the writer's thread.

        The planner's statistics (`PRAGMA optimize`, ANALYZE) are left alone on purpose, see `_forget_statistics`.
        """
        try:
            page_bytes, free = (self._conn.execute(f"PRAGMA {name}").fetchone()[0] for name in _FREE)
            if free * page_bytes > FREE_KEPT_BYTES:
                # It frees a page a step, and `execute` makes one step of what has no rows. (Nothing is open to commit.)
                self._conn.executescript(f"PRAGMA incremental_vacuum({FREED_AT_ONCE_BYTES // page_bytes})")
        except sqlite3.Error as error:
            # What it would say, the next commit will say.
            log.debug("room not given back", reason=str(error))

    def _transact(self, group: list[_Request], *, apart: bool) -> None:
        ledger = self._ledger
        before = ledger.next_sequence, Counter(ledger.appended)
        try:
            self._conn.execute("BEGIN IMMEDIATE")
            for request in group:
                self._run_one(request, apart=apart)
            self._conn.execute("COMMIT")
        except BaseException as error:
            ledger.next_sequence, ledger.appended = before
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise translated(error, self.path) from error
            raise

    def _run_one(self, request: _Request, *, apart: bool) -> None:
        ledger = self._ledger
        if apart:
            before = ledger.next_sequence, Counter(ledger.appended)
            self._conn.execute("SAVEPOINT one")
        try:
            request.result, request.error = request.work(ledger), None
        except Exception as error:
            if isinstance(error, sqlite3.Error) and is_one_of(error, RETRYABLE | DAMAGED):
                raise  # no fault of this piece of work
            if not apart:
                raise _WorkFailed from error
            # The caller gets it and decides; the others of the group go on.
            request.error = error
            ledger.next_sequence, ledger.appended = before
            self._conn.execute("ROLLBACK TO one")
        if apart:
            self._conn.execute("RELEASE one")


class _WorkFailed(Exception):
    """A piece of work failed by itself: the group has to be done piece by piece."""


_FREE = ("page_size", "freelist_count")


def _identity(path: Path) -> tuple[int, int] | None:
    # stat, never open: closing a second descriptor of the file would drop SQLite's POSIX locks on it.
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_dev, stat.st_ino


@asynccontextmanager
async def open_store(
    state_dir: Path, *, instance_id: str | None = None, form: MetadataForm = MetadataForm.STRUCTURED
) -> AsyncIterator[Store]:
    """Open the state for writing: locked against other instances, migrated, checked.

    `instance_id` is kept once given; without one, the id made at the first start is used.
    Raises StoreError with the remedy when it cannot be used.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(state_dir))
        path = state_dir / "trackwatch.db"
        conn = await trio.to_thread.run_sync(open_for_writing, path)
        stack.callback(conn.close)
        ledger = Ledger(conn, _instance_id(conn, instance_id), form, wall_clock_us)
        ledger.next_sequence = outbox.last_sequence(conn) + 1
        ledger.roots = {root.id: root for root in catalogue.roots(conn)}
        yield Store(path, conn, ledger)


def _instance_id(conn: sqlite3.Connection, wanted: str | None) -> str:
    row = conn.execute("SELECT value FROM setting WHERE name = 'instance_id'").fetchone()
    known: str | None = row[0] if row else None
    chosen = wanted or known or uuid.uuid4().hex[:12]
    if chosen != known:
        conn.execute(
            "INSERT INTO setting(name, value) VALUES ('instance_id', ?)"
            " ON CONFLICT(name) DO UPDATE SET value = excluded.value",
            (chosen,),
        )
    return chosen
