"""What disks, other programs, people and clocks do to the state, done to it for real; nothing is lost, and it says so.

A full disk and a network file system are mounted, which needs root; a process is killed at a chosen system call, which
needs strace. Where these cannot be had, the tests are skipped and say why.
"""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from tests.bed.daemon import Daemon
from tests.integration.test_losses import music
from tests.integration.test_store import database, present, raises, recording, running, sequences
from tests.integration.test_watching import wait_for_fold
from trackwatch import database as database_file
from trackwatch import outbox, store
from trackwatch.database import open_beside
from trackwatch.errors import StoreError
from trackwatch.record import Ledger
from trackwatch.store import open_store

DAY_US = 86_400_000_000


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Take all the room of a disk, to the last block, while the block runs."""
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while True:
            os.write(descriptor, bytes(1024))
    os.close(descriptor)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold the database for writing, as a backup tool or a person's SQLite shell does, while the block runs."""
    with closing(sqlite3.connect(database(state), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def store_trouble(running: Daemon) -> str:
    """Return what status says of the store; with anything to say, it must call the daemon degraded."""
    code, status = running.status()
    trouble = str(status["store"].get("trouble", ""))
    assert code == 1 or not trouble
    return trouble


def assert_people_are_told(running: Daemon, trouble: str) -> None:
    """Check what status prints for people while the store cannot be written."""
    words = running.run("status")
    assert words.returncode == 1
    assert "unwritable" in words.stdout
    assert trouble in words.stdout


def complaint(running: Daemon) -> str:
    """Return the last line of a daemon that has refused to go on; there must be no traceback."""
    assert running.exit_code == 3
    *_, last = map(json.loads, running.stderr().splitlines())
    assert (last["event"], last["level"], last["exit_code"]) == ("fatal", "critical", 3)
    assert "Traceback" not in running.stderr()
    assert said(running, "fatal") == 1, "one line"
    return str(last["reason"])


def said(running: Daemon, event: str) -> int:
    """Return how often an event is in the log of this start."""
    return running.stderr().count(f'"event": "{event}"')


def change_all(root: Path, files: int, content: str) -> None:
    """Write so many files."""
    root.mkdir(exist_ok=True)
    for number in range(files):
        music(root / f"{number}.mp3", content)


# ---- the disk


def test_on_a_full_disk_events_wait_and_status_says_what_to_do(
    daemon: Callable[..., Daemon], tmp_path: Path, mount: Callable[..., Callable[[], None]]
) -> None:
    """The place of the status itself is full as well."""
    root, state = tmp_path / "music", tmp_path / "state"
    state.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "none", state)
    change_all(root, 20, "before")
    running = daemon(root, state)
    running.start()
    running.wait_for_events(20)
    for spell in ("one", "two"):
        with filled(state):
            change_all(root, 200, f"while it was full, {spell}")
            running.wait_until(lambda: store_trouble(running) != "", 30, "trouble in status")
            assert_people_are_told(running, "database or disk is full; make room on its disk")
            told = len(running.events())
            music(root / "later.mp3", spell)
            (root / "7.mp3").rename(root / f"renamed {spell}.mp3")
        wait_for_fold(running, root)
        assert len(running.events()) > told
        running.wait_until(lambda: store_trouble(running) == "", 30, "no trouble in status")
    assert (said(running, "state cannot be written"), said(running, "state can be written again")) == (2, 2)
    assert running.status()[0] == 0
    assert running.stop() == 0


def test_a_stop_on_a_full_disk_loses_nothing(
    daemon: Callable[..., Daemon], tmp_path: Path, mount: Callable[..., Callable[[], None]]
) -> None:
    """Nobody waits for room that does not come; the next start finds what was left."""
    root, state = tmp_path / "music", tmp_path / "state"
    state.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "none", state)
    change_all(root, 20, "before")
    running = daemon(root, state)
    running.start()
    running.wait_for_events(20)
    with filled(state):
        change_all(root, 100, "while it was full")
        running.wait_until(lambda: store_trouble(running) != "", 30, "trouble in status")
        assert running.stop() == 0
        assert "Traceback" not in running.stderr()
    running.start()
    wait_for_fold(running, root)


def test_a_start_on_a_full_disk_is_refused(
    daemon: Callable[..., Daemon], tmp_path: Path, mount: Callable[..., Callable[[], None]]
) -> None:
    """With the remedy; and it can be tried again."""
    root, state = tmp_path / "music", tmp_path / "state"
    state.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "none", state)
    change_all(root, 3, "")
    running = daemon(root, state)
    with filled(state):
        running.start(wait=False)
        running.wait_for_exit()
        assert "make room on its disk" in complaint(running)
    running.start()
    running.wait_for_events(3)


# ---- other programs


def test_a_database_that_is_held_for_long_is_waited_for(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """Longer than SQLite itself waits; a stop meanwhile is a stop all the same."""
    root, state = tmp_path / "music", tmp_path / "state"
    change_all(root, 5, "before")
    running = daemon(root, state)
    running.start()
    running.wait_for_events(5)
    with locked(state):
        change_all(root, 30, "while it was held")
        running.wait_until(lambda: store_trouble(running) != "", 30, "trouble in status")
        assert_people_are_told(running, "another program holds it; it goes on by itself once that one is done")
        assert len(running.events()) == 5
    wait_for_fold(running, root)
    running.wait_until(lambda: store_trouble(running) == "", 30, "no trouble in status")
    assert (said(running, "state cannot be written"), said(running, "state can be written again")) == (1, 1)
    with locked(state):
        change_all(root, 60, "while it was held again")
        assert running.stop() == 0
    running.start()
    wait_for_fold(running, root)


def test_a_start_while_the_database_is_held_is_refused_in_words_for_a_start(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """It does not go on by itself: somebody, or the service manager, has to start it again."""
    root, state = tmp_path / "music", tmp_path / "state"
    change_all(root, 1, "")
    running = daemon(root, state)
    running.start()
    running.stop()
    with locked(state):
        running.start(wait=False)
        running.wait_for_exit()
        assert "another program holds it: try again once that one is done" in complaint(running)
    running.start()


def test_a_log_that_somebody_s_long_look_holds_up_is_told_and_is_small_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that is held keeps everything that came later in the log; the limit is made small here."""
    limit = 4_000_000
    monkeypatch.setattr(database_file, "WAL_LIMIT_BYTES", limit)
    log = tmp_path / "trackwatch.db-wal"

    def fill(ledger: Ledger, number: int) -> None:
        ledger.conn.execute("REPLACE INTO setting VALUES (?, ?)", (f"n{number % 10}", "x" * 100_000))

    async def main() -> None:
        async with running(tmp_path) as opened:
            with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as other:
                other.execute("BEGIN")
                other.execute("SELECT count(*) FROM setting").fetchall()
                for number in range(200):
                    await opened.write(partial(fill, number=number))
                assert log.stat().st_size > 4 * limit
            for number in range(100):
                await opened.write(partial(fill, number=number))
                if number > 1:
                    assert log.stat().st_size < limit + database_file.WAL_CHECKPOINT_PAGES * 4096 + 200_000

    with capture_logs() as entries:
        trio.run(main)
    grown = [entry for entry in entries if entry["event"] == "state log grows"]
    assert [entry["reason"] for entry in grown] == [
        "another program has the state open and looks at an old state of it; end that program"
    ]


async def test_the_log_stays_small_without_anybody_s_long_look(tmp_path: Path) -> None:
    """Whoever commits puts it away, now and then."""
    async with running(tmp_path) as opened:
        for number in range(100):
            await opened.write(recording(f"{number}.mp3"))
            work: Callable[[Ledger], Any] = lambda ledger: ledger.conn.execute(  # noqa: E731 - it is one line of work
                "REPLACE INTO setting VALUES ('big', ?)", ("x" * 300_000,)
            )
            await opened.write(work)
        assert (tmp_path / "trackwatch.db-wal").stat().st_size < database_file.WAL_CHECKPOINT_PAGES * 4096 + 1_000_000


@pytest.mark.parametrize("statistics", ["ANALYZE", "PRAGMA optimize(0x10002)"])
async def test_statistics_that_a_tool_has_made_are_forgotten(tmp_path: Path, statistics: str) -> None:
    """With them SQLite would read all of a large outbox to find the next event to send."""
    async with running(tmp_path) as opened:
        await opened.write(lambda ledger: [ledger.record(present(f"{number}.mp3")) for number in range(100)])
        await opened.write(lambda ledger: outbox.confirm(ledger.conn, [(number, 0) for number in range(1, 101)]))
    with closing(sqlite3.connect(database(tmp_path))) as tool:
        tool.execute("SELECT count(*) FROM outbox WHERE event_id > x'00'")
        tool.execute(statistics)
        made = tool.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchone()
    if statistics == "ANALYZE":
        assert made == (1,)
    async with open_store(tmp_path) as opened:
        names = {name for (name,) in opened._conn.execute("SELECT name FROM sqlite_master")}
        assert "outbox" in names
        assert not {name for name in names if name.startswith("sqlite_stat")}


async def test_the_next_events_are_found_at_once_even_while_a_tool_has_just_made_statistics(tmp_path: Path) -> None:
    """They are forgotten at the next start; until then the publisher must not read all that was ever published."""
    async with running(tmp_path) as opened:
        await opened.write(lambda ledger: [ledger.record(present(f"{number}.mp3")) for number in range(100)])
        await opened.write(lambda ledger: outbox.confirm(ledger.conn, [(number, 0) for number in range(1, 101)]))
    with closing(sqlite3.connect(database(tmp_path))) as tool:
        tool.execute("ANALYZE")
        statements: list[str] = []
        tool.set_trace_callback(statements.append)
        assert outbox.pending(tool, 10) == []
        tool.set_trace_callback(None)
        plans = [str(row[3]) for sql in statements for row in tool.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert plans
    for plan in plans:
        assert "TEMP B-TREE" not in plan
        assert plan.split()[:2] != ["SCAN", "outbox"]


async def test_room_that_pruning_has_freed_is_given_back_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that a long outage has filled gets its room back, without a long pause."""
    monkeypatch.setattr(store, "TEND_S", 0.0)
    monkeypatch.setattr(store, "FREE_KEPT_BYTES", 1_000_000)
    monkeypatch.setattr(store, "FREED_AT_ONCE_BYTES", 1_000_000)
    async with running(tmp_path) as opened:
        fill = "INSERT INTO setting VALUES (?, ?)"
        await opened.write(lambda ledger: ledger.conn.executemany(fill, ((str(n), "x" * 100_000) for n in range(100))))
        await opened.write(lambda ledger: ledger.conn.execute("DELETE FROM setting WHERE value GLOB 'x*'").rowcount)
        sizes = []
        for number in range(20):
            await opened.write(recording(f"{number}.mp3"))
            sizes.append(opened._conn.execute("PRAGMA page_count").fetchone()[0] * 4096)
    # A commit is told before the room is given back: two such steps may lie between two of these looks.
    assert max(before - after for before, after in itertools.pairwise(sizes)) <= 2_100_000
    assert sizes[0] > 8_000_000
    assert sizes[-1] < 2_500_000
    async with running(tmp_path) as opened:
        assert opened._conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# ---- people


@pytest.mark.parametrize("deed", ["database", "log", "shared memory", "all", "folder", "restored"])
def test_a_state_that_is_taken_away_ends_the_daemon(daemon: Callable[..., Daemon], tmp_path: Path, deed: str) -> None:
    """In one line, with exit code 3: what is written then goes nowhere."""
    root, state = tmp_path / "music", tmp_path / "state"
    change_all(root, 5, "before")
    running = daemon(root, state)
    running.start()
    running.wait_for_events(5)
    taken = {
        "database": ["trackwatch.db"],
        "log": ["trackwatch.db-wal"],
        "shared memory": ["trackwatch.db-shm"],
        "all": [path.name for path in state.iterdir()],
    }
    if deed == "folder":
        shutil.rmtree(state)
    elif deed == "restored":
        shutil.copy(database(state), tmp_path / "backup.db")
        (tmp_path / "backup.db").replace(database(state))
    else:
        for name in taken[deed]:
            (state / name).unlink()
    music(root / "after.mp3")
    running.wait_for_exit()
    assert "was deleted or replaced while in use" in complaint(running)


def test_a_second_daemon_says_who_holds_the_state(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """Also when somebody has taken the first one's lock file for a stale one; and a killed one holds nothing."""
    root, state = tmp_path / "music", tmp_path / "state"
    change_all(root, 2, "")
    first = daemon(root, state)
    first.start()
    second = daemon(root, state)

    def refused() -> str:
        second.start(wait=False)
        second.wait_for_exit()
        return complaint(second)

    assert f"is in use by pid {first.pid}; one instance per state folder (set TRACKWATCH_STATE_DIR)" in refused()
    (state / "lock").unlink()
    assert "is in use by pid unknown" in refused()
    assert first.status()[1]["running"]
    first.kill()
    first.start()
    assert f"is in use by pid {first.pid};" in refused()
    first.kill()
    assert first.status()[0] == 4
    second.start()
    music(root / "new.mp3")
    second.wait_for_event(lambda event: event["file_path"].endswith("new.mp3"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("CREATE TABLE theirs(x)", "is not a state database of trackwatch; set TRACKWATCH_STATE_DIR"),
        ("PRAGMA application_id = 77", "is not a state database of trackwatch; set TRACKWATCH_STATE_DIR"),
        ("", "is empty, and no crash of ours leaves it so: restore a backup, or delete it"),
        ("newer", "was written by a newer trackwatch (migration m9999_new): upgrade, or restore a backup"),
    ],
)
def test_a_database_that_is_not_ours_is_refused_by_every_command(
    daemon: Callable[..., Daemon], tmp_path: Path, content: str, words: str
) -> None:
    """And not a byte of it is changed."""
    root, state = tmp_path / "music", tmp_path / "state"
    change_all(root, 1, "")
    refused = daemon(root, state)
    if content == "newer":
        refused.start()
        refused.stop()
        content = (
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at) VALUES ('trackwatch', 'm9999_new', '')"
        )
    database(state).touch()
    with closing(sqlite3.connect(database(state))) as conn, conn:
        conn.execute(content)
    before = database(state).read_bytes()
    refused.start(wait=False)
    refused.wait_for_exit()
    assert words in complaint(refused)
    for command in (["status"], ["replay", "--sequence", "1", "--yes"]):
        done = refused.run(*command)
        assert done.returncode == 3
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert database(state).read_bytes() == before


# ---- a network file system


FUSE_INIT, FUSE_GETATTR, FUSE_FORGET, FUSE_INTERRUPT = 26, 3, 2, 36
ENOSYS = 38


def answer_as_a_file_server(device: int) -> None:
    """Be the other side of a FUSE mount that holds an empty directory, until it is unmounted."""
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError:
            return
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        if opcode in (FUSE_FORGET, FUSE_INTERRUPT):
            continue
        error, body = -ENOSYS, b""
        if opcode == FUSE_INIT:
            error, body = 0, struct.pack("=IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 9, 65536, 1, 32, 0, 0)
        elif opcode == FUSE_GETATTR:
            attributes = struct.pack("=6Q10I", node, 4096, 8, 0, 0, 0, 0, 0, 0, 0o40755, 2, os.getuid(), 0, 0, 4096, 0)
            error, body = 0, struct.pack("=QII", 1, 0, 0) + attributes
        os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def test_a_state_on_a_network_file_system_is_refused(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """A real one, as far as the kernel can tell: FUSE, as sshfs has it."""
    root, state = tmp_path / "music", tmp_path / "state"
    change_all(root, 1, "")
    refused = daemon(root, state)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    command = ["mount", "-i", "-t", "fuse.sshfs", "-o", options, "server:/music", str(state)]
    mounted = subprocess.run(command, pass_fds=[device], check=False, capture_output=True, text=True)
    if mounted.returncode:
        os.close(device)
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    server = threading.Thread(target=answer_as_a_file_server, args=(device,), daemon=True)
    server.start()
    try:
        refused.start(wait=False)
        refused.wait_for_exit()
    finally:
        subprocess.run(["umount", state], check=True)
        server.join()
        os.close(device)
    assert "lies on a network file system (fuse.sshfs)" in complaint(refused)
    assert "put it on a local disk (set TRACKWATCH_STATE_DIR)" in complaint(refused)


# ---- kill -9 at a chosen moment

CREATE = "from pathlib import Path; from trackwatch.database import open_for_writing\nimport sys\n"
OPEN = "open_for_writing(Path(sys.argv[1]) / 'trackwatch.db').close()\n"
# A next release that moves a table with many rows into another form, in several statements, beyond SQLite's cache.
MIGRATE = (
    CREATE
    + """
from trackwatch import database

def load():
    module = old()
    @module.migrations()
    def m0002_next(db):
        db.conn.execute("PRAGMA cache_size = 10")
        db.executescript("CREATE TABLE fresh(name TEXT PRIMARY KEY, value TEXT NOT NULL, size INTEGER NOT NULL);")
        db.conn.execute("INSERT INTO fresh SELECT name, value, length(value) FROM setting")
        db.executescript("DROP TABLE setting; ALTER TABLE fresh RENAME TO setting;")
        db.executescript("ALTER TABLE root ADD COLUMN note TEXT;")
    return module

old, database.load_migrations = database.load_migrations, load
names, database.step_names = database.step_names, lambda: names() | {"m0002_next"}
"""
    + OPEN
)


def killed_at(call: str, number: int, script: str, state: Path) -> bool:
    """Run a script that is killed when it makes a system call for the so-many-th time; False if it never did."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:signal=KILL:when={number}", sys.executable, "-c", script, str(state)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip(f"cannot trace here: {done.stderr.strip()}")
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize(
    ("call", "number"),
    [("pwrite64", 1), ("pwrite64", 9), ("pwrite64", 30), ("fdatasync", 1), ("fdatasync", 5), ("fdatasync", 12),
     ("unlink", 2), ("rename", 1), ("fsync", 1), ("pwrite64", 45), ("ftruncate", 1)],
)  # fmt: skip
def test_a_crash_while_the_state_is_made_is_no_obstacle(tmp_path: Path, call: str, number: int) -> None:
    """The next start makes it, or finds it made."""
    assert killed_at(call, number, CREATE + OPEN, tmp_path), "it was over before"

    async def start() -> None:
        async with running(tmp_path) as opened:
            await opened.write(recording("a.mp3"))
            assert opened._conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    trio.run(start)
    assert sequences(tmp_path) == [1]
    assert not list(tmp_path.glob("*.new*"))


@pytest.mark.parametrize(
    ("call", "number"), [("pwrite64", 1), ("pwrite64", 20), ("pwrite64", 200), ("fdatasync", 1), ("pwrite64", 900)]
)
def test_a_migration_that_is_killed_was_done_or_was_not(tmp_path: Path, call: str, number: int) -> None:
    """Never by half: an old release can go on, or a new one."""
    rows = [(f"{number:05}", "x" * 300) for number in range(3000)]

    async def fill() -> None:
        async with running(tmp_path) as opened:
            await opened.write(recording("a.mp3"))
            await opened.write(lambda ledger: ledger.conn.executemany("INSERT INTO setting VALUES (?, ?)", rows))

    trio.run(fill)
    assert killed_at(call, number, MIGRATE, tmp_path), "it was over before"
    with closing(sqlite3.connect(database(tmp_path))) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        steps = {name for (name,) in conn.execute("SELECT name FROM _sqlite_migrations")}
        columns = [name for _, name, *_ in conn.execute("PRAGMA table_info(setting)")]
        notes = [name for _, name, *_ in conn.execute("PRAGMA table_info(root)") if name == "note"]
        kept = conn.execute("SELECT name, value FROM setting WHERE value GLOB 'xxx*' ORDER BY name").fetchall()
    assert kept == rows
    assert "fresh" not in tables
    was_done = "m0002_next" in steps
    assert columns == (["name", "value", "size"] if was_done else ["name", "value"])
    assert bool(notes) == was_done
    if not was_done:

        async def go_on() -> None:
            async with running(tmp_path) as opened:
                await opened.write(recording("b.mp3"))

        trio.run(go_on)
        assert sequences(tmp_path) == [1, 2]
    subprocess.run([sys.executable, "-c", MIGRATE, tmp_path], check=True)
    trio.run(raises, tmp_path, "newer trackwatch .migration m0002_next.")


# ---- retention


async def test_what_is_pruned_while_events_are_published_is_published_and_old(tmp_path: Path) -> None:
    """Three at work at the same time, and one event is set aside."""
    events = 1500
    sent: list[int] = []
    pruned = 0

    async with running(tmp_path) as opened, trio.open_nursery() as nursery:
        published, recorded = trio.Event(), trio.Event()

        async def record() -> None:
            for number in range(0, events, 10):
                async with trio.open_nursery() as tasks:
                    for each in range(number, number + 10):
                        tasks.start_soon(opened.write, recording(f"{each}.mp3"))
            recorded.set()

        def confirm(pairs: list[tuple[int, int]], ledger: Ledger) -> None:
            outbox.confirm(ledger.conn, pairs)

        async def publish() -> None:
            with opened.open_reader() as reader:
                while True:
                    over = recorded.is_set()
                    batch = await reader.read(partial(outbox.pending, limit=20))
                    if not batch and over:
                        break
                    pairs = [(event.sequence, event.generation) for event in batch if event.sequence != 700]
                    sent.extend(event.sequence for event in batch)
                    await opened.write(partial(confirm, pairs))
                    if 700 in sent:
                        await opened.write(lambda ledger: outbox.park(ledger.conn, 700, 0, "never"))
            published.set()

        async def prune() -> None:
            nonlocal pruned
            while not published.is_set():
                pruned += await opened.write(lambda ledger: outbox.prune(ledger.conn, 1 << 60, 7))

        for task in (record, publish, prune):
            nursery.start_soon(task)
    assert list(dict.fromkeys(sent)) == list(range(1, events + 1)), "each of them, in order"
    assert 0 < pruned < events
    with open_beside(tmp_path) as conn:
        totals = outbox.totals(conn)
        assert (totals.pending, totals.parked) == (0, 1)
        assert totals.events == events - pruned


async def test_events_keep_their_order_and_their_ids_apart_when_the_clock_jumps_back(tmp_path: Path) -> None:
    """The sequence is the order; times and ids say what the clock said."""
    moments = [20 * DAY_US, 20 * DAY_US, 5 * DAY_US, 5 * DAY_US + 1, 19 * DAY_US]
    async with running(tmp_path) as opened:
        for number, moment in enumerate(moments):
            opened._ledger.now_us = lambda moment=moment: moment  # type: ignore[misc]  # the default is the moment
            await opened.write(recording(f"{number}.mp3"))
    with open_beside(tmp_path) as conn:
        waiting = outbox.pending(conn, 10)
    assert [event.sequence for event in waiting] == [1, 2, 3, 4, 5]
    assert [event.at_us for event in waiting] == moments
    assert len({event.event_id for event in waiting}) == 5
    assert waiting[2].event_id < waiting[3].event_id < waiting[4].event_id < waiting[0].event_id


async def test_a_clock_that_has_jumped_back_does_not_make_events_old(tmp_path: Path) -> None:
    """An event after one that is kept is as young as that, whatever its time says; one from the future says nothing."""
    now = 100 * DAY_US
    clock = [90, 91, 400, 92, 99, 3, 4, 5, 100]  # days; a start at 1970, and once far ahead
    async with running(tmp_path) as opened:
        for number, day in enumerate(clock):
            opened._ledger.now_us = lambda day=day: day * DAY_US  # type: ignore[misc]  # the default is the day
            await opened.write(recording(f"{number}.mp3"))
        await opened.write(lambda ledger: outbox.confirm(ledger.conn, [(number, 0) for number in range(1, 10)]))

        async def prune(at_us: int) -> list[int]:
            await opened.write(lambda ledger: outbox.prune(ledger.conn, at_us - 7 * DAY_US, 100, at_us))
            return sequences(tmp_path)

        assert await prune(now) == [3, 5, 6, 7, 8, 9]
        assert await prune(now + 6 * DAY_US) == [3, 5, 6, 7, 8, 9]
        assert await prune(now + 13 * DAY_US // 2) == [3, 9]
        assert await prune(now + 8 * DAY_US) == [3]
        assert await prune(500 * DAY_US) == []


# ---- reading


async def test_a_database_that_is_damaged_for_readers_ends_the_daemon_in_the_operator_s_words(tmp_path: Path) -> None:
    """The publisher reads before anybody writes."""
    async with running(tmp_path) as opened:
        await opened.write(recording("a.mp3"))
    with closing(sqlite3.connect(database(tmp_path))) as conn:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'outbox_pending'"
        page = conn.execute(sql).fetchone()[0]
    with database(tmp_path).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    async with open_store(tmp_path) as opened:
        with opened.open_reader() as reader:
            with pytest.raises(StoreError, match=r"damaged .*restore a backup"):
                await reader.read(partial(outbox.pending, limit=5))
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await reader.read(lambda conn: conn.execute("SELECT * FROM not_there"))


async def test_a_database_that_is_deleted_before_somebody_reads_ends_the_daemon_in_the_operator_s_words(
    tmp_path: Path,
) -> None:
    """A sweep begins to read before the writer has noticed."""
    async with open_store(tmp_path) as opened:
        shutil.rmtree(tmp_path)
        with pytest.raises(StoreError, match="was it deleted while in use"), opened.open_reader():
            pass
