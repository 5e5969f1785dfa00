"""The soak: a real daemon, storms of writers, kills, restarts and queue overflows, for as long as one likes.

`make soak SECONDS=600 [SEED=7]`. After each episode everything rests, and then the fold of all events ever told must
equal the disk, soon, and without the help of the periodic sweep. Between storms a single careful writer knows exactly
which events each deed must bring. No event may tell content that nobody had finished. Any of that failing ends it with
exit code 1, the folders kept and the seed printed. The seed decides what is tried; who wins each race, it cannot.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.bed.daemon import Daemon
from tests.bed.fold import FoldError, apply, assert_equal_fold, assert_same_files, library, path_of, sequence_of
from tests.bed.storm import Ledger, premature, read_ledgers, start_storm, write_file

SWEEP_S = 900  # nothing here may have to wait for it
EQUAL_DEADLINE_S = 60.0
# What an overflow left to be described takes its time: each so many files are given one second more.
FILES_A_SECOND = 400
BASE_FILES, BASE_DIRECTORIES = 2500, 25  # in each root; so many that storms never remove half of it
QUEUE_SHARE = 1.3  # files made during an overflow, as a share of the kernel's queue; each is several notifications
LOOK_S, STATUS_S = 0.1, 5.0
REST_S = 3.0  # at rest, the processor time is measured for so long
REST_SHARE_MAX = 0.25  # of a core; a busy loop takes all of one
DEED_DEADLINE_S = 15.0
EXTRA_S = 1.0  # an event that should not be comes within this time after the last one that should


@dataclass
class RunningFold:
    """The fold of a daemon's stream, brought up to date without reading it all again; it checks every promise."""

    daemon: Daemon
    files: dict[bytes, str] = field(default_factory=dict)
    by_type: Counter[str] = field(default_factory=Counter)
    events: list[Any] = field(default_factory=list)  # without doubles
    _seen: set[str] = field(default_factory=set)
    _read: int = 0

    def read(self) -> None:
        """Apply what has come since the last time.

        Raises:
            FoldError: at the first broken promise
        """
        lines = self.daemon.events()
        for body in lines[self._read :]:
            if body["event_id"] in self._seen:
                continue  # the whole stream is checked in the end, with its doubles
            expected = len(self.events) + 1
            if sequence_of(body) != expected:
                raise FoldError(f"sequence {body['sequence']} instead of {expected}: {body}")
            apply(body, self.files)
            self._seen.add(body["event_id"])
            self.events.append(body)
            self.by_type[body["event_type"]] += 1
        # A restarted daemon writes to another file: what the old one had not ended with a newline never counts.
        self._read = len(lines)

    def wait_equal(
        self, roots: Sequence[Path], deadline_s: float, look: Callable[[float], None] = lambda _waited_s: None
    ) -> float:
        """Wait until the fold equals what is on the disk, which rests; return for how long.

        Raises:
            FoldError: it does not in time, or the stream breaks a promise
        """
        began_at = time.monotonic()
        on_disk = library(roots)
        while True:
            self.read()
            waited_s = time.monotonic() - began_at
            if self.files == on_disk:
                return waited_s
            if waited_s > deadline_s:
                assert_same_files(self.files, on_disk)
            if not self.daemon.running:
                raise FoldError(f"the daemon has ended:\n{self.daemon.stderr()[-4000:]}")
            look(waited_s)
            time.sleep(LOOK_S)


class Problem(AssertionError):
    """The soak has found something."""


class Soak:
    """The folders, the daemon, the episodes and the counts. A context manager; it keeps the folders if it failed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.folder = Path(tempfile.mkdtemp(prefix="trackwatch-soak-"))
        self.memory = Path(tempfile.mkdtemp(prefix="trackwatch-soak-", dir="/dev/shm"))
        self.roots = [self.folder / "music", self.memory / "more"]
        self.outside = self.folder / "outside"
        for directory in (*self.roots, self.outside):
            directory.mkdir()
        self.daemon = Daemon(self.roots, self.folder / "state", env={"TRACKWATCH_SWEEP_S": str(SWEEP_S)})
        self.fold = RunningFold(self.daemon)
        self.ledgers: list[Path] = []
        self.own_ledger = self._ledger()
        self._own_stream = self.own_ledger.open("a", encoding="utf-8", buffering=1)
        self.own = Ledger(self._own_stream)
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.rest_share = 0.0
        self.memory_kb: list[int] = []
        self.problems: list[str] = []
        self._premature_read = 0
        self._number = 0
        self.kinds: dict[str, Callable[[], None]] = {
            "storm": self.storm,
            "storm with kills": self.storm_with_kills,
            "storm with a restart": self.storm_with_restart,
            "storm while it is down": self.storm_while_down,
            "overflow": self.overflow,
            "single deeds": self.single_deeds,
            "deeds while it is down": self.deeds_while_down,
            "deeds and a kill": self.deeds_and_kill,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.close()
        self._own_stream.close()
        if not self.problems:
            shutil.rmtree(self.folder)
            shutil.rmtree(self.memory)

    # --- its course ---

    def run(self, seconds: float, only: Sequence[str] = ()) -> None:
        """Go through all kinds of episodes, and then through random ones until the time is over.

        Raises:
            AssertionError: something is wrong; it is in `problems` as well
        """
        began_at = time.monotonic()
        names = list(only or self.kinds)
        try:
            self._make_base()
            self.daemon.start(timeout_s=120)
            self.rest("import")
            for name in self._plan(names):
                if time.monotonic() - began_at > seconds and self.counts["episodes"] >= min(len(names), seconds // 20):
                    break
                self.counts["episodes"] += 1
                say(f"{time.monotonic() - began_at:6.0f} s  {name}")
                self.kinds[name]()
                self.rest(name)
            if self.daemon.stop() != 0:
                raise Problem(f"exit code {self.daemon.exit_code}: {self.daemon.stderr()[-2000:]}")
            self.fold.read()
            assert_equal_fold(self.daemon.events(), self.roots)
        except AssertionError as error:
            self.problems.append(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.counts["seconds"] = round(time.monotonic() - began_at)

    def _plan(self, names: list[str]) -> Iterator[str]:
        while True:
            yield from self.random.sample(names, len(names))

    def rest(self, name: str) -> None:
        """Wait for the equal fold, and look at everything that must hold then."""
        self._own_stream.flush()
        self.counts["folds"] += 1
        extra_s = max(0, sum(1 for root in self.roots for _ in files_below(root)) - len(self.fold.files))
        deadline_s = EQUAL_DEADLINE_S + extra_s / FILES_A_SECOND
        last_status_at = 0.0

        def look(waited_s: float) -> None:
            nonlocal last_status_at
            if waited_s - last_status_at < STATUS_S:
                return
            last_status_at = waited_s
            _, status = self.daemon.status()
            for root in status["roots"]:
                if root["state"] == "suspect":
                    done = self.daemon.run("accept", "--yes", root["path"])
                    say(f"          accept: {root['reason']}")
                    if done.returncode:
                        raise Problem(f"accept: exit code {done.returncode}: {done.stdout} {done.stderr}")
                    self.counts["accepts"] += 1

        waited_s = self.fold.wait_equal(self.roots, deadline_s, look)
        self.counts["equal folds"] += 1
        self.slowest_s = max(self.slowest_s, waited_s)
        self._check_premature()
        self._check_words()
        share = self._rest_share()
        self.rest_share = max(self.rest_share, share)
        self.memory_kb.append(memory_kb(self.daemon.pid))
        say(
            f"          {name}: equal after {waited_s:.1f} s, {len(self.fold.files)} files,"
            f" {len(self.fold.events)} events, {share:.1%} of a core at rest, {self.memory_kb[-1] // 1024} MB"
        )
        if share > REST_SHARE_MAX:
            raise Problem(f"{share:.0%} of a core at rest, after {name}")

    def _check_premature(self) -> None:
        finished, operations = read_ledgers(self.ledgers)
        self.counts["operations"] = operations.total()
        found = premature(self.fold.events[self._premature_read :], finished)
        self._premature_read = len(self.fold.events)
        if found:
            self.counts["premature"] += len(found)
            raise Problem("premature: " + "\n".join(found[:10]))

    def _check_words(self) -> None:
        said = self.daemon.stderr()
        if "Traceback" in said:
            raise Problem(f"a traceback:\n{said[-6000:]}")
        self.counts["watches that died"] += said.count("watch died") - self.counts[f"died {self.daemon.starts}"]
        self.counts[f"died {self.daemon.starts}"] = said.count("watch died")

    def _rest_share(self) -> float:
        before, began_at = processor_s(self.daemon.pid), time.monotonic()
        time.sleep(REST_S)
        return (processor_s(self.daemon.pid) - before) / (time.monotonic() - began_at)

    # --- episodes ---

    def storm(self) -> None:
        """Let several writers loose."""
        self._wait(self._start_storms())

    def storm_with_kills(self) -> None:
        """Kill the daemon in the middle of a storm, and start it again in it; more than once perhaps."""
        writers = self._start_storms()
        for _ in range(self.random.randrange(1, 4)):
            time.sleep(self.random.uniform(0.1, 2.5))
            if self.daemon.running:
                self._kill()
            time.sleep(self.random.uniform(0, 0.5))
            self.daemon.start(wait=False)
        self._wait(writers)
        self.daemon.wait_until(self.daemon.is_ready, 90, "to be watching")

    def storm_with_restart(self) -> None:
        """Restart the daemon in the middle of a storm."""
        writers = self._start_storms()
        time.sleep(self.random.uniform(0.2, 3))
        self._stop()
        self.daemon.start(timeout_s=90)
        self._wait(writers)

    def storm_while_down(self) -> None:
        """Have a storm while nobody looks."""
        self._stop()
        self._wait(self._start_storms())
        self.daemon.start(timeout_s=90)

    def overflow(self) -> None:
        """Freeze the daemon, fill the kernel's queue to the brim, and only then change what is to be noticed."""
        root = self.random.choice(self.roots)
        self._number += 1
        bursts = [path for path in root.iterdir() if path.name.startswith("base")]
        count = int(max_queued() * QUEUE_SHARE)
        self.daemon.freeze()
        for number in range(count):
            content = b"burst %d of %d, seed %d" % (number, self._number, self.seed)
            # In directories that are watched: what happens elsewhere does not come into the queue.
            path = bursts[number % len(bursts)] / f"burst {self._number} {number}.mp3"
            self._write(path, content)
        self._wait(self._start_storms(odd=False))
        self.daemon.thaw()
        self.counts["overflows"] += 1
        self.rest("overflow")
        # More than half of the root goes at once: it is held back until it is accepted.
        for path in root.rglob("burst *.mp3"):
            path.unlink()

    def single_deeds(self) -> None:
        """Do one thing after the other, and wait for the events of each."""
        for deed in self._deeds():
            told = len(self.fold.events)
            deed.do()
            self._expect(told, deed.expected, deed.name, deed.folder)
            self.counts["deeds"] += 1

    def deeds_while_down(self) -> None:
        """Do one thing to each of some files while the daemon is down."""
        deeds = list(self._deeds())
        self._stop()
        self._do_all(deeds, lambda: self.daemon.start(timeout_s=90))

    def deeds_and_kill(self) -> None:
        """Do one thing to each of some files, and kill the daemon while it takes note."""
        deeds = list(self._deeds())

        def kill_and_start() -> None:
            time.sleep(self.random.uniform(0, 0.8))
            self._kill()
            self.daemon.start(timeout_s=90)

        self._do_all(deeds, kill_and_start)

    def _do_all(self, deeds: Sequence["Deed"], then: Callable[[], None]) -> None:
        self.fold.read()
        told = len(self.fold.events)
        for deed in deeds:
            deed.do()
        then()
        for deed in deeds:
            self._expect(told, deed.expected, deed.name, deed.folder, extra_s=0)
            self.counts["deeds"] += 1

    def _expect(self, told: int, expected: "Expected", name: str, folder: str, *, extra_s: float = EXTRA_S) -> None:
        """Wait for exactly these events below a folder.

        Raises:
            Problem: there are others
        """

        def seen() -> list[tuple[str, bytes, bytes]]:
            self.fold.read()
            mark = os.fsencode(f"/{folder}/")
            found = [
                (event["event_type"], path_of(event, "file_path") or b"", path_of(event, "old_path") or b"")
                for event in self.fold.events[told:]
            ]
            return [(kind, path, old) for kind, path, old in found if mark in path or mark in old]

        deadline = time.monotonic() + DEED_DEADLINE_S
        while len(seen()) < len(expected) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(extra_s if expected else extra_s + 0.5)
        wanted = sorted((kind, os.fsencode(path), os.fsencode(old or "")) for kind, path, old in expected)
        if sorted(seen()) != wanted:
            self.counts["wrong types"] += 1
            missing, extra = Counter(wanted) - Counter(seen()), Counter(seen()) - Counter(wanted)
            raise Problem(f"{name}: missing {list(missing)[:5]}, not expected {list(extra)[:5]}")

    def _deeds(self) -> Iterator["Deed"]:
        """Yield deeds, each on files of its own; the first part of each is done and told before it is yielded."""
        names = self.random.sample(list(DEEDS), len(DEEDS))
        places: list[tuple[str, Place]] = []
        for name in names:
            self._number += 1
            root, other = self.random.sample(self.roots, 2)
            places.append((name, Place(root, other, f"deed {self._number}", self._write)))
        for _, place in places:
            place.prepare()
        self.fold.wait_equal(self.roots, EQUAL_DEADLINE_S)
        for name, place in places:
            yield Deed(name, place.name, *DEEDS[name](place))

    # --- how ---

    def _make_base(self) -> None:
        for root in self.roots:
            for number in range(BASE_FILES):
                directory = root / f"base {number % BASE_DIRECTORIES}"
                directory.mkdir(exist_ok=True)
                self._write(directory / f"{number}.mp3", b"ID3 base %d of %s" % (number, os.fsencode(root)))

    def _write(self, path: Path, content: bytes) -> None:
        write_file(self.own, "write", os.fsencode(path), os.O_CREAT, lambda _: 0, [(0, content)], truncate=True)

    def _ledger(self) -> Path:
        file = self.folder / f"ledger-{len(self.ledgers)}.jsonl"
        file.touch()
        self.ledgers.append(file)
        return file

    def _start_storms(self, *, odd: bool = True) -> list[subprocess.Popen[bytes]]:
        self.counts["storms"] += 1
        seconds = self.random.uniform(2, 8)
        return [
            start_storm(
                self.random.sample(self.roots, self.random.choice((1, 2, 2))),
                self.outside,
                seconds=seconds,
                seed=self.random.randrange(1 << 30),
                ledger=self._ledger(),
                odd_names=odd and self.random.random() < 0.7,
            )
            for _ in range(self.random.randrange(2, 5))
        ]

    def _wait(self, writers: Sequence[subprocess.Popen[bytes]]) -> None:
        for writer in writers:
            if writer.wait(120) != 0:
                raise Problem(f"a writer of ours ended with {writer.returncode}")

    def _kill(self) -> None:
        self.counts["kills"] += 1
        self._check_words()
        self.daemon.kill()

    def _stop(self) -> None:
        self.counts["restarts"] += 1
        self._check_words()
        if self.daemon.stop() != 0:
            raise Problem(f"exit code {self.daemon.exit_code}: {self.daemon.stderr()[-2000:]}")

    def summary(self) -> str:
        """Return the counts, for people."""
        by_type = ", ".join(f"{kind} {count}" for kind, count in sorted(self.fold.by_type.items()))
        memory = self.memory_kb or [0]
        rows = {
            "seconds": self.counts["seconds"],
            "operations": self.counts["operations"],
            "events": f"{len(self.fold.events)} ({by_type})",
            "storms": self.counts["storms"],
            "kills": self.counts["kills"],
            "restarts": self.counts["restarts"],
            "overflows": self.counts["overflows"],
            "watches that died": self.counts["watches that died"],
            "mass removals held, then accepted": self.counts["accepts"],
            "folds equal": f"{self.counts['equal folds']}/{self.counts['folds']}",
            "premature events": self.counts["premature"],
            "wrong types": f"{self.counts['wrong types']} of {self.counts['deeds']} deeds",
            "slowest equal fold": f"{self.slowest_s:.1f} s",
            "most at rest": f"{self.rest_share:.1%} of a core",
            "memory": f"{memory[0] // 1024} MB at first, {max(memory) // 1024} at most, {memory[-1] // 1024} at last",
            "seed": self.seed,
        }
        return "\n".join(f"{name:<36}{value}" for name, value in rows.items())


# --- single deeds: what is there before, what is done, and the events that it must bring ---

Expected = list[tuple[str, Path, Path | None]]


@dataclass(frozen=True)
class Deed:
    """Something to do, and the events that must come of it: type, path and old path."""

    name: str
    folder: str  # the part of the path that only this deed's files have
    do: Callable[[], None]
    expected: Expected


@dataclass(frozen=True)
class Place:
    """Where a deed is done: two files and a small directory that are known, and nobody else touches them."""

    root: Path
    other: Path  # another root, on another file system
    name: str
    write: Callable[[Path, bytes], None]

    @property
    def folder(self) -> Path:
        """Its folder in the root."""
        return self.root / self.name

    @property
    def elsewhere(self) -> Path:
        """Its folder in the other root."""
        return self.other / self.name

    @property
    def one(self) -> Path:
        """A file."""
        return self.folder / "one.mp3"

    @property
    def two(self) -> Path:
        """Another file."""
        return self.folder / "two.flac"

    @property
    def tracks(self) -> list[Path]:
        """The files of the directory `album`."""
        return [self.folder / "album" / "cd" / f"{number}.ogg" for number in range(12)]

    def content(self, word: str) -> bytes:
        """Return content that is like no other."""
        return f"{word} in {self.folder}".encode() * 20

    def prepare(self) -> None:
        """Make what is there before."""
        (self.folder / "album" / "cd").mkdir(parents=True)
        self.elsewhere.mkdir()
        for path in (self.one, self.two, *self.tracks):
            self.write(path, self.content(path.name))


Done = tuple[Callable[[], None], Expected]


def create(place: Place) -> Done:
    """A new file."""
    new = place.folder / "new.mp3"
    return lambda: place.write(new, place.content("new")), [("created", new, None)]


def write_in_place(place: Place) -> Done:
    """Other content in a known file."""
    return lambda: place.write(place.one, place.content("other")), [("modified", place.one, None)]


def replace(place: Place) -> Done:
    """A temporary file that is renamed over a known one."""
    temporary = place.folder / ".one.mp3.a1B2c3"

    def do() -> None:
        place.write(temporary, place.content("replaced"))
        temporary.rename(place.one)

    return do, [("modified", place.one, None)]


def download(place: Place) -> Done:
    """A `.part` file that gets its name when it is complete."""
    part, new = place.folder / "new.mp3.part", place.folder / "new.mp3"

    def do() -> None:
        place.write(part, place.content("downloaded"))
        part.rename(new)

    return do, [("created", new, None)]


def rename(place: Place) -> Done:
    """Another name in the same directory."""
    new = place.folder / "renamed.mp3"
    return lambda: void(place.one.rename(new)), [("renamed", new, place.one)]


def rename_twice(place: Place) -> Done:
    """A chain of two names."""
    between, new = place.folder / "between.mp3", place.folder / "renamed.mp3"

    def do() -> None:
        place.one.rename(between)
        between.rename(new)

    return do, [("renamed", new, place.one)]


def rename_over(place: Place) -> Done:
    """A known file that takes the name of another one."""
    new = place.folder / "album" / "cd" / "0.ogg"
    return lambda: void(place.one.rename(new)), [("deleted", new, None), ("moved", new, place.one)]


def move(place: Place) -> Done:
    """Another directory."""
    new = place.folder / "album" / "one.mp3"
    return lambda: void(place.one.rename(new)), [("moved", new, place.one)]


def move_across(place: Place) -> Done:
    """Another file system."""
    new = place.elsewhere / "one.mp3"

    def do() -> None:
        place.write(new, place.one.read_bytes())
        place.one.unlink()

    return do, [("moved", new, place.one)]


def swap(place: Place) -> Done:
    """Two files that change names."""
    between, other = place.folder / "between.tmp", place.tracks[0].with_name("11.ogg")

    def do() -> None:
        place.tracks[0].rename(between)
        other.rename(place.tracks[0])
        between.rename(other)

    return do, [("modified", place.tracks[0], None), ("modified", other, None)]


def link(place: Place) -> Done:
    """A second name."""
    new = place.folder / "album" / "link.mp3"
    return lambda: new.hardlink_to(place.one), [("created", new, None)]


def write_to_link(place: Place) -> Done:
    """A second name, and then other content through it."""
    new = place.folder / "album" / "link.mp3"

    def do() -> None:
        new.hardlink_to(place.one)
        place.write(new, place.content("linked"))

    return do, [("created", new, None), ("modified", place.one, None)]


def delete(place: Place) -> Done:
    """A file that goes."""
    return place.one.unlink, [("deleted", place.one, None)]


def unwanted(place: Place) -> Done:
    """A name that no pattern wants."""
    return lambda: void(place.one.rename(place.folder / "one.bak")), [("deleted", place.one, None)]


def touch(place: Place) -> Done:
    """Another time, the same content: no news."""
    return lambda: os.utime(place.one, (1, 1)), []


def same_content(place: Place) -> Done:
    """The same content again: no news."""
    return lambda: place.write(place.one, place.one.read_bytes()), []


def move_directory(place: Place) -> Done:
    """A directory with files that gets another name."""
    old, new = place.folder / "album", place.folder / "moved"
    return lambda: void(old.rename(new)), [("moved", new / path.relative_to(old), path) for path in place.tracks]


def remove_directory(place: Place) -> Done:
    """A directory with files that goes."""
    return lambda: shutil.rmtree(place.folder / "album"), [("deleted", path, None) for path in place.tracks]


def make_directory(place: Place) -> Done:
    """A tree with files in it at once."""
    folder = place.folder / "new" / "er"

    def do() -> None:
        folder.mkdir(parents=True)
        for number in range(20):
            place.write(folder / f"{number}.mp3", place.content(f"new {number}"))

    return do, [("created", folder / f"{number}.mp3", None) for number in range(20)]


DEEDS: dict[str, Callable[[Place], Done]] = {
    deed.__name__: deed
    for deed in (
        create, write_in_place, replace, download, rename, rename_twice, rename_over, move, move_across, swap, link,
        write_to_link, delete, unwanted, touch, same_content, move_directory, remove_directory, make_directory,
    )
}  # fmt: skip


def void(_value: object) -> None:
    """Return nothing."""


def files_below(directory: Path) -> Iterator[str]:
    """Yield the names of all files below a directory."""
    for _, _, names in os.walk(os.fsencode(directory)):
        yield from map(os.fsdecode, names)


def max_queued() -> int:
    """Return how many notifications the kernel keeps for one watcher before it drops the others."""
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def processor_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kb(pid: int) -> int:
    """Return what a process holds in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def say(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Soak from the command line."""
    parser = argparse.ArgumentParser(description="storms, kills and overflows around a real daemon")
    parser.add_argument("--seconds", metavar="S", type=float, default=600)
    parser.add_argument("--seed", metavar="N", type=int, default=None, help="what is tried, again")
    parser.add_argument("--only", metavar="KIND", action="append", default=[], help="this kind of episode alone")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 30)
    say(f"seed {seed}")
    with Soak(seed) as soak:
        with contextlib.suppress(AssertionError):  # it is in its problems
            soak.run(arguments.seconds, arguments.only)
        print(soak.summary())
        for problem in soak.problems:
            print(f"\nFAILED: {problem}\nkept: {soak.folder}, {soak.memory}")
        return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
