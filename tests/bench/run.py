"""What the parts of one run of the benchmark share: time, a broker, libraries of several sizes that were imported once.

A library of so many tiny files is written, and imported by the real daemon, when the first part asks for it. Its state
serves every later start: a start over an unchanged library changes nothing in it but a few words. Where libraries are
kept, so does one that an earlier run has made, as long as its database has the same form; what its import took is then
what it took in that run, and is told so.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bed.rabbit import RabbitNode
from tests.bench.figures import Budget, Part
from tests.bench.measure import AUDIO, cpu_s
from tests.bench.tellers import OURS, telling
from trackwatch.database import load_migrations, open_beside
from trackwatch.sweeper import RECENT_S

PER_DIRECTORY, ARTIST_DIRECTORIES = 10, 100
IMPORT_DEADLINE_S = 7200.0
POLL_S = 0.02
# Cautiously: of a file (a block of the file system, and its part of a directory), of its row, and of its event.
BYTES_A_FILE = 4_096 + 1_024 + 4 * 2_200


@dataclass(frozen=True)
class Sized:
    """An unchanged library, and the state of a daemon that knows it."""

    files: int
    directories: int
    root: Path
    state: Path
    import_s: float
    import_cpu_s: float
    state_bytes: int
    made: str = ""  # when and by which trackwatch, if not in this run


@dataclass
class Run:
    """One run. `close` ends what it has started."""

    folder: Path
    sizes: tuple[int, ...] = (10_000, 100_000)
    sizes_asked: bool = False  # somebody has named them: none is left out for want of time
    rows: int = 0  # of the outbox that is drained; 0: as many as there is time for
    libraries: Path | None = None  # where sized libraries and their states are kept, and found again
    product: str = "unknown"  # the trackwatch that is measured
    making_s: float = 0.0  # for the libraries whose sizes somebody has named: it is beyond what measuring may take
    budget: Budget = field(default_factory=lambda: Budget(600.0))  # of the part that runs
    parts: dict[str, Part] = field(default_factory=dict)  # those that have run
    _sized: dict[int, Sized] = field(default_factory=dict)
    _node: RabbitNode | None = None
    _opened: ExitStack = field(default_factory=ExitStack)
    _folders: int = 0

    def close(self) -> None:
        """End the broker."""
        self._opened.close()

    def say(self, text: str) -> None:
        """Tell whoever waits how far it is."""
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)

    def fresh(self, name: str) -> Path:
        """Return a place in which nothing is yet."""
        self._folders += 1
        return self.folder / f"{self._folders:03}-{name}"

    @property
    def node(self) -> RabbitNode:
        """A broker, started when it is first asked for.

        Raises:
            RabbitNotInstalledError: there is none on this machine
        """
        if self._node is None:
            self._node = self._opened.enter_context(RabbitNode(self.folder / "node"))
        return self._node

    @property
    def node_if_started(self) -> RabbitNode | None:
        """The broker, if anybody has asked for it."""
        return self._node

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """Yield the address of a part of the broker in which nothing is; what is there afterwards is deleted."""
        name = f"bench-{self._folders}"
        self._folders += 1
        self.node.add_vhost(name)
        try:
            yield self.node.url(name)
        finally:
            self.node.rabbitmqctl("delete_vhost", name)

    def sized(self, part: Part) -> Iterator[Sized]:
        """Yield the libraries, the smallest first; say in the part which ones there is no time for."""
        for files in sorted(self.sizes):
            if files not in self._sized:
                kept = Kept(self.libraries / str(files)) if self.libraries else Kept(self.fresh("sized"))
                if found := kept.sized(files):
                    self._sized[files] = found
                elif why := self._no_room(files, kept):
                    part.left_out.append(f"{files:,} files: {why}")
                    continue
                else:
                    began_s = time.monotonic()
                    self._sized[files] = self._make(files, kept)
                    if self.sizes_asked:
                        self.making_s += time.monotonic() - began_s
                        self.budget.extend(time.monotonic() - began_s)
            yield self._sized[files]

    def _no_room(self, files: int, kept: "Kept") -> str:
        """Return why a library cannot be made; nothing if it can."""
        known = self._sized[max(self._sized)] if self._sized else None
        expected_s = known.import_s * files / known.files * 1.5 if known else 0.0  # and writing the files
        if expected_s > self.budget.left_s and not self.sizes_asked:
            return f"making that library takes about {expected_s:.0f} s"
        disk = os.statvfs(kept.folder)
        wanted, free = files * BYTES_A_FILE, disk.f_bavail * disk.f_frsize
        if wanted > free:
            return f"that takes {wanted / 1e9:.1f} GB of the disk, and {free / 1e9:.1f} GB are free"
        if files > disk.f_favail > 0:
            return f"the file system has room for {disk.f_favail:,} files"
        return ""

    def _make(self, files: int, kept: "Kept") -> Sized:
        root, state = kept.root, kept.state
        if not kept.is_written(files):
            self.say(f"writing {files:,} files")
            make_tiny_library(root, files)
            wait_until_old(time.time())
            kept.note({"files": files, "per_directory": PER_DIRECTORY})
        self.say(f"importing {files:,} files once")
        began_s = time.monotonic()
        with telling(OURS, root, "", state) as daemon:
            daemon.wait_watching(IMPORT_DEADLINE_S)
            with open_beside(state) as conn:
                while conn.execute("SELECT EXISTS (SELECT 1 FROM outbox_pending)").fetchone()[0]:
                    time.sleep(POLL_S)
            import_s, spent_s = time.monotonic() - began_s, cpu_s(daemon.pid)
        kept.forget_said()
        state_bytes = sum(file.stat().st_size for file in state.iterdir())
        directories = sum(1 for _ in os.walk(root))
        sized = Sized(files, directories, root, state, import_s, spent_s, state_bytes)
        kept.keep(sized, self.product)
        return sized


class Kept:
    """A folder with one library, the state of a daemon that knows it, and a note of what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.state = folder, folder / "library", folder / "state"
        self._note = folder / "made.json"
        self.root.mkdir(parents=True, exist_ok=True)

    def sized(self, files: int) -> Sized | None:
        """Return what was kept here; None if there is nothing of use. What is of none is removed."""
        note = self._noted()
        self.forget_said()
        # A root that was moved is another root to the daemon.
        if self.is_written(files) and note.get("schema") == schema() and note["sized"]["root"] == str(self.root):
            told = note["sized"] | {"root": self.root, "state": self.state, "made": note["made"]}
            return Sized(**told)
        shutil.rmtree(self.state, ignore_errors=True)
        if not self.is_written(files):
            shutil.rmtree(self.root)
            self.root.mkdir()
        return None

    def is_written(self, files: int) -> bool:
        """Whether the library is whole."""
        note = self._noted()
        return (note.get("files"), note.get("per_directory")) == (files, PER_DIRECTORY)

    def keep(self, sized: Sized, product: str) -> None:
        """Note what was made."""
        plain = json.loads(json.dumps(asdict(sized), default=str))
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.note({**self._noted(), "schema": schema(), "made": f"{when}, commit {product}", "sized": plain})

    def note(self, what: dict[str, Any]) -> None:
        """Note what is here, once it is all on the disk."""
        os.sync()
        self._note.write_text(json.dumps(what, indent=1) + "\n", "utf-8")

    def forget_said(self) -> None:
        """Remove what daemons have said, events among it."""
        for said in self.folder.glob(f"{self.state.name}-run-*"):
            shutil.rmtree(said)

    def _noted(self) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = json.loads(self._note.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return noted


def schema() -> str:
    """Return what the form of the measured trackwatch's database can be told by."""
    return hashlib.sha256(Path(str(load_migrations().__file__)).read_bytes()).hexdigest()


def wait_until_old(written_at: float) -> None:
    """Wait until files that were written (changed, linked) at that time, or before, are none that might still change.

    A daemon takes files that have changed within the last seconds for files that somebody still writes, and waits.
    """
    while time.time() - written_at < RECENT_S + 0.5:
        time.sleep(0.1)


def make_tiny_library(root: Path, files: int, per_directory: int = PER_DIRECTORY) -> None:
    """Write many small files that parse, no two alike, ten thousand and more in a second."""
    base = (AUDIO / "track.mp3").read_bytes()
    name = os.fsencode(root)
    for start in range(0, files, per_directory):
        number = start // per_directory
        directory = b"%b/artist%04d/album%06d" % (name, number // ARTIST_DIRECTORIES, number)
        os.makedirs(directory, exist_ok=True)
        for index in range(start, min(start + per_directory, files)):
            descriptor = os.open(b"%b/%07d.mp3" % (directory, index), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, base + b"%020d" % index)
            os.close(descriptor)
