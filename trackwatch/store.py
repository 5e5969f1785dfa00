"""The one gate to SQLite: opens the state, keeps it for this process alone, and groups writes into durable commits.

A piece of work given to `write` runs in one transaction with others that were waiting, and its caller is woken once
that transaction is on the disk. When the disk is full or the database is held by another program, nothing is lost and
nobody is told a lie: the same group is tried again until it goes through, and callers wait (that is the back-pressure).
What the work says about tracks and events is none of this file's business.
"""

import errno
import fcntl
import importlib.util
import os
import shutil
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, TypeVar

import structlog
import trio
from sqlite_utils import Database, Migrations

from trackwatch import catalogue, outbox
from trackwatch.backoff import Backoff
from trackwatch.errors import StoreBusy, StoreError
from trackwatch.event import MetadataForm
from trackwatch.mounts import mount_of, read_mounts
from trackwatch.record import Ledger

T = TypeVar("T")
LogMark = tuple[int, int] | None

APPLICATION_ID = int.from_bytes(b"TRWA")
BUSY_TIMEOUT_S = 5.0
# Beyond some hundreds a commit the fsync is no longer what costs, and the first caller of the group only waits longer.
GROUP_MAX = 500
# Callers beyond this many wait for a place; with MAX_CONCURRENT_FILES workers it is never reached in normal work.
WAITING_MAX = 1000
# A log that grew beyond this (an import, somebody's long look at the state) is cut back once it has been put away.
WAL_LIMIT_BYTES = 64 * 1024 * 1024
# Put away after so many pages, 4 MB: SQLite's own default, which a build of it may have changed.
WAL_CHECKPOINT_PAGES = 1000
HELD = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"})
PASSING = HELD | {"SQLITE_IOERR"}
RETRYABLE = PASSING | {"SQLITE_FULL", "SQLITE_READONLY"}
DAMAGED = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})
# Room that pruning has freed in the file serves what comes next; beyond this much of it, some is given back each time.
FREE_KEPT_BYTES, FREED_AT_ONCE_BYTES = 32 * 1024 * 1024, 4 * 1024 * 1024
TEND_S = 60.0
# `status` takes the lock for an instant to see whether somebody holds it; a start at that very moment tries again.
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.02

log = structlog.get_logger()


def wall_clock_us() -> int:
    """Return the time in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


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
                return await trio.to_thread.run_sync(work, self._conn, limiter=self._limiter)
            except sqlite3.Error as error:
                if _is_one_of(error, DAMAGED):
                    raise _translated(error, self._path) from error
                if not _is_one_of(error, PASSING):
                    raise  # a defect of ours: a write, or what is no SQL
                log.warning("state cannot be read", reason=str(_translated(error, self._path, "read")))
            await trio.sleep(backoff.next_s())

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection itself, for long work in a thread of the caller's."""
        return self._conn


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
        """Open a connection that only reads."""
        conn = _connect(self.path, "ro")
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
        is_large = mark is not None and mark[1] > 2 * WAL_LIMIT_BYTES
        if is_large and not self._is_log_large:
            log.warning(
                "write-ahead log grows",
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
                raise _translated(error, self.path) from error
            raise

    def _run_one(self, request: _Request, *, apart: bool) -> None:
        ledger = self._ledger
        if apart:
            before = ledger.next_sequence, Counter(ledger.appended)
            self._conn.execute("SAVEPOINT one")
        try:
            request.result, request.error = request.work(ledger), None
        except Exception as error:
            if isinstance(error, sqlite3.Error) and _is_one_of(error, RETRYABLE | DAMAGED):
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


def _is_one_of(error: sqlite3.Error, codes: Iterable[str]) -> bool:
    name = getattr(error, "sqlite_errorname", "")
    return any(name == code or name.startswith(code + "_") for code in codes)


def _translated(error: sqlite3.Error, path: Path, deed: str = "write") -> StoreBusy | StoreError:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if _is_one_of(error, RETRYABLE):
        remedy = "look at the disk and the system's log"
        if name == "SQLITE_FULL":
            remedy = "make room on its disk"
        elif _is_one_of(error, HELD):
            remedy = "another program holds it; it goes on by itself once that one is done"
        return StoreBusy(f"cannot {deed} the state database {str(path)!r}: {error}; {remedy}")
    return StoreError(f"the state database {str(path)!r} is damaged ({name}: {error}); restore a backup")


def _identity(path: Path) -> tuple[int, int] | None:
    # stat, never open: closing a second descriptor of the file would drop SQLite's POSIX locks on it.
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_dev, stat.st_ino


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    conn = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    conn.execute("PRAGMA temp_store = MEMORY")
    if mode.startswith("ro"):
        # Of several readers each would keep 2 MB of pages; the system's cache has them all the same.
        conn.execute("PRAGMA cache_size = -256")
    conn.execute("PRAGMA foreign_keys = ON")
    return conn


@asynccontextmanager
async def open_store(
    state_dir: Path, *, instance_id: str | None = None, form: MetadataForm = MetadataForm.STRUCTURED
) -> AsyncIterator[Store]:
    """Open the state for writing: locked against other instances, migrated, checked.

    `instance_id` is kept once given; without one, the id made at the first start is used.
    Raises StoreError with the remedy when it cannot be used.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_locked(state_dir))
        path = state_dir / "trackwatch.db"
        conn = await trio.to_thread.run_sync(_open_for_writing, path)
        stack.callback(conn.close)
        ledger = Ledger(conn, _instance_id(conn, instance_id), form, wall_clock_us)
        ledger.next_sequence = outbox.last_sequence(conn) + 1
        ledger.roots = {root.id: root for root in catalogue.roots(conn)}
        yield Store(path, conn, ledger)


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        mount = mount_of(os.path.realpath(os.fsencode(state_dir)), read_mounts())
        if mount is not None and mount.is_remote:
            raise StoreError(
                f"state {str(state_dir)!r} lies on a network file system ({mount.fstype.decode('ascii', 'replace')}),"
                " where SQLite's write-ahead log is not safe; put it on a local disk (set TRACKWATCH_STATE_DIR)"
            )
        # The folder itself is what is locked: a file in it would be deleted some day by somebody who takes it for
        # stale, and then there would be two.
        lock = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(error, state_dir) from error
    try:
        if not _lock_file(lock):
            raise StoreError(
                f"state {str(state_dir)!r} is in use by pid {_holder(state_dir) or 'unknown'}; one instance per state"
                " folder (set TRACKWATCH_STATE_DIR)"
            )
        try:
            (state_dir / "lock").write_text(f"{os.getpid()}\n", encoding="utf-8")
        except OSError as error:
            raise _unusable(error, state_dir) from error
        yield
    finally:
        os.close(lock)


def _unusable(error: OSError, state_dir: Path) -> StoreError:
    remedy = f"make it writable for user {os.geteuid()}, or set TRACKWATCH_STATE_DIR to a folder that is"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room on its disk"
    return StoreError(f"cannot use state {str(state_dir)!r}: {_reason(error)}; {remedy}")


def _holder(state_dir: Path) -> int | None:
    """Return the process that has said that it holds a state folder."""
    try:
        return int((state_dir / "lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock_file(descriptor: int) -> bool:
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if tries_left:
                time.sleep(LOCK_PAUSE_S)  # blocks the event loop, where nothing else runs yet
        else:
            return True
    return False


def running_pid(state_dir: Path) -> int | None:
    """Return the process that holds a state folder, 0 if it cannot be told which, None if nobody does."""
    try:
        lock = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(state_dir) or 0
    finally:
        os.close(lock)
    return None


def _open_for_writing(path: Path) -> sqlite3.Connection:
    conn: sqlite3.Connection | None = None
    try:
        if not path.exists():
            _create(path)
        conn = _connect(path, "rw")
        _check_ours(conn, path)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA secure_delete = OFF")
        conn.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        conn.execute(f"PRAGMA wal_autocheckpoint = {WAL_CHECKPOINT_PAGES}")
        _migrate(conn, path)
    except BaseException as error:
        if conn is not None:
            conn.close()
        if isinstance(error, sqlite3.Error):
            raise _refusal(error, path) from error
        if isinstance(error, OSError):
            raise StoreError(f"cannot create the state database {str(path)!r}: {_reason(error)}") from error
        raise
    return conn


def _refusal(error: sqlite3.Error, path: Path) -> StoreError:
    if _is_one_of(error, ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return StoreError(
            f"cannot open the state database {str(path)!r}: {error}; make it and its folder writable for user"
            f" {os.geteuid()}, or be the user who owns them"
        )
    if _is_one_of(error, HELD):
        # A daemon that works waits for this; a command, or a start, does not.
        return StoreError(
            f"cannot open the state database {str(path)!r}: {error}; another program holds it: try again once that one"
            " is done"
        )
    return StoreError(str(_translated(error, path)))


_LOGS = ("-wal", "-shm", "-journal")


def _create(path: Path) -> None:
    """Create the database under another name first: a crash here never leaves a half-made one under its own."""
    new = path.with_name(path.name + ".new")
    # A log that outlived its database (somebody deleted that alone) would be played into the new one, and damage it.
    for leftover in (*path.parent.glob(new.name + "*"), *(path.with_name(path.name + tail) for tail in _LOGS)):
        leftover.unlink(missing_ok=True)
    conn = _connect(new, "rwc")
    try:
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has no effect once there is a table
        _migrate(conn, path)
    finally:
        conn.close()
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_ours(conn: sqlite3.Connection, path: Path) -> None:
    application_id = conn.execute("PRAGMA application_id").fetchone()[0]
    has_tables = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
    if application_id == APPLICATION_ID:
        return
    if not has_tables and application_id == 0:
        raise StoreError(
            f"the state database {str(path)!r} is empty, and no crash of ours leaves it so: restore a backup, or delete"
            " it to begin anew (the whole library is then announced again)"
        )
    raise StoreError(f"{str(path)!r} is not a state database of trackwatch; set TRACKWATCH_STATE_DIR to another folder")


def _migrate(conn: sqlite3.Connection, path: Path) -> None:
    steps = _load_migrations().migrations
    db = Database(conn, execute_plugins=False)
    conn.execute("BEGIN IMMEDIATE")
    try:
        _refuse_newer(steps, db, path)
        steps.apply(db)
        _forget_statistics(conn)
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _forget_statistics(conn: sqlite3.Connection) -> None:
    """Delete what ANALYZE or `PRAGMA optimize` has left (somebody's tool ran it): for this database it does harm.

    Each query has one good plan, which SQLite finds without statistics. They describe one moment, and `outbox_pending`
    is empty at one moment and holds a million rows at the next: with statistics of a small table SQLite reads the whole
    outbox, sorted anew, to find the next event to send.
    """
    for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE name GLOB 'sqlite_stat[0-9]'").fetchall():
        conn.execute(f"DROP TABLE {name}")


def _refuse_newer(steps: Migrations, db: Database, path: Path) -> None:
    empty = Database(memory=True)
    try:
        ours = {step.name for step in steps.pending(empty)}
    finally:
        empty.close()
    if newer := sorted({step.name for step in steps.applied(db)} - ours):
        raise StoreError(
            f"the state {str(path)!r} was written by a newer trackwatch (migration {newer[-1]}): upgrade, or restore a"
            " backup"
        )


def _load_migrations() -> ModuleType:
    """Load the schema's steps: shipped inside the package, or beside it in a checkout."""
    here = Path(__file__).parent
    for folder in (here, here.parent):
        path = folder / "migrations" / "migrations.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("trackwatch_migrations", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise StoreError("this installation lacks its migrations; install trackwatch again")


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


@contextmanager
def open_beside(state_dir: Path, *, writing: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the state beside a daemon that may be running: for `status` (reading) and `replay` (short writes).

    A state that cannot be written (a read-only disk, somebody else's) can be read all the same.
    Raises StoreError if there is none, or it cannot be read.
    """
    path = state_dir / "trackwatch.db"
    with ExitStack() as stack:
        try:
            conn = _open_beside(path, stack, writing=writing)
        except OSError as error:
            raise StoreError(
                f"cannot read state {str(state_dir)!r}: {_reason(error)}; make it readable for user {os.geteuid()}"
            ) from error
        except sqlite3.Error as error:
            raise _refusal(error, path) from error
        try:
            yield conn
        except sqlite3.Error as error:
            raise _refusal(error, path) from error


def write_beside(conn: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run `work` in one transaction on what `open_beside` gave; keep it short, a running daemon waits for it.

    Raises StoreBusy if it cannot be written now: nothing of it is done then.
    """
    try:
        conn.execute("BEGIN IMMEDIATE")
        result = work(conn)
        conn.execute("COMMIT")
    except BaseException as error:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error) and _is_one_of(error, ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_IOERR")):
            raise _translated(error, Path(conn.execute("PRAGMA database_list").fetchone()[2])) from error
        raise
    return result


def _open_beside(path: Path, stack: ExitStack, *, writing: bool) -> sqlite3.Connection:
    if not path.exists():
        raise StoreError(f"no state in {str(path.parent)!r}: has trackwatch run here? (set TRACKWATCH_STATE_DIR)")
    conn = stack.enter_context(closing(_connect(path, "rw"))) if writing else _open_for_reading(path, stack)
    _check_ours(conn, path)
    _check_current(conn, path)
    return conn


def _open_for_reading(path: Path, stack: ExitStack) -> sqlite3.Connection:
    try:
        conn = stack.enter_context(closing(_connect(path, "ro")))
        conn.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        # Even to read, SQLite wants its two files beside the database, and cannot make them here.
        if not _is_one_of(error, ("SQLITE_CANTOPEN", "SQLITE_READONLY")) or running_pid(path.parent) is not None:
            raise
    else:
        return conn
    log_file = Path(f"{path}-wal")
    if log_file.exists() and log_file.stat().st_size:
        # What was committed last is there alone, and it can only be read by writing beside it.
        copy = Path(stack.enter_context(TemporaryDirectory(prefix="trackwatch-"))) / path.name
        for source, target in ((path, copy), (log_file, Path(f"{copy}-wal"))):
            shutil.copyfile(source, target)
        return stack.enter_context(closing(_connect(copy, "rw")))
    return stack.enter_context(closing(_connect(path, "ro&immutable=1")))


def _check_current(conn: sqlite3.Connection, path: Path) -> None:
    steps, db = _load_migrations().migrations, Database(conn, execute_plugins=False)
    _refuse_newer(steps, db, path)
    if steps.pending(db):
        raise StoreError(
            f"the state {str(path)!r} was written by an older trackwatch: start this one's daemon once, which brings it"
            " up to date, or use that one's commands"
        )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
