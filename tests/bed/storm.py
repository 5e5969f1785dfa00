"""A writer as rude as the worst of them: random real operations on one or two roots, and a ledger of what it did.

Run several at once, with different seeds: `python -m tests.bed.storm ROOT [ROOT] --outside DIR --seconds S --seed N`.
They tolerate each other's races; whoever changes a file's content holds a lock on it (flock), so that what a writer
left when it closed a file can be told: that is FINISHED content, and the ledger has its SHA-256. Whatever an event says
that nobody ever finished was seen too early; `premature` finds it. Needs nothing of trackwatch.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AUDIO = os.path.join(PROJECT, "tests", "data", "audio")
SUFFIXES = (b".mp3", b".flac", b".ogg", b".wav", b".m4a", b".opus")
PLAIN_SUFFIXES = (b".bak", b".txt", b".jpg")  # what no pattern wants
# Directories with this in front are the library's bulk: files in them change, but they stay. Else half of a small root
# could vanish within a minute, and the daemon would rightly not believe it.
BASE = b"base"
STALL_MAX_S = 1.5
PAUSE_MAX_S = 0.02
SLOW_WRITERS = 4  # at a time, beside everything else
TREE_FILES_MAX = 60  # directories with more files below are neither removed nor moved out
DIRECTORIES_MAX = 150
LOOK_EACH = 20  # operations from one look at the directories to the next
CLOCK_SLACK_US = 2000

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Piece = tuple[float, bytes]  # seconds to wait first, and what to write then


class Ledger:
    """What was done, one JSON object a line; paths as Python's file system text, the rest of them escaped by JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.operations: Counter[str] = Counter()

    def note(self, operation: str, paths: Sequence[bytes], before_ns: int, **facts: Any) -> None:
        """Write down an operation that has ended; `before_ns` is the monotonic clock's word from before it."""
        line = {
            "operation": operation,
            "paths": [os.fsdecode(path) for path in paths],
            "before_ns": before_ns,
            "after_ns": time.monotonic_ns(),
            **facts,
        }
        with self._lock:
            self.operations[operation] += 1
            self._stream.write(json.dumps(line) + "\n")


@dataclass(slots=True)
class Storm:
    """One writer. Everything random comes from its seed; what it meets on the disk does not."""

    roots: Sequence[bytes]
    outside: bytes
    seed: int
    ledger: Ledger
    odd_names: bool = False
    _random: random.Random = field(init=False)
    _number: int = 0
    _directories: list[bytes] = field(default_factory=list)
    _moved_out: list[bytes] = field(default_factory=list)
    _samples: list[tuple[bytes, bytes]] = field(default_factory=list)  # suffix and bytes of real audio files
    _slow: ThreadPoolExecutor = field(init=False)
    _slow_places: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._slow = ThreadPoolExecutor(SLOW_WRITERS)
        self._slow_places = threading.Semaphore(SLOW_WRITERS)
        for suffix in SUFFIXES:
            with open(os.path.join(os.fsencode(AUDIO), b"track" + suffix), "rb") as file:
                self._samples.append((suffix, file.read()))

    def run(self, seconds: float) -> None:
        """Work for so long; what is being written then is finished."""
        operations: dict[Callable[[], None], int] = {
            self._create: 18,
            self._write_in_place: 12,
            self._append_in_steps: 8,
            self._rewrite: 6,
            self._replace: 10,
            self._rename: 10,
            self._swap: 2,
            self._move: 8,
            self._link: 4,
            self._delete: 6,
            self._make_tree_here: 4,
            self._move_in: 3,
            self._move_out: 2,
            self._move_back: 2,
            self._move_around: 4,
            self._remove_tree: 2,
            self._copy_slowly: 3,
            self._download: 3,
            self._touch: 2,
        }
        if self.odd_names:
            operations |= {self._create_oddly: 3, self._make_odd_tree: 1}
        choices, weights = list(operations), list(operations.values())
        ends_at = time.monotonic() + seconds
        with self._slow:
            turn = 0
            while time.monotonic() < ends_at:
                if turn % LOOK_EACH == 0:
                    self._directories = self._look()
                turn += 1
                operation = self._random.choices(choices, weights)[0]
                # The others move and remove what we are about to touch, as people do.
                with contextlib.suppress(OSError):
                    operation()
                time.sleep(self._random.random() * PAUSE_MAX_S)

    # --- what it chooses ---

    def _look(self) -> list[bytes]:
        return [directory for root in self.roots for directory, _, _ in os.walk(root)]

    def _directory(self, *, movable: bool = False) -> bytes:
        """Return some directory of a root; with `movable` one that may go elsewhere.

        Raises:
            FileNotFoundError: there is none now
        """
        for _ in range(20):
            directory = self._random.choice(self._directories)
            if not movable or (directory not in self.roots and not self._is_base(directory)):
                return directory
        raise FileNotFoundError(errno.ENOENT, "no such directory now")

    def _is_base(self, directory: bytes) -> bool:
        (root,) = [root for root in self.roots if directory.startswith(root + b"/")]
        return directory[len(root) + 1 :].startswith(BASE)

    def _file(self) -> bytes:
        """Return some file of a root.

        Raises:
            FileNotFoundError: there is none where we looked
        """
        for _ in range(10):
            with os.scandir(self._directory()) as entries:
                files = sorted(entry.path for entry in entries if entry.is_file(follow_symlinks=False))
            if files:
                return self._random.choice(files)
        raise FileNotFoundError(errno.ENOENT, "no file where we looked")

    def _name(self, suffix: bytes | None = None) -> bytes:
        """Return a name that nobody has had; sometimes one that somebody may have."""
        if suffix is None:
            suffix = self._random.choice(SUFFIXES if self._random.random() < 0.9 else PLAIN_SUFFIXES)
        if self._random.random() < 0.15:
            return b"common %d" % self._random.randrange(10) + suffix
        self._number += 1
        stem = self._random.choice((b"%d-%d", b"track %d-%d", "söng 歌 %d-%d".encode(), b"a\nb %d-%d"))
        return stem % (self.seed, self._number) + suffix

    def _content(self, suffix: bytes) -> bytes:
        """Return content that nobody else has; sometimes it is real audio."""
        self._number += 1
        unique = b"%d/%d/" % (self.seed, self._number) + self._random.randbytes(self._random.randrange(1, 3000))
        sample = dict(self._samples).get(suffix, b"") if self._random.random() < 0.2 else b""
        return sample + unique

    def _pieces(self, content: bytes, *, slow: bool = False) -> list[Piece]:
        """Cut content into pieces with waits between, short ones or up to a stall; the last may come before the end."""
        count = self._random.randrange(2, 5)
        size = len(content) // count + 1
        longest = STALL_MAX_S if slow else 0.02
        waits = [self._random.random() * longest if number else 0.0 for number in range(count)]
        pieces = [(wait, content[number * size : (number + 1) * size]) for number, wait in enumerate(waits)]
        return [*pieces, (self._random.random() * longest, b"")]

    # --- files ---

    def _create(self) -> None:
        path = os.path.join(self._directory(), self._name())
        self._write_new("create", path, [(0, self._content(os.path.splitext(path)[1]))])

    def _create_oddly(self) -> None:
        path = os.path.join(self._directory(), b"b\xffd %d" % self._random.randrange(1000) + self._name())
        self._write_new("create oddly", path, [(0, self._content(b".mp3"))])

    def _write_in_place(self) -> None:
        path = self._file()
        patch = self._content(b"")[:200]
        self._change("write in place", path, lambda size: self._random.randrange(size + 1), [(0, patch)])

    def _append_in_steps(self) -> None:
        path, content = self._file(), self._content(b"")
        slow = self._random.random() < 0.3 and os.stat(path).st_nlink == 1  # see _link
        pieces = self._pieces(content, slow=slow)
        if slow:
            self._later(lambda: self._change("append slowly", path, lambda size: size, pieces))
        elif self._random.random() < 0.3:
            for wait_s, piece in pieces:  # it opens the file anew for each
                time.sleep(wait_s)
                self._change("append", path, lambda size: size, [(0, piece)])
        else:
            self._change("append in steps", path, lambda size: size, pieces)

    def _rewrite(self) -> None:
        path = self._file()
        pieces = self._pieces(self._content(os.path.splitext(path)[1]))
        self._change("rewrite", path, lambda _: 0, pieces, truncate=True)

    def _replace(self) -> None:
        path = self._file()
        directory, name = os.path.split(path)
        self._number += 1
        mark = b"%d-%d" % (self.seed, self._number)
        temporary = self._random.choice((b"." + name + b"." + mark, name + b"." + mark + b".tmp", mark + b" " + name))
        temporary = os.path.join(directory, temporary)
        self._write_new("write a replacement", temporary, self._pieces(self._content(os.path.splitext(path)[1])))
        self._change_names("replace", temporary, path)

    def _rename(self) -> None:
        old = self._file()
        directory, name = os.path.split(old)
        stem, suffix = os.path.splitext(name)
        new = self._random.choice((self._name(suffix), self._name(), stem.swapcase() + suffix, name + b".bak"))
        if name.endswith(b".bak"):
            new = stem
        self._change_names("rename", old, os.path.join(directory, new))
        if self._random.random() < 0.2:
            self._change_names(
                "rename", os.path.join(directory, new), os.path.join(directory, self._name(os.path.splitext(new)[1]))
            )

    def _swap(self) -> None:
        one, other = self._file(), self._file()
        if one == other or os.stat(one).st_dev != os.stat(other).st_dev:
            return
        self._number += 1
        between = os.path.join(os.path.dirname(one), b"swap %d-%d.tmp" % (self.seed, self._number))
        self._change_names("swap", one, between)
        try:
            self._change_names("swap", other, one)
        finally:
            self._change_names("swap", between, other)

    def _move(self) -> None:
        old = self._file()
        name = os.path.basename(old) if self._random.random() < 0.8 else self._name(os.path.splitext(old)[1])
        new = os.path.join(self._directory(), name)
        try:
            self._change_names("move", old, new)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(old, new, slow=self._random.random() < 0.3, remove=True)

    def _link(self) -> None:
        old = self._file()
        new = os.path.join(self._directory(), self._name(os.path.splitext(old)[1]))
        before_ns = time.monotonic_ns()
        # What is written by a name that has left the roots is told by nothing: no link to what is being written.
        with open(old, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(old, new)
        self.ledger.note("link", [old, new], before_ns)

    def _delete(self) -> None:
        path, before_ns = self._file(), time.monotonic_ns()
        os.unlink(path)
        self.ledger.note("delete", [path], before_ns)

    def _touch(self) -> None:
        path, before_ns = self._file(), time.monotonic_ns()
        os.utime(path, (self._random.randrange(1 << 31),) * 2)
        self.ledger.note("touch", [path], before_ns)

    def _copy_slowly(self) -> None:
        old = self._file()
        self._copy(old, os.path.join(self._directory(), self._name(os.path.splitext(old)[1])), slow=True, remove=False)

    def _download(self) -> None:
        self._number += 1
        path = os.path.join(self._directory(), b"load %d-%d.mp3" % (self.seed, self._number))
        pieces = self._pieces(self._content(b".mp3"), slow=True)

        def download() -> None:
            self._write_new("download", path + b".part", pieces)
            self._change_names("download", path + b".part", path)

        self._later(download)

    def _copy(self, old: bytes, new: bytes, *, slow: bool, remove: bool) -> None:
        with open(old, "rb") as file:
            content = file.read()
        pieces = self._pieces(content, slow=slow)

        def copy() -> None:
            self._write_new("copy", new, pieces)
            before_ns = time.monotonic_ns()
            shutil.copystat(old, new)
            if remove:
                os.unlink(old)
            self.ledger.note("move by copy" if remove else "copy", [old, new], before_ns)

        if slow:
            self._later(copy)
        else:
            copy()

    # --- directories ---

    def _make_tree_here(self) -> None:
        self._make_tree(self._directory())

    def _make_odd_tree(self) -> None:
        self._make_tree(self._directory(), b"d\xfer ")

    def _make_tree(self, parent: bytes, odd: bytes = b"") -> bytes:
        """Make directories with files inside at once; return the outermost."""
        self._number += 1
        top = os.path.join(parent, odd + b"album %d-%d" % (self.seed, self._number))
        deepest = os.path.join(top, *[b"cd%d" % level for level in range(self._random.randrange(3))])
        before_ns = time.monotonic_ns()
        os.makedirs(deepest)
        self.ledger.note("make directories", [deepest], before_ns)
        for number in range(self._random.randrange(1, 12)):
            folder = self._random.choice((top, deepest))
            self._write_new("fill", os.path.join(folder, b"%d.mp3" % number), [(0, self._content(b".mp3"))])
        if parent != self.outside and len(self._directories) < DIRECTORIES_MAX:
            self._directories.append(deepest)
        return top

    def _move_in(self) -> None:
        top = self._make_tree(self.outside)
        self._change_names("move in", top, os.path.join(self._directory(), os.path.basename(top)))

    def _move_out(self) -> None:
        directory = self._small_tree()
        self._number += 1
        elsewhere = os.path.join(self.outside, b"out %d-%d" % (self.seed, self._number))
        self._change_names("move out", directory, elsewhere)
        self._moved_out.append(elsewhere)

    def _move_back(self) -> None:
        if self._moved_out:
            directory = self._moved_out.pop()
            self._change_names("move back", directory, os.path.join(self._directory(), os.path.basename(directory)))

    def _move_around(self) -> None:
        old, parent = self._directory(movable=True), self._directory()
        if (parent + b"/").startswith(old + b"/"):
            parent = os.path.dirname(old)
        self._number += 1
        self._change_names("move around", old, os.path.join(parent, b"moved %d-%d" % (self.seed, self._number)))

    def _remove_tree(self) -> None:
        directory, before_ns = self._small_tree(), time.monotonic_ns()
        shutil.rmtree(directory, ignore_errors=True)
        self.ledger.note("remove tree", [directory], before_ns)

    def _small_tree(self) -> bytes:
        """Return a directory without much in it.

        Raises:
            FileNotFoundError: there is none where we looked
        """
        for _ in range(10):
            directory = self._directory(movable=True)
            if sum(len(files) for _, _, files in os.walk(directory)) <= TREE_FILES_MAX:
                return directory
        raise FileNotFoundError(errno.ENOENT, "no small directory where we looked")

    # --- how ---

    def _later(self, write: Callable[[], None]) -> None:
        """Do something slow beside everything else; nothing if enough is under way."""
        if not self._slow_places.acquire(blocking=False):
            return

        def run() -> None:
            with contextlib.suppress(OSError):
                write()
            self._slow_places.release()

        self._slow.submit(run)

    def _change_names(self, operation: str, old: bytes, new: bytes) -> None:
        before_ns = time.monotonic_ns()
        os.rename(old, new)
        self.ledger.note(operation, [old, new], before_ns)

    def _write_new(self, operation: str, path: bytes, pieces: Sequence[Piece]) -> None:
        write_file(self.ledger, operation, path, os.O_CREAT | os.O_EXCL, lambda _: 0, pieces)

    def _change(
        self,
        operation: str,
        path: bytes,
        offset: Callable[[int], int],
        pieces: Sequence[Piece],
        *,
        truncate: bool = False,
    ) -> None:
        write_file(self.ledger, operation, path, 0, offset, pieces, truncate=truncate)


def write_file(
    ledger: Ledger,
    operation: str,
    path: bytes,
    flags: int,
    offset: Callable[[int], int],
    pieces: Sequence[Piece],
    *,
    truncate: bool = False,
) -> str:
    """Write to a file in pieces while it stays open, note what is in it at the end, close it; return its SHA-256.

    `offset` gets the size and says where to begin. Nobody else that keeps the rules writes to it meanwhile.

    Raises:
        OSError: also when somebody else has the file
    """
    before_ns = time.monotonic_ns()
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            if truncate:
                os.ftruncate(descriptor, 0)
            os.lseek(descriptor, offset(os.fstat(descriptor).st_size), os.SEEK_SET)
            for wait_s, piece in pieces:
                time.sleep(wait_s)
                os.write(descriptor, piece)
        finally:
            # Whatever went wrong on the way: when it is closed, this is its content.
            sha256 = hashlib.sha256()
            os.lseek(descriptor, 0, os.SEEK_SET)
            while block := os.read(descriptor, 1 << 16):
                sha256.update(block)
            closing_us = time.time_ns() // 1000
            ledger.note(operation, [path], before_ns, sha256=sha256.hexdigest(), closing_us=closing_us)
    finally:
        os.close(descriptor)
    return sha256.hexdigest()


# --- what its ledger says of a stream ---


def read_ledgers(files: Iterable[str | os.PathLike[str]]) -> tuple[dict[str, int], Counter[str]]:
    """Return when each content was finished first (microseconds of the wall clock), and the operations by name."""
    finished: dict[str, int] = {}
    operations: Counter[str] = Counter()
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                operations[entry["operation"]] += 1
                if "sha256" in entry:
                    sha256, closing_us = entry["sha256"], entry["closing_us"]
                    finished[sha256] = min(closing_us, finished.get(sha256, closing_us))
    return finished, operations


def premature(events: Iterable[Mapping[str, Any]], finished: Mapping[str, int]) -> list[str]:
    """Return what is wrong with events that tell content that nobody has finished, or not yet when they were made."""
    found = []
    for event in events:
        sha256 = event.get("sha256_hash")
        if sha256 is None:
            continue
        told_us = round(datetime.fromisoformat(event["timestamp"]).astimezone(UTC).timestamp() * 1e6)
        finished_us = finished.get(sha256)
        where = f"event {event['sequence']}: {event['event_type']} {event['file_path']!r} {sha256[:12]}"
        if finished_us is None:
            found.append(f"{where}: nobody has finished that content")
        elif told_us < finished_us - CLOCK_SLACK_US:
            found.append(f"{where}: told {(finished_us - told_us) / 1e6:.3f} s before it was finished")
    return found


def start_storm(
    roots: Iterable[AnyPath], outside: AnyPath, *, seconds: float, seed: int, ledger: AnyPath, odd_names: bool = True
) -> subprocess.Popen[bytes]:
    """Start a writer of its own process, where this one was started."""
    command: list[str | bytes] = [sys.executable, "-m", "tests.bed.storm", *map(os.fsencode, roots)]
    command += ["--outside", os.fsencode(outside)]
    command += ["--seconds", str(seconds), "--seed", str(seed), "--ledger", os.fsencode(ledger)]
    command += ["--odd-names"] if odd_names else []
    return subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main() -> None:
    """Storm from the command line."""
    parser = argparse.ArgumentParser(
        description="change files at random, as fast and as rudely as people's programs do"
    )
    parser.add_argument("roots", metavar="ROOT", nargs="+")
    parser.add_argument("--outside", metavar="DIR", required=True, help="where directories come from and go to")
    parser.add_argument("--seconds", metavar="S", type=float, required=True)
    parser.add_argument("--seed", metavar="N", type=int, required=True)
    parser.add_argument("--odd-names", action="store_true", help="make names that are not UTF-8 as well")
    parser.add_argument("--ledger", metavar="FILE", default=os.devnull, help="write down what was done, as JSON lines")
    arguments = parser.parse_args()
    with open(arguments.ledger, "a", encoding="utf-8") as stream:
        roots = [os.path.abspath(os.fsencode(root)) for root in arguments.roots]
        ledger = Ledger(stream)
        Storm(roots, os.fsencode(arguments.outside), arguments.seed, ledger, arguments.odd_names).run(arguments.seconds)
    print(json.dumps(ledger.operations))


if __name__ == "__main__":
    main()
