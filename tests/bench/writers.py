"""Kinds of writers against a running daemon: is each file told once it is finished, never before, and how soon.

For each kind: events of its final path, premature ones (with a hash that is not that of the final content; they must be
0), files that were not told, and the time from the last close (or rename) to the event's line on standard output. Once
where the lease tells that nobody writes any more (goal: 400 ms), and once where it cannot (the daemon has no powers and
the files are somebody else's: 2 s of quiet are waited for).

The kinds run mixed, a few at the same time, in an order that the seed decides. Where another program writes, its last
act is taken from the file's ctime, which is up to one tick of the kernel too early.
"""

import mmap
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mutagen

from tests.bench.measure import AUDIO, Noise, Spread, Witness, a_daemon, arguments, bench, digest, report

OTHER_USER = 12345
STALL_MAX_S = 1.5
CHUNKS = 5
REOPEN_S = 0.12
# What is told after the final content would be too much.
AFTERWARDS_S = 3.0
TAGGED = ("flac", "mp3", "m4a", "ogg", "opus")  # what mutagen's plain interface writes tags into


@dataclass(frozen=True)
class Writer:
    """One file to be written: where to, from what, by whom."""

    target: Path
    source: Path
    pace: random.Random
    user: int | None

    def stall(self) -> None:
        """Wait as a slow source makes one wait."""
        time.sleep(self.pace.uniform(0.05, STALL_MAX_S))

    def open(self, path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> int:
        """Open a file for writing, as the user that it shall belong to."""
        descriptor = os.open(path, flags, 0o644)
        if self.user is not None:
            os.fchown(descriptor, self.user, self.user)
        return descriptor

    def chunks(self) -> list[bytes]:
        """Return what is to be written, in parts."""
        data = self.source.read_bytes()
        step = -(-len(data) // CHUNKS)
        return [data[start : start + step] for start in range(0, len(data), step)]

    def slowly(self, path: Path) -> float:
        """Write the file part by part, kept open all the time; return when it was closed."""
        descriptor = self.open(path)
        for number, chunk in enumerate(self.chunks()):
            if number:
                self.stall()
            os.write(descriptor, chunk)
        os.close(descriptor)
        return time.monotonic()

    def run(self, *command: str) -> float:
        """Run a program that writes the file; return when it touched it last."""
        subprocess.run(command, check=True, user=self.user, group=self.user, extra_groups=[] if self.user else None)
        return self.target.stat().st_ctime - time.time() + time.monotonic()

    def renamed(self, path: Path) -> float:
        """Give a file its final name; return when."""
        path.replace(self.target)
        return time.monotonic()


def cp(it: Writer) -> float:
    """Copy as fast as it goes."""
    return it.run("cp", str(it.source), str(it.target))


def cp_p(it: Writer) -> float:
    """Copy, then give it the old modification time."""
    return it.run("cp", "-p", str(it.source), str(it.target))


def slow_copy(it: Writer) -> float:
    """Copy with stalls, the file open all the time."""
    return it.slowly(it.target)


def rsync_like(it: Writer) -> float:
    """Write under rsync's kind of temporary name, then rename."""
    hidden = it.target.with_name(f".{it.target.name}.a1B2c3")
    it.slowly(hidden)
    return it.renamed(hidden)


def rsync(it: Writer) -> float:
    """Run the real one, over a file that is there."""
    return it.run("rsync", "--times", "--ignore-times", str(it.source), str(it.target))


def tag_in_place(it: Writer) -> float:
    """Change a tag in the file itself."""
    _tag(it.target, it.pace)
    return time.monotonic()


def tag_replacing(it: Writer) -> float:
    """Change a tag in a copy beside it, then rename it over."""
    beside = it.target.with_name(f"~{it.target.name}")
    shutil.copyfile(it.target, beside)
    if it.user is not None:
        os.chown(beside, it.user, it.user)
    _tag(beside, it.pace)
    return it.renamed(beside)


def downloader(it: Writer) -> float:
    """Write a `.part` with stalls, then rename."""
    part = it.target.with_name(it.target.name + ".part")
    it.slowly(part)
    return it.renamed(part)


def appender(it: Writer) -> float:
    """Append, and open anew each time."""
    for number, chunk in enumerate(it.chunks() + [b"end"] * CHUNKS):
        if number:
            time.sleep(REOPEN_S)
        descriptor = it.open(it.target, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, chunk)
        os.close(descriptor)
    return time.monotonic()


def preallocating(it: Writer) -> float:
    """Take the whole room first, then fill it with stalls."""
    descriptor = it.open(it.target)
    os.posix_fallocate(descriptor, 0, it.source.stat().st_size)
    offset = 0
    for chunk in it.chunks():
        it.stall()
        offset += os.pwrite(descriptor, chunk, offset)
    os.close(descriptor)
    return time.monotonic()


def mapped(it: Writer) -> float:
    """Write through a shared mapping, whose stores no notification tells, with the descriptor closed."""
    descriptor = it.open(it.target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    size_bytes = it.source.stat().st_size
    os.ftruncate(descriptor, size_bytes)
    with mmap.mmap(descriptor, size_bytes) as memory:
        os.close(descriptor)
        offset = 0
        for chunk in it.chunks():
            it.stall()
            memory[offset : offset + len(chunk)] = chunk
            offset += len(chunk)
    return time.monotonic()


def _tag(path: Path, pace: random.Random) -> None:
    file = mutagen.File(path, easy=True)
    assert file is not None
    if file.tags is None:
        file.add_tags()
    file["title"] = [f"title {pace.random()}"]
    file.save()


KINDS: tuple[Callable[[Writer], float], ...] = (
    cp, slow_copy, rsync_like, rsync, cp_p, tag_in_place, tag_replacing, downloader, appender, preallocating, mapped,
)  # fmt: skip
OVER_EXISTING = (rsync, tag_in_place, tag_replacing)


@dataclass(frozen=True)
class Outcome:
    """What was told of one file."""

    kind: str
    events: int
    premature: int
    ended_s: float  # monotonic clock
    latency_s: float | None  # None: not told in time


def measure(folder: Path, *, lease: bool, repeat: int, parallel: int, size_bytes: int, seed: int) -> list[Outcome]:
    """Let all kinds write, with the lease or without, and return what came of each file."""
    place = random.Random(seed)
    root, sources = folder / f"root-{lease}", folder / f"sources-{lease}"
    user = None if lease else OTHER_USER
    kinds = [kind for kind in KINDS if kind is not rsync or shutil.which("rsync")]
    for each in (root, sources):
        each.mkdir()
        if user is not None:
            os.chown(each, user, user)
    tasks: list[tuple[Callable[[Writer], float], Writer]] = []
    for kind in kinds:
        for number in range(repeat):
            suffix = TAGGED[number % len(TAGGED)]
            source = sources / f"{kind.__name__}-{number}.{suffix}"
            base = (AUDIO / f"track.{suffix}").read_bytes()
            tail = place.randbytes(max(16, size_bytes - len(base))) if suffix in ("flac", "mp3") else b""
            source.write_bytes(base + tail if tail or kind in OVER_EXISTING else base + place.randbytes(size_bytes))
            os.utime(source, (1_000_000_000, 1_000_000_000 + number))
            target = root / source.name
            if kind in OVER_EXISTING:
                shutil.copyfile(source, target)
                if kind is rsync:
                    with target.open("ab") as file:
                        file.write(b"before")
                if user is not None:
                    os.chown(target, user, user)
            tasks.append((kind, Writer(target, source, random.Random(place.random()), user)))
    place.shuffle(tasks)
    with a_daemon(root, folder / f"state-{lease}", unprivileged=not lease) as daemon:
        daemon.start()
        with Witness(daemon) as witness, ThreadPoolExecutor(parallel) as pool:

            def do(task: tuple[Callable[[Writer], float], Writer]) -> tuple[str, str, str, float, float, float | None]:
                kind, writer = task
                began_s = time.monotonic()
                ended_s = kind(writer)
                final, path = digest(writer.target), str(writer.target)
                told = witness.wait_for(path, final, began_s)
                return kind.__name__, path, final, began_s, ended_s, told and told.at_s - ended_s

            done = list(pool.map(do, tasks))
            time.sleep(AFTERWARDS_S)
            outcomes = []
            for name, path, final, began_s, ended_s, latency_s in done:
                events = witness.of(path, began_s)
                premature = sum(event.sha256 != final for event in events)
                outcomes.append(Outcome(name, len(events), premature, ended_s, latency_s))
        daemon.stop()
    return outcomes


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        repeat=(20, "files of each kind"),
        parallel=(4, "writers at the same time"),
        size=(1_000_000, "bytes of a file"),
        seed=(0, "for order, content and stalls"),
        without_lease=(False, "only where the lease cannot tell"),
        with_lease=(False, "only where the lease works"),
    )
    noise, rows = Noise(), []
    each: dict[str, list[Outcome]] = {}
    with bench(options.dir) as folder:
        for lease in (True, False):
            if options.without_lease if lease else options.with_lease:
                continue
            outcomes = measure(
                folder,
                lease=lease,
                repeat=options.repeat,
                parallel=options.parallel,
                size_bytes=options.size,
                seed=options.seed,
            )
            each["lease" if lease else "no lease"] = outcomes
            for name in dict.fromkeys(kind.__name__ for kind in KINDS):
                of_kind = [outcome for outcome in outcomes if outcome.kind == name]
                if not of_kind:
                    continue  # rsync is not installed
                spread = Spread.of(o.latency_s for o in of_kind if o.latency_s is not None).scaled(1000)
                rows.append(
                    {
                        "writer": name.replace("cp_p", "cp -p").replace("_", " "),
                        "lease": "yes" if lease else "no",
                        "files": len(of_kind),
                        "events": sum(outcome.events for outcome in of_kind),
                        "premature": sum(outcome.premature for outcome in of_kind),
                        "not told": sum(outcome.latency_s is None for outcome in of_kind),
                        "median ms": spread.median,
                        "p95 ms": spread.p95,
                        "largest ms": spread.largest,
                    }
                )
    report("writers: last close to the event's line", rows, noise, options.json, each=each)


if __name__ == "__main__":
    main()
