"""While a large library is imported for the first time, how soon is a change told? (goal: 1 s for 95 of 100)

Two libraries: many files of 130 KB, and some of 30 MB. New files are written and known ones replaced, at moments that
the seed decides, until the import is over; the import is repeated with an empty state until there are enough changes.
The bulk's own speed is shown as well, with changes and without: what priority costs.
"""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import AUDIO, Noise, Spread, Witness, a_daemon, arguments, bench, cpu_s, digest, report
from tests.data.make_library import make_library

IMPORT_DEADLINE_S = 600.0
PAUSE_S = (0.1, 0.4)


@dataclass(frozen=True)
class Change:
    """One file that was written during an import: a new one, or one that the import was about to come to."""

    is_new: bool
    latency_s: float


def import_once(root: Path, state: Path, pace: random.Random | None, changes: int) -> tuple[float, float, list[Change]]:
    """Import a library, changing some of it meanwhile; return the time, the CPU time, and each change's latency.

    Without `pace` nothing is changed. Only changes that were made, and could be told, before the import was over count.
    """
    changes_told: list[Change] = []
    known = sorted(path for path in root.rglob("*.mp3") if path.parent.name != "live")
    live = root / "live"
    base = (AUDIO / "track.mp3").read_bytes()
    with a_daemon(root, state) as daemon:
        began_s = time.monotonic()
        daemon.start(wait=False)
        daemon.wait_until(lambda: daemon.is_ready() or bool(daemon.events()), 60, "the first event")
        made: list[tuple[str, str, float, float]] = []
        with Witness(daemon) as witness:
            while pace is not None and not daemon.is_ready() and len(made) < changes:
                content = base + pace.randbytes(130_000)
                path = pace.choice(known) if len(made) % 2 else live / f"{state.name}-{len(made)}.mp3"
                since_s = time.monotonic()
                path.write_bytes(content)
                made.append((str(path), digest(path), since_s, time.monotonic()))
                time.sleep(pace.uniform(*PAUSE_S))
            daemon.wait_until(daemon.is_ready, IMPORT_DEADLINE_S, "to be watching")
            took_s, cpu = time.monotonic() - began_s, cpu_s(daemon.pid)
            for path_name, sha256, since_s, closed_s in made:
                told = witness.wait_for(path_name, sha256, since_s)
                # One that was overwritten again before it was told is not there; one that never comes counts as ever.
                again = any(other == path_name and at_s > since_s for other, _, at_s, _ in made)
                if told is not None:
                    changes_told.append(Change(path_name.startswith(f"{live}/"), told.at_s - closed_s))
                elif not again:
                    changes_told.append(Change(path_name.startswith(f"{live}/"), float("inf")))
        daemon.stop()
    return took_s, cpu, changes_told


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        small=(10_000, "files of 130 KB"),
        large=(300, "files of 30 MB"),
        changes=(40, "at least, for each library"),
        rounds=(8, "imports of each library at the most"),
        seed=(0, "for content and moments"),
    )
    noise, rows = Noise(), []
    details = {}
    for name, count, size_bytes in (("130 KB", options.small, 130_000), ("30 MB", options.large, 30_000_000)):
        if not count:
            continue
        with bench(options.dir) as folder:
            pace = random.Random(options.seed)
            root = folder / "root"
            make_library(str(root), count, size_bytes=size_bytes)
            (root / "live").mkdir()
            os.sync()
            told: list[Change] = []
            alone: list[float] = []
            beside: list[float] = []
            cpus: list[float] = []
            for turn in range(options.rounds):
                alone.append(import_once(root, folder / f"alone-{turn}", None, 0)[0])
                left = options.changes - len(told)
                took_s, cpu, more = import_once(root, folder / f"beside-{turn}", pace, left)
                beside.append(took_s)
                cpus.append(cpu)
                told += more
                if len(told) >= options.changes:
                    break
            spread = Spread.of(change.latency_s for change in told).scaled(1000)
            new = Spread.of(change.latency_s for change in told if change.is_new).scaled(1000)
            replaced = Spread.of(change.latency_s for change in told if not change.is_new).scaled(1000)
            rows.append(
                {
                    "library": f"{count:,} x {name}",
                    "changes": spread.count,
                    "median ms": spread.median,
                    "p95 ms": spread.p95,
                    "p95 ms, new": new.p95,
                    "p95 ms, replaced": replaced.p95,
                    "largest ms": spread.largest,
                    "import s": Spread.of(beside).median,
                    "alone s": Spread.of(alone).median,
                    "import CPU s": Spread.of(cpus).median,
                    "imports": len(beside),
                }
            )
            details[name] = {"changes": told, "alone_s": alone, "beside_s": beside}
    report("priority: a change during a first import", rows, noise, options.json, **details)


if __name__ == "__main__":
    main()
