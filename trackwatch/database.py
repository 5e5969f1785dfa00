"""The database file of the state: where SQLite is opened, made, migrated, checked, locked and understood.

One process may write: it holds a lock on the folder. Others may look (`status`), and make events pending again
(`replay`), beside it, or where nobody can write at all. Every error of SQLite's is put into words here.
"""

import ast
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from trackwatch.errors import StoreBusy, StoreError, StoreOutdated
from trackwatch.mounts import mount_of, read_mounts

T = TypeVar("T")

APPLICATION_ID = int.from_bytes(b"TRWA")
BUSY_TIMEOUT_S = 5.0
# A log that grew beyond this (an import, somebody's long look at the state) is cut back once it has been put away.
WAL_LIMIT_BYTES = 64 * 1024 * 1024
# Put away after so many pages, 4 MB: SQLite's own default, which a build of it may have changed.
WAL_CHECKPOINT_PAGES = 1000
HELD = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"})
PASSING = HELD | {"SQLITE_IOERR"}
RETRYABLE = PASSING | {"SQLITE_FULL", "SQLITE_READONLY"}
DAMAGED = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})
# `status` takes the lock for an instant to see whether somebody holds it; a start at that very moment tries again.
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.02


def is_one_of(error: sqlite3.Error, codes: Iterable[str]) -> bool:
    """Whether an error has one of these names, or one that goes into more detail."""
    name = getattr(error, "sqlite_errorname", "")
    return any(name == code or name.startswith(code + "_") for code in codes)


def translated(error: sqlite3.Error, path: Path, deed: str = "write") -> StoreBusy | StoreError:
    """Return an error in words with a remedy: StoreBusy for what may pass, StoreError for what does not."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if is_one_of(error, RETRYABLE):
        remedy = "look at the disk and the system's log"
        if name == "SQLITE_FULL":
            remedy = "make room on its disk"
        elif is_one_of(error, HELD):
            remedy = "another program holds it; it goes on by itself once that one is done"
        return StoreBusy(f"cannot {deed} the state database {str(path)!r}: {error}; {remedy}")
    return StoreError(f"the state database {str(path)!r} is damaged ({name}: {error}); restore a backup")


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Return a connection; `mode` is SQLite's: `ro` or `rw`, with further parameters of its URI."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    conn = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    conn.execute("PRAGMA temp_store = MEMORY")
    if mode.startswith("ro"):
        # Of several readers each would keep 2 MB of pages; the system's cache has them all the same.
        conn.execute("PRAGMA cache_size = -256")
    conn.execute("PRAGMA foreign_keys = ON")
    return conn


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process alone.

    Raises:
        StoreError: another process has it, or it cannot be used; with the remedy.
    """
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


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Return a connection to the database, which is made or migrated first where it has to be.

    Raises:
        StoreError: it is not ours, newer, damaged, or cannot be written; with the remedy.
    """
    conn: sqlite3.Connection | None = None
    try:
        if not path.exists():
            _create(path)
        conn = connect(path, "rw")
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
    if is_one_of(error, ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return StoreError(
            f"cannot open the state database {str(path)!r}: {error}; make it and its folder writable for user"
            f" {os.geteuid()}, or be the user who owns them"
        )
    if is_one_of(error, HELD):
        # A daemon that works waits for this; a command, or a start, does not.
        return StoreError(
            f"cannot open the state database {str(path)!r}: {error}; another program holds it: try again once that one"
            " is done"
        )
    return StoreError(str(translated(error, path)))


_LOGS = ("-wal", "-shm", "-journal")


def _create(path: Path) -> None:
    """Create the database under another name first: a crash here never leaves a half-made one under its own."""
    new = path.with_name(path.name + ".new")
    # A log that outlived its database (somebody deleted that alone) would be played into the new one, and damage it.
    for leftover in (*path.parent.glob(new.name + "*"), *(path.with_name(path.name + tail) for tail in _LOGS)):
        leftover.unlink(missing_ok=True)
    conn = connect(new, "rwc")
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
    conn.execute("BEGIN IMMEDIATE")  # also where there is nothing to do: a start finds out whether the state is held
    try:
        ours = step_names()
        _refuse_newer(ours, conn, path)
        if _applied(conn) != ours:
            # What it takes is a tenth of what a start costs, and stays in memory.
            from sqlite_utils import Database

            load_migrations().migrations.apply(Database(conn, execute_plugins=False))
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


def _refuse_newer(ours: set[str], conn: sqlite3.Connection, path: Path) -> None:
    if newer := sorted(_applied(conn) - ours):
        raise StoreError(
            f"the state {str(path)!r} was written by a newer trackwatch (migration {newer[-1]}): upgrade, or restore a"
            " backup"
        )


def _applied(conn: sqlite3.Connection) -> set[str]:
    if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone():
        return set()
    found = conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'trackwatch'")
    return {name for (name,) in found}


def load_migrations() -> ModuleType:
    """Load the schema's steps."""
    import importlib.util  # only to migrate, as sqlite_utils

    spec = importlib.util.spec_from_file_location("trackwatch_migrations", _migrations_file())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step_names() -> set[str]:
    """Return the names of the schema's steps: the decorated functions of their file, which is not run for that."""
    tree = ast.parse(_migrations_file().read_bytes())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}


def _migrations_file() -> Path:
    """Return the file of the schema's steps: shipped inside the package, or beside it in a checkout."""
    here = Path(__file__).parent
    for folder in (here, here.parent):
        path = folder / "migrations" / "migrations.py"
        if path.exists():
            return path
    raise StoreError("this installation lacks its migrations; install trackwatch again")


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
        if isinstance(error, sqlite3.Error) and is_one_of(error, ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_IOERR")):
            raise translated(error, Path(conn.execute("PRAGMA database_list").fetchone()[2])) from error
        raise
    return result


def _open_beside(path: Path, stack: ExitStack, *, writing: bool) -> sqlite3.Connection:
    if not path.exists():
        raise StoreError(f"no state in {str(path.parent)!r}: has trackwatch run here? (set TRACKWATCH_STATE_DIR)")
    conn = stack.enter_context(closing(connect(path, "rw"))) if writing else _open_for_reading(path, stack)
    _check_ours(conn, path)
    _check_current(conn, path)
    return conn


def _open_for_reading(path: Path, stack: ExitStack) -> sqlite3.Connection:
    log_file = Path(f"{path}-wal")
    if not _has_content(log_file) and running_pid(path.parent) is None:
        # Everything is in the database, and nobody writes. Opened in another way, even to read, SQLite makes its two
        # files beside it, and leaves them. A daemon that starts now writes to its log first, and we have read by then.
        return stack.enter_context(closing(connect(path, "ro&immutable=1")))
    try:
        conn = stack.enter_context(closing(connect(path, "ro")))
        conn.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        # SQLite wants its two files, and cannot make them here.
        if not is_one_of(error, ("SQLITE_CANTOPEN", "SQLITE_READONLY")) or running_pid(path.parent) is not None:
            raise
    else:
        return conn
    # What was committed last is in the log alone, and it can only be read by writing beside it.
    import shutil
    from tempfile import TemporaryDirectory  # some milliseconds, and hardly ever needed

    copy = Path(stack.enter_context(TemporaryDirectory(prefix="trackwatch-"))) / path.name
    for source, target in ((path, copy), (log_file, Path(f"{copy}-wal"))):
        shutil.copyfile(source, target)
    return stack.enter_context(closing(connect(copy, "rw")))


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _check_current(conn: sqlite3.Connection, path: Path) -> None:
    ours = step_names()
    _refuse_newer(ours, conn, path)
    if ours - _applied(conn):
        raise StoreOutdated(
            f"the state {str(path)!r} was written by an older trackwatch: start this one's daemon once, which brings it"
            " up to date, or use that one's commands"
        )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
