"""A first import into RabbitMQ, from the start of the process to its end, beside what hashes alone take, and peers.

In turn, over the same files in the page cache, into the same node and the same durable queue:

- bound: both hashes in one pass and nothing else, at C speed, on all cores (`probes.py`);
- pool: the daemon's own pool of probes over the same files, without catalogue, outbox and broker (`probes.py`);
- trackwatch: `trackwatch run --once`: catalogue and outbox on the disk before anything is sent, in order, every message
  confirmed;
- asyncio way, watchdog with threads and pika, watchdog with asyncio and aio-pika: the peers of `tests/bench/peers/`.
  None of them remembers anything on a disk.

After each turn the queue is emptied, and has to hold every file once, persistent, with the same hashes as after the
other turns. Memory is that of all processes of each: the largest sum at one moment (PSS, where a page that several map
counts in parts). How many files there are follows from what the slowest takes for a few of them, and from the time
there is: while that is short, the peers are given a part of the library (the rates are compared, and their memory is
that for fewer files); with enough time, all have the same. With little time, starting and ending are much of what an
import takes: each way is also given an empty library, and `beyond an empty one` leaves out what that takes.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tests.bench import apart, probes
from tests.bench.broker import declare_queue, empty_queue
from tests.bench.figures import Budget, Figure, Part, in_turn
from tests.bench.measure import Cost, Footprint, Spread, cpu_s
from tests.bench.run import Run, wait_until_old
from tests.bench.sets import LIBRARIES, SMALL, Library, Made, files, made
from tests.bench.tellers import ASYNCIO, IMPORTING_PEERS, OURS, Teller, telling
from trackwatch.settings import usable_cores

TURNS = 3
# Of each set, with which the slowest way is tried, and the fewest that are measured.
FEW = {"30 MB FLAC": 4, "5 MB MP3": 16, "130 KB": 200}
# All ways together take about so many times what the slowest one takes, and so much for starts and for the set itself.
WAYS_AS_SLOW, STARTS_S = 3.0, 8.0
# We get so many times the files of the peers, as far as a disk that writes so fast can bring them here in time.
PART_OF, BYTES_A_SECOND = 10, 40_000_000
# What issues ask for: of the bound (limit, goal), for the pool of probes.
OF_BOUND = {"30 MB FLAC": (0.7, 0.95), "5 MB MP3": (0.6, 0.9)}
OF_POOL = {"130 KB": (0.8, 0.95)}
TIMES_ASYNCIO, MEMORY_OF_ASYNCIO = (5.0, 10.0), 0.7


@dataclass(frozen=True)
class Turn:
    """What one import took."""

    files: int
    size_bytes: int
    seconds: float
    cost: Cost | None = None
    broker_cpu_s: float = 0.0


class Imports:
    """Imports of one library, or of a part of it, into one queue; all have to tell the same of each file."""

    def __init__(self, library: Made, url: str, run: Run) -> None:
        self._library = library
        self._url = url
        self._run = run
        self._told: dict[str, tuple[str, str]] = {}

    def by(self, teller: Teller, library: Made | None = None) -> Turn:
        """Import it, or that part of it, once, and look at what was told."""
        library = library or self._library
        node, state = self._run.node, self._run.fresh("import")
        broker_s, began_s = cpu_s(node.pid), time.perf_counter()
        with (
            telling(teller, library.root, self._url, state, once=True) as running,
            Footprint(running.pid) as footprint,
        ):
            running.wait_end(apart.DEADLINE_S)
            took_s = time.perf_counter() - began_s
        turn = Turn(library.files, library.size_bytes, took_s, footprint.cost(), cpu_s(node.pid) - broker_s)
        told = {
            os.path.relpath(path, library.root): hashes
            for path, hashes in empty_queue(self._url, library.files).items()
        }
        known = {path: self._told.get(path, hashes) for path, hashes in told.items()}
        assert told == known, f"{teller.name}: not the same was told"
        self._told |= told
        return turn

    def alone(self, way: str) -> Turn:
        """Describe all files, or only hash them, and tell nobody."""
        took = probes.run_apart(way, self._library.root, usable_cores())
        # Making the bound's processes is not in it, for it has no other work; a pool is part of what a probe costs.
        seconds = took.opening_s + took.seconds + took.closing_s
        return Turn(self._library.files, self._library.size_bytes, seconds)


def files_of(library: Library, url: str, run: Run, budget: Budget, nothing_s: Mapping[str, float]) -> tuple[int, int]:
    """Return how many files there is time for, for us and for the peers."""
    few = FEW[library.name]
    if ASYNCIO.missing:
        return few, few
    with made(library, few, run.folder) as tried:
        each_s = max(Imports(tried, url, run).by(ASYNCIO).seconds - nothing_s[ASYNCIO.name], 0.1) / few
    wanted = math.floor((budget.left_s / TURNS - STARTS_S) / (WAYS_AS_SLOW * each_s))
    part = max(few, min(library.files, wanted))
    # A set has to be written to a disk, and read again.
    room = math.floor(budget.left_s * BYTES_A_SECOND / library.size_bytes)
    return max(part, min(library.files, part * PART_OF, room)), part


@contextmanager
def part_of(library: Made, count: int, run: Run) -> Iterator[Made]:
    """Yield a library of the first files of another one: the same files, under another root."""
    if count >= library.files:
        yield library
        return
    root = run.fresh("part")
    size_bytes = 0
    for path in map(os.fsdecode, files(library.root)[:count]):
        link = root / os.path.relpath(path, library.root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
        size_bytes += link.stat().st_size
    yield Made(library.library, root, count, size_bytes)
    shutil.rmtree(root)


def of_nothing(url: str, run: Run) -> dict[str, float]:
    """Return the seconds that each way takes for an empty library."""
    root = run.fresh("empty")
    root.mkdir()
    empty = Imports(Made(SMALL, root, 0, 0), url, run)
    tellers = [OURS, *(peer for peer in IMPORTING_PEERS if not peer.missing)]
    turns = in_turn({teller.name: partial(empty.by, teller) for teller in tellers}, Budget(0.0))
    return {name: Spread.of(turn.seconds for turn in taken).median for name, taken in turns.items()}


def measure(
    library: Library,
    counts: tuple[int, int],
    url: str,
    run: Run,
    part: Part,
    budget: Budget,
    nothing_s: Mapping[str, float],
) -> None:
    """Compare all ways for a library."""
    count, peers_count = counts
    if peers_count < library.files:
        part.left_out.append(
            f"{library.name}: {count:,} of the {library.files:,} files of the full set, for the peers {peers_count:,}"
        )
    peers = [peer for peer in IMPORTING_PEERS if not peer.missing]
    with made(library, count, run.folder) as library_made, part_of(library_made, peers_count, run) as smaller:
        run.say(f"import: {library_made.title}")
        wait_until_old(time.time())  # also a link to a file is a change of it
        imports = Imports(library_made, url, run)
        ways: dict[str, Callable[[], Turn]] = {
            "bound": partial(imports.alone, "bound"),
            "pool": partial(imports.alone, "ours"),
            OURS.name: partial(imports.by, OURS),
            **{peer.name: partial(imports.by, peer, smaller) for peer in peers},
        }
        turns = in_turn(ways, budget, most=TURNS)
    part.details[library.name] = turns
    part.tables[f"Import of {library_made.title}"] = [row(way, took, nothing_s.get(way)) for way, took in turns.items()]
    part.figures += figures(library_made, turns, nothing_s)
    part.figures += [
        Figure.not_measured(f"{library_made.title}, beside {peer.name}", peer.missing)
        for peer in IMPORTING_PEERS
        if peer.missing
    ]


def row(way: str, turns: list[Turn], nothing_s: float | None) -> dict[str, object]:
    """Return what a table says of one way."""
    seconds = Spread.of(turn.seconds for turn in turns)
    costs = [turn.cost for turn in turns if turn.cost is not None]
    told: dict[str, object] = {
        "way": way,
        "files": turns[0].files,
        "s": seconds.median,
        "empty library, s": "" if nothing_s is None else nothing_s,
        "files/s": turns[0].files / seconds.median,
        "GB/s": turns[0].size_bytes / seconds.median / 1e9,
    }
    if costs:
        told |= {
            "peak MB": Spread.of(cost.peak_pss_bytes / 1e6 for cost in costs).median,
            "CPU s": Spread.of(cost.cpu_s for cost in costs).median,
            "CPU s of workers": Spread.of(cost.others_cpu_s for cost in costs).median,
            "CPU s of the broker": Spread.of(turn.broker_cpu_s for turn in turns).median,
        }
    else:
        told |= dict.fromkeys(("peak MB", "CPU s", "CPU s of workers", "CPU s of the broker"), "")
    return told


def figures(library: Made, turns: dict[str, list[Turn]], nothing_s: Mapping[str, float]) -> list[Figure]:
    """Return the ratios."""
    name, title = library.library.name, library.title

    is_small = library.library is SMALL
    unit = "files/s" if is_small else "GB/s"

    def rates(way: str, less_s: float = 0.0) -> list[float]:
        return [
            (turn.files if is_small else turn.size_bytes / 1e9) / max(turn.seconds - less_s, 1e-3)
            for turn in turns[way]
        ]

    def compared(
        what: str, way: str, beside: str, asked: tuple[float, float] | None = None, question: str = ""
    ) -> Figure:
        limit, goal = asked or (None, None)
        return Figure.of(
            f"{title}, {what}",
            unit,
            rates(way),
            beside,
            rates(beside),
            better="more",
            limit=limit,
            goal=goal,
            question=question,
        )

    def beyond(beside: str) -> Figure:
        ours, theirs = (rates(way, nothing_s[way]) for way in (OURS.name, beside))
        return Figure.of(f"{title}, imported, beyond an empty one", unit, ours, beside, theirs, better="more")

    def peaks(way: str) -> list[float]:
        return [turn.cost.peak_pss_bytes / 1e6 for turn in turns[way] if turn.cost is not None]

    found = [
        compared("described", "pool", "bound", OF_BOUND.get(name), "How near is reading files to hashing alone?"),
        compared("imported", OURS.name, "bound"),
        compared("imported", OURS.name, "pool", OF_POOL.get(name)),
    ]
    for peer in IMPORTING_PEERS:
        if peer.name in turns:
            is_asyncio = peer is ASYNCIO
            asked = TIMES_ASYNCIO if is_asyncio else None
            question = "How fast is a first import?" if is_asyncio else ""
            found.append(compared("imported", OURS.name, peer.name, asked, question))
            found.append(beyond(peer.name))
            # A peer that was given fewer files has had less to remember.
            is_equal = turns[peer.name][0].files == turns[OURS.name][0].files
            limit = MEMORY_OF_ASYNCIO if is_asyncio and is_equal else None
            found.append(
                Figure.of(f"{title}, peak", "MB", peaks(OURS.name), peer.name, peaks(peer.name), "less", limit=limit)
            )
    return found


def part(run: Run, result: Part, counts: Mapping[str, int] = {}) -> None:
    """Measure all three libraries, with so many files where that is said."""
    with run.vhost() as url:
        declare_queue(url)
        nothing_s = of_nothing(url, run)
        for number, library in enumerate(LIBRARIES):
            budget = run.budget.share(1 / (len(LIBRARIES) - number))
            count = counts.get(library.name)
            chosen = (count, -(-count // 2)) if count else files_of(library, url, run, budget, nothing_s)
            measure(library, chosen, url, run, result, budget, nothing_s)
