"""What it costs to watch a library in which nothing happens, beside a bare watchfiles loop and a bare watchdog loop.

Of each size: the daemon, which knows the library, and the two loops (`tests/bench/peers/`), which know nothing and tell
nobody, watch the same tree side by side; all of them rest, so none disturbs another. CPU is counted by the kernel to
the nanosecond, in slices that are as long as the interval in which the daemon writes its status; memory is PSS. In
these seconds the daemon does not sweep: what a sweep of each interval adds is bounded by what a start costs, and is in
the table if the part `restart` has run.
"""

import time
from contextlib import ExitStack

from tests.bench.figures import Figure, Part
from tests.bench.measure import Spread, bytes_read, memory, running_s
from tests.bench.restart import EMPTY, START_DEADLINE_S
from tests.bench.run import Run, Sized
from tests.bench.tellers import BARE, OURS, telling
from trackwatch.settings import load

SLICE_S = 10.0
REST_S = 3.0
SLICES = 6
CORE_GOAL = 0.005  # of one core


def measure(run: Run, sized: Sized, seconds: float, slice_s: float, result: Part) -> dict[str, object]:
    """Let all watch for a while; return the table's row."""
    watchers = [OURS, *(each for each in BARE if not each.missing)]
    shares: dict[str, list[float]] = {each.name: [] for each in watchers}
    megabytes: dict[str, list[float]] = {each.name: [] for each in watchers}
    with ExitStack() as stack:
        pids = {}
        for each in watchers:
            state = run.fresh("watcher") if each.module else sized.state
            running = stack.enter_context(telling(each, sized.root, "", state))
            running.wait_watching(START_DEADLINE_S)
            pids[each.name] = running.pid
        time.sleep(REST_S)
        read_bytes, end_s = bytes_read(pids[OURS.name]).asked, time.monotonic() + seconds
        began_s = time.monotonic()
        while len(shares[OURS.name]) < 2 or time.monotonic() + slice_s <= end_s:
            before = {name: (time.monotonic(), running_s(pid)) for name, pid in pids.items()}
            time.sleep(slice_s)
            for name, pid in pids.items():
                at_s, spent_s = before[name]
                shares[name].append((running_s(pid) - spent_s) / (time.monotonic() - at_s))
                megabytes[name].append(memory(pid).pss_bytes / 1e6)
        read_bytes = bytes_read(pids[OURS.name]).asked - read_bytes
        took_s = time.monotonic() - began_s
    title = f"{sized.files:,} files"
    percent = {name: [100 * share for share in values] for name, values in shares.items()}
    whole_core = [100.0] * len(percent[OURS.name])
    result.figures.append(
        Figure.of(f"{title}, CPU", "%", percent[OURS.name], "one core", whole_core, "less", goal=CORE_GOAL)
    )
    for each in BARE:
        if each.missing:
            result.figures.append(Figure.not_measured(f"{title}, beside {each.name}", each.missing))
            continue
        result.figures += [
            Figure.of(f"{title}, CPU", "%", percent[OURS.name], each.name, percent[each.name], "less"),
            Figure.of(f"{title}, memory", "MB", megabytes[OURS.name], each.name, megabytes[each.name], "less"),
        ]
    result.details[str(sized.files)] = {"cpu_shares": shares, "pss_megabytes": megabytes}
    row: dict[str, object] = {"files": sized.files, "slices": len(whole_core)}
    for name in percent:
        row[f"{name}, CPU %"] = Spread.of(percent[name]).median
        row[f"{name}, MB"] = Spread.of(megabytes[name]).median
    row["KB/s read"] = read_bytes / took_s / 1000
    row["with sweeps, CPU %, at most"] = _with_sweeps(run, sized, Spread.of(percent[OURS.name]).median)
    return row


def _with_sweeps(run: Run, sized: Sized, percent: float) -> object:
    """Return the CPU with one sweep in each interval, taken to cost as much as a start beyond that of an empty root."""
    turns = run.parts["restart"].details.get(str(sized.files)) if "restart" in run.parts else None
    if turns is None:
        return "unknown"
    start, empty = (Spread.of(each.cpu_s for each in turns[way]).median for way in (OURS.name, EMPTY))
    return percent + 100 * max(0.0, start - empty) / load(roots=[str(sized.root)], to="-").sweep_s


def part(run: Run, result: Part, slice_s: float = SLICE_S) -> None:
    """Measure all sizes."""
    rows = []
    for number, sized in enumerate(run.sized(result)):
        seconds = min(SLICES * slice_s, run.budget.share(1 / (len(run.sizes) - number)).left_s - 2 * REST_S)
        run.say(f"idle: {sized.files:,} files, {max(2 * slice_s, seconds):.0f} s")
        rows.append(measure(run, sized, seconds, slice_s, result))
    if rows:
        result.tables["Watching while nothing happens"] = rows
