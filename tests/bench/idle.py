"""What it costs to watch a library in which nothing happens, beside bare loops that watch it and do nothing else.

Of each size, in turn, each alone on the tree (to list a directory wakes whoever watches it for that): the daemon, which
knows the library; a watchfiles loop; a watchdog observer as it comes; one that is asked for changes only
(`tests/bench/peers/`). None of the loops knows anything, or tells anybody. Each is started, has to come to rest (within
a second it takes next to nothing), and is then looked at: the daemon for as long as the interval of what it does from
time to time, the others for half of that. Who does not come to rest within the deadline is looked at nevertheless, and
is named below. CPU is what the kernel has counted, to the nanosecond; memory is PSS. The daemon does not sweep in these
seconds: what a sweep of each interval adds is bounded by what a start costs, and is in the table if the part `restart`
has run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.figures import Budget, Figure, Part, in_turn
from tests.bench.measure import CpuClock, Spread, bytes_read, memory, shown
from tests.bench.restart import EMPTY, SMALLER_SHARE, START_DEADLINE_S
from tests.bench.run import Run, Sized
from tests.bench.tellers import BARE, OURS, Teller, telling
from trackwatch.settings import load

# The daemon looks after its outbox every ten seconds, and after its log every five.
SLICE_S = 10.0
PEERS_SLICE = 0.5
# At rest is who takes no more than this part of a core within a look.
REST_LOOK_S, REST_SHARE, REST_DEADLINE_S = 1.0, 0.03, 10.0
TURNS = 5
CORE_GOAL = 0.005  # of one core
INOTIFY = Path("/proc/sys/fs/inotify")
WATCHES, QUEUE = INOTIFY / "max_user_watches", INOTIFY / "max_queued_events"


@dataclass(frozen=True)
class Slice:
    """What one of them has taken while nothing happened."""

    cpu_share: float  # of one core
    pss_bytes: int
    read_bytes_per_s: float
    rested: bool
    said: Sequence[str] = ()  # lines on standard error, of one that did not come to rest


def come_to_rest(clock: CpuClock, deadline_s: float, look_s: float = REST_LOOK_S) -> bool:
    """Wait until next to nothing is taken; return whether that was so within the deadline."""
    end_s = time.monotonic() + deadline_s
    while clock.share(look_s) > REST_SHARE:
        if time.monotonic() >= end_s:
            return False
    return True


class Watched:
    """A library that is watched by one of them after the other."""

    def __init__(self, run: Run, sized: Sized, slice_s: float) -> None:
        self._run = run
        self._sized = sized
        self._slice_s = slice_s
        self._restless: set[str] = set()

    def by(self, teller: Teller) -> Slice:
        """Start one, let it come to rest, and look at it."""
        state = self._run.fresh("watcher") if teller.module else self._sized.state
        slice_s = self._slice_s * (PEERS_SLICE if teller.module else 1)
        with telling(teller, self._sized.root, "", state) as running:
            running.wait_watching(START_DEADLINE_S)
            clock = CpuClock(running.pid)
            # Who has not rested once is not waited for again.
            rested = come_to_rest(clock, 0.0 if teller.name in self._restless else REST_DEADLINE_S)
            if not rested:
                self._restless.add(teller.name)
            read_bytes, began_s = bytes_read(running.pid).asked, time.monotonic()
            share = clock.share(slice_s)
            took_s = time.monotonic() - began_s
            read_bytes = bytes_read(running.pid).asked - read_bytes
            said = () if rested else [line for line in running.said().splitlines() if line != "watching"]
            return Slice(share, memory(running.pid).pss_bytes, read_bytes / took_s, rested, said)


def restless(name: str, sized: Sized, slices: Sequence[Slice]) -> str:
    """Return what is to be said of one that did not come to rest."""
    times = sum(not each.rested for each in slices)
    percent = 100 * Spread.of(each.cpu_share for each in slices).median
    said = (
        f"{name} does not come to rest with {sized.files:,} files in {sized.directories:,} directories "
        f"({times} of {len(slices)} times): it takes {shown(percent)} % of a core when nothing happens"
    )
    lines = [line for each in slices for line in each.said]
    overflows = sum("queue overflowed; filesystem events were lost" in line for line in lines)
    if overflows:
        said += (
            f". It has said {overflows:,} times that the kernel's queue of notifications ({_queue()}) has overflowed; "
            "it then looks at all directories again, and is itself notified of each one that it opens"
        )
    return f"{said}."


def _queue() -> str:
    return f"{int(QUEUE.read_text()):,}" if QUEUE.exists() else "of unknown length"


def measure(run: Run, sized: Sized, budget: Budget, slice_s: float, result: Part) -> dict[str, object]:
    """Let each watch in turn; return the table's row."""
    watched = Watched(run, sized, slice_s)
    tellers = [OURS, *(each for each in BARE if not each.missing)]
    turns = in_turn({each.name: partial(watched.by, each) for each in tellers}, budget, most=TURNS)
    percent = {name: [100 * each.cpu_share for each in taken] for name, taken in turns.items()}
    megabytes = {name: [each.pss_bytes / 1e6 for each in taken] for name, taken in turns.items()}
    title = f"{sized.files:,} files"
    is_largest = sized.files == max(run.sizes)
    result.figures.append(
        Figure.of(
            f"{title}, CPU",
            "%",
            percent[OURS.name],
            "one core",
            [100.0] * len(percent[OURS.name]),
            "less",
            goal=CORE_GOAL,
            question="What does it cost to watch while nothing happens?" if is_largest else "",
        )
    )
    for each in BARE:
        if each.missing:
            result.figures.append(Figure.not_measured(f"{title}, beside {each.name}", each.missing))
            continue
        result.figures += [
            Figure.of(f"{title}, CPU", "%", percent[OURS.name], each.name, percent[each.name], "less"),
            Figure.of(f"{title}, memory", "MB", megabytes[OURS.name], each.name, megabytes[each.name], "less"),
        ]
    result.remarks += [
        restless(name, sized, taken) for name, taken in turns.items() if not all(each.rested for each in taken)
    ]
    result.details[str(sized.files)] = turns
    row: dict[str, object] = {"files": sized.files, "turns": len(turns[OURS.name])}
    for name in turns:
        row[f"{name}, CPU %"] = Spread.of(percent[name]).median
        row[f"{name}, MB"] = Spread.of(megabytes[name]).median
    row["KB/s read"] = Spread.of(each.read_bytes_per_s / 1000 for each in turns[OURS.name]).median
    row["with sweeps, CPU %, at most"] = _with_sweeps(run, sized, Spread.of(percent[OURS.name]).median)
    return row


def _with_sweeps(run: Run, sized: Sized, percent: float) -> object:
    """Return the CPU with one sweep in each interval, taken to cost as much as a start beyond that of an empty root."""
    turns = run.parts["restart"].details.get(str(sized.files)) if "restart" in run.parts else None
    if turns is None:
        return "unknown"
    start, empty = (Spread.of(each.cpu_s for each in turns[way]).median for way in (OURS.name, EMPTY))
    return percent + 100 * max(0.0, start - empty) / load(roots=[str(sized.root)], to="-").sweep_s


def part(run: Run, result: Part, slice_s: float = SLICE_S) -> None:
    """Measure all sizes."""
    rows = []
    for sized in run.sized(result):
        if WATCHES.exists() and sized.directories > int(WATCHES.read_text()):
            result.left_out.append(
                f"{sized.files:,} files: fs.inotify.max_user_watches allows no loop to watch "
                f"{sized.directories:,} directories"
            )
            continue
        run.say(f"idle: {sized.files:,} files")
        is_last = sized.files == max(run.sizes)
        rows.append(measure(run, sized, run.budget if is_last else run.budget.share(SMALLER_SHARE), slice_s, result))
    if rows:
        result.tables["Watching while nothing happens"] = rows
