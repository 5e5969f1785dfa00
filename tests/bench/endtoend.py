"""What an import costs beyond describing files: end to end to RabbitMQ beside the probes alone, and who waits for it.

In turn, over the same small files in the page cache, which have long been at rest:

- import: the whole daemon (sweep, catalogue and outbox committed to the disk, published in order to a durable queue,
  every message confirmed), from the call of `daemon.run(once=True)` until it returns;
- probes: the daemon's pool of probes over the same files, from its opening to its closing.

Goal: 0.95 of the probes' rate (at least 0.8). The CPU time says what bounds the rest. Then, while another import runs:

- the event loop's delay: by how much a task that sleeps 10 ms comes too late (goal: p95 20 ms), beside the same in a
  loop that does nothing but ask the pool;
- `trackwatch status --json` as a person runs it, beside a Python that does nothing, and without a Python's start
  (goal: p95 100 ms).
"""

import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from tests.bed.daemon import SCRIPT
from tests.bed.rabbit import RabbitNode
from tests.bench import apart, probes
from tests.bench.broker import declare_queue, empty_queue
from tests.bench.measure import Delay, Noise, Spread, arguments, bench, cpu_s, report
from tests.bench.sets import SMALL, Made, files, made, size_options
from trackwatch import daemon
from trackwatch.settings import load, usable_cores
from trackwatch.status import collect

STATUS, PYTHON, READ = "trackwatch status --json", "python -c pass", "reading the status"
STATUS_PAUSE_S = 0.05
READS_EACH = 5


@dataclass(frozen=True)
class Import:
    """What one import took, and how late its event loop was each time (nothing, where that was not looked at)."""

    seconds: float
    cpu_s: float  # of the daemon's own process
    workers_cpu_s: float
    delays_s: list[float]


def import_once(root: str, url: str, state: str, observed: bool) -> tuple[float, float, float, list[float]]:
    """Run the daemon in this process until everything is imported and delivered."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    settings = load(roots=[root], to=url, state_dir=state)
    delay, own_s, began_s = Delay(), time.process_time(), time.perf_counter()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            if observed:
                nursery.start_soon(delay.run)
            await daemon.run(settings, once=True)
            nursery.cancel_scope.cancel()

    trio.run(run)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - own_s
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, cpu_s, ended.ru_utime + ended.ru_stime, delay.over_s


def probe_observed(root: str, processes: int) -> list[float]:
    """Describe all files, and nothing else; return how late the loop was each time."""
    delay = Delay()

    async def run() -> None:
        paths = files(Path(root))
        async with probes.pooled(paths, processes) as probe, trio.open_nursery() as nursery:
            nursery.start_soon(delay.run)
            await probes.probe_all(paths, probe)
            nursery.cancel_scope.cancel()

    trio.run(run)
    return delay.over_s


class Asked:
    """How long it takes to learn the status of a running daemon, in each of three ways, in seconds."""

    def __init__(self, state: Path) -> None:
        self._state = state
        # Each returns whether it was a running daemon that was asked: it may end meanwhile.
        self._ways: dict[str, Callable[[], bool]] = {STATUS: self._status, PYTHON: self._python, READ: self._read}
        self.taken_s: dict[str, list[float]] = {way: [] for way in self._ways}

    def ask_while(self, process: "subprocess.Popen[str]") -> None:
        """Ask in all ways in turn, from when the daemon has something to say until its process ends."""
        while not (self._state / "status.json").exists() and process.poll() is None:
            time.sleep(STATUS_PAUSE_S)
        while process.poll() is None:
            for way, ask in self._ways.items():
                for _ in range(READS_EACH if way == READ else 1):
                    began_s = time.perf_counter()
                    is_running = ask()
                    took_s = time.perf_counter() - began_s
                    if is_running:
                        self.taken_s[way].append(took_s)
            time.sleep(STATUS_PAUSE_S)

    def _status(self) -> bool:
        env = {**os.environ, "TRACKWATCH_STATE_DIR": str(self._state)}
        done = subprocess.run([SCRIPT, "status", "--json"], env=env, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, 4), f"exit {done.returncode}: {done.stderr}"
        return bool(json.loads(done.stdout)["running"])

    def _python(self) -> bool:
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return True

    def _read(self) -> bool:
        return bool(collect(self._state)["running"])


def compare(
    library: Made, node: RabbitNode, folder: Path, processes: int, repeat: int
) -> tuple[list[dict[str, object]], Any]:
    """Return the rows that say how fast an import is beside the probes, and all that was measured."""
    imports: list[Import] = []
    alone: list[probes.Took] = []
    broker_cpu_s = []
    for number in range(repeat):
        before_s = cpu_s(node.pid)
        state = folder / f"state-{number}"
        imports.append(Import(*apart.call(import_once, str(library.root), node.url(), str(state), False)))
        broker_cpu_s.append(cpu_s(node.pid) - before_s)
        empty_queue(node.url(), library.files)
        alone.append(probes.run_apart("ours", library.root, processes))
    pairs = list(zip(imports, alone, strict=True))
    whole = [each.opening_s + each.seconds + each.closing_s for each in alone]
    of_whole = Spread.of(each_s / own.seconds for own, each_s in zip(imports, whole, strict=True))
    of_warm = Spread.of(other.seconds / own.seconds for own, other in pairs)
    rate = Spread.of(library.files / each.seconds for each in imports)
    goal = {"goal": "0.95 (0.8)"}
    rows: list[dict[str, object]] = [
        {"what": f"{library.title}, import to RabbitMQ", "figure": "files/s", **_spread(rate)},
        {"what": "", "figure": "of the probes alone, from opening to closing", **_spread(of_whole), **goal},
        {"what": "", "figure": "of the probes alone, the pool ready", **_spread(of_warm)},
        {"what": "", "figure": "CPU s, daemon", **_spread(Spread.of(each.cpu_s for each in imports))},
        {"what": "", "figure": "CPU s, workers", **_spread(Spread.of(each.workers_cpu_s for each in imports))},
        {"what": "", "figure": "CPU s, broker", **_spread(Spread.of(broker_cpu_s))},
        {"what": "probes alone", "figure": "files/s", **_spread(Spread.of(library.files / each_s for each_s in whole))},
        {
            "what": "",
            "figure": "files/s, the pool ready",
            **_spread(Spread.of(library.files / each.seconds for each in alone)),
        },
        {
            "what": "",
            "figure": "s, opening and closing the pool",
            **_spread(Spread.of(each.opening_s + each.closing_s for each in alone)),
        },
        {"what": "", "figure": "CPU s", **_spread(Spread.of(each.cpu_s for each in alone))},
    ]
    return rows, {"imports": imports, "probes": alone, "broker_cpu_s": broker_cpu_s}


def observe(
    library: Made, node: RabbitNode, folder: Path, processes: int, repeat: int
) -> tuple[list[dict[str, object]], Any]:
    """Return the rows that say who waits for an import, and all that was measured."""
    delays: dict[str, list[float]] = {"import": [], "import, status asked for": [], "probes alone": []}
    taken: dict[str, list[float]] = {}
    for number in range(repeat):
        for is_asked in (False, True):
            state = folder / f"observed-{number}-{is_asked}"
            asked = Asked(state)
            with apart.running(apart.calling(import_once, str(library.root), node.url(), str(state), True)) as process:
                if is_asked:
                    asked.ask_while(process)
                done = Import(*apart.result(process))
            delays["import, status asked for" if is_asked else "import"] += done.delays_s
            empty_queue(node.url(), library.files)
            for way, taken_s in asked.taken_s.items():
                taken[way] = taken.get(way, []) + taken_s
        delays["probes alone"] += apart.call(probe_observed, str(library.root), processes)
    goals = {"import": "p95 20", "import, status asked for": "p95 20", STATUS: "p95 100", READ: "p95 100"}
    rows: list[dict[str, object]] = []
    for figure, ways in (("loop's delay, ms", delays), ("ms, while importing", taken)):
        for way, values in ways.items():
            spread = Spread.of(values).scaled(1000)
            rows.append({"what": way, "figure": figure, **_spread(spread), "goal": goals.get(way, "")})
    return rows, {"delays_s": delays, "status_s": taken}


def _spread(spread: Spread) -> dict[str, object]:
    return {
        "median": spread.median,
        "smallest": spread.smallest,
        "p95": spread.p95,
        "largest": spread.largest,
        "n": spread.count,
        "goal": "",
    }


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        **size_options(SMALL),
        processes=(usable_cores(), "of the probes alone; the daemon chooses for itself"),
        repeat=(5, "turns"),
        queue=("classic", "its type: classic, quorum"),
    )
    noise = Noise()
    with (
        bench(options.dir) as folder,
        RabbitNode(folder / "node") as node,
        made(SMALL, getattr(options, SMALL.option), options.dir) as library,
    ):
        declare_queue(node.url(), options.queue)
        rows, compared = compare(library, node, folder, options.processes, options.repeat)
        more, observed = observe(library, node, folder, options.processes, options.repeat)
    part = f"end to end: an import to a durable {options.queue} queue, beside the probes alone"
    report(part, [*rows, *more], noise, options.json, compared=compared, observed=observed)


if __name__ == "__main__":
    main()
