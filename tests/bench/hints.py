"""What a hint costs: filtering by patterns, coalescing and dispatching, and how long hints hold up the event loop.

Everything is in this process, with a real store, real files and real workers. CPU is that of the event loop's thread
alone (`thread_time`); the loop's delay is by how much a task that sleeps 10 ms comes too late, beside the same with
nothing to do. Goals: 1,000 paths filtered in 10 ms; 1,000 hints coalesced and dispatched with 100 ms of the loop's CPU;
95 % of the delays not above 20 ms while 10,000 hints arrive at once.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from tests.bed.probe import describe_in_thread
from tests.bench.measure import Delay, Noise, Spread, arguments, bench, report
from tests.data.make_library import make_library
from trackwatch.patterns import Patterns
from trackwatch.reconcile import Job, Reconcile
from trackwatch.settle import DirtySet, Rest
from trackwatch.store import open_store
from trackwatch.sweep import Wanted
from trackwatch.workers import Workers, WorkerStatistics

HINTS_EACH = 3  # a path that changes is told several times
SETTLE_S = 0.25
PROBES = 2
WORKERS = 8


def patterns_s(repeat: int, count: int) -> list[float]:
    """Return how long it takes to filter so many paths that were never seen before; half of them are wanted."""
    taken = []
    for turn in range(repeat):
        patterns = Patterns()
        names = (b"%03d Title of the song.flac", b"%03d.mp3.part", b"cover %03d.jpg", b"%03d Another one.mp3")
        paths = [
            b"Artist %d/Album %d of %d/" % (number // 200, number // 10, turn) + names[number % 4] % number
            for number in range(count)
        ]
        began_s = time.perf_counter()
        wanted = sum(patterns.descend(os.path.dirname(path)) and patterns.wanted(path) for path in paths)
        taken.append(time.perf_counter() - began_s)
        assert wanted == count // 2, wanted
    return taken


@asynccontextmanager
async def reconciling(root: Path, state: Path, *, describe: bool) -> AsyncIterator[Reconcile]:
    """Yield a running reconciler over a root, once everything in it is known.

    Without `describe` what is dispatched later is taken, and called done, by nobody.
    """
    patterns = Patterns()
    async with open_store(state) as store, trio.open_nursery() as nursery:
        with store.open_reader() as reader:
            await nursery.start(store.run)
            roots = await store.write(lambda ledger: ledger.claim_roots((os.fsencode(root),)))
            send_jobs, receive_jobs = trio.open_memory_channel[Job](0)
            settle = DirtySet(quiet_s=SETTLE_S, ceiling_s=60)
            reconcile = Reconcile(
                store,
                reader,
                roots,
                wanted=Wanted(patterns.wanted, patterns.descend),
                settle=settle,
                jobs=send_jobs,
                probes_max=PROBES,
                sweep_s=900,
            )
            described = [describe]
            statistics = WorkerStatistics()
            workers = Workers(
                store, describe_in_thread, reconcile.place, reconcile.probed, reconcile.finished, statistics
            )

            async def work(jobs: trio.MemoryReceiveChannel[Job]) -> None:
                async for job in jobs:
                    if described[0]:
                        await workers._describe_and_record(job)
                    else:
                        reconcile.probed()
                        reconcile.finished(job.due.location, Rest.DONE)

            described[0] = True
            for _ in range(WORKERS):
                nursery.start_soon(work, receive_jobs.clone())
            await nursery.start(reconcile.run)
            await reconcile.wait_idle()
            await trio.sleep(1)
            described[0] = describe
            yield reconcile
            nursery.cancel_scope.cancel()


async def hinted(
    root: Path, state: Path, count: int, *, describe: bool, change: Callable[[Sequence[bytes]], None], hints_each: int
) -> tuple[float, float, float, Delay, Delay]:
    """Hint so many paths at once. Return the loop's CPU for the hints, and in all until idle; the time; the delays."""
    async with reconciling(root, state, describe=describe) as reconcile:
        paths = await trio.to_thread.run_sync(_files, root, count)
        # What the watcher says by itself would come on top.
        reconcile._watch._hint = lambda _path, _quiet_s: None
        await trio.to_thread.run_sync(change, paths)
        await trio.sleep(1)
        idle, busy = Delay(), Delay()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(idle.run)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.run)
            cpu_s, began_s = time.thread_time(), time.perf_counter()
            for _ in range(hints_each):
                for path in paths:
                    reconcile.hint_path(path)
            hints_s = time.thread_time() - cpu_s
            await reconcile.wait_idle()
            all_s, took_s = time.thread_time() - cpu_s, time.perf_counter() - began_s
            nursery.cancel_scope.cancel()
        return hints_s, all_s, took_s, idle, busy


def _files(root: Path, count: int) -> list[bytes]:
    return [os.fsencode(path) for path in sorted(path for path in root.rglob("*") if path.is_file())[:count]]


def nothing(_paths: Sequence[bytes]) -> None:
    """Leave the files as they are."""


def append(paths: Sequence[bytes]) -> None:
    """Make the files longer."""
    for path in paths:
        with open(path, "ab") as file:
            file.write(b"\0")


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__, hints=(1_000, "paths coalesced"), flood=(10_000, "hints at once"), repeat=(3, "of each"), seed=(0, "")
    )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    noise = Noise()
    filtered = Spread.of(patterns_s(options.repeat * 4, options.hints)).scaled(1000)
    rows: list[dict[str, object]] = [
        {"what": f"{options.hints:,} paths filtered", "figure": "wall ms", "goal": 10, **_figures(filtered)}
    ]
    cases = (
        ("unchanged, looked at", options.hints, HINTS_EACH, False, nothing),
        ("changed, handed out", options.hints, HINTS_EACH, False, append),
        ("changed, described and recorded", options.hints, HINTS_EACH, True, append),
        ("unchanged, looked at", options.flood, 1, False, nothing),
        ("changed, handed out", options.flood, 1, False, append),
        ("changed, described and recorded", options.flood, 1, True, append),
    )
    with bench(options.dir) as folder:
        root = folder / "root"
        make_library(str(root), max(options.hints, options.flood), seed=options.seed)
        measured: dict[int, list[tuple[float, float, float, Delay, Delay]]] = {at: [] for at in range(len(cases))}
        # One state for all: what a case has changed and not recorded, the next one's start does.
        for _ in range(options.repeat):
            for at, (_, count, each, describe, change) in enumerate(cases):
                measured[at].append(trio.run(_hinted, root, folder / "state", count, describe, change, each))
        for at, (name, count, each, _, _) in enumerate(cases):
            runs = measured[at]
            what = f"{count:,} paths hinted {each} times at once, {name}"
            is_flood = count == options.flood
            goal: object = "" if is_flood or "recorded" in name else 100
            delays = Spread.of(over for run in runs for over in run[4].over_s).scaled(1000)
            idle = Spread.of(over for run in runs for over in run[3].over_s).scaled(1000)
            rows += [
                {"what": what, "figure": "loop CPU ms, hints", **_figures(Spread.of(r[0] for r in runs).scaled(1000))},
                {
                    "what": "",
                    "figure": "loop CPU ms, in all",
                    "goal": goal,
                    **_figures(Spread.of(run[1] for run in runs).scaled(1000)),
                },
                {"what": "", "figure": "until idle, ms", **_figures(Spread.of(r[2] for r in runs).scaled(1000))},
                {"what": "", "figure": "loop's delay, ms", "goal": "p95 20" if is_flood else "", **_figures(delays)},
                {"what": "", "figure": "loop's delay when idle, ms", **_figures(idle)},
            ]
    report("hints", rows, noise, options.json)


async def _hinted(
    root: Path, state: Path, count: int, describe: bool, change: Callable[[Sequence[bytes]], None], each: int
) -> tuple[float, float, float, Delay, Delay]:
    return await hinted(root, state, count, describe=describe, change=change, hints_each=each)


def _figures(spread: Spread) -> dict[str, object]:
    return {"median": spread.median, "p95": spread.p95, "largest": spread.largest, "n": spread.count}


if __name__ == "__main__":
    main()
