"""What the parts of one run of the benchmark share: time, a broker, libraries of several sizes that were imported once.

A library of so many tiny files is written, and imported by the real daemon, when the first part asks for it. Its state
serves every later start: a start over an unchanged library changes nothing in it but a few words.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bed.rabbit import RabbitNode
from tests.bench.figures import Budget, Part
from tests.bench.measure import AUDIO, cpu_s
from tests.bench.tellers import OURS, telling
from trackwatch.database import open_beside

PER_DIRECTORY, ARTIST_DIRECTORIES = 10, 100
IMPORT_DEADLINE_S = 7200.0
POLL_S = 0.02


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


@dataclass
class Run:
    """One run. `close` ends what it has started."""

    folder: Path
    sizes: tuple[int, ...] = (10_000, 100_000)
    sizes_asked: bool = False  # somebody has named them: none is left out for want of time
    rows: int = 0  # of the outbox that is drained; 0: as many as there is time for
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
                known = self._sized[max(self._sized)] if self._sized else None
                expected_s = known.import_s * files / known.files * 1.5 if known else 0.0  # and writing the files
                if expected_s > self.budget.left_s and not self.sizes_asked:
                    part.left_out.append(f"{files:,} files: making that library takes about {expected_s:.0f} s")
                    continue
                self._sized[files] = self._make(files)
            yield self._sized[files]

    def _make(self, files: int) -> Sized:
        self.say(f"writing {files:,} files, and importing them once")
        root, state = self.fresh("library"), self.fresh("state")
        root.mkdir()
        make_tiny_library(root, files)
        began_s = time.monotonic()
        with telling(OURS, root, "", state) as daemon:
            daemon.wait_watching(IMPORT_DEADLINE_S)
            with open_beside(state) as conn:
                while conn.execute("SELECT EXISTS (SELECT 1 FROM outbox_pending)").fetchone()[0]:
                    time.sleep(POLL_S)
            import_s, spent_s = time.monotonic() - began_s, cpu_s(daemon.pid)
        for file in state.parent.glob(f"{state.name}-run-*/stdout-*.jsonl"):
            file.unlink()
        state_bytes = sum(file.stat().st_size for file in state.iterdir())
        directories = sum(1 for _ in os.walk(root))
        return Sized(files, directories, root, state, import_s, spent_s, state_bytes)


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
