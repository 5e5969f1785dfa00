"""The store on real files: what is committed together, what a failing disk or another program does, what it refuses."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
import trio

from trackwatch import catalogue, outbox
from trackwatch import database as database_file
from trackwatch.database import open_beside, running_pid
from trackwatch.errors import StoreError
from trackwatch.event import MetadataForm
from trackwatch.mounts import _parse
from trackwatch.record import Absent, Ledger, Present
from trackwatch.store import Store, open_store
from trackwatch.track import Location, Observation, Signature

PATIENCE_S = 30


@asynccontextmanager
async def running(state_dir: Path, **options: Any) -> AsyncIterator[Store]:
    """Open a store, claim a root, and let the writer run."""
    async with open_store(state_dir, **options) as opened, trio.open_nursery() as nursery:
        await nursery.start(opened.run)
        with trio.fail_after(PATIENCE_S):
            await opened.write(lambda ledger: ledger.claim_roots((b"/music",)))
            yield opened
        nursery.cancel_scope.cancel()


def present(name: str, content: bytes = b"one", inode: int = 1) -> Present:
    """Return a described file."""
    digest = sha256(content).digest()
    seen = Signature(5, inode, len(content), 10, 20)
    return Present(Location(1, name.encode()), Observation(seen, digest, digest[:16]))


def recording(name: str, content: bytes = b"one") -> Callable[[Ledger], bool]:
    """Return the work that records a file."""
    return lambda ledger: ledger.record(present(name, content))


def sequences(state_dir: Path) -> list[int]:
    """Return the sequence of each event."""
    with open_beside(state_dir) as conn:
        return [seq for (seq,) in conn.execute("SELECT seq FROM outbox ORDER BY seq")]


async def raises(state_dir: Path, match: str, **options: Any) -> None:
    """Check that the state is refused."""
    with pytest.raises(StoreError, match=match):
        async with open_store(state_dir, **options):
            pass


async def in_trouble(opened: Store) -> str:
    """Wait until the state cannot be written, and return why."""
    while not opened.statistics.trouble:  # noqa: ASYNC110 - the store has no event for what only status shows
        await trio.sleep(0.01)
    return opened.statistics.trouble


def database(state_dir: Path) -> Path:
    """Return where the database is."""
    return state_dir / "trackwatch.db"


# ---- writing


async def test_many_writers_share_few_commits_and_each_gets_its_own_result(tmp_path: Path) -> None:
    """That is what makes durable commits affordable."""
    results: dict[int, int] = {}

    async with running(tmp_path) as opened:
        before = opened.statistics.commits

        async def write(number: int) -> None:
            def work(ledger: Ledger) -> int:
                ledger.record(present(f"{number}.mp3", b"%d" % number, number))
                return number * 2

            results[number] = await opened.write(work)

        async with trio.open_nursery() as nursery:
            for number in range(600):
                nursery.start_soon(write, number)
        commits = opened.statistics.commits - before
        assert opened.statistics.writes - 1 == 600
    assert results == {number: number * 2 for number in range(600)}
    assert commits < 60
    assert sequences(tmp_path) == list(range(1, 601))


async def test_a_write_is_seen_by_others_once_it_returns(tmp_path: Path) -> None:
    """On the disk, not only in this connection."""
    async with running(tmp_path) as opened:
        await opened.write(recording("a.mp3"))
        assert sequences(tmp_path) == [1]
        with opened.open_reader() as reader:
            assert len(await reader.read(partial(outbox.pending, limit=9))) == 1


async def test_a_commit_wakes_who_waits_for_it(tmp_path: Path) -> None:
    """Taken before looking, so that nothing is missed in between."""
    async with running(tmp_path) as opened:
        committed = opened.next_commit()
        assert not committed.is_set()
        await opened.write(recording("a.mp3"))
        assert committed.is_set()
        assert not opened.next_commit().is_set()
        assert opened.appended == {"created": 1}


async def test_the_mark_of_the_log_shows_the_commits_of_others(tmp_path: Path) -> None:
    """As `trackwatch replay` makes them beside the daemon."""
    async with running(tmp_path) as opened:
        await opened.write(recording("a.mp3"))
        before = opened.log_mark()
        assert before is not None
        with open_beside(tmp_path, writing=True) as conn, conn:
            outbox.replay(conn, [1])
        assert opened.log_mark() != before


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    """There is one writer."""
    async with running(tmp_path) as opened:
        with opened.open_reader() as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.read(lambda conn: conn.execute("DELETE FROM root"))


async def test_one_bad_piece_of_work_fails_alone(tmp_path: Path) -> None:
    """The others of its group commit, and the sequence has no gap where the bad one was undone."""
    failures: list[str] = []

    def bad(ledger: Ledger, number: int) -> None:
        ledger.record(present(f"bad-{number}.mp3"))
        if number % 2:
            raise ValueError(number)
        ledger.conn.execute("INSERT INTO outbox_pending(seq) VALUES (10000)")

    async with running(tmp_path) as opened:

        async def write(number: int) -> None:
            try:
                if number % 5 == 3:
                    await opened.write(partial(bad, number=number))
                else:
                    await opened.write(recording(f"{number}.mp3"))
            except (ValueError, sqlite3.IntegrityError) as error:
                failures.append(type(error).__name__)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(write, number)
        assert opened.appended == {"created": 80}
        await opened.write(recording("after.mp3"))
    assert sorted(failures) == ["IntegrityError"] * 10 + ["ValueError"] * 10
    assert sequences(tmp_path) == list(range(1, 82))
    with open_beside(tmp_path) as conn:
        assert conn.execute("SELECT count(*) FROM catalogue WHERE path LIKE 'bad%'").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM catalogue").fetchone() == (81,)


async def test_what_was_cancelled_may_be_done_and_the_store_goes_on(tmp_path: Path) -> None:
    """Whether it was or not: doing it again is harmless."""
    async with running(tmp_path) as opened:
        for number in range(50):
            with trio.move_on_after(0.0002 * number):
                await opened.write(recording(f"{number}.mp3"))
        for number in range(50):
            assert await opened.write(recording(f"{number}.mp3"))
    assert sequences(tmp_path) == list(range(1, 51))


async def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """Callers wait, the statistics say why, and it goes on without a gap once there is room."""
    big = b"x" * 20_000

    def fill(ledger: Ledger, number: int) -> None:
        ledger.record(present(f"{number}.mp3"))
        ledger.conn.execute("INSERT INTO setting VALUES (?, ?)", (str(number), big.decode()))

    async with running(tmp_path) as opened, trio.open_nursery() as nursery:
        pages = opened._conn.execute("PRAGMA page_count").fetchone()[0]
        opened._conn.execute(f"PRAGMA max_page_count = {pages + 20}")
        for number in range(20):
            nursery.start_soon(opened.write, partial(fill, number=number))
        trouble = await in_trouble(opened)
        assert "full" in trouble
        assert "make room on its disk" in trouble
        assert opened.statistics.waiting_since_us is not None
        written = opened.statistics.writes
        await trio.sleep(0.3)
        assert opened.statistics.writes == written
        opened._conn.execute(f"PRAGMA max_page_count = {pages + 10_000}")
        await opened.write(recording("last.mp3"))
        after = opened.statistics
        assert after.trouble == ""
        assert after.waiting_since_us is None
    assert sequences(tmp_path) == list(range(1, 22))


async def test_a_database_that_another_program_holds_is_waited_for(tmp_path: Path) -> None:
    """Beyond the busy timeout."""
    async with running(tmp_path) as opened:
        opened._conn.execute("PRAGMA busy_timeout = 20")
        with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.write, recording("a.mp3"))
                assert "another program holds it" in await in_trouble(opened)
                other.execute("ROLLBACK")
    assert sequences(tmp_path) == [1]


@pytest.mark.parametrize("deed", ["deleted", "replaced", "folder gone", "folder replaced"])
async def test_a_database_that_is_not_the_opened_one_any_more_ends_the_daemon(tmp_path: Path, deed: str) -> None:
    """SQLite itself goes on writing into the void."""
    state = tmp_path / "state"
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="deleted or replaced"), flatten_subgroups=True):
        async with running(state) as opened:
            if deed.startswith("folder"):
                state.rename(tmp_path / "away")
                if deed == "folder replaced":
                    state.write_text("a file")
            else:
                database(state).rename(tmp_path / "away.db")
                if deed == "replaced":
                    database(state).write_bytes((tmp_path / "away.db").read_bytes())
            await opened.write(recording("a.mp3"))


async def test_a_database_that_is_damaged_under_way_ends_the_daemon(tmp_path: Path) -> None:
    """In the words of an operator, not with the traceback of whoever wrote first."""
    async with running(tmp_path):
        pass
    with closing(sqlite3.connect(database(tmp_path))) as conn:
        page, page_size = (
            conn.execute(sql).fetchone()[0]
            for sql in ("SELECT rootpage FROM sqlite_master WHERE name = 'problem'", "PRAGMA page_size")
        )
    with database(tmp_path).open("r+b") as file:
        file.seek((page - 1) * page_size)
        file.write(b"\xff" * page_size)
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="damaged .*restore a backup"), flatten_subgroups=True):
        async with running(tmp_path) as opened:
            await opened.write(lambda ledger: catalogue.problem_paths(ledger.conn, 1))


# ---- opening


async def test_the_instance_id_is_made_once_and_kept(tmp_path: Path) -> None:
    """One that is given takes its place, for good."""
    ids = []
    for wanted in (None, None, "given", None):
        async with open_store(tmp_path, instance_id=wanted) as opened:
            ids.append(opened.instance_id)
    assert ids[0] == ids[1]
    assert ids[2:] == ["given", "given"]


async def test_the_sequence_goes_on_after_a_new_start(tmp_path: Path) -> None:
    """Also when everything was published and pruned meanwhile."""
    async with running(tmp_path) as opened:
        await opened.write(recording("a.mp3"))
        await opened.write(lambda ledger: outbox.confirm(ledger.conn, [(1, 0)]))
        assert await opened.write(lambda ledger: outbox.prune(ledger.conn, 1 << 60, 10)) == 1
    async with running(tmp_path, form=MetadataForm.FLAT) as opened:
        await opened.write(lambda ledger: ledger.record(Absent(Location(1, b"a.mp3"))))
    assert sequences(tmp_path) == [2]


async def test_the_pragmas_are_those_that_durability_needs(tmp_path: Path) -> None:
    """A weaker one would lose acknowledged events at a power cut, and no other test would notice."""
    async with open_store(tmp_path) as opened:
        pragmas = {
            name: opened._conn.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "auto_vacuum", "busy_timeout", "secure_delete")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "auto_vacuum": 2,
        "busy_timeout": 5000,
        "secure_delete": 0,
    }


async def test_a_second_instance_is_refused_and_told_who_holds_the_state(tmp_path: Path) -> None:
    """Until the first one ends."""
    async with open_store(tmp_path):
        await raises(tmp_path, f"in use by pid {os.getpid()};")
        assert running_pid(tmp_path) == os.getpid()
    assert running_pid(tmp_path) is None
    async with open_store(tmp_path):
        pass


async def test_a_start_is_not_refused_because_somebody_asks_for_the_status(tmp_path: Path) -> None:
    """Looking whether the state is held takes its lock for an instant; health checks do it all the time."""
    async with open_store(tmp_path):
        pass
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    looked = threading.Timer(0.05, os.close, [looking])
    looked.start()
    async with open_store(tmp_path):
        assert running_pid(tmp_path) == os.getpid()
    looked.join()


def test_nobody_holds_a_state_that_is_not_there(tmp_path: Path) -> None:
    """Asking makes nothing."""
    assert running_pid(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    """The kernel lets go of it, whatever the file says."""
    script = (
        "import sys, time; from pathlib import Path; from trackwatch.database import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert running_pid(tmp_path) == process.pid
        trio.run(raises, tmp_path, f"in use by pid {process.pid};")
        process.send_signal(signal.SIGKILL)
    with database_file.locked(tmp_path):
        assert running_pid(tmp_path) == os.getpid()


async def test_a_state_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    """Nobody knows what its columns mean."""
    async with open_store(tmp_path):
        pass
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as conn:
        conn.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at) VALUES ('trackwatch', 'm9999_new', '')"
        )
    await raises(tmp_path, "newer trackwatch .migration m9999_new.: upgrade")


async def test_what_looks_beside_the_daemon_refuses_a_state_of_another_release(tmp_path: Path) -> None:
    """Older or newer: it does not know these columns, and migrates nothing."""
    async with open_store(tmp_path):
        pass
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as conn:
        with open_beside(tmp_path):
            pass
        conn.execute("UPDATE _sqlite_migrations SET migration_set = 'theirs'")
        with pytest.raises(StoreError, match="older trackwatch: start this one's daemon once"), open_beside(tmp_path):
            pass
        conn.execute("UPDATE _sqlite_migrations SET migration_set = 'trackwatch', name = 'm9999_new'")
        with pytest.raises(StoreError, match=r"newer trackwatch \(migration m9999_new\)"), open_beside(tmp_path):
            pass
        conn.execute("DROP TABLE _sqlite_migrations")
        with pytest.raises(StoreError, match="older trackwatch"), open_beside(tmp_path):
            pass


def test_the_names_of_the_schema_s_steps_are_those_that_sqlite_utils_runs() -> None:
    """One is read from the source, since running it would take long for who only looks."""
    with closing(sqlite_utils.Database(memory=True)) as empty:
        steps = database_file.load_migrations().migrations.pending(empty)
    assert database_file.step_names() == {step.name for step in steps} != set()


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    """With or without an application id."""
    with closing(sqlite3.connect(database(tmp_path))) as conn:
        conn.execute("CREATE TABLE theirs(x)")
    before = database(tmp_path).read_bytes()
    await raises(tmp_path, "not a state database of trackwatch")
    with pytest.raises(StoreError, match="not a state database"), open_beside(tmp_path):
        pass
    assert database(tmp_path).read_bytes() == before


async def test_a_file_without_a_byte_is_refused(tmp_path: Path) -> None:
    """SQLite would take it for an empty database, and the whole library for new."""
    database(tmp_path).touch()
    await raises(tmp_path, "is empty.*restore a backup, or delete it")
    with pytest.raises(StoreError, match="is empty"), open_beside(tmp_path):
        pass


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """With the remedy."""
    database(tmp_path).write_bytes(b"no database at all\n" * 100)
    await raises(tmp_path, "damaged .*restore a backup")
    with pytest.raises(StoreError, match="damaged"), open_beside(tmp_path):
        pass


async def test_a_folder_in_the_database_s_place_is_refused(tmp_path: Path) -> None:
    """Docker makes one for a volume whose file is missing."""
    database(tmp_path).mkdir()
    await raises(tmp_path, "cannot open the state database")


async def test_a_file_in_the_state_folder_s_place_is_refused(tmp_path: Path) -> None:
    """Also in the place of a folder above it."""
    (tmp_path / "file").touch()
    await raises(tmp_path / "file", "cannot use state .*file exists; make it writable for user")
    await raises(tmp_path / "file" / "state", "cannot use state .*not a directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as somebody else")
@pytest.mark.parametrize("shut", ["folder", "database"])
def test_a_state_of_another_user_is_refused_with_the_user_s_number(public_path: Path, shut: str) -> None:
    """And nobody is told to restore a backup of what is in good order."""
    state = public_path / "state"

    async def make() -> None:
        async with open_store(state):
            pass

    trio.run(make)
    if shut == "database":
        os.chown(state, 10001, 10001)
        os.chown(state / "lock", 10001, 10001)
        database(state).chmod(0o600)
    script = (
        "import os, sys, trio; from pathlib import Path; from trackwatch.store import open_store\n"
        # As a child that has imported all it needs: the installation may lie where only root can read.
        "import sqlite_utils.migrations, trackwatch.database; steps = trackwatch.database.load_migrations()\n"
        "trackwatch.database.load_migrations = lambda: steps\n"
        "os.setgid(10001); os.setuid(10001)\n"
        "async def main():\n"
        "    async with open_store(Path(sys.argv[1])): pass\n"
        "try: trio.run(main)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, state], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("StoreError cannot "), done.stderr
    assert "writable for user 10001" in done.stdout
    assert "damaged" not in done.stdout


@pytest.mark.parametrize(("fstype", "refused"), [(b"nfs4", True), (b"fuse.sshfs", True), (b"ext4", False)])
async def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: bytes, refused: bool
) -> None:
    """The write-ahead log's shared memory is not shared with the other machine."""
    table = [b"1 0 8:1 / / rw - ext4 /dev/sda rw\n", b"2 1 0:9 / %b rw - %b there:/x rw\n" % (bytes(tmp_path), fstype)]
    mounts = [_parse(line) for line in table]
    monkeypatch.setattr(database_file, "read_mounts", lambda: mounts)
    if refused:
        await raises(tmp_path / "state", rf"network file system \({fstype.decode()}\)")
        assert not database(tmp_path / "state").exists()
    else:
        async with open_store(tmp_path / "state"):
            pass


async def test_a_crash_while_the_database_is_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """What was half made under the other name is made anew."""
    (tmp_path / "trackwatch.db.new").write_bytes(b"half")
    (tmp_path / "trackwatch.db.new-journal").write_bytes(b"half")
    async with running(tmp_path) as opened:
        await opened.write(recording("a.mp3"))
    assert sorted(os.listdir(tmp_path)) == ["lock", "trackwatch.db"]


async def test_a_failing_creation_says_so(tmp_path: Path) -> None:
    """In one line, as every other refusal."""
    (tmp_path / "trackwatch.db.new").mkdir()
    await raises(tmp_path, "cannot create the state database .*directory")


async def test_the_log_of_a_deleted_database_is_not_played_into_the_next_one(tmp_path: Path) -> None:
    """A person who begins anew deletes the database, and may leave what lies beside it after a crash."""
    async with running(tmp_path) as opened:
        for number in range(50):
            await opened.write(recording(f"{number}.mp3"))
        left = {name: (tmp_path / name).read_bytes() for name in ("trackwatch.db-wal", "trackwatch.db-shm")}
    database(tmp_path).unlink()
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    async with running(tmp_path) as opened:
        await opened.write(recording("new.mp3"))
    assert sequences(tmp_path) == [1]
    with open_beside(tmp_path) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_what_was_committed_before_a_crash_is_there_after_it(tmp_path: Path) -> None:
    """In the log beside the database, which nobody had time to put away."""
    async with running(tmp_path / "one") as opened:
        await opened.write(recording("a.mp3"))
        (tmp_path / "two").mkdir()
        for path in (tmp_path / "one").iterdir():
            (tmp_path / "two" / path.name).write_bytes(path.read_bytes())
    async with running(tmp_path / "two") as opened:
        await opened.write(recording("b.mp3"))
    assert sequences(tmp_path / "two") == [1, 2]


# ---- beside a daemon


async def test_the_state_can_be_read_and_replayed_while_a_writer_works(tmp_path: Path) -> None:
    """Neither waits for the other for long, and the daemon's sequence stays whole."""

    def beside() -> None:
        with open_beside(tmp_path) as conn, pytest.raises(sqlite3.OperationalError, match="readonly"):
            conn.execute("DELETE FROM setting")
        for _ in range(20):
            with open_beside(tmp_path) as conn:
                totals = outbox.totals(conn)
                assert totals.events >= totals.pending
            with open_beside(tmp_path, writing=True) as conn:
                conn.execute("BEGIN IMMEDIATE")
                outbox.replay(conn, range(1, 5))
                conn.execute("COMMIT")

    async with running(tmp_path) as opened, AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(trio.to_thread.run_sync, beside)
        for number in range(200):
            await opened.write(recording(f"{number}.mp3"))
    assert sequences(tmp_path) == list(range(1, 201))


def test_where_no_daemon_has_run_there_is_nothing_to_read(tmp_path: Path) -> None:
    """And nothing is made."""
    with pytest.raises(StoreError, match=r"no state in .*has trackwatch run here"), open_beside(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


async def test_an_error_in_what_is_done_beside_is_put_into_words(tmp_path: Path) -> None:
    """A busy database, for instance; nothing is half done."""
    async with running(tmp_path) as opened:
        await opened.write(recording("a.mp3"))
        opened._conn.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program holds it"), open_beside(tmp_path, writing=True) as conn:
            conn.executescript("PRAGMA busy_timeout = 1; BEGIN IMMEDIATE")
        opened._conn.execute("ROLLBACK")
