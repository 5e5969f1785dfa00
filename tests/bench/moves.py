"""A directory full of files is renamed: how soon each file's move is told, and that no file is read for it.

The daemon and the peers that watch have a library each, all alike, and when all know theirs, one after the other is
renamed, again and again: the directory goes to and fro between two parents, and a consumer of a durable queue notes
when the message of the last file has come; the others rest meanwhile. Each file has to be told once as moved, from its
old path to its new one. Bytes read are those of the daemon's system calls (the state's database and all else) less what
it reads idle in the same time; opens of files in the library are counted by `inotifywait`, which is exact, and which is
seen to work by one file that is read at the end.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.broker import Consumer, declare_queue
from tests.bench.figures import Figure, Part, in_turn
from tests.bench.measure import Spread, bytes_read, cpu_s, shown
from tests.bench.run import Run
from tests.bench.tellers import OURS, WATCHING_PEERS, Running, Teller, telling
from tests.data.make_library import make_library

FILES, TURNS = 10_000, 6
REST_S = 2.0  # the time for which an idle daemon's reading is looked at
DEADLINE_S = 300.0
AFTERWARDS_S = 1.0  # for what comes after the last event: marks in the outbox
INOTIFYWAIT = "inotifywait"
QUESTION = "How fast is a renamed directory told, and what is read for it?"


@dataclass(frozen=True)
class Rename:
    """What one rename took."""

    events: int
    first_s: float
    last_s: float
    cpu_s: float
    read_bytes: float


@contextmanager
def opens(root: Path, into: Path) -> Iterator[Path | None]:
    """Write the path of each file below a root that anybody opens into a file; yield None if nothing here can."""
    if not shutil.which(INOTIFYWAIT):
        yield None
        return
    with into.open("wb") as stdout, into.with_suffix(".err").open("w+") as stderr:
        command = [INOTIFYWAIT, "--monitor", "--recursive", "--event", "open", "--format", "%e %w%f", str(root)]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        try:
            while "Watches established" not in into.with_suffix(".err").read_text():
                assert process.poll() is None, into.with_suffix(".err").read_text()
                time.sleep(0.05)
            yield into
        finally:
            process.terminate()
            process.wait()


def files_opened(into: Path) -> list[str]:
    """Return the files that were opened."""
    return [line for line in into.read_text(errors="replace").splitlines() if "ISDIR" not in line]


class Library:
    """A library that one of them knows, and its directory, which can be renamed."""

    def __init__(self, teller: Teller, root: Path, files: int, running: Running, consumer: Consumer) -> None:
        self._teller = teller
        self._here, self._there = _places(root)
        self._files = files
        self._running = running
        self._consumer = consumer

    def rename(self) -> Rename:
        """Rename it, and look at what is told of that."""
        pid, consumer = self._running.pid, self._consumer
        idle, began_s = bytes_read(pid).asked, time.monotonic()
        time.sleep(REST_S)
        idle_bytes_per_s = (bytes_read(pid).asked - idle) / (time.monotonic() - began_s)
        known = len(consumer.arrivals)
        read, spent_s, began_s = bytes_read(pid).asked, cpu_s(pid), time.monotonic()
        self._here.rename(self._there)
        assert consumer.wait_for(known + self._files, DEADLINE_S), (
            f"{self._teller.name}: {len(consumer.arrivals) - known} of {self._files} moves were told"
        )
        time.sleep(AFTERWARDS_S)
        took_s = time.monotonic() - began_s
        used_s = cpu_s(pid) - spent_s
        read_bytes = bytes_read(pid).asked - read - idle_bytes_per_s * took_s
        moved = consumer.kept(known)
        told = {(event["old_path"], event["file_path"]) for _, event in moved}
        names = [path.relative_to(self._there) for path in self._there.rglob("*") if path.is_file()]
        real = {(str(self._here / name), str(self._there / name)) for name in names}
        assert told == real, f"{self._teller.name} has told other moves: {sorted(told ^ real)[:3]}"
        self._here, self._there = self._there, self._here
        return Rename(len(moved), moved[0][0] - began_s, moved[-1][0] - began_s, used_s, read_bytes)

    def read_one(self) -> None:
        """Open one of its files."""
        next(path for path in self._here.rglob("*") if path.is_file()).read_bytes()


def _places(root: Path) -> tuple[Path, Path]:
    return root / "here" / "library", root / "there" / "library"


@contextmanager
def known_to(teller: Teller, run: Run, files: int) -> Iterator[tuple[Library, Path]]:
    """Yield a library that one of them has imported and watches, and its root."""
    root = run.fresh("root")
    for place in _places(root):
        place.parent.mkdir(parents=True)
    make_library(str(_places(root)[0]), files)
    with run.vhost() as url:
        declare_queue(url)
        with (
            Consumer(url, lambda body: b'"moved"' in body) as consumer,
            telling(teller, root, url, run.fresh("state")) as running,
        ):
            running.wait_watching(DEADLINE_S)
            assert consumer.wait_for(files, DEADLINE_S), f"{len(consumer.arrivals)} of {files} files were told"
            yield Library(teller, root, files, running, consumer), root


def part(run: Run, result: Part, files: int = FILES) -> None:
    """Measure all of them in turn."""
    tellers = [OURS, *(peer for peer in WATCHING_PEERS if not peer.missing)]
    run.say(f"moves: a directory of {files:,} files")
    with ExitStack() as stack:
        libraries = {each.name: stack.enter_context(known_to(each, run, files)) for each in tellers}
        ours, root = libraries[OURS.name]
        with opens(root, run.fresh("opens")) as counted:
            turns = in_turn({name: library.rename for name, (library, _) in libraries.items()}, run.budget, most=TURNS)
            opened = None if counted is None else len(files_opened(counted))
            if counted is not None:
                ours.read_one()
                time.sleep(AFTERWARDS_S)
                assert len(files_opened(counted)) == (opened or 0) + 1, f"{INOTIFYWAIT} does not see what is opened"
    rates = {name: [rename.events / rename.last_s for rename in taken] for name, taken in turns.items()}
    title = f"a directory of {files:,} files"
    for peer in WATCHING_PEERS:
        if peer.missing:
            result.figures.append(Figure.not_measured(f"{title}, beside {peer.name}", peer.missing))
        else:
            result.figures.append(
                Figure.of(
                    title, "events/s", rates[OURS.name], peer.name, rates[peer.name], better="more", question=QUESTION
                )
            )
    if opened is None:
        result.figures.append(Figure.not_measured("files opened", f"{INOTIFYWAIT} is not installed"))
    else:
        moved = [float(files) * len(rates[OURS.name])]
        result.figures.append(
            Figure.of(
                "files opened",
                "files",
                [float(opened)],
                "files moved",
                moved,
                "less",
                limit=0.0,
                goal=0.0,
                question=QUESTION,
            )
        )
    read_kb = Spread.of(each.read_bytes / files / 1000 for each in turns[OURS.name]).median
    if opened == 0:
        result.answers.append(
            f"For each file of a renamed directory {shown(read_kb)} KB are read, of the database and all else: none of "
            "the files is opened."
        )
    result.tables["Renames"] = [
        {
            "way": name,
            "renames": len(rates[name]),
            "events/s": Spread.of(rates[name]).median,
            "first s": Spread.of(each.first_s for each in taken).median,
            "last s": Spread.of(each.last_s for each in taken).median,
            "CPU s": Spread.of(each.cpu_s for each in taken).median,
            "read KB a file": Spread.of(each.read_bytes / files / 1000 for each in taken).median,
        }
        for name, taken in turns.items()
    ]
    result.details.update(turns)
