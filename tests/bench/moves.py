"""A directory full of files is renamed: how soon it is told, and that no byte of any file is read for it.

The directory goes to and fro between two parents. Bytes read are the daemon's own (`rchar` counts the state database,
/proc and all else), less what it reads idle in the same time; opens of files in the library are counted by inotify
(`inotifywait`, from inotify-tools), which is exact, and which is seen to work by one file that is read at the end.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.bench.measure import Noise, Spread, Witness, a_daemon, arguments, bench, bytes_read, cpu_s, report
from tests.data.make_library import make_library

REST_S = 3.0  # the time for which an idle daemon's reading is looked at
DEADLINE_S = 120.0


@contextmanager
def opens(root: Path, into: Path) -> Iterator[Path]:
    """Write the path of each file below a root that anybody opens into a file; directories are left out."""
    with into.open("wb") as stdout, into.with_suffix(".err").open("w+") as stderr:
        command = ["inotifywait", "--monitor", "--recursive", "--event", "open", "--format", "%e %w%f", str(root)]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        try:
            while "Watches established" not in into.with_suffix(".err").read_text():
                assert process.poll() is None, into.with_suffix(".err").read_text()
                time.sleep(0.05)
            yield into
        finally:
            process.terminate()
            process.wait()


def files_opened(into: Path) -> list[str]:
    """Return the files that were opened."""
    return [line for line in into.read_text(errors="replace").splitlines() if "ISDIR" not in line]


def idle_bytes_per_s(daemon: Daemon) -> float:
    """Return what the daemon reads when nothing happens."""
    before = bytes_read(daemon).asked
    time.sleep(REST_S)
    return (bytes_read(daemon).asked - before) / REST_S


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__, files=(10_000, "in the directory"), repeat=(6, "renames"), size=(0, "bytes of a file; 0: tiny")
    )
    noise, rows = Noise(), []
    with bench(options.dir) as folder:
        root = folder / "root"
        here, there = root / "here" / "library", root / "there" / "library"
        for place in (here, there):
            place.parent.mkdir(parents=True)
        make_library(str(here), options.files, size_bytes=options.size or None)
        library_bytes = sum(path.stat().st_size for path in here.rglob("*") if path.is_file())
        with a_daemon(root, folder / "state") as daemon:
            daemon.start(timeout_s=600)
            with Witness(daemon) as witness:
                assert witness.wait_count(options.files, DEADLINE_S), "the import was not told"
                with opens(root, folder / "opens") if shutil.which("inotifywait") else open("/dev/null") as counted:
                    for number in range(options.repeat):
                        idle = idle_bytes_per_s(daemon)
                        read, cpu, told = bytes_read(daemon), cpu_s(daemon), len(witness.told)
                        began_s = time.monotonic()
                        here.rename(there)
                        complete = witness.wait_count(told + options.files, DEADLINE_S)
                        took_s = witness.told[-1].at_s - began_s
                        time.sleep(1.0)  # for what comes after the last event: marks in the outbox
                        used = bytes_read(daemon)
                        events = witness.told[told:]
                        rows.append(
                            {
                                "rename": number + 1,
                                "events": len(events),
                                "moved": sum(event.kind == "moved" for event in events),
                                "complete": complete,
                                "first s": events[0].at_s - began_s if events else float("nan"),
                                "last s": took_s,
                                "events/s": len(events) / took_s,
                                "CPU s": cpu_s(daemon) - cpu,
                                "read MB": (used.asked - read.asked - idle * (time.monotonic() - began_s)) / 1e6,
                                "from disk MB": (used.from_disk - read.from_disk) / 1e6,
                                "files opened": len(files_opened(counted)) if isinstance(counted, Path) else "unknown",
                            }
                        )
                        here, there = there, here
                    if isinstance(counted, Path):
                        next(path for path in here.rglob("*") if path.is_file()).read_bytes()
                        time.sleep(0.5)
                        assert len(files_opened(counted)) == 1, "inotifywait sees what is opened, and only that"
                assert_equal_fold(daemon.events(), root)
            daemon.stop()
    rate = Spread.of(float(str(row["events/s"])) for row in rows)
    report("moves: one rename of a directory", rows, noise, options.json, library_bytes=library_bytes, rate=rate)
    print(f"The library has {library_bytes / 1e6:,.1f} MB. Median {rate.median:,.0f} events/s.")


if __name__ == "__main__":
    main()
