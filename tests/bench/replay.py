"""While a hundred thousand events are sent again, how soon is a change told?

A daemon with a private RabbitMQ node has delivered an import. Then a file is written now and then: before, while
`trackwatch replay --since --until` sends all of that again, and after. Latency is from the file's closing to the
message's arrival at a consumer. Everything has to arrive again, once, under its id and in the order of its sequence,
and each change as well: the part fails if not.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.bed.rabbit import RabbitNode
from tests.bench.broker import Arrival, Consumer, declare_queue
from tests.bench.measure import Noise, Spread, a_daemon, arguments, bench, cpu_s, memory, report

IMPORT_DEADLINE_S, REPLAY_DEADLINE_S = 900.0, 600.0
PAUSE_S = (0.45, 0.75)  # never so little that two changes become one
FOLDER_FILES = 500
PROBE = "live/probe.dat"


class Changes:
    """When each content of the probe was told first."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._looked = 0
        self._first_s: dict[str, float] = {}

    def arrived_at(self, sha256: str) -> float | None:
        """Return when a content was told, None if it was not yet."""
        arrivals = len(self._consumer.arrivals)
        for at_s, told in self._consumer.kept(self._looked):
            self._first_s.setdefault(told["sha256_hash"], at_s)
        self._looked = arrivals
        return self._first_s.get(sha256)


class Probe:
    """A file that is written now and then."""

    def __init__(self, path: Path, pace: random.Random) -> None:
        self._path = path
        self._pace = pace

    def write(self) -> tuple[str, float]:
        """Write other bytes; return their hash, and when that was done."""
        content = self._pace.randbytes(100)
        self._path.write_bytes(content)
        return sha256(content).hexdigest(), time.monotonic()

    def pause(self) -> None:
        """Wait a little, as the seed decides."""
        time.sleep(self._pace.uniform(*PAUSE_S))


def make_files(root: Path, count: int) -> None:
    """Write so many small files, none like another."""
    for number in range(count):
        folder = root / f"{number // FOLDER_FILES:04}"
        if number % FOLDER_FILES == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:07}.dat").write_bytes(b"%d" % number)


@contextmanager
def consuming(node: RabbitNode) -> Iterator[Consumer]:
    """Yield a consumer of everything, that keeps what is said of the probe."""
    declare_queue(node.url())
    with Consumer(node.url(), lambda body: PROBE.encode() in body) as consumer:
        yield consumer


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.02)


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__, events=(100_000, "events to send again"), changes=(40, "before and after"), seed=(0, "of the changes")
    )
    noise = Noise()
    with bench(options.dir) as folder, RabbitNode(folder / "rabbit") as node, consuming(node) as consumer:
        root, changes = folder / "root", Changes(consumer)
        (root / "live").mkdir(parents=True)
        make_files(root, options.events)
        probe = Probe(root / PROBE, random.Random(options.seed))
        daemon = a_daemon(root, folder / "state", env={"TRACKWATCH_INCLUDE": "*.dat"})
        daemon.args = ["--to", node.url()]
        with daemon:
            since = datetime.now().astimezone() - timedelta(seconds=1)
            daemon.start(wait=False)
            wait_until(lambda: len(consumer.arrivals) >= options.events, IMPORT_DEADLINE_S, "the import")
            daemon.wait_until(daemon.is_ready, IMPORT_DEADLINE_S, "to be watching")
            until = datetime.now().astimezone()
            imported = {arrival.event_id: arrival.sequence for arrival in consumer.arrivals}
            assert sorted(imported.values()) == list(range(1, options.events + 1))
            probe.write()  # created; what follows are modifications
            probe.pause()

            def change(count: int) -> list[float]:
                made = []
                for _ in range(count):
                    made.append(probe.write())
                    probe.pause()
                wait_until(lambda: all(changes.arrived_at(digest) for digest, _ in made), 60, "the changes")
                return [(changes.arrived_at(digest) or 0.0) - at_s for digest, at_s in made]

            rows: list[dict[str, object]] = []

            def row(phase: str, latencies: list[float], **more: object) -> None:
                spread = Spread.of(latencies).scaled(1000)
                figures = {"median ms": spread.median, "p95 ms": spread.p95, "largest ms": spread.largest}
                rows.append({"changes": phase, "count": spread.count, **figures, **more})

            row("before", change(options.changes))
            start, began_s, cpu_before = len(consumer.arrivals), time.monotonic(), cpu_s(daemon.pid)
            said: list[str] = []
            queued_s: list[float] = []

            def ask() -> None:
                done = daemon.run(
                    "replay", "--since", since.isoformat(), "--until", until.isoformat(), "--yes", timeout_s=300
                )
                queued_s.append(time.monotonic() - began_s)
                said.append(done.stdout + done.stderr)

            asking = threading.Thread(target=ask)
            asking.start()

            def again() -> list[Arrival]:
                return [arrival for arrival in consumer.arrivals[start:] if arrival.event_id in imported]

            latencies: list[float] = []
            while len(again()) < options.events:
                assert time.monotonic() < began_s + REPLAY_DEADLINE_S, f"{len(again())} have arrived again"
                latencies += change(1)
            asking.join()
            took_s = again()[-1].at_s - began_s
            rate = options.events / (again()[-1].at_s - again()[0].at_s)
            used_s = cpu_s(daemon.pid) - cpu_before
            row("during the replay", latencies)
            row("after", change(options.changes))
            sequences = [arrival.sequence for arrival in again()]
            assert sequences == sorted(set(sequences)), "doubles, or not in order"
            assert len(sequences) == options.events
            assert {arrival.event_id for arrival in again()} == imported.keys()
            new = [arrival.sequence for arrival in consumer.arrivals if arrival.event_id not in imported]
            assert new == list(range(options.events + 1, options.events + 1 + len(new))), "changes out of order"
            details = {
                "replayed": len(sequences),
                "queued_s": queued_s[0],
                "took_s": took_s,
                "rate_per_s": rate,
                "cpu_s": used_s,
                "rss_bytes": memory(daemon.pid).rss_bytes,
                "said": said[0].strip(),
            }
            assert daemon.stop() == 0
    report(f"replay: a change while {options.events:,} events are sent again", rows, noise, options.json, **details)
    print(
        f"`{details['said']}`\nAll {len(sequences):,} have arrived again, once, under their ids, in order: queued in"
        f" {queued_s[0]:.1f} s, through after {took_s:.1f} s, {rate:,.0f}/s, {used_s:.1f} s of CPU."
    )


if __name__ == "__main__":
    main()
