"""A start over an unchanged library: how soon it is watched, and how much memory it takes to know it.

Of each size, in turn: `find ROOT -printf '%p %s %T@ %i'` over the library (in the kernel's cache, after one that does
not count), the daemon from its start to "watching", and a daemon with an empty root. Memory is that of the daemon's
processes together (PSS) some seconds after "watching".
"""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.figures import Figure, Part, in_turn
from tests.bench.measure import Spread, cpu_s, memory
from tests.bench.run import Run
from tests.bench.tellers import OURS, telling

FIND, EMPTY = "find", "trackwatch, empty root"
REST_S = 3.0  # after "watching", before memory is looked at
START_DEADLINE_S = 600.0
TURNS = 5
FIND_LIMIT, FIND_GOAL = 3.0, 1.2
# Of the time there is, for all sizes but the largest, which take less.
SMALLER_SHARE = 0.3


@dataclass(frozen=True)
class Start:
    """What a start took; of `find` only the time is known."""

    seconds: float
    cpu_s: float = 0.0  # until some seconds after it
    pss_bytes: int = 0


def find(root: Path) -> Start:
    """Let `find` look at every file."""
    began_s = time.monotonic()
    command = ["find", str(root), "-printf", "%p %s %T@ %i\\n"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Start(time.monotonic() - began_s)


def start(root: Path, state: Path) -> Start:
    """Start the daemon, and stop it when it has rested."""
    began_s = time.monotonic()
    with telling(OURS, root, "", state) as daemon:
        daemon.wait_watching(START_DEADLINE_S)
        took_s = time.monotonic() - began_s
        time.sleep(REST_S)
        return Start(took_s, cpu_s(daemon.pid), memory(daemon.pid).pss_bytes)


def megabytes(starts: Sequence[Start]) -> list[float]:
    """Return the memory of each."""
    return [each.pss_bytes / 1e6 for each in starts]


def part(run: Run, result: Part) -> None:
    """Measure all sizes."""
    empty, empty_state = run.fresh("empty"), run.fresh("empty-state")
    empty.mkdir()
    rows: list[dict[str, object]] = []
    for sized in run.sized(result):
        run.say(f"restart: {sized.files:,} files")
        find(sized.root)
        if sized.made:  # in an earlier run: what it knows of it need not be in the cache, either
            start(sized.root, sized.state)
        is_last = sized.files == max(run.sizes)
        turns = in_turn(
            {
                FIND: partial(find, sized.root),
                OURS.name: partial(start, sized.root, sized.state),
                EMPTY: partial(start, empty, empty_state),
            },
            run.budget if is_last else run.budget.share(SMALLER_SHARE),
            most=TURNS,
        )
        ours, nothing = turns[OURS.name], turns[EMPTY]
        seconds = {way: [each.seconds for each in taken] for way, taken in turns.items()}
        title = f"{sized.files:,} files"
        result.figures += [
            Figure.of(
                f"{title}, start to watching",
                "s",
                seconds[OURS.name],
                FIND,
                seconds[FIND],
                "less",
                limit=FIND_LIMIT,
                goal=FIND_GOAL,
                question="How soon does a start watch an unchanged library?" if is_last else "",
            ),
            Figure.of(
                f"{title}, start, beyond that with an empty root",
                "s",
                [own - other for own, other in zip(seconds[OURS.name], seconds[EMPTY], strict=True)],
                FIND,
                seconds[FIND],
                "less",
            ),
            Figure.of(
                f"{title}, memory",
                "MB",
                megabytes(ours),
                EMPTY,
                megabytes(nothing),
                "less",
                question="How much memory does a known library take?" if is_last else "",
            ),
        ]
        growth = Spread.of(
            (own.pss_bytes - other.pss_bytes) / sized.files for own, other in zip(ours, nothing, strict=True)
        )
        rows.append(
            {
                "files": sized.files,
                "directories": sized.directories,
                "start s": Spread.of(seconds[OURS.name]).median,
                "find s": Spread.of(seconds[FIND]).median,
                "empty root, start s": Spread.of(seconds[EMPTY]).median,
                "CPU s of a start": Spread.of(each.cpu_s for each in ours).median,
                "memory MB": Spread.of(megabytes(ours)).median,
                "KB for 1,000 files": growth.median,
                "from": growth.smallest,
                "to": growth.largest,
            }
        )
        result.details[str(sized.files)] = turns
    if rows:
        result.tables["Starts, and what a known library takes of memory"] = rows
