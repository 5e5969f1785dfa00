"""How fast are files described, beside what the hardware can hash, and beside threads?

In turn, over the same files in the page cache, each in a process of its own:

- bound: both hashes in one pass and nothing else, at C speed (OpenSSL's SHA-256, XXH3-128, a reused buffer of 1 MB), in
  one plain process for each core, which take the next file when they are done with one;
- ours: the daemon's own pool of probes (open, finished-writing check, one read for both hashes, tags, the file checked
  again), asked by as many callers as the daemon has files in flight;
- threads: the same probe, one hop to a thread for each file, by so many threads; the best of them counts.

Goals: of the bound, 0.95 for the 30 MB files (at least 0.7) and 0.9 for those of 5 MB (0.6); of the best threads, 2
times for the small files (1.3). Making the pool is not in these figures, and shown by itself.
"""

import hashlib
import math
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio
import xxhash

from tests.bench import apart
from tests.bench.measure import Noise, Spread, arguments, cpu_s, report
from tests.bench.sets import LIBRARIES, SMALL, Made, files, made, size_options
from trackwatch.pool import CALL_FILES, open_pool
from trackwatch.probe import BUFFER_BYTES, NICENESS, Request, describe
from trackwatch.settings import usable_cores
from trackwatch.settle import Rest
from trackwatch.track import Observation

BOUND_BUFFER_BYTES = 1 << 20
FILES_IN_FLIGHT = 100
THREADS = (1, 2, 4, 8, 16)
GOALS = {"30 MB FLAC": "0.95 (0.7)", "5 MB MP3": "0.9 (0.6)"}

Describe = Callable[[bytes], Awaitable[Observation | Rest]]


class Took(NamedTuple):
    """What one way took for all files."""

    seconds: float
    opening_s: float  # before the first file: making the pool
    closing_s: float
    cpu_s: float  # of all its processes


def bound(paths: Sequence[bytes], processes: int) -> Took:
    """Hash all files and do nothing else."""
    context = multiprocessing.get_context("spawn")
    turn, ready = context.Value("q", 0), context.Barrier(processes)
    began, ended, cpu = (context.Array("d", processes) for _ in range(3))
    arguments = (paths, turn, ready, began, ended, cpu)
    workers = [context.Process(target=_hash_files, args=(*arguments, number)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return Took(max(ended[:]) - min(began[:]), 0.0, 0.0, sum(cpu[:]))


def hash_only(path: bytes, buffer: memoryview) -> tuple[bytes, bytes]:
    """Return both hashes of a file, with the least that this takes."""
    sha256, xxh128 = hashlib.sha256(), xxhash.xxh3_128()
    descriptor = os.open(path, os.O_RDONLY)
    while count := os.readv(descriptor, [buffer]):
        sha256.update(buffer[:count])
        xxh128.update(buffer[:count])
    os.close(descriptor)
    return sha256.digest(), xxh128.digest()


def _hash_files(
    paths: Sequence[bytes],
    turn: Any,
    ready: multiprocessing.synchronize.Barrier,
    began: Any,
    ended: Any,
    cpu: Any,
    number: int,
) -> None:
    buffer = memoryview(bytearray(BOUND_BUFFER_BYTES))
    ready.wait()
    began[number], began_cpu_s = time.perf_counter(), time.process_time()
    while True:
        with turn.get_lock():
            index = turn.value
            turn.value += 1
        if index >= len(paths):
            break
        hash_only(paths[index], buffer)
    ended[number], cpu[number] = time.perf_counter(), time.process_time() - began_cpu_s


@asynccontextmanager
async def pooled(paths: Sequence[bytes], processes: int, call_files: int = CALL_FILES) -> AsyncIterator[Describe]:
    """Yield the pool, all its processes started; it knows the sizes of the files, as a sweep has told them."""
    sizes = {path: os.stat(path).st_size for path in paths}
    async with open_pool(processes, call_files=call_files) as pool:

        async def one(path: bytes) -> Observation | Rest:
            return await pool.describe(Request(path, math.inf), size_bytes=sizes[path])

        await probe_all(paths[: 2 * processes], one)
        yield one


@asynccontextmanager
async def threads(count: int) -> AsyncIterator[Describe]:
    """Yield a probe that hops to one of so many threads, each with a buffer that it keeps."""
    limiter, kept = trio.CapacityLimiter(count), threading.local()

    def here(path: bytes) -> Observation | Rest:
        if not hasattr(kept, "buffer"):
            kept.buffer = memoryview(bytearray(BUFFER_BYTES))
        return describe(path, quiet_s=math.inf, buffer=kept.buffer)

    async def one(path: bytes) -> Observation | Rest:
        return await trio.to_thread.run_sync(here, path, limiter=limiter)

    yield one


async def probe_all(paths: Sequence[bytes], probe: Describe, callers: int = FILES_IN_FLIGHT) -> None:
    """Describe all files, by so many callers at once."""
    left = iter(paths)

    async def call() -> None:
        for path in left:
            seen = await probe(path)
            assert isinstance(seen, Observation), f"{path!r}: {seen}"
            assert seen.metadata_error is None, f"{path!r}: {seen.metadata_error}"

    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(call)


async def probed(paths: Sequence[bytes], way: str, processes: int) -> Took:
    """Describe all files in one of the ways."""
    began_s = time.perf_counter()
    kind, _, number = way.partition("-")
    count = int(number or CALL_FILES)
    async with pooled(paths, processes, count) if kind == "ours" else threads(count) as probe:
        opened_s, opened_cpu_s = time.perf_counter(), cpu_s(os.getsid(0))
        await probe_all(paths, probe)
        ended_s, ended_cpu_s = time.perf_counter(), cpu_s(os.getsid(0))
    return Took(ended_s - opened_s, opened_s - began_s, time.perf_counter() - ended_s, ended_cpu_s - opened_cpu_s)


def run(way: str, root: str, processes: int) -> Took:
    """Do it in this process, which must lead its session."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    paths = files(Path(root))
    if not way.startswith("ours"):
        os.nice(NICENESS)  # as the pool's processes have it: none is to suffer more from what else runs
    return bound(paths, processes) if way == "bound" else trio.run(probed, paths, way, processes)


def run_apart(way: str, root: Path, processes: int) -> Took:
    """Do it in a process of its own."""
    return Took(*apart.call(run, way, str(root), processes))


def measure(
    library: Made, processes: int, counts: Sequence[int], calls: Sequence[int], repeat: int
) -> tuple[list[dict[str, object]], Any]:
    """Return the table's rows for a library, and all that was measured."""
    ways = ["bound", "ours", *(f"ours-{count}" for count in calls), *(f"threads-{count}" for count in counts)]
    took: dict[str, list[Took]] = {way: [] for way in ways}
    for _ in range(repeat):
        for way in ways:
            took[way].append(run_apart(way, library.root, processes))
    speed = {way: [1 / each.seconds for each in took[way]] for way in ways}
    threaded = [way for way in ways if way.startswith("threads")]
    best = max(threaded or ["ours"], key=lambda way: Spread.of(speed[way]).median)
    rows = []
    for way in ways:
        of_bound = Spread.of(own / other for own, other in zip(speed[way], speed["bound"], strict=True))
        of_best = Spread.of(own / other for own, other in zip(speed[way], speed[best], strict=True))
        rates = Spread.of(speed[way])
        is_small = library.library is SMALL
        rows.append(
            {
                "files": library.title if way == "bound" else "",
                "way": way,
                "files/s": rates.median * library.files,
                "GB/s": rates.median * library.size_bytes / 1e9,
                "CPU ms a file": Spread.of(1000 * each.cpu_s / library.files for each in took[way]).median,
                "of the bound": of_bound.median,
                "from": of_bound.smallest,
                "to": of_bound.largest,
                "goal": GOALS.get(library.library.name, "") if way == "ours" else "",
                "of the best threads": of_best.median if counts else "",
                "from ": of_best.smallest if counts else "",
                "to ": of_best.largest if counts else "",
                "goal ": "2 (1.3)" if way == "ours" and is_small else "",
                "opening s": Spread.of(each.opening_s for each in took[way]).median if way == "ours" else "",
            }
        )
    return rows, took


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        **size_options(*LIBRARIES),
        processes=(usable_cores(), "of the pool, and of the bound"),
        threads=(
            ",".join(map(str, THREADS)),
            "how many, each in turns of its own; large files are tried with 2 and 8 of these",
        ),
        calls=("", "files in a call at most, each in turns of its own beside the pool's own number: 1,8,64"),
        repeat=(5, "turns"),
    )
    noise = Noise()
    rows: list[dict[str, object]] = []
    details = {}
    counts, calls = ([int(count) for count in text.split(",") if count] for text in (options.threads, options.calls))
    for library in LIBRARIES:
        if getattr(options, library.option):
            with made(library, getattr(options, library.option), options.dir) as library_made:
                tried = counts if library is SMALL else [count for count in counts if count in (2, 8)]
                more, took = measure(library_made, options.processes, tried, calls, options.repeat)
            rows += more
            details[library.name] = took
    report("probes: files described, beside hashes alone and beside threads", rows, noise, options.json, **details)


if __name__ == "__main__":
    main()
