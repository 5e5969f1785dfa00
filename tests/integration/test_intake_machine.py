"""The real intake (watch, sweeps, workers, store) on a real directory, as one state machine.

Rules change files in every way that we know of, and start, stop and kill the intake at any point: many of the changes
happen while it is down, starting, or in the middle of other work. The model is a dict that the rules keep themselves;
at rest it, the disk and the fold of the outbox are equal. Publishing is left out: the events are read from the table.

Time is real here, so a failed example is not searched for a smaller one; it tells its story instead.
`INTAKE_EXAMPLES=500 pytest tests/integration/test_intake_machine.py` goes on for longer, at random.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.bed.fold import assert_same_files, folded, library
from tests.bed.probe import describe_in_thread
from trackwatch import catalogue, reconcile, sweeper
from trackwatch.backoff import Backoff
from trackwatch.patterns import Patterns
from trackwatch.reconcile import Job, Reconcile
from trackwatch.root import RootWord
from trackwatch.settle import DirtySet
from trackwatch.store import Store, open_store
from trackwatch.sweep import Wanted
from trackwatch.workers import Workers, WorkerStatistics

# Short, so that an example is: quiet longer than any step of a rule, a grace longer than that.
QUIET_S, CEILING_S, GRACE_S = 0.03, 3.0, 0.15
# What nothing can notify of is compared this often (5 s in the daemon), and a dead watch is made again this soon.
BLIND_S, WATCH_RETRY_S = 0.2, 0.1
ACCEPT_LOOK_S = 0.02
REST_DEADLINE_S, END_DEADLINE_S, POLL_S = 20.0, 20.0, 0.01

T = TypeVar("T")


class Intake:
    """The daemon's intake in a thread of its own: it can be stopped, or killed at any commit, and started again."""

    def __init__(
        self, roots: tuple[bytes, ...], state_dir: Path, *, quiet_s: float = QUIET_S, grace_s: float = GRACE_S
    ) -> None:
        self.roots = roots
        self.state_dir = state_dir
        self.quiet_s = quiet_s
        self.grace_s = grace_s
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        # Made anew by each start, in the thread, before it has started.
        self._token: trio.lowlevel.TrioToken
        self._everything: trio.CancelScope
        self._stop: trio.Event
        self._keeping: trio.Nursery
        self._store: Store
        self.reconcile: Reconcile

    @property
    def is_running(self) -> bool:
        """Whether it was started and not ended since."""
        return self._thread is not None

    def start(self) -> None:
        """Start it, and return when the first sweep is under way."""
        self._started.clear()
        self.error = None
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()
        if not self._started.wait(END_DEADLINE_S) or self.error is not None:
            self._join()

    def stop(self) -> None:
        """End it as a signal does: what is in hand is finished."""
        self._do(self._stop.set)

    def kill(self, after_commits: int = 0) -> None:
        """Cancel everything at once, right after so many more commits (or once there is nothing left to do)."""
        self._do(lambda: self._keeping.start_soon(self._cancel_after, after_commits))

    def ask(self, question: Callable[[], T]) -> T:
        """Return the answer to a question that has to be asked in the intake's thread."""
        try:
            return trio.from_thread.run_sync(question, trio_token=self._token)
        except trio.RunFinishedError:
            self._join()
            raise

    def accept_removals(self) -> None:
        """Say what an operator says with `trackwatch accept` if it is asked for."""

        waiting = (RootWord.SUSPECT, RootWord.UNAVAILABLE)
        for root_id in self.ask(lambda: [state.root.id for state in self.reconcile.roots if state.word in waiting]):
            conn = sqlite3.connect(self.state_dir / "trackwatch.db", timeout=10)
            with conn:
                catalogue.accept_removals(conn, root_id, time.time_ns() // 1000)
            conn.close()

    def _do(self, deed: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):  # then it has an error, which is raised here
            self._token.run_sync_soon(deed)
        self._join()

    def _join(self) -> None:
        assert self._thread is not None
        self._thread.join(END_DEADLINE_S)
        if self.error is None and self._thread.is_alive():
            raise AssertionError("the intake does not end")
        self._thread = None
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # whoever waits must learn of it, whatever it is
            self.error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        """Do what `daemon.run` does, without a publisher."""
        with trio.CancelScope() as self._everything:
            async with open_store(self.state_dir) as store:
                with store.open_reader() as reader:
                    async with trio.open_nursery() as self._keeping:
                        self._token, self._stop, self._store = trio.lowlevel.current_trio_token(), trio.Event(), store
                        await self._keeping.start(store.run)
                        roots = await store.write(lambda ledger: ledger.claim_roots(self.roots))
                        patterns = Patterns()
                        send_jobs, receive_jobs = trio.open_memory_channel[Job](0)
                        self.reconcile = Reconcile(
                            store,
                            reader,
                            roots,
                            wanted=Wanted(patterns.wanted, patterns.descend),
                            settle=DirtySet(quiet_s=self.quiet_s, ceiling_s=CEILING_S),
                            jobs=send_jobs,
                            probes_max=2,
                            sweep_s=900,
                            grace_s=self.grace_s,
                        )
                        self.reconcile._watch._backoff = Backoff(base_s=WATCH_RETRY_S, cap_s=WATCH_RETRY_S)
                        workers = Workers(
                            store,
                            describe_in_thread,
                            self.reconcile.place,
                            self.reconcile.probed,
                            self.reconcile.finished,
                            WorkerStatistics(),
                        )
                        async with trio.open_nursery() as intake:
                            for _ in range(3):
                                intake.start_soon(workers.work, receive_jobs.clone())
                            receive_jobs.close()
                            async with trio.open_nursery() as taking:
                                await taking.start(self.reconcile.run)
                                self._started.set()
                                await self._stop.wait()
                                taking.cancel_scope.cancel()
                        self._keeping.cancel_scope.cancel()

    async def _cancel_after(self, commits: int) -> None:
        with trio.CancelScope() as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_idle, waiting)
                for _ in range(commits):
                    await self._store.next_commit().wait()
                waiting.cancel()
        self._everything.cancel()

    async def _cancel_when_idle(self, scope: trio.CancelScope) -> None:
        await self.reconcile.wait_idle()
        scope.cancel()


@contextmanager
def hasty(mass_files: int) -> Iterator[None]:
    """Make fixed pauses short, and ever so many vanished files a mass; ignore SIGIO, as the daemon does."""
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweeper, "BLIND_S", BLIND_S)
            patch.setattr(sweeper, "ACCEPT_LOOK_S", ACCEPT_LOOK_S)
            patch.setattr(reconcile, "MASS_FILES", mass_files)
            yield
    finally:
        signal.signal(signal.SIGIO, handler)


def read_events(state_dir: Path) -> list[Any]:
    """Return all events so far, in their order."""
    conn = sqlite3.connect(f"file:{state_dir}/trackwatch.db?mode=ro", uri=True, timeout=10)
    try:
        return [json.loads(payload) for (payload,) in conn.execute("SELECT payload FROM outbox ORDER BY seq")]
    finally:
        conn.close()


def assert_totals_are_counts(state_dir: Path) -> None:
    """Check the totals that triggers keep against what they are totals of."""
    conn = sqlite3.connect(f"file:{state_dir}/trackwatch.db?mode=ro", uri=True, timeout=10)
    try:
        counted = conn.execute(
            "SELECT root.id, count(catalogue.id), coalesce(sum(catalogue.size_bytes), 0)"
            " FROM root LEFT JOIN catalogue ON root_id = root.id GROUP BY root.id"
        ).fetchall()
        assert conn.execute("SELECT id, files, size_bytes FROM root ORDER BY id").fetchall() == counted
    finally:
        conn.close()


def wait_for_rest(intake: Intake, expected: Callable[[], dict[bytes, str]], deadline_s: float) -> list[Any]:
    """Wait until the fold of the events is what is expected and nothing is left to do; return the events.

    Raises:
        FoldError: the difference that is left at the deadline, or the promise that the stream breaks.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        is_idle = intake.ask(intake.reconcile._is_idle)  # before looking: what it does after that is too late
        events = read_events(intake.state_dir)
        files, wanted = folded(events).files, expected()
        if is_idle and files == wanted:
            assert_totals_are_counts(intake.state_dir)
            return events
        if time.monotonic() > deadline:
            assert_same_files(files, wanted)
            raise AssertionError(f"it does not come to rest: {intake.ask(intake.reconcile.statistics)}")
        intake.accept_removals()
        time.sleep(POLL_S)


# Siblings whose order as names and as paths differ ("d", "d-", "d0" and what is in "d/"), a directory that has the name
# of a file, names that are not UTF-8, too long for a careless buffer, or with a newline.
MUSIC = [
    b"a.mp3",
    b"b.flac",
    b"d.ogg",
    b"C.MP3",
    b"new\nline.wav",
    b"d-.mp3",
    b"n" * 251 + b".mp3",
    "é🎵.opus".encode(),
]
ODD_MUSIC = [b"\xff.mp3", b"d\xe9.m4a"]
OTHERS = [b"cover.jpg", b"a.mp3.part", b".a.mp3.a1B2c3"]
DIRECTORIES = [b"d", b"d-", b"d0", b"D", b"a.mp3", b"e"]
ODD_DIRECTORIES = [b"\xfe", b"d\xff"]
FILE_NAMES = st.one_of(*map(st.sampled_from, (MUSIC, MUSIC, MUSIC, OTHERS, ODD_MUSIC)))
DIRECTORY_NAMES = st.one_of(*map(st.sampled_from, (DIRECTORIES, DIRECTORIES, DIRECTORIES, ODD_DIRECTORIES)))
WANTED = frozenset((*MUSIC, *ODD_MUSIC, b"stays.mp3", b"later.mp3"))
# Several of one size, and some that occur again and again: copies of known files.
CONTENTS = st.one_of(st.sampled_from([b"", b"one", b"two", b"three"]), st.binary(max_size=3))
WHICH = st.integers(0, 1000)  # taken modulo the number of what there is


class IntakeMachine(RuleBasedStateMachine):
    """What people and programs do to a library, and what machines do to the daemon."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="trackwatch-"))
        self.roots = (os.fsencode(self.folder / "more"), os.fsencode(self.folder / "music"))
        self.outside = os.fsencode(self.folder / "outside")
        self.numbers = count(1)
        # The model: each path (absolute) has a file, each file a content; None: a symlink, which nobody follows.
        self.names: dict[bytes, int] = {}
        self.contents: dict[int, bytes | None] = {}
        self.directories: set[bytes] = set(self.roots)
        self.latest = b""  # directory that was made or moved
        self.moved_out: list[bytes] = []
        self.writers: dict[int, BinaryIO] = {}  # files that are being written
        self.story: list[str] = []
        self.has_had_odd_names = False
        self.has_failed = False
        self.intake = Intake(self.roots, self.folder / "state")
        self.stack = ExitStack()

    @initialize(mass_files=st.sampled_from([5, 20]))
    def begin(self, mass_files: int) -> None:
        """It watches two roots with a file each."""
        self.stack.enter_context(hasty(mass_files))
        for directory in (*self.roots, self.outside):
            os.mkdir(directory)
        for root in self.roots:
            # A root that becomes empty is one that fell off; that has its own tests.
            self._write(root + b"/stays.mp3", root)
        self.intake.start()

    def teardown(self) -> None:
        """End in rest, and leave nothing behind."""
        try:
            if not self.has_failed:
                self._rest()
                self.intake.stop()
        finally:
            with suppress(BaseException) if self.has_failed else nullcontext():
                if self.intake.is_running:
                    self.intake.kill()
            self._end_writing()
            self.stack.close()
            shutil.rmtree(self.folder)

    # --- what is there ---

    def _is_ours(self, path: bytes) -> bool:
        return any((path + b"/").startswith(root + b"/") for root in self.roots)

    def _file(self, which: int) -> bytes:
        paths = sorted(path for path in self.names if self._is_ours(path) and not path.endswith(b"/stays.mp3"))
        return paths[which % len(paths)] if paths else b""

    def _directory(self, which: int) -> bytes:
        directories = sorted(path for path in self.directories if self._is_ours(path))
        return directories[which % len(directories)]

    def _is_free(self, path: bytes) -> bool:
        return path not in self.names and path not in self.directories

    def _below(self, directory: bytes) -> tuple[list[bytes], list[bytes]]:
        inside = directory + b"/"
        return (
            [path for path in self.names if path.startswith(inside)],
            [path for path in self.directories if path.startswith(inside)],
        )

    def _tell(self, *words: object) -> None:
        self.has_had_odd_names |= any(not is_utf8(word) for word in words if isinstance(word, bytes))
        self.story.append(" ".join(repr(word) if isinstance(word, bytes) else str(word) for word in words))

    def _write(self, path: bytes, content: bytes) -> None:
        """Make a file, or write over the one that is there."""
        with open(path, "wb") as file:
            file.write(content)
        self.contents[self.names.setdefault(path, next(self.numbers))] = content

    def _rename(self, old: bytes, new: bytes) -> None:
        os.rename(old, new)
        if self.names.get(new) != self.names[old]:  # else two links to one file: rename(2) does nothing
            self.names[new] = self.names.pop(old)

    # --- files ---

    @rule(where=WHICH, name=FILE_NAMES, content=CONTENTS)
    def create(self, where: int, name: bytes, content: bytes) -> None:
        """A file appears, or is written from its beginning."""
        path = self._directory(where) + b"/" + name
        known = self.names.get(path)
        if path not in self.directories and not (known and self.contents[known] is None):
            self._tell("write", path, str(content))
            self._write(path, content)

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH, content=CONTENTS, how=st.sampled_from(["over", "append", "keep mtime"]))
    def write_in_place(self, which: int, content: bytes, how: str) -> None:
        """A file is written where it is; some programs put its old modification time back."""
        path = self._file(which)
        before = self.contents[self.names[path]]
        if before is None:
            return
        self._tell("write in place", path, str(content), how)
        times = os.stat(path)
        with open(path, "ab" if how == "append" else "r+b") as file:
            file.write(content)
        if how == "keep mtime":
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.contents[self.names[path]] = before + content if how == "append" else content + before[len(content) :]

    @rule(where=WHICH, name=FILE_NAMES, content=CONTENTS)
    def replace(self, where: int, name: bytes, content: bytes) -> None:
        """A file is written under a temporary name, then renamed over another one."""
        path = self._directory(where) + b"/" + name
        if path not in self.directories:
            self._tell("replace", path, str(content))
            temporary = os.path.dirname(path) + b"/temporary.tmp"
            self._write(temporary, content)
            self._rename(temporary, path)

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH, where=WHICH, name=FILE_NAMES)
    def rename(self, which: int, where: int, name: bytes) -> None:
        """A file gets another name, perhaps one that is taken."""
        old, new = self._file(which), self._directory(where) + b"/" + name
        if new not in self.directories:
            self._tell("rename", old, new)
            self._rename(old, new)

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH, other=WHICH)
    def swap(self, which: int, other: int) -> None:
        """Two files swap their names."""
        one, two, between = self._file(which), self._file(other), self.roots[0] + b"/between.tmp"
        if self.names[one] != self.names[two]:
            self._tell("swap", one, two)
            self._rename(one, between)
            self._rename(two, one)
            self._rename(between, two)

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH, where=WHICH, name=FILE_NAMES)
    def link(self, which: int, where: int, name: bytes) -> None:
        """A file gets a second name."""
        old, new = self._file(which), self._directory(where) + b"/" + name
        if self._is_free(new) and self.contents[self.names[old]] is not None and self.names[old] not in self.writers:
            self._tell("link", old, new)
            os.link(old, new)
            self.names[new] = self.names[old]

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        """A name goes."""
        path = self._file(which)
        self._tell("delete", path)
        os.unlink(path)
        del self.names[path]

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH)
    def touch(self, which: int) -> None:
        """Nothing of a file changes but its times and its mode."""
        path = self._file(which)
        if self.contents[self.names[path]] is not None:
            self._tell("touch", path)
            os.utime(path)
            os.chmod(path, 0o600)

    @rule(where=WHICH, name=FILE_NAMES, to=WHICH)
    def symlink(self, where: int, name: bytes, to: int) -> None:
        """A symlink to a directory or to a file of ours: not followed, and no file."""
        path = self._directory(where) + b"/" + name
        if self._is_free(path):
            target = (self._file(to) if to % 2 else b"") or self._directory(to)
            self._tell("symlink", path, target)
            os.symlink(target, path)
            self.names[path] = key = next(self.numbers)
            self.contents[key] = None

    @precondition(lambda self: self._file(0))
    @rule(which=WHICH)
    def begin_writing(self, which: int) -> None:
        """A program opens a file, and goes on writing whatever happens to its name."""
        path = self._file(which)
        key = self.names[path]
        # A write through one of two names shows under that name alone; it may be outside by then.
        if self.contents[key] is not None and list(self.names.values()).count(key) == 1:
            self._tell("begin writing", path)
            if key not in self.writers:
                # To append: another program may make it shorter meanwhile.
                self.writers[key] = open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb")  # noqa: SIM115 - closed at rest
            self._write_on(key)

    @precondition(lambda self: self.writers)
    @rule(end=st.booleans())
    def go_on_writing(self, end: bool) -> None:
        """It writes some more, and perhaps closes the file."""
        key = next(iter(self.writers))
        self._tell("go on writing", *[path for path, file in self.names.items() if file == key])
        self._write_on(key)
        if end:
            self.writers.pop(key).close()

    def _write_on(self, key: int) -> None:
        content = self.contents[key]
        assert content is not None
        self.writers[key].write(b"more")
        self.writers[key].flush()
        self.contents[key] = content + b"more"

    def _end_writing(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()

    # --- directories ---

    @rule(where=WHICH, name=DIRECTORY_NAMES)
    def make_directory(self, where: int, name: bytes) -> None:
        """A directory appears."""
        path = self._directory(where) + b"/" + name
        if self._is_free(path):
            self._tell("mkdir", path)
            self._make(path)

    @rule(where=WHICH, names=st.lists(DIRECTORY_NAMES, min_size=1, max_size=4), name=FILE_NAMES, content=CONTENTS)
    def make_tree(self, where: int, names: list[bytes], name: bytes, content: bytes) -> None:
        """Nested directories appear with a file in each, all at once."""
        path = self._directory(where)
        for directory in names:
            path += b"/" + directory
            if len(path) > 1000 or path in self.names:
                return
            if path not in self.directories:
                self._tell("mkdir", path)
                self._make(path)
            if self._is_free(path + b"/" + name):
                self._tell("write", path + b"/" + name, str(content))
                self._write(path + b"/" + name, content)

    @rule(which=WHICH, where=WHICH, name=DIRECTORY_NAMES, again=st.booleans())
    def move_directory(self, which: int, where: int, name: bytes, again: bool) -> None:
        """A directory gets another place, perhaps that of an empty one; perhaps its old name is taken at once."""
        old, new = self._directory(which), self._directory(where) + b"/" + name
        is_taken = new in self.names or any(self._below(new))
        if old not in self.roots and not (new + b"/").startswith(old + b"/") and not is_taken:
            self._tell("move directory", old, new)
            self._move(old, new)
            if again and self._is_free(old):
                self._tell("mkdir", old)
                self._make(old)
                self._write(old + b"/a.mp3", b"again")

    def _make(self, path: bytes) -> None:
        os.mkdir(path)
        self.directories.add(path)
        self.latest = path

    def _move(self, old: bytes, new: bytes) -> None:
        os.rename(old, new)
        self.latest = new
        files, directories = self._below(old)
        for path in files:
            self.names[new + path[len(old) :]] = self.names.pop(path)
        self.directories.difference_update(directories, [old])
        self.directories.update([new], (new + path[len(old) :] for path in directories))

    @rule(which=WHICH, again=st.booleans())
    def remove_directory(self, which: int, again: bool) -> None:
        """A directory goes with all that is in it; perhaps it comes back at once, with the same inode."""
        path = self._directory(which)
        if path in self.roots:
            return
        self._tell("rmtree", path)
        shutil.rmtree(path)
        files, directories = self._below(path)
        for gone in files:
            del self.names[gone]
        self.directories.difference_update(directories, [path])
        if again:
            self._tell("mkdir and write", path)
            self._make(path)
            self._write(path + b"/d.ogg", b"back")

    @rule(which=WHICH)
    def move_out(self, which: int) -> None:
        """A directory goes out of the root."""
        path, away = self._directory(which), self.outside + b"/%d" % next(self.numbers)
        if path not in self.roots:
            self._tell("move out", path)
            self._move(path, away)
            self.moved_out.append(away)

    @precondition(lambda self: self.moved_out)
    @rule(where=WHICH, name=DIRECTORY_NAMES)
    def move_in(self, where: int, name: bytes) -> None:
        """It comes back, to another place perhaps."""
        path = self._directory(where) + b"/" + name
        if self._is_free(path):
            self._tell("move in", path)
            self._move(self.moved_out.pop(), path)

    # --- the intake ---

    @precondition(lambda self: self.intake.is_running)
    @rule(again=st.booleans())
    def stop(self, again: bool) -> None:
        """It is stopped, for some time or to start again at once."""
        self._tell("stop")
        with self._telling():
            self.intake.stop()
        if again:
            self.start()

    @precondition(lambda self: self.intake.is_running)
    @rule(after_commits=st.integers(0, 3), again=st.booleans())
    def kill(self, after_commits: int, again: bool) -> None:
        """It is killed in the middle of something."""
        self._tell("kill after", after_commits, "commits")
        with self._telling():
            self.intake.kill(after_commits)
        if again:
            self.start()

    @precondition(lambda self: not self.intake.is_running)
    @rule()
    def start(self) -> None:
        """It is started."""
        self._tell("start")
        with self._telling():
            self.intake.start()

    @rule()
    def check(self) -> None:
        """At rest, what was told is what is on the disk, and that is what the rules have put there."""
        self._rest()

    # Rest makes what comes next a thing of its own: it is wanted more often than any other rule.
    check_again, check_once_more = check, check

    @rule(
        kind=st.sampled_from(["created", "modified", "renamed", "deleted"]), which=WHICH, where=WHICH, name=FILE_NAMES
    )
    def change_alone(self, kind: str, which: int, where: int, name: bytes) -> None:
        """What happens alone is told as what it is."""
        expected_files = self._expected()
        # Rest cannot tell whether two files of one content have changed places where nothing notifies us of it.
        copies = Counter(expected_files.values()) if self.has_had_odd_names else Counter[bytes]()
        files = [
            path
            for path, content in sorted(expected_files.items())
            if content and not path.endswith(b"/stays.mp3") and os.stat(path).st_nlink == 1 and copies[content] < 2
        ]
        # Is it watched? The directory that was made or moved last is the one to ask about, more often than any other.
        is_latest = where % 2 == 0 and self.latest in self.directories and self._is_ours(self.latest)
        new = (self.latest if is_latest else self._directory(where)) + b"/" + name
        files = [path for path in files if is_latest and os.path.dirname(path) == self.latest] or files
        if (kind != "created" and not files) or not self._is_free(new) or name not in WANTED:
            return
        told = len(self._rest())
        old = files[which % len(files)] if files else b""
        self._tell(kind, "alone", old, new)
        match kind:
            case "created":
                self._write(new, b"created alone")
            case "modified":
                self._write(old, b"modified alone %d" % next(self.numbers))
            case "renamed":
                self._rename(old, new)
                kind = "renamed" if os.path.dirname(old) == os.path.dirname(new) else "moved"
            case "deleted":
                os.unlink(old)
                del self.names[old]
        events = self._rest()[told:]
        expected = [[kind]]
        if self.has_had_odd_names and kind in ("renamed", "moved"):
            # What comes into a directory that cannot be watched may be found when its removal was told already.
            expected.append(["deleted", "created"])
        with self._telling():
            assert [event["event_type"] for event in events] in expected

    @rule(
        how=st.sampled_from(["made", "moved", "removed and made again"]), which=WHICH, where=WHICH, name=DIRECTORY_NAMES
    )
    def look_into_directory(self, how: str, which: int, where: int, name: bytes) -> None:
        """A directory that has come, or has come again, is watched: what appears in it later is told."""
        self._rest()
        match how:
            case "made":
                self.make_directory(where=where, name=name)
            case "moved":
                self.move_directory(which=which, where=where, name=name, again=bool(which % 2))
            case _:
                self.remove_directory(which=which, again=True)
        self._rest()
        if (
            self.latest in self.directories
            and self._is_ours(self.latest)
            and self._is_free(self.latest + b"/later.mp3")
        ):
            self._tell("write", self.latest + b"/later.mp3")
            self._write(self.latest + b"/later.mp3", b"later")
            self._rest()

    def _rest(self) -> list[Any]:
        """Wait for rest, check everything, and return all events."""
        if not self.intake.is_running:
            self.start()
        self._end_writing()
        self._tell("rest")
        with self._telling():
            events = wait_for_rest(self.intake, lambda: library(self.roots), REST_DEADLINE_S)
            assert {path: Path(os.fsdecode(path)).read_bytes() for path in library(self.roots)} == self._expected()
        return events

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """If the block fails, print what has happened: done again, it will most likely not fail."""
        try:
            yield
        except BaseException:
            self.has_failed = True
            tail = map(shown, read_events(self.intake.state_dir)[-30:])
            print("the story:", *self.story, "the last events:", *tail, sep="\n")
            traceback.print_exc(file=sys.stdout)
            raise

    def _expected(self) -> dict[bytes, bytes]:
        return {
            path: content
            for path, key in self.names.items()
            if self._is_ours(path) and (content := self.contents[key]) is not None and os.path.basename(path) in WANTED
        }


def is_utf8(path: bytes) -> bool:
    """Whether a path can be watched."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(event: Any) -> str:
    """Return the line that an event is in a story."""
    return " ".join(str(event[name]) for name in ("sequence", "event_type", "file_path", "old_path"))


EXAMPLES = int(os.environ.get("INTAKE_EXAMPLES", "0"))

TestIntakeMachine = IntakeMachine.TestCase
TestIntakeMachine.settings = settings(
    max_examples=EXAMPLES or 16,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,  # threads, files and fsync
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
