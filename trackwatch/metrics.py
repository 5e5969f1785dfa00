"""What the daemon tells Prometheus, in its exposition format. Counters count since the start of the process.

Nothing is counted for this alone: each scrape reads what the tasks know of themselves. The names and labels are public,
see `ops/metrics.md`; what was once told keeps its name.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from trackwatch.catalogue import RootTotals
from trackwatch.event import EventType
from trackwatch.meters import Histogram, Total
from trackwatch.outbox import OutboxTotals
from trackwatch.publisher import BrokerWord
from trackwatch.root import RootState, RootWord

# The version of the text format that every Prometheus reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# By labels; or of the one series that has none.
Values = float | Mapping[tuple[str, ...], float]
STATES = ("starting", "importing", "watching", "stopping")


@dataclass(frozen=True, slots=True)
class Disk:
    """What the state takes of its disk, and what is left there, in bytes; None where it cannot be told."""

    size_bytes: int
    free_bytes: int | None


def look_at_disk(state_dir: Path) -> Disk:
    """Look at the disk of the state folder. In a thread: it may hang."""
    size_bytes = 0
    for entry in state_dir.glob("trackwatch.db*"):
        try:
            size_bytes += entry.stat().st_size
        except OSError:
            continue  # SQLite has just removed it
    try:
        return Disk(size_bytes, shutil.disk_usage(state_dir).free)
    except OSError:
        return Disk(size_bytes, None)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a daemon at one moment."""

    version: str
    instance_id: str
    started_s: float  # since 1970
    state: str
    is_ready: bool
    events: Mapping[str, int]  # recorded, by type
    published: int
    latency: Histogram
    broker: BrokerWord
    outbox: OutboxTotals
    oldest_pending_s: float
    outbox_max: int
    roots: Sequence[RootState]
    root_totals: Sequence[RootTotals]
    dirty: int
    in_flight: int
    in_flight_max: int
    calls: Total
    described_files: int
    described_bytes: int
    import_files: tuple[int, int] | None  # done, and expected
    watches: int
    watch_instances: int
    watch_limits: Mapping[str, int]
    problems: int
    restarts: Mapping[str, int]  # by task
    commits: int
    is_writable: bool
    disk: Disk


def exposition(facts: Facts) -> bytes:
    """Return what Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(_Told(facts))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry)


class _Told(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def describe(self) -> Iterable[Metric]:
        return ()  # or registering would collect once more, to find names that are there twice

    def collect(self) -> Iterator[Metric]:
        """Yield every metric but those of the process."""
        facts = self._facts
        runs: Values = {(facts.version, facts.instance_id): 1}
        yield _gauge("info", "Always 1; its labels say what runs.", runs, "version", "instance_id")
        yield _gauge("start_time_seconds", "When the daemon was started, in seconds since 1970.", facts.started_s)
        yield _one_hot("state", "What the daemon does.", STATES, facts.state)
        yield _gauge("ready", "Whether it does its whole work just now, as /readyz says.", facts.is_ready)
        yield _counter(
            "events", "Events recorded.", {(kind.value,): facts.events.get(kind.value, 0) for kind in EventType}, "type"
        )
        yield from self._delivery()
        yield from self._roots()
        yield from self._intake()
        restarts = _labelled(facts.restarts)
        yield _counter("restarts", "Times the work of a task was lost, and begun again.", restarts, "task")
        yield _counter("store_commits", "Transactions of the state.", facts.commits)
        yield _gauge("store_writable", "0 while the state cannot be written (a full disk).", facts.is_writable)
        yield _gauge("state_size_bytes", "Size of the state database and its log.", facts.disk.size_bytes)
        if facts.disk.free_bytes is not None:
            yield _gauge("state_free_bytes", "Room left on the disk of the state folder.", facts.disk.free_bytes)

    def _delivery(self) -> Iterator[Metric]:
        facts = self._facts
        yield _counter("published", "Events confirmed by the broker, those sent again too.", facts.published)
        told = HistogramMetricFamily(
            "trackwatch_publish_latency_seconds",
            "From an event's record to its confirm; without what was sent again.",
        )
        counts = facts.latency.cumulated()
        bounds = [*map(_number, facts.latency.bounds), "+Inf"]
        told.add_metric([], list(zip(bounds, counts, strict=True)), facts.latency.seconds)
        yield told
        rows = {name: getattr(facts.outbox, name) for name in ("pending", "replaying", "parked", "published")}
        meaning = "Events in the outbox; those that are sent again are pending too."
        yield _gauge("outbox_events", meaning, _labelled(rows), "state")
        yield _gauge("outbox_oldest_pending_seconds", "Age of the oldest pending event.", facts.oldest_pending_s)
        yield _gauge("outbox_limit_events", "How many may wait (TRACKWATCH_OUTBOX_MAX).", facts.outbox_max)
        yield _one_hot("broker_state", "How it stands with the broker.", BrokerWord, facts.broker)

    def _roots(self) -> Iterator[Metric]:
        facts = self._facts
        names = {state.root.id: _label(state.root.path) for state in facts.roots}
        totals = {total.root.id: total for total in facts.root_totals}
        words: dict[tuple[str, ...], float] = {
            (names[state.root.id], word.value): word is state.word for state in facts.roots for word in RootWord
        }
        yield _gauge("root_state", "How a root stands.", words, "root", "state")

        def of_each(name: str, meaning: str, values: Mapping[int, float]) -> Metric:
            return _gauge(name, meaning, {(names[root_id],): value for root_id, value in values.items()}, "root")

        ours = {root_id: total for root_id, total in totals.items() if root_id in names}
        states = {state.root.id: state for state in facts.roots}
        yield of_each("root_files", "Files known in a root.", {at: total.files for at, total in ours.items()})
        yield of_each("root_size_bytes", "Their size.", {at: total.size_bytes for at, total in ours.items()})
        yield of_each("root_directories", "Its directories.", {at: state.directories for at, state in states.items()})
        yield of_each(
            "root_unwatched_directories",
            "Those that cannot be watched, only swept.",
            {at: len(state.blind) for at, state in states.items()},
        )
        yield of_each(
            "root_unlistable_directories",
            "Those that cannot be read.",
            {at: len(state.unlistable) for at, state in states.items()},
        )
        yield of_each(
            "root_last_sweep_timestamp_seconds",
            "When it was last swept to its end, in seconds since 1970.",
            {at: total.swept_us / 1e6 for at, total in ours.items() if total.swept_us is not None},
        )
        sweeps = SummaryMetricFamily("trackwatch_sweep_seconds", "Full sweeps of a root.", labels=["root"])
        for at, state in states.items():
            sweeps.add_metric([names[at]], state.sweeps.count, state.sweeps.seconds)
        yield sweeps

    def _intake(self) -> Iterator[Metric]:
        facts = self._facts
        yield _gauge("dirty_paths", "Paths that are to settle or to be looked at.", facts.dirty)
        yield _gauge("files_in_flight", "Files that were taken to be described.", facts.in_flight)
        yield _gauge("files_in_flight_limit", "How many may be (MAX_CONCURRENT_FILES).", facts.in_flight_max)
        calls = SummaryMetricFamily("trackwatch_probe_seconds", "Calls of processes that describe files.")
        calls.add_metric([], facts.calls.count, facts.calls.seconds)
        yield calls
        yield _counter("probed_files", "Files described.", facts.described_files)
        yield _counter("probed_bytes", "Their size.", facts.described_bytes)
        if facts.import_files is not None:
            done, expected = facts.import_files
            yield _gauge("import_files", "Files of the import under way that are done.", done)
            yield _gauge("import_expected_files", "Files that it has to do in all.", expected)
        yield _gauge("watches", "Directories watched.", facts.watches)
        yield _gauge("watch_instances", "inotify instances used.", facts.watch_instances)
        for name, of in (("watches", "watches"), ("instances", "watch_instances")):
            if name in facts.watch_limits:
                meaning = f"What the kernel allows a user (fs.inotify.max_user_{name})."
                yield _gauge(f"{of}_limit", meaning, facts.watch_limits[name])
        yield _gauge("problem_files", "Files that cannot be read, or whose tags cannot.", facts.problems)


def _gauge(name: str, meaning: str, values: Values, *labels: str) -> Metric:
    told = GaugeMetricFamily(f"trackwatch_{name}", meaning, labels=labels)
    for key, value in _each(values):
        told.add_metric(key, value)
    return told


def _counter(name: str, meaning: str, values: Values, *labels: str) -> Metric:
    told = CounterMetricFamily(f"trackwatch_{name}", meaning, labels=labels)
    for key, value in _each(values):
        told.add_metric(key, value)
    return told


def _one_hot(name: str, meaning: str, words: Iterable[str], present: str) -> Metric:
    return _gauge(name, meaning, {(str(word),): word == present for word in words}, "state")


def _each(values: Values) -> Iterable[tuple[tuple[str, ...], float]]:
    return values.items() if isinstance(values, Mapping) else [((), values)]


def _labelled(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def _label(path: bytes) -> str:
    # Exact also where a name is not UTF-8: two roots that are told as one would be refused by Prometheus.
    return path.decode("utf-8", "backslashreplace")


def _number(bound: float) -> str:
    return str(float(bound))
