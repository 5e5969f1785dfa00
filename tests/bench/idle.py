"""What a daemon costs when nothing happens, what it keeps in memory, and how soon it watches an unchanged library.

CPU over some time (goal: 0.5 %), memory with an empty root and with all files (goal: 50 KB for 1,000 files), and the
time from the start to "watching" (goal: 3 s for 100,000 files), in turn with `find` over the same tree. Two
memory figures: right after the import, and after a restart, when nothing had to be read.
"""

import os
import subprocess
import time
from pathlib import Path

from tests.bed.daemon import Daemon
from tests.bench.measure import (
    AUDIO,
    Memory,
    Noise,
    Spread,
    a_daemon,
    arguments,
    bench,
    bytes_read,
    cpu_s,
    memory,
    report,
)

ARTIST_DIRECTORIES = 100
REST_S = 5.0  # after "watching", before memory is looked at
IMPORT_DEADLINE_S = 1800.0


def make_tiny_library(root: Path, files: int, per_directory: int) -> None:
    """Write many small files that parse, no two alike, ten thousand and more in a second."""
    base = (AUDIO / "track.mp3").read_bytes()
    name = os.fsencode(root)
    for start in range(0, files, per_directory):
        number = start // per_directory
        directory = b"%b/artist%04d/album%06d" % (name, number // ARTIST_DIRECTORIES, number)
        os.makedirs(directory, exist_ok=True)
        for index in range(start, min(start + per_directory, files)):
            descriptor = os.open(b"%b/%07d.mp3" % (directory, index), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, base + b"%020d" % index)
            os.close(descriptor)


def find_s(root: Path) -> float:
    """Return how long `find` takes to look at every file."""
    began_s = time.monotonic()
    command = ["find", str(root), "-printf", "%p %s %T@ %i\\n"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began_s


def start_s(daemon: Daemon, timeout_s: float = 120.0) -> float:
    """Start the daemon and return how long it takes until it says that it is watching."""
    began_s = time.monotonic()
    daemon.start(timeout_s=timeout_s)
    return time.monotonic() - began_s


def rested_memory(daemon: Daemon) -> Memory:
    """Return the daemon's memory some time after it has begun to watch."""
    time.sleep(REST_S)
    return memory(daemon)


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        files=(100_000, "in the library"),
        per_directory=(10, "files in each directory"),
        seconds=(60, "for which idleness is looked at"),
        repeat=(5, "restarts, in turn with find"),
    )
    noise = Noise()
    with bench(options.dir) as folder:
        root, empty = folder / "root", folder / "empty"
        root.mkdir()
        empty.mkdir()
        make_tiny_library(root, options.files, options.per_directory)
        with a_daemon(empty, folder / "state-empty") as daemon:
            empty_start_s = start_s(daemon)
            without = rested_memory(daemon)
            daemon.stop()
        with a_daemon(root, folder / "state") as daemon:
            import_s = start_s(daemon, IMPORT_DEADLINE_S)
            daemon.wait_until(lambda: daemon.status()[1]["outbox"]["pending"] == 0, 300, "an empty outbox")
            imported = rested_memory(daemon)
            daemon.stop()
            starts: list[float] = []
            finds: list[float] = []
            find_s(root)
            for _ in range(options.repeat):
                finds.append(find_s(root))
                starts.append(start_s(daemon))
                last = len(starts) == options.repeat
                if not last:
                    daemon.stop()
            restarted = rested_memory(daemon)
            cpu, read, began_s = cpu_s(daemon), bytes_read(daemon), time.monotonic()
            time.sleep(options.seconds)
            share = (cpu_s(daemon) - cpu) / (time.monotonic() - began_s)
            idle_read = bytes_read(daemon).asked - read.asked
            settled = memory(daemon)
            daemon.stop()
    thousands = options.files / 1000

    def memory_row(when: str, used: Memory) -> dict[str, object]:
        kb = (used.pss_bytes - without.pss_bytes) / 1000 / thousands
        return {"what": f"memory {when}, KB for 1,000 files", "figure": kb, "goal": 50, "detail": _mb(used)}

    start, find = Spread.of(starts), Spread.of(finds)
    ratio = Spread.of(ours / its for ours, its in zip(starts, finds, strict=True))
    rows: list[dict[str, object]] = [
        {
            "what": f"CPU over {options.seconds} s, %",
            "figure": 100 * share,
            "goal": 0.5,
            "detail": f"{idle_read / options.seconds / 1000:,.1f} KB/s read",
        },
        {"what": "memory with no files, MB", "figure": without.pss_bytes / 1e6, "goal": "", "detail": _mb(without)},
        memory_row("after the import", imported),
        memory_row("after a restart", restarted),
        memory_row("a while later", settled),
        {"what": "start to watching, s", "figure": start.median, "goal": 3, "detail": _range(start)},
        {"what": "find, s", "figure": find.median, "goal": "", "detail": _range(find)},
        {"what": "start / find", "figure": ratio.median, "goal": "", "detail": _range(ratio)},
        {"what": "start with no files, s", "figure": empty_start_s, "goal": "", "detail": ""},
        {"what": "import, files/s", "figure": options.files / import_s, "goal": "", "detail": f"{import_s:.1f} s"},
    ]
    report(f"idle: {options.files:,} files", rows, noise, options.json, starts=starts, finds=finds)


def _mb(used: Memory) -> str:
    return f"PSS {used.pss_bytes / 1e6:.1f} MB, RSS {used.rss_bytes / 1e6:.1f} MB"


def _range(spread: Spread) -> str:
    return f"{spread.smallest:.3g} to {spread.largest:.3g}, {spread.count} times"


if __name__ == "__main__":
    main()
