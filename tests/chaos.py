"""The proof of delivery: a real daemon, a real broker behind a proxy, a changing library, and every fault we know of.

`make chaos SECONDS=900 [SEED=7]`. One fault after the other comes over daemon, broker, line, disk and database while
the library changes; after each, everything rests, and every obligation must be met: each change that was alone was
told, once, as what it was; the fold of the stream equals the disk; the sequence has no gap; first arrivals of a path
are in order; what came twice is the same in every byte. Besides, it tells what `status` and the log say during each
fault, and how long it takes until delivery goes on after it. Exit code 1 and kept folders if anything is wrong. The
seed decides what is tried, and when; who wins each race, it cannot.
"""

import argparse
import bisect
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tests.bed.daemon import Daemon
from tests.bed.fold import FoldError, apply, assert_equal_fold, assert_same_files, library, path_of, sequence_of
from tests.bed.proxy import BOTH, Direction, Proxy
from tests.bed.rabbit import RabbitNode, free_ports
from tests.bed.recorder import BINDING, EXCHANGE, Message, Recorder
from tests.bed.storm import Ledger, start_storm, write_file

VHOST, USER, PASSWORD, QUEUE = "chaos", "chaos", "it is right", "recorded"
HEARTBEAT_S = 2  # a silent broker is given up after 3 * (2 + 1) s
SILENT_S = 3 * (HEARTBEAT_S + 1)
SWEEP_S = 900  # nothing here may have to wait for it
BASE_FILES = 600  # in each root; so many that no fault removes half of one
CHANGES_PER_S = 15.0
BURST_SHARE, BURST_FILES = 0.01, 120  # now and then an album arrives
GOAL_S = 2.0  # from the broker's return to the first new message
# None of these is a promise: whoever is slower is found in the table.
# (A storm may write through a hard link that is gone at once: of that nothing tells, and a look each minute finds it.)
DELIVERY_DEADLINE_S, EQUAL_DEADLINE_S, WORD_DEADLINE_S = 120.0, 120.0, 30.0
LOOK_S = 0.02
STATUS_PAUSE_S = 0.3
STATE_DISK_BYTES, PAGE_BYTES = 256 << 20, 4096
DATABASE = "trackwatch.db"
STORE_EXIT = 3
DIRECTORIES = 20
SUFFIXES = (".mp3", ".flac", ".ogg", ".m4a")
STORM_SHARE, KILL_SHARE = 0.3, 0.25  # of the faults
SLOW_BYTES_PER_S = 8000.0
ACCEPT_LOOK_S = 5.0
PAUSE_MAX_S = 1.0  # a fault comes at any moment, soon after a burst perhaps: then messages are on their way
BURST_BEFORE_SHARE = 0.5
NOTICE_S = 4.0  # a removal waits for 2 s, whether it is a move
NOTICED_LATE_S = 10.0  # of no harm to anybody's obligations, yet worth a look
TROUBLES = ("warning", "error")  # levels of the log

NOT_UP_YET = "not up yet"  # killed and started a moment ago: not what status has to say of a fault

Owed = tuple[str, bytes, bytes, str]  # type, path, old path, SHA-256; what there is not is empty


class Problem(AssertionError):
    """The chaos has found something."""


# --- the oracle ---


class Told(NamedTuple):
    """A change that was owed, and told."""

    owed: Owed
    made_at_s: float  # by the wall clock
    noticed_at_s: float  # by the event's own timestamp
    arrived_at_s: float  # by the monotonic clock


class Oracle:
    """What must arrive, what has arrived, and whether that is right. Knows the contract, and nothing of our code.

    `owe` before the change, by the writer's thread; everything else is one thread's.
    """

    def __init__(self, recorder: Recorder, *, not_from: str | None = None) -> None:
        self.instance_id: str | None = None  # whose events these are: the first one's that is not `not_from`
        self.files: dict[bytes, str] = {}  # the fold, up to the first sequence number that has not come
        self.messages = 0
        self.doubles = 0
        self.overtakings = 0  # events about different files: allowed while one is held, see ops/decisions/0002
        self.arrived_at_s: list[float] = []  # of first arrivals
        self.order_violations: list[str] = []
        self.wrong: list[str] = []
        self.told: list[Told] = []
        self._recorder = recorder
        self._not_from = not_from
        self._read = 0
        self._owed: dict[Owed, int] = {}  # since when, in microseconds of the wall clock; in the order of the changes
        self._owed_lock = threading.Lock()
        self._roots: list[bytes] = []  # where each change is owed
        self._firsts: dict[str, Message] = {}
        self._waiting: dict[int, Any] = {}  # bodies by sequence, not folded yet
        self._folded = 0
        self._last_arrived = 0
        self._last_of_path: dict[bytes, int] = {}

    def watch_closely(self, root: Path) -> None:
        """Demand exactly one event for each change in a root, and no others."""
        self._roots.append(os.fsencode(root) + b"/")

    def owe(self, event_type: str, path: Path, old: Path | None = None, sha256: str = "") -> Owed:
        """Note that a change is about to be made; nothing else touches these paths until it was told."""
        owed = event_type, os.fsencode(path), os.fsencode(old or ""), sha256
        with self._owed_lock:
            self._owed[owed] = time.time_ns() // 1000
        return owed

    def is_owed(self, owed: Owed) -> bool:
        """Whether that has not arrived yet."""
        with self._owed_lock:
            return owed in self._owed

    @property
    def owed(self) -> list[Owed]:
        """What has not arrived yet, the longest owed first."""
        return self.owed_for(0)

    def owed_for(self, seconds: float) -> list[Owed]:
        """Return what has been owed for so long, the longest owed first."""
        before_us = time.time_ns() // 1000 - seconds * 1e6
        with self._owed_lock:
            return [owed for owed, since_us in self._owed.items() if since_us <= before_us]

    @property
    def gaps(self) -> int:
        """How many sequence numbers below the highest have not arrived."""
        return max(self._waiting, default=self._folded) - self._folded - len(self._waiting)

    @property
    def events(self) -> int:
        """How many different events have arrived."""
        return len(self._firsts)

    def first_arrival_after(self, at_s: float) -> float | None:
        """Return when the first new message came after a moment of the monotonic clock, None if none has come."""
        following = bisect.bisect_right(self.arrived_at_s, at_s)
        return self.arrived_at_s[following] if following < len(self.arrived_at_s) else None

    def read(self) -> None:
        """Judge what has arrived since the last time; what is wrong is in the lists."""
        messages = self._recorder.messages
        for message in messages[self._read :]:
            instance_id = message.body["instance_id"]
            if self.instance_id is None and instance_id != self._not_from:
                self.instance_id = instance_id
            if instance_id == self.instance_id:
                self._judge(message)
        self._read = len(messages)

    def _judge(self, message: Message) -> None:
        self.messages += 1
        body = message.body
        first = self._firsts.setdefault(body["event_id"], message)
        if message.message_id != body["event_id"] or message.headers.get("sequence") != body["sequence"]:
            self.wrong.append(f"the message {message.message_id} tells of another event: {message.raw!r}")
        if first is not message:
            self.doubles += 1
            if (first.raw, first.routing_key, facts(first)) != (message.raw, message.routing_key, facts(message)):
                self.wrong.append(f"sent again with other bytes: first {first.raw!r}, then {message.raw!r}")
            return
        sequence = sequence_of(body)
        self.arrived_at_s.append(message.arrived_at_s)
        self._check_order(body, sequence)
        self._meet(body, message)
        if sequence <= self._folded or sequence in self._waiting:
            self.wrong.append(f"the sequence number {sequence} came twice with different ids: {message.raw!r}")
            return
        self._waiting[sequence] = body
        while (following := self._waiting.pop(self._folded + 1, None)) is not None:
            self._folded += 1
            try:
                apply(following, self.files)
            except FoldError as error:
                self.wrong.append(str(error))

    def _check_order(self, body: Any, sequence: int) -> None:
        if sequence < self._last_arrived:
            self.overtakings += 1
        self._last_arrived = max(self._last_arrived, sequence)
        for name in ("file_path", "old_path"):
            path = path_of(body, name)
            if path is not None:
                last = self._last_of_path.get(path, 0)
                if sequence < last:
                    self.order_violations.append(f"event {sequence} of {path!r} came after {last}")
                self._last_of_path[path] = max(sequence, last)

    def _meet(self, body: Any, message: Message) -> None:
        path, old = path_of(body, "file_path") or b"", path_of(body, "old_path") or b""
        if not any(path.startswith(root) or old.startswith(root) for root in self._roots):
            return
        with self._owed_lock:
            owed = body["event_type"], path, old, body.get("sha256_hash") or ""
            since_us = self._owed.pop(owed, None)
            if since_us is not None:
                noticed_us = datetime.fromisoformat(body["timestamp"]).timestamp() * 1e6
                self.told.append(Told(owed, since_us / 1e6, noticed_us / 1e6, message.arrived_at_s))
            else:
                self.wrong.append(f"told, but no such change was made: {body}")

    def check(self) -> None:
        """Check everything that must hold at any time.

        Raises:
            Problem: with the first few of what is wrong
        """
        for what, found in (("order violations", self.order_violations), ("wrong", self.wrong)):
            if found:
                raise Problem(f"{len(found)} {what}:\n" + "\n".join(found[:5]))


def facts(message: Message) -> dict[str, Any]:
    """Return the properties of a message, which its doubles must have as well."""
    return dict(vars(message.properties))


# --- the changes ---


class Writer:
    """Changes the files of one root, each alone: none is touched again before its last change was told.

    So each change must bring exactly one event, whatever happens meanwhile. A thread from `start` to `close`; with
    `resting` it stands still between two changes. Everything is in the ledger as well.
    """

    def __init__(self, root: Path, oracle: Oracle, ledger: Ledger, seed: int) -> None:
        self.root = root
        self.error: BaseException | None = None
        self._oracle = oracle
        self._ledger = ledger
        self._random = random.Random(seed)
        self._seed = seed
        self._number = 0
        self._files: list[tuple[Path, Owed]] = []  # and what was last owed for each
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def make_base(self) -> None:
        """Make the files that are there before the daemon starts."""
        for _ in range(BASE_FILES):
            self._create()

    def start(self) -> None:
        """Begin to change."""
        self._thread.start()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Change nothing while the block runs."""
        with self._turn:
            if self.error is not None:
                raise self.error
            yield

    def close(self) -> None:
        """Stop for good."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def burst(self, files: int) -> None:
        """Create so many files now, for whoever needs messages on their way."""
        with self._turn:
            for _ in range(files):
                self._create()

    def _run(self) -> None:
        changes = {
            self._create: 5,
            self._overwrite: 8,
            self._replace: 4,
            self._rename: 3,
            self._move: 3,
            self._delete: 3,
        }
        choices, weights = list(changes), list(changes.values())
        try:
            while not self._closing.wait(self._random.expovariate(CHANGES_PER_S)):
                with self._turn:
                    if self._random.random() < BURST_SHARE:
                        for _ in range(self._random.randrange(BURST_FILES)):
                            self._create()
                    self._random.choices(choices, weights)[0]()
        except BaseException as error:  # whoever waits must learn of it, whatever it is
            self.error = error

    # --- its deeds ---

    def _create(self) -> None:
        path, content = self._path(), self._content()
        self._owe("created", path, sha256=sha256(content))
        self._write("create", path, content, os.O_CREAT | os.O_EXCL)

    def _overwrite(self) -> None:
        if (path := self._take()) is not None:
            content = self._content()
            self._owe("modified", path, sha256=sha256(content))
            self._write("overwrite", path, content)

    def _replace(self) -> None:
        if (path := self._take()) is not None:
            content = self._content()
            temporary = path.with_name(f".{path.name}.{self._number}")
            self._owe("modified", path, sha256=sha256(content))
            self._write("write a replacement", temporary, content, os.O_CREAT | os.O_EXCL)
            self._rename_to("replace", temporary, path)

    def _rename(self) -> None:
        if (old := self._take()) is not None:
            self._change_name(old, self._path(old.parent))

    def _move(self) -> None:
        if (old := self._take()) is not None:
            self._change_name(old, self._path())

    def _delete(self) -> None:
        if (path := self._take()) is not None:
            before_ns = time.monotonic_ns()
            self._oracle.owe("deleted", path)
            path.unlink()
            self._ledger.note("delete", [os.fsencode(path)], before_ns)

    def _change_name(self, old: Path, new: Path) -> None:
        kind = "renamed" if new.parent == old.parent else "moved"
        self._owe(kind, new, old, sha256=sha256(old.read_bytes()))
        self._rename_to(kind, old, new)

    # --- how ---

    def _owe(self, event_type: str, path: Path, old: Path | None = None, *, sha256: str) -> None:
        self._files.append((path, self._oracle.owe(event_type, path, old, sha256)))

    def _take(self) -> Path | None:
        """Return a file whose last change was told, None if there is none where we looked; it is not ours any more."""
        for _ in range(20):
            number = self._random.randrange(len(self._files))
            path, owed = self._files[number]
            if not self._oracle.is_owed(owed):
                self._files[number] = self._files[-1]
                self._files.pop()
                return path
        return None

    def _path(self, directory: Path | None = None) -> Path:
        """Return a path that nobody has had, in a directory that is there."""
        self._number += 1
        if directory is None:
            directory = self.root / f"album {self._random.randrange(DIRECTORIES)}"
            directory.mkdir(exist_ok=True)
        return directory / f"{self._number}{self._random.choice(SUFFIXES)}"

    def _content(self) -> bytes:
        """Return content that nobody else has."""
        self._number += 1
        return f"{self._seed}/{self._number}/".encode() + self._random.randbytes(self._random.randrange(1, 3000))

    def _write(self, operation: str, path: Path, content: bytes, flags: int = 0) -> None:
        truncate = not flags
        write_file(self._ledger, operation, os.fsencode(path), flags, lambda _: 0, [(0, content)], truncate=truncate)

    def _rename_to(self, operation: str, old: Path, new: Path) -> None:
        before_ns = time.monotonic_ns()
        old.rename(new)
        self._ledger.note(operation, [os.fsencode(old), os.fsencode(new)], before_ns)


def sha256(content: bytes) -> str:
    """Return the hash that events tell."""
    return hashlib.sha256(content).hexdigest()


# --- the faults ---


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong for a while."""

    name: str
    come: Callable[["Chaos"], AbstractContextManager[None]]  # it lasts as long as the block
    least_s: float
    most_s: float
    brief_s: float  # how long it lasts where time is short
    words: frozenset[str] = frozenset()  # status must say one of these before it is over
    # Whether the daemon may be killed and started while it lasts; a state that cannot be used is refused at the start.
    may_kill: bool = True


@dataclass
class Record:
    """What was seen of one kind of fault."""

    times: int = 0
    words: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    went_on_s: list[float] = field(default_factory=list)  # from its end to the first new message
    caught_up_s: list[float] = field(default_factory=list)  # from its end until all that was owed then has arrived

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "times": self.times,
            "words": dict(self.words),
            "reasons": dict(self.reasons),
            "logged": dict(self.logged),
            "went_on_s": [round(seconds, 3) for seconds in self.went_on_s],
            "caught_up_s": [round(seconds, 3) for seconds in self.caught_up_s],
        }


class Chaos:
    """The folders, the broker, the proxy, the daemon, the changes, the faults and the oracle. A context manager.

    `brief` makes each fault as short as it can be and still show. It keeps the folders if it failed.
    """

    def __init__(self, seed: int, *, brief: bool = False) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.brief = brief
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.records: dict[str, Record] = {}
        self.not_tried: dict[str, str] = {}
        self.seconds = 0.0
        self.differences = 0  # paths in which the fold and the disk are not the same, at the last look
        self._storms: list[subprocess.Popen[bytes]] = []
        self._daemon_down = False  # because we killed it
        self._written = 0  # messages in the file

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="trackwatch-chaos-"))
            stack.callback(self._remove_folder)
            self.roots = [self.folder / "music", self.folder / "storm"]
            self.outside = self.folder / "outside"
            for directory in (*self.roots, self.outside):
                directory.mkdir()
            self.state = self.folder / "state"
            self.state.mkdir()
            self._mount_state(stack)
            self.node = stack.enter_context(RabbitNode(self.folder / "rabbit"))
            self.node.add_user(USER, PASSWORD)
            self.node.add_vhost(VHOST, user=USER)
            url = self.node.url(VHOST, user=USER, password=PASSWORD)
            self.recorder = stack.enter_context(Recorder(url, queue=QUEUE))
            self.proxy = stack.enter_context(Proxy(self.node.port, free_ports().amqp))
            self.oracle = Oracle(self.recorder)
            self.oracle.watch_closely(self.roots[0])
            ledger = stack.enter_context((self.folder / "changes.jsonl").open("a", encoding="utf-8", buffering=1))
            self.ledger = Ledger(ledger)
            self.writer = Writer(self.roots[0], self.oracle, self.ledger, self.random.randrange(1 << 30))
            self.daemon = stack.enter_context(
                Daemon(
                    self.roots,
                    self.state,
                    env={
                        "RABBITMQ_URL": url.replace(f":{self.node.port}/", f":{self.proxy.port}/"),
                        "RABBITMQ_HEARTBEAT": str(HEARTBEAT_S),
                        "TRACKWATCH_SWEEP_S": str(SWEEP_S),
                        "TRACKWATCH_LOG_FORMAT": "json",
                        **clock_environment(self.folder / "clock"),
                    },
                )
            )
            stack.callback(self.writer.close)
            stack.callback(self._end_storms)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self.node.running:
            self.node.thaw()
        self._stack.close()

    # --- its course ---

    def run(self, seconds: float, only: Sequence[str] = ()) -> None:
        """Go through all faults, and then through random ones until the time is over; the deleted database comes last.

        Raises:
            AssertionError: something is wrong; like anything else that is raised here, it is in `problems` as well
        """
        began_at = time.monotonic()
        faults = [fault for fault in FAULTS if fault.name not in self.not_tried and (not only or fault.name in only)]
        try:
            self._make_base()
            self.daemon.start(timeout_s=60)
            self.writer.start()
            self._settle()
            for number, fault in enumerate(self._plan(faults)):
                if time.monotonic() - began_at > seconds and number >= len(faults):
                    break
                say(f"{time.monotonic() - began_at:6.0f} s  {fault.name}")
                self._suffer(fault)
            self.writer.close()
            self._settle()
            self._stop()
            assert_equal_fold(self.recorder.messages, self.roots, ordered=False)
            if not only or DELETED in only:
                self._delete_database()
        except Exception as error:
            self.problems.append(f"{type(error).__name__}: {error}")
            self._write_messages()
            shutil.copytree(self.state, self.folder / "state-kept", ignore=shutil.ignore_patterns("ballast"))
            raise
        finally:
            self.seconds = time.monotonic() - began_at

    def _plan(self, faults: list[Fault]) -> Iterator[Fault]:
        while True:
            yield from self.random.sample(faults, len(faults))

    def _make_base(self) -> None:
        self.writer.make_base()
        for number in range(BASE_FILES):
            directory = self.roots[1] / f"base {number % DIRECTORIES}"
            directory.mkdir(exist_ok=True)
            (directory / f"{number}.mp3").write_bytes(b"base %d" % number)

    def _suffer(self, fault: Fault) -> None:
        """Let one fault come and go, and see to it that nothing was lost."""
        record = self.records.setdefault(fault.name, Record())
        record.times += 1
        if self.random.random() < STORM_SHARE:
            self._start_storm()
        if self.random.random() < BURST_BEFORE_SHARE:
            self.writer.burst(BURST_FILES)
        time.sleep(self.random.uniform(0, PAUSE_MAX_S))
        log, told = LogTail(self.daemon), len(self.oracle.told)
        with fault.come(self):
            self._hold(fault, record)
        ended_at = time.monotonic()
        owed = self.oracle.owed_for(NOTICE_S)
        went_on_s, caught_up_s = self._wait_for_delivery(ended_at, owed)
        record.went_on_s.append(went_on_s)
        record.caught_up_s.append(caught_up_s)
        record.logged.update({": ".join(filter(None, (event, reason))) for event, reason in log.troubles()})
        settled_s = self._settle()
        word = record.words.most_common(1)[0][0] if record.words else ""
        say(
            f"          {word}; delivery went on after {went_on_s:.2f} s, all that was owed ({len(owed)}) had arrived"
            f" after {caught_up_s:.2f} s, at rest after {settled_s:.1f} s; {self.oracle.messages} messages"
        )
        slow = max(self.oracle.told[told:], key=lambda one: one.noticed_at_s - one.made_at_s)
        if slow.noticed_at_s - slow.made_at_s > NOTICED_LATE_S:
            say(f"          noticed {slow.noticed_at_s - slow.made_at_s:.1f} s after it was done: {slow.owed}")

    def _hold(self, fault: Fault, record: Record) -> None:
        """Let it last, look at the status again and again, and kill the daemon in it perhaps."""
        lasts_s = fault.brief_s if self.brief else self.random.uniform(fault.least_s, fault.most_s)
        kill_after_s = self.random.uniform(0, lasts_s) if self.random.random() < KILL_SHARE else math.inf
        began_at = time.monotonic()
        seen = ("", "")
        while True:
            waited_s = time.monotonic() - began_at
            if fault.may_kill and waited_s > kill_after_s:
                kill_after_s = math.inf
                self._kill_daemon()
                self._start_daemon()
            seen = self._look()
            if waited_s >= lasts_s and (seen[0] in fault.words if fault.words else seen[0] != NOT_UP_YET):
                break
            if waited_s > lasts_s + WORD_DEADLINE_S:
                raise Problem(f"{fault.name}: status does not say {' or '.join(fault.words)} but {seen}")
            time.sleep(min(STATUS_PAUSE_S, max(0.0, lasts_s - waited_s)))
        record.words[seen[0]] += 1
        if seen[1]:
            record.reasons[seen[1]] += 1

    def _look(self) -> tuple[str, str]:
        """Return what status says: the word that is not well, else the broker's, and its reason."""
        self._check_alive()
        _, status = self.daemon.status()
        if not status["running"]:
            return "not running" if self._daemon_down else NOT_UP_YET, ""
        for root in status["roots"]:
            if root["state"] not in ("ok", "importing", "starting", "not watched"):
                return f"root {root['state']}", root.get("reason") or ""
        if trouble := (status["store"] or {}).get("trouble"):
            return "unwritable", trouble
        broker = status["broker"] or {}
        return broker.get("state", NOT_UP_YET), broker.get("reason") or ""

    def _wait_for_delivery(self, ended_at: float, owed: Sequence[Owed]) -> tuple[float, float]:
        """Wait for a new message, and for all that was owed; return the seconds from the fault's end to each."""
        deadline = time.monotonic() + DELIVERY_DEADLINE_S
        while True:
            self._check_alive()
            self.oracle.read()
            arrived = self.oracle.first_arrival_after(ended_at)
            left = [one for one in owed if self.oracle.is_owed(one)]
            if arrived is not None and not left:
                return arrived - ended_at, time.monotonic() - ended_at if owed else 0.0
            if time.monotonic() > deadline:
                seen = self._look()
                raise Problem(f"{len(left)} changes not told {DELIVERY_DEADLINE_S:g} s after it: {left[:3]}; {seen}")
            time.sleep(LOOK_S)

    def _settle(self) -> float:
        """Let everything rest, and check that nothing is owed any more; return how long that took."""
        began_at = time.monotonic()
        for storm in self._storms:
            if storm.wait(60) != 0:
                raise Problem(f"a writer of ours ended with {storm.returncode}")
        self._storms.clear()
        with self.writer.resting():
            on_disk = library(self.roots)
            last_look_at = time.monotonic()
            while True:
                self._check_alive()
                self.oracle.read()
                self.oracle.check()
                self.differences = len(self.oracle.files.items() ^ on_disk.items())
                if not self.oracle.owed and not self.oracle.gaps and not self.differences:
                    break
                waited_s = time.monotonic() - began_at
                if waited_s > EQUAL_DEADLINE_S:
                    if self.oracle.owed:
                        raise Problem(f"{len(self.oracle.owed)} changes were never told: {self.oracle.owed[:5]}")
                    assert_same_files(self.oracle.files, on_disk)
                    raise Problem(f"{self.oracle.gaps} gaps in the sequence")
                if time.monotonic() - last_look_at > ACCEPT_LOOK_S:
                    last_look_at = time.monotonic()
                    self._accept()
                    differences = sorted(self.oracle.files.items() ^ on_disk.items())
                    say(f"          not at rest after {waited_s:.0f} s: {self.oracle.owed[:2]} {differences[:2]}")
                time.sleep(LOOK_S)
            self._wait_healthy()
        self._write_messages()
        return time.monotonic() - began_at

    def _write_messages(self) -> None:
        """Write down what has arrived, beside what was changed: for whoever wants to judge for himself."""
        messages = self.recorder.messages
        with (self.folder / "messages.jsonl").open("a", encoding="utf-8") as file:
            for message in messages[self._written :]:
                properties = {name: value for name, value in facts(message).items() if value is not None}
                line = {"arrived_at_s": message.arrived_at_s, "routing_key": message.routing_key}
                line |= {"redelivered": message.redelivered, "properties": properties, "raw": message.raw.decode()}
                file.write(json.dumps(line, default=str) + "\n")
        self._written = len(messages)

    def _accept(self) -> None:
        """Say of removals that are held back that they are meant: a storm may remove much."""
        _, status = self.daemon.status()
        for root in status["roots"]:
            if root["state"] == "suspect":
                self.counts["accepts"] += 1
                self.daemon.run("accept", "--yes", root["path"])

    def _wait_healthy(self) -> None:
        """Wait until status has no complaint any more."""
        deadline = time.monotonic() + WORD_DEADLINE_S
        while True:
            self._check_alive()
            code, status = self.daemon.status()
            if code == 0 and not status["outbox"]["pending"]:
                return
            if time.monotonic() > deadline:
                raise Problem(f"everything was told, and status says {code}: {json.dumps(status)}")

    def _check_alive(self) -> None:
        if not self.daemon.running and not self._daemon_down:
            raise Problem(f"the daemon ended by itself, with {self.daemon.exit_code}: {self.daemon.stderr()[-4000:]}")
        if "Traceback" in self.daemon.stderr():
            raise Problem(f"a traceback:\n{self.daemon.stderr()[-6000:]}")

    # --- what it does to the parts ---

    def _kill_daemon(self) -> None:
        self._check_alive()
        self._daemon_down = True
        self.counts["daemon kills"] += 1
        self.daemon.kill()

    def _start_daemon(self) -> None:
        self.daemon.start(wait=False)
        self._daemon_down = False

    def _stop(self) -> None:
        self._check_alive()
        self._daemon_down = True
        if self.daemon.stop() != 0:
            raise Problem(f"exit code {self.daemon.exit_code}: {self.daemon.stderr()[-2000:]}")

    def _start_storm(self) -> None:
        self.counts["storms"] += 1
        self._storms.append(
            start_storm(
                [self.roots[1]],
                self.outside,
                seconds=self.random.uniform(2, 5),
                seed=self.random.randrange(1 << 30),
                ledger=self.folder / f"storm-{self.counts['storms']}.jsonl",
                # Where a directory cannot be watched, all removals wait for it; the soak has them.
                odd_names=False,
            )
        )

    def _end_storms(self) -> None:
        for storm in self._storms:
            storm.kill()
            storm.wait()

    def _mount_state(self, stack: ExitStack) -> None:
        """Put the state on a small disk of its own, which can be filled."""
        options = ("mount", "-t", "tmpfs", "-o", f"size={STATE_DISK_BYTES}", "none", str(self.state))
        done = subprocess.run(options, check=False, capture_output=True, text=True)
        if done.returncode:
            self.not_tried["disk full"] = f"cannot mount here: {done.stderr.strip()}"
        else:
            stack.callback(subprocess.run, ["umount", "--lazy", str(self.state)], check=True)

    def _remove_folder(self) -> None:
        if not self.problems:
            shutil.rmtree(self.folder)

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Give a channel to the broker itself, past the proxy."""
        with pika.BlockingConnection(pika.URLParameters(self.recorder.url)) as connection:
            yield connection.channel()

    # --- faults of the daemon ---

    @contextmanager
    def daemon_killed(self) -> Iterator[None]:
        """The daemon, killed at any moment."""
        self._kill_daemon()
        yield
        self._start_daemon()

    @contextmanager
    def daemon_killed_before_mark(self) -> Iterator[None]:
        """The daemon, killed when messages have arrived and it knows nothing of that yet."""
        self.proxy.stall(frozenset({Direction.DOWN}))
        arrived = self.oracle.events
        deadline = time.monotonic() + DELIVERY_DEADLINE_S
        while self.oracle.events == arrived:
            self.writer.burst(1)
            time.sleep(LOOK_S)
            self.oracle.read()
            if time.monotonic() > deadline:
                raise Problem("no message while confirms are held back")
        self._kill_daemon()
        self.proxy.let_pass()
        yield
        self._start_daemon()

    @contextmanager
    def daemon_restarted(self) -> Iterator[None]:
        """The daemon, stopped as it should be, and started again."""
        self._stop()
        yield
        self._start_daemon()

    @contextmanager
    def daemon_frozen(self) -> Iterator[None]:
        """The daemon, not running for a while."""
        self.daemon.freeze()
        yield
        self.daemon.thaw()

    @contextmanager
    def clock_set_back(self) -> Iterator[None]:
        """The wall clock, as Python tells it to the daemon, an hour ago; then right again."""
        set_clock(self.folder / "clock", -3600)
        yield
        set_clock(self.folder / "clock", 0)

    # --- faults of the state ---

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """The disk of the state without a byte left."""
        # The log keeps its room when it was put away, after a storm megabytes: enough for all that is written here.
        with contextlib.closing(sqlite3.connect(self.state / DATABASE, isolation_level=None, timeout=30)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ballast = self.state / "ballast"
        with ballast.open("wb", buffering=0) as file:
            # The daemon takes some of it meanwhile: what there was a moment ago may be more than there is.
            piece_bytes = STATE_DISK_BYTES
            while piece_bytes >= PAGE_BYTES:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), piece_bytes)
                except OSError:
                    piece_bytes //= 2
        yield
        ballast.unlink()

    @contextmanager
    def database_locked(self) -> Iterator[None]:
        """The state's database, held by somebody else."""
        with contextlib.closing(sqlite3.connect(self.state / DATABASE, isolation_level=None, timeout=30)) as conn:
            conn.execute("BEGIN IMMEDIATE")
            yield
            conn.execute("ROLLBACK")

    # --- faults of the broker ---

    @contextmanager
    def broker_killed(self) -> Iterator[None]:
        """The broker, killed and started again."""
        self.counts["broker kills"] += 1
        self.node.kill()
        yield
        self.node.start()

    @contextmanager
    def broker_restarted(self) -> Iterator[None]:
        """The broker, stopped as it should be, and started again."""
        self.node.stop()
        yield
        self.node.start()

    @contextmanager
    def broker_frozen(self) -> Iterator[None]:
        """The broker, not running for a while: it takes connections and bytes, and does not answer."""
        self.node.freeze()
        yield
        self.node.thaw()

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """The broker, out of memory by its own measure."""
        self.node.rabbitmqctl("set_vm_memory_high_watermark", "0")
        yield
        self.node.rabbitmqctl("set_vm_memory_high_watermark", "0.4")

    @contextmanager
    def disk_alarm(self) -> Iterator[None]:
        """The broker, out of disk by its own measure."""
        self.node.rabbitmqctl("set_disk_free_limit", str(10**18))
        yield
        self.node.rabbitmqctl("set_disk_free_limit", "50MB")

    @contextmanager
    def queue_full(self) -> Iterator[None]:
        """A second queue, whose consumer does not keep up, and which rejects what is beyond its length."""
        arguments = {"x-max-length": self.random.randrange(10), "x-overflow": "reject-publish"}
        with self.channel() as channel:
            channel.queue_declare("full", durable=True, arguments=arguments)
            channel.queue_bind("full", EXCHANGE, BINDING)
        yield
        with self.channel() as channel:
            channel.queue_delete("full")

    @contextmanager
    def binding_removed(self) -> Iterator[None]:
        """Nobody has bound a queue."""
        with self.channel() as channel:
            channel.queue_unbind(QUEUE, EXCHANGE, BINDING)
        yield
        with self.channel() as channel:
            channel.queue_bind(QUEUE, EXCHANGE, BINDING)

    @contextmanager
    def exchange_of_another_type(self) -> Iterator[None]:
        """The exchange, made anew by somebody else as another kind; then put right."""
        while True:
            with contextlib.suppress(ChannelClosedByBroker), self.channel() as channel:
                channel.exchange_delete(EXCHANGE)
                channel.exchange_declare(EXCHANGE, "direct", durable=True)  # refused if the daemon was first
                break
        self.proxy.reset()
        yield
        with self.channel() as channel:
            channel.exchange_delete(EXCHANGE)
            channel.exchange_declare(EXCHANGE, "topic", durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, BINDING)

    @contextmanager
    def virtual_host_missing(self) -> Iterator[None]:
        """The virtual host, deleted and made again."""
        # What is in the queue goes with it, and would be our doing: it has to be empty.
        self.proxy.refuse()
        while self.node.rabbitmqctl("list_queues", "-p", VHOST, "--no-table-headers", "messages").strip() != "0":
            time.sleep(LOOK_S)
        self.node.rabbitmqctl("delete_vhost", VHOST)
        self.proxy.let_pass()
        yield
        connected = self.recorder.connections
        self.node.add_vhost(VHOST, user=USER)
        self.recorder.wait_connected(connected + 1)

    @contextmanager
    def password_wrong(self) -> Iterator[None]:
        """The user's password, changed and changed back."""
        self.node.rabbitmqctl("change_password", USER, "it is wrong")
        self.proxy.reset()
        yield
        self.node.rabbitmqctl("change_password", USER, PASSWORD)

    # --- faults of the line ---

    @contextmanager
    def line_refuses(self) -> Iterator[None]:
        """Connections end, and new ones are refused."""
        self.proxy.refuse()
        yield
        self.proxy.let_pass()

    @contextmanager
    def line_stalls(self) -> Iterator[None]:
        """No byte passes, in one direction or in both."""
        self.proxy.stall(self.random.choice((BOTH, frozenset({Direction.DOWN}), frozenset({Direction.UP}))))
        yield
        self.proxy.let_pass()

    @contextmanager
    def line_is_cut(self) -> Iterator[None]:
        """Each connection ends in the middle of a frame."""
        cuts = self.proxy.cuts
        self.proxy.cut_mid_frame(self.random.choice(list(Direction)))
        if not self.proxy.wait_for_cut(cuts + 1, DELIVERY_DEADLINE_S):
            raise Problem("nothing was sent that could be cut")
        yield
        self.counts["cuts"] += self.proxy.cuts - cuts
        self.proxy.let_pass()

    @contextmanager
    def line_is_slow(self) -> Iterator[None]:
        """A line of some thousand bytes a second."""
        self.proxy.slow_down(SLOW_BYTES_PER_S)
        yield
        self.proxy.let_pass()

    # --- a new beginning ---

    def _delete_database(self) -> None:
        """Delete the database under the daemon: it must end with a clear word; the next start begins anew."""
        say("          database deleted")
        record = self.records.setdefault(DELETED, Record())
        record.times += 1
        self._start_daemon()
        self._settle()
        old_instance = self.oracle.instance_id
        with self.writer.resting():
            log = LogTail(self.daemon)
            for file in self.state.glob(f"{DATABASE}*"):
                file.unlink()
            (self.roots[1] / "after it was deleted.mp3").write_bytes(b"after it was deleted")
            self._daemon_down = True
            if (code := self.daemon.wait_for_exit(WORD_DEADLINE_S)) != STORE_EXIT:
                raise Problem(f"{DELETED}: exit code {code} instead of {STORE_EXIT}: {self.daemon.stderr()[-2000:]}")
            said = self.daemon.stderr()
            # By its next commit, or, where it has only just begun, by the next connection that it opens.
            words = ("was deleted or replaced while in use", "was it deleted while in use?")
            if not any(word in said for word in words) or "Traceback" in said:
                raise Problem(f"{DELETED}: it says {said[-2000:]}")
            record.words[f"exit code {code}"] += 1
            record.reasons[json.loads(said.splitlines()[-1])["reason"]] += 1
            record.logged.update({": ".join(filter(None, (event, reason))) for event, reason in log.troubles()})
            self.oracle.read()
            self.oracle.check()
            # The new instance tells everything from its first event.
            began_at = time.monotonic()
            self._start_daemon()
            anew = Oracle(self.recorder, not_from=old_instance)
            on_disk = library(self.roots)
            while anew.files != on_disk or anew.gaps:
                self._check_alive()
                anew.read()
                anew.check()
                if time.monotonic() - began_at > EQUAL_DEADLINE_S:
                    assert_same_files(anew.files, on_disk)
                    raise Problem(f"{DELETED}: {anew.gaps} gaps in the sequence of the new instance")
                time.sleep(LOOK_S)
            record.went_on_s.append(anew.arrived_at_s[0] - began_at)
            record.caught_up_s.append(time.monotonic() - began_at)
            self._wait_healthy()
            self._stop()

    # --- what is said of it ---

    def summary(self) -> dict[str, Any]:
        """Return the figures."""
        oracle = self.oracle
        # The fold stands still at a gap: it has nothing to say then of what comes after.
        lost = max(len(oracle.owed), oracle.gaps or self.differences)
        return {
            "seconds": round(self.seconds),
            "seed": self.seed,
            "changes": self.ledger.operations.total(),
            "storms": self.counts["storms"],
            "messages": oracle.messages,
            "events": oracle.events,
            "kills": {"daemon": self.counts["daemon kills"], "broker": self.counts["broker kills"]},
            "faults": {name: record.times for name, record in self.records.items()},
            "lost": lost,
            "gaps": oracle.gaps,
            "order_violations": len(oracle.order_violations),
            "wrong": len(oracle.wrong),
            "doubles": oracle.doubles,
            "overtakings_of_other_files": oracle.overtakings,
            "not_tried": self.not_tried,
            "table": {name: record.as_json() for name, record in self.records.items()},
            "problems": self.problems,
        }


def summary_line(figures: Mapping[str, Any]) -> str:
    """Return the figures in one line, for people."""
    kills, faults = figures["kills"], figures["faults"]
    by_kind = ", ".join(f"{name} {times}" for name, times in faults.items())
    return (
        f"seconds {figures['seconds']} · seed {figures['seed']} · changes {figures['changes']}"
        f" (and {figures['storms']} storms) · events {figures['events']} · messages {figures['messages']}"
        f" · kills {sum(kills.values())} (daemon {kills['daemon']}, broker {kills['broker']})"
        f" · faults {sum(faults.values())} ({by_kind}) · lost {figures['lost']} · gaps {figures['gaps']}"
        f" · order violations {figures['order_violations']} · wrong {figures['wrong']} · doubles {figures['doubles']}"
    )


def table(records: Mapping[str, Record]) -> str:
    """Return what was seen of each kind of fault, as Markdown."""
    rows = [
        "| fault | times | status word | status reason | log | s to first new: median, max | caught up: max |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in sorted(records.items()):
        cells = [
            name,
            str(record.times),
            ", ".join(f"`{word}`" for word, _ in record.words.most_common(2)),
            "; ".join(reason for reason, _ in record.reasons.most_common(1)) or "-",
            "; ".join(line for line, _ in record.logged.most_common(2)) or "-",
            f"{statistics.median(record.went_on_s):.2f}, {max(record.went_on_s):.2f}" if record.went_on_s else "-",
            f"{max(record.caught_up_s):.1f}" if record.caught_up_s else "-",
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


class LogTail:
    """What the daemon's log says from now on, over its starts."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._start = daemon.starts
        self._said = len(daemon.stderr())

    def troubles(self) -> Iterator[tuple[str, str]]:
        """Yield the event and the reason of each warning and error."""
        said = self._daemon.stderr()
        if self._daemon.starts == self._start:
            said = said[self._said :]
        for line in said.splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level") in TROUBLES:
                    yield entry["event"], entry.get("reason", "")


CLOCK = """\
import os, time

_time, _time_ns, _file = time.time, time.time_ns, os.environ["CHAOS_CLOCK"]


def _offset_s():
    try:
        with open(_file) as file:
            return int(file.read() or 0)
    except (OSError, ValueError):
        return 0


time.time = lambda: _time() + _offset_s()
time.time_ns = lambda: _time_ns() + _offset_s() * 10**9
"""


def clock_environment(folder: Path) -> dict[str, str]:
    """Return the environment in which a Python process has a wall clock that `set_clock` sets.

    Nothing else can be done where the machine's own clock is not ours: time namespaces leave the wall clock alone.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK)
    set_clock(folder, 0)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_CLOCK": str(folder / "offset")}


def set_clock(folder: Path, offset_s: int) -> None:
    """Set how far the clock is ahead of the right time."""
    fresh = folder / "offset.new"
    fresh.write_text(str(offset_s))
    fresh.replace(folder / "offset")


def say(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


DELETED = "database deleted"
FAULTS = (
    Fault("daemon killed", Chaos.daemon_killed, 0, 1, 0, may_kill=False),
    Fault("daemon killed before it has marked", Chaos.daemon_killed_before_mark, 0, 1, 0, may_kill=False),
    Fault("daemon restarted", Chaos.daemon_restarted, 0, 1, 0, may_kill=False),
    Fault("daemon frozen", Chaos.daemon_frozen, 1, SILENT_S + 5, 1, may_kill=False),
    Fault("clock set back", Chaos.clock_set_back, 2, 5, 2),
    Fault("disk full", Chaos.disk_full, 5, 15, 3, frozenset({"unwritable"}), may_kill=False),
    Fault("database locked", Chaos.database_locked, 30, 30, 7, frozenset({"unwritable"}), may_kill=False),
    Fault("broker killed", Chaos.broker_killed, 0, 6, 0, frozenset({"unavailable"})),
    Fault("broker restarted", Chaos.broker_restarted, 0, 6, 0, frozenset({"unavailable"})),
    Fault("broker frozen for long", Chaos.broker_frozen, SILENT_S + 1, SILENT_S + 8, 0, frozenset({"unavailable"})),
    Fault("broker frozen shortly", Chaos.broker_frozen, 0.5, SILENT_S / 2, 0.5),
    Fault("memory alarm", Chaos.memory_alarm, 1, 12, 0, frozenset({"blocked"})),
    Fault("disk alarm", Chaos.disk_alarm, 1, 12, 0, frozenset({"blocked"})),
    Fault("queue full", Chaos.queue_full, 1, 10, 1, frozenset({"rejected"})),
    Fault("binding removed", Chaos.binding_removed, 1, 10, 1, frozenset({"unroutable"})),
    Fault("exchange of another type", Chaos.exchange_of_another_type, 1, 8, 0, frozenset({"refused"})),
    Fault("virtual host missing", Chaos.virtual_host_missing, 1, 8, 0, frozenset({"refused"})),
    Fault("password wrong", Chaos.password_wrong, 1, 8, 0, frozenset({"refused"})),
    Fault("line refuses", Chaos.line_refuses, 1, 10, 0, frozenset({"unavailable"})),
    Fault("line stalls for long", Chaos.line_stalls, SILENT_S + 3, SILENT_S + 8, 0, frozenset({"unavailable"})),
    Fault("line stalls shortly", Chaos.line_stalls, 0.5, SILENT_S / 2, 0.5),
    Fault("line cut in mid-frame", Chaos.line_is_cut, 0, 5, 0),
    Fault("line slow", Chaos.line_is_slow, 5, 15, 3),
)


def main() -> int:
    """Cause chaos from the command line."""
    parser = argparse.ArgumentParser(description="every fault around a real daemon, and whether anything is lost")
    parser.add_argument("--seconds", metavar="S", type=float, default=900)
    parser.add_argument("--seed", metavar="N", type=int, default=None, help="what is tried, again")
    parser.add_argument("--only", metavar="FAULT", action="append", default=[], help="this fault alone")
    parser.add_argument("--brief", action="store_true", help="faults as short as they can be")
    parser.add_argument("--json", metavar="FILE", help="write all figures there as well")
    arguments = parser.parse_args()
    names = [fault.name for fault in FAULTS] + [DELETED]
    if unknown := set(arguments.only) - set(names):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 30)
    say(f"seed {seed}")
    with Chaos(seed, brief=arguments.brief) as chaos:
        with contextlib.suppress(AssertionError):  # it is in its problems
            chaos.run(arguments.seconds, arguments.only)
        figures = chaos.summary()
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
        print(summary_line(figures) + "\n\n" + table(chaos.records))
        for name, reason in chaos.not_tried.items():
            print(f"\nnot tried: {name} ({reason})")
        for problem in chaos.problems:
            print(f"\nFAILED: {problem}\nkept: {chaos.folder}")
        return 1 if chaos.problems else 0


if __name__ == "__main__":
    sys.exit(main())
