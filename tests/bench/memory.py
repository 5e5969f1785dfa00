"""Memory of a first import of many small files, and of another pass over all of them: does anything grow?

Looks at the daemon and at its worker processes each time that so many more files were told. Resident sizes are the
kernel's; the peak of a worker is the largest that any of them ever had. The files are the 15 formats in turn, as small
as they get: the most files, and so the most of whatever is kept for each, in the shortest time. In the second pass
every file has become longer, and is told as modified.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bed.daemon import Daemon
from tests.bench.measure import Noise, Witness, a_daemon, arguments, bench, report
from tests.data.make_library import make_library
from tests.fuzz import Footprints, memory_of, workers_of

MIB = 1 << 20
DEADLINE_S = 900.0


def rows(
    daemon: Daemon, seen: Footprints, witness: Witness, files: int, step: int, what: str
) -> Iterator[dict[str, object]]:
    """Yield a row each time that so many more files were told."""
    before = len(witness.told)
    for count in range(step, files + 1, step):
        if not witness.wait_count(before + count, DEADLINE_S):
            raise SystemExit(f"{len(witness.told) - before:,} of {files:,} were told in {DEADLINE_S:g} s")
        workers = [memory_of(worker).get("VmRSS", 0) for worker in workers_of(daemon.pid)]
        own = memory_of(daemon.pid)
        yield {
            what: len(witness.told) - before,
            "daemon MB": own["VmRSS"] / MIB,
            "daemon peak MB": own["VmHWM"] / MIB,
            "workers": len(workers),
            "largest worker MB": max(workers, default=0) / MIB,
            "worker peak MB": seen.worker_bytes / MIB,
            "all MB": (own["VmRSS"] + sum(workers)) / MIB,
        }


def make_longer(root: Path) -> None:
    """Append to every file, at once for those who are not watching closely."""
    for directory, _, names in os.walk(os.fsencode(root)):
        for name in names:
            with open(os.path.join(directory, name), "ab") as file:
                file.write(b"longer")


def main() -> None:
    """Import, change everything, and print what was seen."""
    options = arguments(__doc__, files=(50_000, "so many"), step=(5_000, "files from one look to the next"))
    noise = Noise()
    with bench(options.dir) as folder:
        root = folder / "music"
        make_library(str(root), options.files)
        time.sleep(3.5)  # a sweep takes them for settled then
        seen = Footprints()
        with a_daemon(root, folder / "state", args=["--to", "-"]) as daemon, seen:
            daemon.start(wait=False)
            seen.daemon = daemon
            with Witness(daemon) as witness:
                imported = list(rows(daemon, seen, witness, options.files, options.step, "imported"))
                daemon.wait_until(daemon.is_ready, DEADLINE_S, "to be watching")
                make_longer(root)
                changed = list(rows(daemon, seen, witness, options.files, options.step, "modified"))
            daemon.stop()
        report("memory of an import", imported, noise, options.json, worker_processes=len(seen.workers))
        report("memory of a pass in which all are modified", changed, noise, None)
        print(f"{len(seen.workers)} worker processes in all.")


if __name__ == "__main__":
    main()
