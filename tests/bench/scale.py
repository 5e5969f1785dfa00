"""How each cost grows with the size of the library, what runs out first, and how many instances one broker carries.

The library is one of ten tiny files in each directory, imported once to a file; what was measured of `restart` and
`idle` is used here, too. `slope` is that of the straight line through what was measured of each size, on logarithmic
scales: 1 where a cost grows as the library does. What there is without any file (a start, the memory) is taken off
before and added again afterwards; of the CPU at rest that is not known, and nothing is taken off. A size whose turns
differ by as much as they are beyond what there is without any file says nothing of how a cost grows, and is left out of
that line.

How much ten million files take, and with how many files all is used up that this machine has of something, is drawn on
from that line, and from the straight line on plain scales through the two largest sizes: whichever says more, for a
slope that is found with few files may hide what only many show. Nothing is drawn on where a cost does not grow: where
the turns of the smallest and of the largest size overlap.

For the broker: what it spends of CPU on each of our messages, and what it takes from a bare socket at most, with a
classic queue and with a quorum queue of one member; and its memory with and without fifty connections that rest.
"""

import math
import os
from collections.abc import Mapping, Sequence
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
CLUSTER = 3
KINDS = ("classic", "quorum")
NONE = (0.0,)  # what certainly costs nothing without files


@dataclass(frozen=True)
class Cost:
    """A cost at two sizes at least, and how much of it there is."""

    name: str
    unit: str
    turns: Mapping[int, Sequence[float]]  # by files: what each turn has taken
    nothing: Sequence[float] = ()  # the cost with no files at all, if it is known
    available: float = math.inf
    of_what: str = ""

    @property
    def points(self) -> list[tuple[float, float]]:
        """The sizes, and the medians."""
        return [(float(files), Spread.of(values).median) for files, values in sorted(self.turns.items())]

    @property
    def base(self) -> float:
        """What is taken off."""
        return Spread.of(self.nothing).median if self.nothing else 0.0

    @property
    def grows(self) -> bool:
        """Whether there is more of it at the largest size than at the smallest, beyond what the turns differ."""
        smallest, largest = (Spread.of(self.turns[files]) for files in (min(self.turns), max(self.turns)))
        return len(self.turns) > 1 and largest.smallest > smallest.largest

    @property
    def growth(self) -> Growth | None:
        """The line through what is beyond the cost of nothing, on logarithmic scales.

        A size at which turns differ by as much as they are beyond that says nothing of how a cost grows.
        """
        return Growth.through([(files, cost - self.base) for files, cost in self.points if self._is_beyond(int(files))])

    def at(self, files: float) -> float:
        """Return the cost of a library of that size; not a number where that cannot be told."""
        if not self.grows:
            return math.nan
        last, cost = self.points[-1]
        straight = cost + (files - last) * self._each
        power = self.base + self.growth.at(files) if self.growth else -math.inf
        return max(straight, power)

    def files_at_most(self) -> float:
        """Return the size of the library with which all there is of it is used up; infinite if it is not."""
        if not self.grows or math.isinf(self.available):
            return math.inf
        last, cost = self.points[-1]
        straight = last + (self.available - cost) / self._each if self._each > 0 else math.inf
        power = self.growth.size_at(max(self.available - self.base, 1e-9)) if self.growth else math.inf
        files = max(0.0, min(straight, power))
        return files if files < NEVER else math.inf

    def _is_beyond(self, files: int) -> bool:
        return min(self.turns[files]) > max(self.nothing, default=0.0)

    @property
    def _each(self) -> float:
        """What one file more takes, between the two largest sizes."""
        (fewer, before), (last, cost) = self.points[-2:]
        return (cost - before) / (last - fewer)

    def figure(self) -> Figure | None:
        """Return what the largest size takes beside the smallest one: of a thousand files, where that can be told."""
        smallest, largest = min(self.turns), max(self.turns)
        if smallest == largest or self.unit == "watches":
            return None
        small, large = self.turns[smallest], self.turns[largest]
        turns = min(len(small), len(large))
        if not self.nothing:
            return Figure.of(
                f"{self.name}, with {largest:,} files",
                self.unit,
                list(large[:turns]),
                f"with {smallest:,} files",
                list(small[:turns]),
                "less",
            )
        if not (self._is_beyond(smallest) and self._is_beyond(largest)):
            return None
        each = {
            files: [1000 * (cost - self.base) / files for cost in self.turns[files][:turns]]
            for files in (smallest, largest)
        }
        return Figure.of(
            f"{self.name}, with {largest:,} files",
            f"{self.unit} for 1,000 files",
            each[largest],
            f"with {smallest:,} files",
            each[smallest],
            "less",
        )


def costs(run: Run, sizes: Sequence[Sized]) -> list[Cost]:
    """Return what was measured."""
    starts: dict[int, dict[str, Any]] = {}
    shares: dict[int, list[float]] = {}
    for sized in sizes:
        if "restart" in run.parts and (turns := run.parts["restart"].details.get(str(sized.files))):
            starts[sized.files] = turns
        if "idle" in run.parts and (slices := run.parts["idle"].details.get(str(sized.files))):
            shares[sized.files] = [each.cpu_share for each in slices[OURS.name]]

    def taken(way: str, what: str) -> dict[int, list[float]]:
        return {files: [float(getattr(start, what)) for start in turns[way]] for files, turns in starts.items()}

    def of_nothing(what: str) -> list[float]:
        return [cost for turns in taken(EMPTY, what).values() for cost in turns]

    def once(what: str) -> dict[int, list[float]]:
        return {each.files: [float(getattr(each, what))] for each in sizes}

    free = os.statvfs(run.folder)
    found = [
        Cost("import", "s", once("import_s"), of_nothing("seconds")),
        Cost("CPU of an import", "s", once("import_cpu_s"), of_nothing("cpu_s")),
        Cost(
            "state on the disk",
            "bytes",
            once("state_bytes"),
            NONE,
            float(free.f_bavail * free.f_frsize),
            "what is free on the disk",
        ),
        Cost(
            "inotify watches",
            "watches",
            once("directories"),
            NONE,
            float(WATCHES.read_text()) if WATCHES.exists() else math.inf,
            "fs.inotify.max_user_watches",
        ),
    ]
    if starts:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found += [
            Cost(
                "start to watching, or a sweep",
                "s",
                taken(OURS.name, "seconds"),
                of_nothing("seconds"),
                load(roots=[str(run.folder)], to="-").sweep_s,
                "the interval of sweeps",
            ),
            Cost(
                "memory",
                "bytes",
                taken(OURS.name, "pss_bytes"),
                of_nothing("pss_bytes"),
                float(memory_bytes),
                "this machine's memory",
            ),
        ]
    if shares:
        found.append(Cost("CPU at rest", "of a core", shares, available=1.0, of_what="one core"))
    return found


def measure_growth(run: Run, result: Part) -> float:
    """Say how the costs grow; return the rate of the largest import, files/s, or 0 if there was none."""
    sizes = list(run.sized(result))
    if not sizes:
        return 0.0
    known = costs(run, sizes)
    rows = []
    for cost in known:
        growth, at_far, at_most = cost.growth, cost.at(FAR), cost.files_at_most()
        row: dict[str, object] = {"cost": cost.name, "unit": cost.unit}
        row["with no files"] = cost.base if cost.nothing else ""
        row |= {f"{each.files:,} files": "" for each in sizes}
        row |= {f"{files:,.0f} files": measured for files, measured in cost.points}
        row |= {
            "slope": "" if growth is None else growth.slope,
            f"{FAR:,} files": "" if math.isnan(at_far) else at_far,
            "there is": "" if math.isinf(cost.available) else cost.available,
            "used up at, files": "" if math.isinf(at_most) else at_most,
        }
        rows.append(row)
    result.tables["Costs by size"] = rows
    if len(sizes) == 1:
        result.left_out.append("how costs grow: that takes two sizes at least")
    else:
        result.figures += [figure for cost in known if (figure := cost.figure()) is not None]
        result.answers.append(slopes(known))
        first, *others = bottlenecks(known)
        result.answers.append(first)
        result.remarks += others
    result.remarks += [
        f"The import of {each.files:,} files was not measured in this run, but at {each.made}."
        for each in sizes
        if each.made
    ]
    result.details["sizes"] = sizes
    result.details["costs"] = known
    return sizes[-1].files / sizes[-1].import_s


def slopes(known: Sequence[Cost]) -> str:
    """Return how each cost grows from the smallest size to the largest."""
    least, most = (choose(files for cost in known for files in cost.turns) for choose in (min, max))
    each = ", ".join(f"{cost.name} {growth.slope:.2f}" for cost in known if cost.grows and (growth := cost.growth))
    return f"From {least:,} to {most:,} files costs grow with the size to the power of: {each}."


def bottlenecks(known: Sequence[Cost]) -> list[str]:
    """Return what is to be said of what runs out, the first first, and of what does not grow."""
    bounded = sorted((cost for cost in known if not math.isinf(cost.files_at_most())), key=Cost.files_at_most)
    said = [
        f"{'What runs out first' if cost is bounded[0] else 'Then'}: {cost.name}, used up ({cost.of_what}, "
        f"{shown(cost.available)} {cost.unit}) at {shown(float(f'{cost.files_at_most():.3g}'))} files; {FAR:,} files "
        f"take {shown(100 * cost.at(FAR) / cost.available)} % of it."
        for cost in bounded
    ]
    if still := [cost.name for cost in known if not cost.grows]:
        said.append(f"Beyond what turns differ by, these do not grow: {', '.join(still)}.")
    return said


def send_both(run: Run, kind: str) -> dict[str, list[delivery.Sent]]:
    """Return what the broker took for messages from our outbox, and from a bare socket."""
    with run.vhost() as url:
        declare_queue(url, kind)
        ways = {way: partial(delivery.send, run, url, way, MESSAGES) for way in ("ours", "socket")}
        return in_turn(ways, Budget(0.0), least=2)


def measure_broker(run: Run, result: Part, import_per_s: float) -> None:
    """Say how many instances one node carries, and what follows for a cluster."""
    run.say("scale: the broker")
    turns = {kind: send_both(run, kind) for kind in KINDS}
    cpu_each_s = {
        kind: Spread.of(sent.broker_cpu_s_each for sent in taken["ours"]).median for kind, taken in turns.items()
    }
    at_most_per_s = {kind: Spread.of(sent.per_s for sent in taken["socket"]).median for kind, taken in turns.items()}
    with run.vhost() as url, ExitStack() as stack:
        before = memory(run.node.pid).pss_bytes
        for _ in range(CONNECTIONS):
            stack.enter_context(channel_of(url))
        connection_bytes = (memory(run.node.pid).pss_bytes - before) / CONNECTIONS
    cores = os.cpu_count() or 1
    loads = [(f"with {rate} changes/s", float(rate)) for rate in CHANGES_PER_S]
    if import_per_s:
        loads.insert(0, ("that all import at once", import_per_s))
    rows: list[dict[str, object]] = []
    for load_name, per_s in loads:
        row: dict[str, object] = {"instances": load_name, "events/s of each": per_s}
        for kind in KINDS:
            by_cpu_per_s = cores / cpu_each_s[kind] if cpu_each_s[kind] else math.inf
            row[f"{kind} queue, by a socket"] = at_most_per_s[kind] / per_s
            row[f"{kind} queue, by CPU"] = by_cpu_per_s / per_s
        # Each message is on every node of three: what carries less, one queue's leader or the CPU of one node.
        row[f"cluster of {CLUSTER}, quorum queue"] = min(at_most_per_s["quorum"], by_cpu_per_s) / per_s
        rows.append(row)
    result.tables["How many instances RabbitMQ carries: one node, and what follows for a cluster"] = rows
    for row in (rows[-1], *(rows[:1] if import_per_s else ())):
        result.answers.append(
            f"As many instances {row['instances']} ({shown(row['events/s of each'])} events/s each) fit on one node of "
            f"RabbitMQ with {cores} cores: {_instances(row, 'classic')} with a classic queue, "
            f"{_instances(row, 'quorum')} with a quorum queue; by computation, a cluster of {CLUSTER} such nodes "
            "carries no more."
        )
    classic, quorum = (1e6 * cpu_each_s[kind] for kind in KINDS)
    result.remarks.append(
        f"A node of {cores} cores spends {classic:.0f} us of CPU on a message to a classic queue, {quorum:.0f} us on "
        f"one to a quorum queue of one member, and {connection_bytes / 1000:,.0f} KB on a connection that rests; a "
        f"gigabyte holds {1e9 / max(connection_bytes, 1):,.0f} of these. Who sends shares these cores with it here."
    )
    result.remarks.append(
        f"A cluster of {CLUSTER} with a quorum queue of {CLUSTER} members was not measured. The figure rests on this: "
        f"each message is written on all {CLUSTER} nodes, each of them like this one, and a follower spends as much on "
        "it as the only member here. The nodes then do the same work beside each other, and the cluster carries at "
        "most what one node does: the smaller of the two bounds of the quorum queue. What nodes tell each other comes "
        "on top, and all instances are taken to send to one queue. A cluster keeps messages when a node is lost; it "
        "does not carry more of them."
    )
    result.details["broker"] = {
        "cpu_s_a_message": cpu_each_s,
        "messages_per_s": at_most_per_s,
        "bytes_a_connection": connection_bytes,
        "turns": turns,
    }


def _instances(row: Mapping[str, object], kind: str) -> str:
    """Return how many a node carries: the smaller one of its two bounds, rounded down."""
    bounds = [value for name, value in row.items() if name.startswith(f"{kind} queue") and isinstance(value, float)]
    return f"{math.floor(min(bounds)):,}"


def part(run: Run, result: Part) -> None:
    """Say what grows how."""
    measure_broker(run, result, measure_growth(run, result))
