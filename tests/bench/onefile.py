"""Where the time of one file goes, from its opening to the answer at the daemon: what is left to gain.

In one process, over files in the page cache: what hashing alone takes (both hashes in one pass, nothing else), what the
probe takes, and what of it each step takes. Every figure is the median over some files, each the best of some turns, in
microseconds: what else the machine does is not in it. `rest` is opening, looking at the file before and after, and
closing; `pipe` is packing and unpacking what goes to a worker process and back, without the system calls, which the
files of a call share.
"""

import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tests.bench.measure import Noise, Spread, arguments, report
from tests.bench.probes import BOUND_BUFFER_BYTES, hash_only
from tests.bench.sets import LIBRARIES, SMALL, Made, files, made, size_options
from trackwatch import probe
from trackwatch.probe import BUFFER_BYTES, Request, describe
from trackwatch.track import Observation, suffix_of

# What the probe calls, and what a table calls it. Each is timed with all that it calls itself.
STEPS = {
    "_hash": "hashes",
    "encoded_audio": "finding audio",
    "read_tags": "tags",
    "_writer": "lease",
    "birth_ns": "rest",
}


@contextmanager
def timed(module: Any, names: Sequence[str]) -> Iterator[Mapping[str, float]]:
    """Add up the seconds that are spent in a module's functions, until the end of the scope."""
    spent: defaultdict[str, float] = defaultdict(float)

    def wrap(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            began_s = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[name] += time.perf_counter() - began_s

        return call

    originals = {name: getattr(module, name) for name in names}
    for name, function in originals.items():
        setattr(module, name, wrap(name, function))
    try:
        yield spent
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


def best_us(turns: int, deed: Callable[[], object]) -> float:
    """Return the best time of some turns."""
    taken = []
    for _ in range(turns):
        began_s = time.perf_counter()
        deed()
        taken.append(time.perf_counter() - began_s)
    return min(taken) * 1e6


def steps_of(path: bytes, turns: int) -> dict[str, float]:
    """Return what each step takes of one file, in microseconds."""
    spare, buffer = memoryview(bytearray(BOUND_BUFFER_BYTES)), memoryview(bytearray(BUFFER_BYTES))

    def look() -> Observation:
        seen = describe(path, quiet_s=float("inf"), buffer=buffer)
        assert isinstance(seen, Observation), f"{path!r}: {seen}"
        return seen

    taken = {"bound": best_us(turns, lambda: hash_only(path, spare)), "probe": best_us(turns, look)}
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        with timed(probe, list(STEPS)) as spent:
            look()
        for name in STEPS:
            parts[STEPS[name]].append(spent[name] * 1e6)
    taken |= {name: min(values) for name, values in parts.items()}
    taken["hashes"] -= taken["finding audio"]
    taken["rest"] = taken["probe"] - sum(taken[name] for name in STEPS.values())
    seen, request = look(), Request(path, float("inf"))
    taken["pipe"] = best_us(turns, lambda: pickle.loads(pickle.dumps(request)))
    taken["pipe"] += best_us(turns, lambda: pickle.loads(pickle.dumps(seen)))
    return taken


def rows_of(library: Made, each: int, turns: int) -> list[dict[str, object]]:
    """Return a row for each format in a library, and one for all if there are several."""
    by_format: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for path in files(library.root):
        taken = by_format[suffix_of(path).decode()]
        if len(taken) < each:
            taken.append(steps_of(path, turns))
    kinds = dict(sorted(by_format.items()))
    if len(kinds) > 1:
        kinds["all formats"] = [taken for kind in by_format.values() for taken in kind]
    rows: list[dict[str, object]] = []
    for kind, taken in kinds.items():
        of_kind = Spread.of if kind != "all formats" else _mean
        figures = {name: round(of_kind([one[name] for one in taken]).median, 1) for name in taken[0]}
        row: dict[str, object] = {"file": f"{kind}, {library.library.size_bytes / 1e6:g} MB", **figures}
        row["of the bound"] = figures["bound"] / figures["probe"]
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> Spread:
    return Spread.of([sum(values) / len(values)])


def main() -> None:
    """Measure from the command line."""
    few = {name: (30 if name == SMALL.option else 3, text) for name, (_, text) in size_options(*LIBRARIES).items()}
    options = arguments(__doc__, **few, each=(2, "files of each format"), turns=(50, "of which the best counts"))
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    noise = Noise()
    rows: list[dict[str, object]] = []
    for library in LIBRARIES:
        if getattr(options, library.option):
            with made(library, getattr(options, library.option), options.dir) as library_made:
                rows += rows_of(library_made, options.each, options.turns)
    report("one file: microseconds of each step", rows, noise, options.json)


if __name__ == "__main__":
    main()
