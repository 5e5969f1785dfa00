"""What the benchmarks share: a real daemon and what it costs, when its events come, figures and how they spread.

Costs are read from /proc: CPU of the whole process group, memory from smaps_rollup, bytes from io. Each part says how
much of the machine others took while it ran: absolute times mean little without that, ratios taken in turn mean more.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import trio

from tests.bed.daemon import AnyPath, Daemon
from trackwatch import __version__

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
AUDIO = Path(__file__).resolve().parents[1] / "data" / "audio"
# How often standard output is looked at: half of it is what each latency is too long by.
LOOK_S = 0.002
DELAY_TICK_S = 0.01
# As clock_getcpuclockid(3) makes a clock of a process' number.
CPUCLOCK_SCHED = 2


# --- figures ---


@dataclass(frozen=True)
class Spread:
    """Repetitions of one figure."""

    count: int
    median: float
    p95: float
    p99: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the spread of some values; not a number where there are none."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, *[float("nan")] * 5)
        return cls(
            len(ordered),
            statistics.median(ordered),
            quantile(ordered, 0.95),
            quantile(ordered, 0.99),
            ordered[0],
            ordered[-1],
        )

    def scaled(self, factor: float) -> "Spread":
        """Return the same in another unit."""
        figures = (self.median, self.p95, self.p99, self.smallest, self.largest)
        return Spread(self.count, *(figure * factor for figure in figures))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the ordered values does not exceed."""
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def shown(value: object) -> str:
    """Return a table's cell: three digits that mean something are enough."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a Markdown table; the first one names the columns."""
    heads = list(rows[0])
    cells = [heads, *([shown(row.get(head, "")) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


# --- what a daemon costs ---


class Memory(NamedTuple):
    """Bytes; a page that several processes map counts in parts in the second one."""

    rss_bytes: int
    pss_bytes: int


class BytesRead(NamedTuple):
    """What was asked for by system calls, from wherever, and what came from disks."""

    asked: int
    from_disk: int


def cpu_s(leader: int) -> float:
    """Return the CPU time so far of the processes in a session (a daemon's, a broker's), and of their dead children."""
    return sum(_ticks(pid, 11, 15) for pid in _session(leader)) / TICKS_PER_S


class CpuClock:
    """The same to the nanosecond, for those that do next to nothing: it never goes back.

    The kernel's clock of a process has the time of its threads in it, also of those that have ended. Of processes that
    have ended it is known to a hundredth of a second, once the one that started them has been told.
    """

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._spent_s = 0.0

    def read(self) -> float:
        """Return the CPU time so far, in seconds."""
        spent_s = 0.0
        for pid in _session(self._leader):
            with contextlib.suppress(OSError):  # it may end while we look
                spent_s += time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) + _ticks(pid, 13, 15) / TICKS_PER_S
        self._spent_s = max(self._spent_s, spent_s)
        return self._spent_s

    def share(self, seconds: float) -> float:
        """Wait for so long, and return the part of one core that was used meanwhile."""
        began_s, spent_s = time.monotonic(), self.read()
        time.sleep(seconds)
        return (self.read() - spent_s) / (time.monotonic() - began_s)


def memory(leader: int) -> Memory:
    """Return the memory of the processes in a session now."""
    rss = pss = 0
    for pid in _session(leader):
        with contextlib.suppress(OSError):
            fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
            rss += fields["Rss"] * 1024
            pss += fields["Pss"] * 1024
    return Memory(rss, pss)


def bytes_read(leader: int) -> BytesRead:
    """Return what the processes in a session have read so far."""
    asked = from_disk = 0
    for pid in _session(leader):
        with contextlib.suppress(OSError):
            fields = _fields(Path(f"/proc/{pid}/io"))
            asked += fields["rchar"]
            from_disk += fields["read_bytes"]
    return BytesRead(asked, from_disk)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process (the leader of its session) and those that it has started have cost from start to end."""

    cpu_s: float  # of the leader
    others_cpu_s: float
    peak_pss_bytes: int  # of all at the same moment; a page that several map counts in parts
    peak_rss_bytes: int  # each one's own peak (VmHWM), added up; a page that several map counts often


class Footprint:
    """Looks at the processes of a session until they have ended: what they cost. A context manager.

    It looks twenty times a second, so a peak that lasts for less may be missed in the first figure, never in the
    second one; and of each process the CPU time of its last 50 ms is not seen.
    """

    LOOK_S = 0.05

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._cpu_ticks: dict[int, int] = {}
        self._peak_rss: dict[int, int] = {}
        self._peak_pss = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="footprint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()

    def cost(self) -> Cost:
        """Return what was seen so far."""
        own = self._cpu_ticks.get(self._leader, 0)
        others = sum(self._cpu_ticks.values()) - own
        return Cost(own / TICKS_PER_S, others / TICKS_PER_S, self._peak_pss, sum(self._peak_rss.values()))

    def _watch(self) -> None:
        while not self._closing.is_set():
            pss = 0
            for pid in _session(self._leader):
                with contextlib.suppress(OSError, KeyError):  # it may end while we look
                    self._cpu_ticks[pid] = max(self._cpu_ticks.get(pid, 0), _ticks(pid, 11, 13))
                    self._peak_rss[pid] = _fields(Path(f"/proc/{pid}/status"))["VmHWM"] * 1024
                    pss += _fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"] * 1024
            self._peak_pss = max(self._peak_pss, pss)
            self._closing.wait(self.LOOK_S)


def _session(leader: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry)) == leader:
                    yield int(entry)


def _ticks(pid: int, first: int, end: int) -> int:
    """Return the sum of some of a process' times: utime is 11, stime 12, cutime 13, cstime 14; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[first:end]))


def _fields(file: Path) -> dict[str, int]:
    pairs = (line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    values = ((name, value.split()) for name, value in pairs)
    return {name: int(words[0]) for name, words in values if words and words[0].isdigit()}


# --- how long its event loop is held up ---


class Delay:
    """Measures the loop's delay while it is started: by how much each short sleep is too long."""

    def __init__(self) -> None:
        self.over_s: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            began_s = time.perf_counter()
            await trio.sleep(DELAY_TICK_S)
            self.over_s.append(time.perf_counter() - began_s - DELAY_TICK_S)


# --- when its events come ---


class Told(NamedTuple):
    """One event, and when its line was there (monotonic clock)."""

    at_s: float
    kind: str
    path: str
    sha256: str | None


class Witness:
    """Notes when each event of the daemon's current start appears on its standard output. A context manager."""

    def __init__(self, daemon: Daemon) -> None:
        self.told: list[Told] = []
        self._by_path: defaultdict[str, list[Told]] = defaultdict(list)
        self._file = daemon._stdout_file()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="witness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()

    def of(self, path: str, since_s: float = 0.0) -> list[Told]:
        """Return what was told of a path since then."""
        with self._changed:
            return [told for told in self._by_path[path] if told.at_s >= since_s]

    def wait_for(self, path: str, sha256: str, since_s: float, timeout_s: float = 20.0) -> Told | None:
        """Wait until a path is told with this content, and return when that was; None if it was not in time."""

        def found() -> Told | None:
            return next((told for told in self._by_path[path] if told.sha256 == sha256 and told.at_s >= since_s), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, timeout_s)
            return found()

    def wait_count(self, count: int, timeout_s: float) -> bool:
        """Wait until so many events were told in all."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.told) >= count, timeout_s)

    def _read(self) -> None:
        rest = b""
        with self._file.open("rb", buffering=0) as stream:
            while not self._closing.is_set():
                data = stream.read(1 << 20)
                if not data:
                    time.sleep(LOOK_S)
                    continue
                at_s = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                bodies = [json.loads(line) for line in lines]
                with self._changed:
                    for body in bodies:
                        told = Told(at_s, body["event_type"], body["file_path"], body.get("sha256_hash"))
                        self.told.append(told)
                        self._by_path[told.path].append(told)
                    self._changed.notify_all()


def digest(path: AnyPath) -> str:
    """Return a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- running a part ---


class Noise:
    """How much of the machine others take, from its making on."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._busy_s, self._own_s = self._now()

    def share(self) -> float:
        """Return the part of all processors that was busy with neither us nor what we have started."""
        busy_s, own_s = self._now()
        elapsed_s = (time.monotonic() - self._at_s) * (os.cpu_count() or 1)
        return max(0.0, (busy_s - self._busy_s) - (own_s - self._own_s)) / elapsed_s

    def _now(self) -> tuple[float, float]:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
        alive_s = sum(_ticks(pid, 11, 15) for pid in _offspring(os.getpid())) / TICKS_PER_S
        return (user + nice + system + irq + softirq + steal) / TICKS_PER_S, sum(os.times()[:4]) + alive_s


def _offspring(ancestor: int) -> Iterator[int]:
    """Yield the living processes that a process has started, and those that these have started."""
    started: defaultdict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                started[int(parent)].append(int(entry))
    waiting = list(started[ancestor])
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += started[pid]


def arguments(description: str | None, **options: tuple[Any, str]) -> argparse.Namespace:
    """Return the command line: some options, each with its default and meaning, and those that every part has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, meaning) in options.items():
        flag = "--" + name.replace("_", "-")
        if default is False:
            parser.add_argument(flag, action="store_true", help=meaning)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"{meaning} ({default})")
    parser.add_argument("--dir", metavar="DIR", help="where to work (a new folder of the system's temporary one)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


@contextlib.contextmanager
def bench(directory: str | Path | None) -> Iterator[Path]:
    """Yield a new empty folder that any user can reach, and delete it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="trackwatch-bench-", dir=directory)).resolve()
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def a_daemon(
    root: AnyPath, state_dir: Path, *, args: Sequence[str] = (), unprivileged: bool = False, env: Mapping[str, str] = {}
) -> Daemon:
    """Return a daemon that is not started. With PYTHONPATH set it runs that trackwatch: two can be compared."""
    passed = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return Daemon(root, state_dir, env={**passed, **env}, args=args, unprivileged=unprivileged)


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def report(part: str, rows: Sequence[Mapping[str, object]], noise: Noise, to: str | None, **details: object) -> None:
    """Print the table, and write everything as JSON where that is wanted."""
    others = noise.share()
    print(f"### {part}\n\n{table(rows)}\n")
    print(f"{os.cpu_count()} processors, {platform.release()}; others took {100 * others:.0f} % of them meanwhile.")
    if to:
        whole = {
            "part": part,
            "version": __version__,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "others_share": others,
            "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "rows": rows,
            "details": details,
        }
        text = json.dumps(whole, indent=1, default=_plain)
        Path(to).write_text(text + "\n", encoding="utf-8")
