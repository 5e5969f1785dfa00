"""How each cost grows with the size of the library, what runs out first, and how many instances one broker carries.

A straight line through what was measured of each size, on logarithmic scales: its slope is 1 where a cost grows as the
library does. What there is without any file (a start, the memory) is taken off before and added again afterwards. The
line is drawn on to ten million files, and to where what this machine has of it is used up; the library is one of ten
tiny files in each directory, imported once to a file, and what was measured of `restart` and `idle` is used here.

For the broker, what it spends of CPU on each of our messages, what it takes from a bare socket at most, and its memory
with and without fifty connections that rest; an instance loads it as it does while it imports the largest library.
"""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import delivery
from tests.bench.broker import channel_of, declare_queue
from tests.bench.figures import Budget, Figure, Growth, Part, in_turn
from tests.bench.measure import Spread, memory, shown
from tests.bench.restart import EMPTY
from tests.bench.run import Run, Sized
from tests.bench.tellers import OURS
from trackwatch.settings import load

FAR = 10_000_000
NEVER = 1e12  # files that nobody has
CONNECTIONS = 50
MESSAGES = 5_000
CHANGES_PER_S = (1, 100)  # of an instance that watches
WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")


@dataclass(frozen=True)
class Cost:
    """A cost at some sizes, and how much of it there is."""

    name: str
    unit: str
    points: Sequence[tuple[float, float]]  # files, cost
    nothing: float = 0.0  # the cost with no files at all
    available: float = math.inf
    of_what: str = ""

    @property
    def growth(self) -> Growth | None:
        """The line through what is beyond the cost of nothing."""
        return Growth.through([(files, cost - self.nothing) for files, cost in self.points])

    def at(self, files: float) -> float:
        """Return the cost of a library of that size."""
        return math.nan if self.growth is None else self.nothing + self.growth.at(files)

    def files_at_most(self) -> float:
        """Return the size of the library with which all there is of it is used up."""
        if self.growth is None or math.isinf(self.available):
            return math.inf
        files = self.growth.size_at(max(self.available - self.nothing, 1e-9))
        return files if files < NEVER else math.inf


def costs(run: Run, sizes: Sequence[Sized]) -> list[Cost]:
    """Return what was measured."""
    starts: dict[int, dict[str, Any]] = {}
    shares: dict[int, float] = {}
    for sized in sizes:
        if "restart" in run.parts and (turns := run.parts["restart"].details.get(str(sized.files))):
            starts[sized.files] = turns
        if "idle" in run.parts and (told := run.parts["idle"].details.get(str(sized.files))):
            shares[sized.files] = Spread.of(told["cpu_shares"][OURS.name]).median

    def median(way: str, what: str) -> list[tuple[float, float]]:
        return [
            (files, Spread.of(float(getattr(start, what)) for start in turns[way]).median)
            for files, turns in starts.items()
        ]

    def of_nothing(what: str) -> float:
        return Spread.of(cost for _, cost in median(EMPTY, what)).median if starts else 0.0

    free = os.statvfs(run.folder)
    found = [
        Cost("import", "s", [(each.files, each.import_s) for each in sizes], of_nothing("seconds")),
        Cost("CPU of an import", "s", [(each.files, each.import_cpu_s) for each in sizes], of_nothing("cpu_s")),
        Cost(
            "state on the disk",
            "bytes",
            [(each.files, each.state_bytes) for each in sizes],
            available=float(free.f_bavail * free.f_frsize),
            of_what="what is free on the disk",
        ),
        Cost(
            "inotify watches",
            "watches",
            [(each.files, each.directories) for each in sizes],
            available=float(WATCHES.read_text()) if WATCHES.exists() else math.inf,
            of_what="fs.inotify.max_user_watches",
        ),
    ]
    if starts:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found += [
            Cost(
                "start to watching, or a sweep",
                "s",
                median(OURS.name, "seconds"),
                of_nothing("seconds"),
                load(roots=[str(run.folder)], to="-").sweep_s,
                "the interval of sweeps",
            ),
            Cost(
                "memory",
                "bytes",
                median(OURS.name, "pss_bytes"),
                of_nothing("pss_bytes"),
                float(memory_bytes),
                "this machine's memory",
            ),
        ]
    if shares:
        found.append(
            Cost("CPU at rest", "of a core", list(shares.items()), available=1.0, of_what="one core"),
        )
    return found


def measure_growth(run: Run, result: Part) -> float:
    """Say how the costs grow; return the rate of the largest import, files/s."""
    sizes = list(run.sized(result))
    largest, smallest = sizes[-1], sizes[0]
    rows: list[dict[str, object]] = []
    known = costs(run, sizes)
    for cost in known:
        growth = cost.growth
        row: dict[str, object] = {"cost": cost.name, "unit": cost.unit, "with no files": cost.nothing or ""}
        row |= {f"{files:,.0f} files": measured for files, measured in cost.points}
        row |= {
            "slope": "" if growth is None else growth.slope,
            f"{FAR:,} files": "" if growth is None else cost.at(FAR),
            "there is": "" if math.isinf(cost.available) else cost.available,
            "used up at, files": "" if math.isinf(cost.files_at_most()) else cost.files_at_most(),
        }
        rows.append(row)
    result.tables["Costs by size"] = _same_columns(rows)
    if largest is smallest:
        result.left_out.append("how costs grow: that takes two sizes at least")
    else:
        for cost in known:
            each = {files: (measured - cost.nothing) / files for files, measured in cost.points}
            if len(each) > 1 and min(each.values()) > 0 and cost.unit != "watches":
                result.figures.append(
                    Figure.of(
                        f"{cost.name}, with {max(each):,.0f} files",
                        f"{cost.unit} for 1,000 files",
                        [1000 * each[max(each)]],
                        f"with {min(each):,.0f} files",
                        [1000 * each[min(each)]],
                        "less",
                    )
                )
        bounded = sorted(known, key=Cost.files_at_most)
        for cost in bounded:
            if math.isinf(cost.files_at_most()):
                continue
            share = cost.at(FAR) / cost.available
            first = "What runs out first" if cost is bounded[0] else "Then"
            result.remarks.append(
                f"{first}: {cost.name}, used up ({cost.of_what}, {shown(cost.available)} {cost.unit}) at "
                f"{shown(cost.files_at_most())} files; {FAR:,} files take {shown(100 * share)} % of it."
            )
    result.details["sizes"] = sizes
    result.details["costs"] = known
    return largest.files / largest.import_s


def _same_columns(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the rows with the columns of all, in the order of the longest one."""
    columns = max((list(row) for row in rows), key=len)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def measure_broker(run: Run, result: Part, import_per_s: float) -> None:
    """Say how many instances one node carries."""
    run.say("scale: the broker")
    if "outbox" in run.parts and "delivery" in run.parts["outbox"].details:
        turns = run.parts["outbox"].details["delivery"]
    else:
        with run.vhost() as url:
            declare_queue(url)
            ways = {way: partial(delivery.send, run, url, way, MESSAGES) for way in ("ours", "socket")}
            turns = in_turn(ways, Budget(0.0), least=2)
    cpu_each_s = Spread.of(sent.broker_cpu_s_each for sent in turns["ours"]).median
    at_most_per_s = Spread.of(sent.per_s for sent in turns["socket"]).median
    with run.vhost() as url, ExitStack() as stack:
        before = memory(run.node.pid).pss_bytes
        for _ in range(CONNECTIONS):
            stack.enter_context(channel_of(url))
        connection_bytes = (memory(run.node.pid).pss_bytes - before) / CONNECTIONS
    cores = os.cpu_count() or 1
    rows: list[dict[str, object]] = []
    loads = [("that import", import_per_s), *((f"with {rate} changes/s", float(rate)) for rate in CHANGES_PER_S)]
    for load_name, per_s in loads:
        rows.append(
            {
                "instances": load_name,
                "events/s of each": per_s,
                "by what a socket gets through": at_most_per_s / per_s,
                f"by its CPU, {cores} cores": cores / (cpu_each_s * per_s) if cpu_each_s else math.inf,
            }
        )
    result.tables["How many instances one RabbitMQ node carries"] = rows
    result.remarks.append(
        f"The broker spends {1e6 * cpu_each_s:.0f} us of CPU on a message, and {connection_bytes / 1000:,.0f} KB on a "
        f"connection that rests; a gigabyte holds {1e9 / max(connection_bytes, 1):,.0f} of these."
    )
    result.details["broker"] = {
        "cpu_s_a_message": cpu_each_s,
        "messages_per_s": at_most_per_s,
        "bytes_a_connection": connection_bytes,
    }


def part(run: Run, result: Part) -> None:
    """Say what grows how."""
    measure_broker(run, result, measure_growth(run, result))
