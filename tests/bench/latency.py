"""From the last close of a file to its message at a consumer, through a real RabbitMQ, beside the kernel and peers.

A daemon or a peer watches a folder; small audio files are written there, each one open for an instant; a consumer of
the durable queue notes when each message comes. Beside each of them `inotifywait` watches the same folder: when it has
printed the same close is the floor, for nobody can know earlier. Three loads, in turn for all: one change now and then,
100 changes a second, and changes now and then while a library is imported for the first time (only those that were
made before the import was over).

The peers tell a file when it is closed; trackwatch waits for TRACKWATCH_SETTLE_S of quiet first, so that a file that is
written in several goes is told once.
"""

import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.broker import Consumer, declare_queue
from tests.bench.figures import Figure, Part, in_turn
from tests.bench.measure import AUDIO, Spread, shown
from tests.bench.run import Run, make_tiny_library, wait_until_old
from tests.bench.tellers import OURS, WATCHING_PEERS, Teller, telling
from trackwatch import settings

FLOOR = "inotifywait"
NOT_INSTALLED = "inotifywait is not installed (apt-get install inotify-tools)"
IDLE_CHANGES, IDLE_GAP_S = (10, 100), 0.35  # with little time, and with much
RATE, BUSY_S = 100, 3.0
LOOK_S = 0.05
IMPORT_FILES, IMPORT_GAP_S = (5_000, 20_000), 0.1  # with little time, and with much
MUCH_S = 300.0
TOLD_DEADLINE_S, DEADLINE_S = 60.0, 600.0
TURNS = 5
ENOUGH = 100  # changes, of which a p99 says more than their largest one
QUESTION = "How long from a file's last close to its message?"
LIVE = "live"
IDLE, BUSY, IMPORTING = "now and then", f"{RATE} changes/s", "during an import"
QUANTILES: dict[str, Callable[[Spread], float]] = {
    "median": lambda spread: spread.median,
    "p95": lambda spread: spread.p95,
    "p99": lambda spread: spread.p99,
}


class Floor:
    """`inotifywait` on one folder, and when it has printed each path. A context manager; does nothing if not there."""

    def __init__(self, folder: Path) -> None:
        self.seen_s: dict[str, float] = {}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._read, name="floor", daemon=True)

    def __enter__(self) -> Self:
        if shutil.which(FLOOR):
            command = [FLOOR, "--monitor", "--event", "close_write", "--format", "%w%f", str(self._folder)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert self._process.stderr is not None
            while b"established" not in (said := self._process.stderr.readline()):
                assert said, f"{FLOOR} has ended"
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._thread.join()
            self._process.communicate()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen_s.setdefault(line.rstrip(b"\n").decode(), time.monotonic())


class Writer:
    """Writes files, each under a name of its own, and notes when it was closed."""

    def __init__(self, folder: Path) -> None:
        self.closed_s: dict[str, float] = {}
        self._folder = folder
        self._base = (AUDIO / "track.mp3").read_bytes()

    def write(self) -> None:
        """Write another one."""
        path = str(self._folder / f"{len(self.closed_s):06}.mp3")
        content = self._base + path.encode()
        with open(path, "wb", buffering=0) as file:
            file.write(content)
        self.closed_s[path] = time.monotonic()

    def write_many(self, count: int, gap_s: float) -> None:
        """Write so many, at a steady rate."""
        began_s = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began_s + number * gap_s - time.monotonic()))
            self.write()


@dataclass
class Latencies:
    """Seconds from close to message, and from the same close to the kernel's reader having printed it, by load."""

    told_s: dict[str, list[float]] = field(default_factory=dict)
    floor_s: dict[str, list[float]] = field(default_factory=dict)

    def note(self, load: str, writer: Writer, since: int, consumer: Consumer, floor: Floor) -> None:
        """Note how late each file was told, once all were; what is not told in time is infinitely late."""
        closed_s = dict(list(writer.closed_s.items())[since:])
        deadline, told_s, looked = time.monotonic() + TOLD_DEADLINE_S, dict[str, float](), 0
        while True:
            arrivals = len(consumer.arrivals)
            for at_s, event in consumer.kept(looked):
                told_s.setdefault(event["file_path"], at_s)
            looked = arrivals
            if closed_s.keys() <= told_s.keys() or time.monotonic() > deadline:
                break
            time.sleep(LOOK_S)
        self.told_s[load] = [told_s.get(path, math.inf) - at_s for path, at_s in closed_s.items()]
        self.floor_s[load] = [floor.seen_s[path] - at_s for path, at_s in closed_s.items() if path in floor.seen_s]


def is_live(body: bytes) -> bool:
    """Whether a message is about a file that was written here."""
    return f"/{LIVE}/".encode() in body


def one_turn(teller: Teller, run: Run, idle_changes: int, import_files: int, busy_s: float) -> Latencies:
    """Measure one of them under all three loads."""
    found = Latencies()
    live = run.fresh("root") / LIVE
    live.mkdir(parents=True)
    with run.vhost() as url:
        declare_queue(url)
        with (
            telling(teller, live.parent, url, run.fresh("state")) as running,
            Consumer(url, is_live) as consumer,
            Floor(live) as floor,
        ):
            running.wait_watching(DEADLINE_S)
            writer = Writer(live)
            for load, count, gap_s in ((IDLE, idle_changes, IDLE_GAP_S), (BUSY, int(RATE * busy_s), 1 / RATE)):
                since = len(writer.closed_s)
                writer.write_many(count, gap_s)
                found.note(load, writer, since, consumer, floor)
    live = run.fresh("root") / LIVE
    live.mkdir(parents=True)
    make_tiny_library(live.parent, import_files)
    wait_until_old(time.time())
    with run.vhost() as url:
        declare_queue(url)
        with (
            Consumer(url, is_live) as consumer,
            Floor(live) as floor,
            telling(teller, live.parent, url, run.fresh("state")),
        ):
            assert consumer.wait_for(1, DEADLINE_S), f"{teller.name} tells nothing"
            writer = Writer(live)
            while len(consumer.arrivals) < import_files:
                writer.write()
                time.sleep(IMPORT_GAP_S)
            found.note(IMPORTING, writer, 0, consumer, floor)
    return found


def part(run: Run, result: Part, import_files: int = 0, busy_s: float = BUSY_S) -> None:
    """Measure all of them in turn."""
    few, many = IMPORT_FILES
    is_much = run.budget.left_s >= MUCH_S
    idle_changes = IDLE_CHANGES[is_much]
    import_files = import_files or (many if is_much else few)
    if import_files < many:
        result.left_out.append(f"the import that changes are told beside: {import_files:,} files instead of {many:,}")
    tellers = [OURS, *(peer for peer in WATCHING_PEERS if not peer.missing)]
    run.say(f"latency: {', '.join(teller.name for teller in tellers)}")
    ways = {teller.name: partial(one_turn, teller, run, idle_changes, import_files, busy_s) for teller in tellers}
    turns = in_turn(ways, run.budget, most=TURNS)
    floor = [each.floor_s for each in turns[OURS.name]]
    for load in (IDLE, BUSY, IMPORTING):
        for name, quantile in QUANTILES.items():
            ours = _quantiles([each.told_s[load] for each in turns[OURS.name]], quantile)
            what = f"{load}, {name}"
            if all(each[load] for each in floor):
                theirs = _quantiles([each[load] for each in floor], quantile)
                question = QUESTION if name == "median" else ""
                result.figures.append(Figure.of(what, "ms", ours, FLOOR, theirs, "less", question=question))
            else:
                result.figures.append(Figure.not_measured(f"{what}, beside {FLOOR}", NOT_INSTALLED))
            for peer in tellers[1:]:
                theirs = _quantiles([each.told_s[load] for each in turns[peer.name]], quantile)
                result.figures.append(Figure.of(what, "ms", ours, peer.name, theirs, "less"))
    result.figures += [
        Figure.not_measured(f"beside {peer.name}", peer.missing) for peer in WATCHING_PEERS if peer.missing
    ]
    result.tables["From close to message, ms, all turns together"] = [
        row
        for load in (IDLE, BUSY, IMPORTING)
        for row in (
            _row(load, FLOOR, [each.floor_s[load] for taken in turns.values() for each in taken]),
            *(_row(load, name, [each.told_s[load] for each in taken]) for name, taken in turns.items()),
        )
        if row["changes"]
    ]
    settle_ms = 1000 * settings.load(roots=[str(run.folder)], to="-").settle_s
    median_ms = Spread.of(_quantiles([each.told_s[IDLE] for each in turns[OURS.name]], QUANTILES["median"])).median
    result.answers.append(
        f"Of the {shown(median_ms)} ms from a close to its message, {IDLE}, {shown(settle_ms)} ms are "
        f"TRACKWATCH_SETTLE_S, which is waited for on purpose; {shown(median_ms - settle_ms)} ms are all the rest."
    )
    seldom = [
        f"{load} ({least:,} in a turn)"
        for load in (IDLE, BUSY, IMPORTING)
        if (least := min(len(each.told_s[load]) for taken in turns.values() for each in taken)) < ENOUGH
    ]
    if seldom:
        result.remarks.append(
            f"Of fewer than {ENOUGH} changes the p99 is the largest one; so it is in the turns of: {', '.join(seldom)}."
        )
    result.details.update(turns)


def _quantiles(turns: Sequence[Sequence[float]], quantile: Callable[[Spread], float]) -> list[float]:
    """Return one quantile of each turn, in milliseconds."""
    return [1000 * quantile(Spread.of(turn)) for turn in turns]


def _row(load: str, name: str, turns: Sequence[Sequence[float]]) -> dict[str, object]:
    spread = Spread.of(value for turn in turns for value in turn).scaled(1000)
    return {
        "load": load,
        "way": name,
        "changes": spread.count,
        "median": spread.median,
        "p95": spread.p95,
        "p99": spread.p99,
        "largest": spread.largest,
        "not told": sum(math.isinf(value) for turn in turns for value in turn),
    }
