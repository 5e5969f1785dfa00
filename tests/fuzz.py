"""The fuzz of describing: damaged and crafted files in a real daemon's library, for as long as one likes.

`make fuzz SECONDS=600 [SEED=7]`. In each round some hundred damaged files come into the library beside sound ones, and
one that was crafted to hurt: moved in as a directory, written where it is watched, or found at a start. Every file must
be told once, with the hashes of its bytes, and with metadata or with why there are none; no worker process may take
more memory or processor time than it is allowed to, the daemon must stay as it was, and the files beside a crafted one
must not wait for it. Anything else ends it with exit code 1, and keeps the folders. The seed decides all files.

Mutagen, asked again here about every damaged file, is the second opinion: what it reads must have metadata. What it
does not read may have them, for trackwatch has readers of its own as well; how often is counted.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash
from mutagen.aac import AAC
from mutagen.asf import ASF
from mutagen.flac import FLAC
from mutagen.mp3 import MP3
from mutagen.mp4 import MP4
from mutagen.oggflac import OggFLAC
from mutagen.oggopus import OggOpus
from mutagen.oggspeex import OggSpeex
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from tests.bed.daemon import Daemon
from tests.data.hostile import CRAFTED, Crafted, Made, damaged, sound_files, write
from tests.soak import RunningFold
from trackwatch.pool import CALL_FILES
from trackwatch.probe import ADDRESS_SPACE_BYTES, PARSE_KILL_CPU_S

DAMAGED_FILES, SOUND_FILES = 300, 30  # of a round
ROUNDS = 25  # of a library; then a new daemon begins with an empty one
# None of these is a promise: they end a run that has come to a halt.
TOLD_DEADLINE_S, START_DEADLINE_S = 300.0, 60.0
LOOK_S, SAMPLE_S = 0.05, 0.02
# A file may end its process twice before its tags are left alone; the rest is for hashing, and for those beside it.
FILE_CPU_MAX_S = 3 * PARSE_KILL_CPU_S
# A crafted file that takes so much: all others must be told before it, but for those that a process was given with it.
LONG_CPU_S = 5.0
DAEMON_MAX_BYTES = 192 << 20  # nothing of what is in a file belongs into the daemon, so it never becomes large
REASON_MAX = 250  # characters
MIB = 1 << 20

LIMITS = {
    "memory": re.compile("need more than .* MB"),
    "time": re.compile("take more than .* s to read"),
    "killed": re.compile("ended the process"),
}
READERS: dict[str, Callable[[io.BytesIO], object]] = {
    "audio/aac": AAC,
    "audio/flac": FLAC,
    "audio/mp4": MP4,
    "audio/mpeg": MP3,
    "audio/ogg; codecs=flac": OggFLAC,
    "audio/ogg; codecs=opus": OggOpus,
    "audio/ogg; codecs=speex": OggSpeex,
    "audio/ogg; codecs=vorbis": OggVorbis,
    "audio/wav": WAVE,
    "audio/x-ms-wma": ASF,
}
PARSED_AS = re.compile(r"cannot be parsed as (audio/[a-z0-9.-]+(?:; codecs=[a-z]+)?): ")


class Problem(AssertionError):
    """The fuzz has found something."""


class Footprints:
    """What the daemon and its worker processes take, looked at again and again. A context manager.

    A peak of memory is the kernel's own, so none is missed but that of a process' last 20 ms.
    """

    def __init__(self) -> None:
        self.daemon: Daemon | None = None  # which one to look at
        self.daemon_bytes = 0  # the largest resident size of any start
        self.worker_bytes = 0  # the same, of any worker process
        self.worker_address_bytes = 0  # the largest address space of one
        self.workers: dict[int, float] = {}  # processor seconds by process id
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="footprints", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """The processor time of all worker processes so far."""
        return sum(self.workers.copy().values())

    def _watch(self) -> None:
        while not self._closing.wait(SAMPLE_S):
            daemon = self.daemon
            with contextlib.suppress(AssertionError, OSError):  # between two starts
                if daemon is None:
                    continue
                pid = daemon.pid
                self.daemon_bytes = max(self.daemon_bytes, memory_of(pid).get("VmHWM", 0))
                for worker in workers_of(pid):
                    found = memory_of(worker)
                    self.worker_bytes = max(self.worker_bytes, found.get("VmHWM", 0))
                    self.worker_address_bytes = max(self.worker_address_bytes, found.get("VmPeak", 0))
                    self.workers[worker] = max(self.workers.get(worker, 0.0), cpu_s_of(worker))


def workers_of(pid: int) -> list[int]:
    """Return the ids of a daemon's worker processes.

    A moment ago each was a copy of the daemon, and as large: it is none before it runs a program of its own.
    """
    children: list[str] = []
    with contextlib.suppress(OSError):  # it may end while we look
        for task in os.listdir(f"/proc/{pid}/task"):
            children += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in command_of(child)]


def command_of(pid: str) -> bytes:
    """Return the command line of a process, nothing if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def memory_of(pid: int) -> dict[str, int]:
    """Return the sizes of a process in bytes, by the kernel's names; empty if it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}
    return {}


def cpu_s_of(pid: int) -> float:
    """Return the processor time of a process so far."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass(frozen=True)
class Suffered:
    """What became of a crafted file."""

    name: str
    size_bytes: int
    outcome: str
    reason: str
    seconds: float  # from its coming to its event
    cpu_s: float  # of all worker processes meanwhile
    others: int  # files that came with it
    others_later: int  # of them, told after it
    others_s: float  # the longest wait of one of them


@dataclass
class Round:
    """Files that come at the same time."""

    directory: Path
    files: dict[str, Made] = field(default_factory=dict)  # by absolute path
    crafted: Crafted | None = None
    crafted_path: str = ""


class Fuzz:
    """The folders, the daemon, the rounds and the counts. A context manager; it keeps the folders if it failed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="trackwatch-fuzz-"))
        self.footprints = Footprints()
        self.outcomes: dict[str, Counter[str]] = {}  # by kind of file
        self.suffered: list[Suffered] = []
        self.lenient: Counter[str] = Counter()  # files that mutagen does not read and trackwatch does, by format
        self.deaths = 0
        self.daemon_bytes: list[int] = []  # after each round
        self.slowest_s = 0.0
        self.seconds = 0.0
        self.problems: list[str] = []
        self._number = 0
        # Of one library.
        self.root: Path
        self.outside: Path
        self.daemon: Daemon | None = None
        self.fold: RunningFold
        self._told: dict[str, Any] = {}  # what has come, by path
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.daemon is not None:
            self.daemon.close()
        if not self.problems and error is None:
            shutil.rmtree(self.folder)

    # --- its course ---

    def run(self, seconds: float, crafted: Sequence[Crafted], *, damaged_files: int = DAMAGED_FILES) -> None:
        """Let all crafted files come, one in each round, and go on with damaged ones until the time is over.

        Raises:
            AssertionError: something is wrong; it is in `problems` as well
        """
        began_s = time.monotonic()
        waiting = list(crafted)
        try:
            with self.footprints:
                while waiting or time.monotonic() - began_s < seconds:
                    self._begin()
                    for _ in range(ROUNDS):
                        self._round(waiting.pop(0) if waiting else None, damaged_files)
                        if not waiting and time.monotonic() - began_s >= seconds:
                            break
                    self._end()
            self._check_limits()
        except AssertionError as error:
            self.problems.append(str(error))
            raise
        finally:
            self.seconds = time.monotonic() - began_s
        if self.problems:
            raise Problem("\n".join(self.problems))

    def _begin(self) -> None:
        """Start a new daemon on an empty library."""
        place = self.folder / f"from round {self._number + 1}"
        self.root, self.outside = place / "music", place / "outside"
        for directory in (place, self.root, self.outside):
            directory.mkdir()
        # Limits are measured here, and coverage would need a part of them.
        self.daemon = Daemon(
            self.root, place / "state", env={"TRACKWATCH_LOG_FORMAT": "json"}, args=["--to", "-"], measured=False
        )
        self.footprints.daemon = self.daemon
        self.fold = RunningFold(self.daemon)
        self._told, self._read = {}, 0
        self.daemon.start(timeout_s=START_DEADLINE_S)

    def _end(self) -> None:
        """See to it that the daemon is well, and end it; the library goes, if nothing was wrong."""
        self.fold.wait_equal([self.root], TOLD_DEADLINE_S)
        code, status = self.running.status()
        self.check(code == 0, f"status ends with {code}: {json.dumps(status)[:2000]}")
        self._stop()
        if not self.problems:
            shutil.rmtree(self.root.parent)

    @property
    def running(self) -> Daemon:
        """The daemon."""
        assert self.daemon is not None
        return self.daemon

    def _round(self, crafted: Crafted | None, damaged_files: int) -> None:
        self._number += 1
        new = Round(self.root / f"round {self._number}", crafted=crafted)
        files = [*(damaged(self.random) for _ in range(damaged_files)), *self.random.sample(sound_files(), SOUND_FILES)]
        self.random.shuffle(files)
        named = [(f"{number} {file.kind}.{file.suffix}", file) for number, file in enumerate(files)]
        if crafted is not None:
            say(f"round {self._number}: {crafted.name}")
            name = f"{crafted.name}.{crafted.suffix}"
            new.crafted_path = str(new.directory / name)
            file = Made("crafted", crafted.suffix, crafted.make())
            named.insert(self.random.randrange(len(named) + 1), (name, file))
        new.files = {str(new.directory / name): file for name, file in named}
        come = self.random.choice((self._move_in, self._write, self._found_at_start))
        began_s, cpu_s = time.time(), self.footprints.cpu_s
        come(new)
        self._wait_told(new)
        for path, file in new.files.items():
            self._judge(path, file, crafted if path == new.crafted_path else None)
            if path != new.crafted_path:
                self.slowest_s = max(self.slowest_s, told_at_s(self._told[path]) - began_s)
        if crafted is not None:
            self._judge_crafted(new, crafted, began_s, self.footprints.cpu_s - cpu_s)
            os.unlink(new.crafted_path)  # it may be large
        self.daemon_bytes.append(memory_of(self.running.pid).get("VmRSS", 0))

    # --- how files come ---

    def _move_in(self, new: Round) -> None:
        self._make(new).rename(new.directory)

    def _write(self, new: Round) -> None:
        new.directory.mkdir()
        for path, file in new.files.items():
            write(path, file.content)

    def _found_at_start(self, new: Round) -> None:
        self._stop()
        self._make(new).rename(new.directory)
        self.running.start(wait=False)

    def _make(self, new: Round) -> Path:
        directory = self.outside / new.directory.name
        directory.mkdir()
        for path, file in new.files.items():
            (directory / os.path.basename(path)).write_bytes(file.content)
        return directory

    def _stop(self) -> None:
        code = self.running.stop()
        self.check(code == 0, f"the daemon has ended with exit code {code}: {self.running.stderr()[-2000:]}")
        self._read_log()
        self.fold.read()

    # --- what must be so ---

    def check(self, is_so: bool, problem: str) -> None:
        """Note a problem, and go on: there may be others of another kind."""
        if not is_so:
            self.problems.append(problem)
            say(f"FAILED: {problem}")

    def _wait_told(self, new: Round) -> None:
        deadline_s = time.monotonic() + TOLD_DEADLINE_S
        while True:
            is_running = self.running.running
            self.fold.read()
            for body in self.fold.events[self._read :]:
                if body["event_type"] in ("deleted", "modified"):
                    self.check(body["event_type"] == "deleted", f"{body['file_path']}: modified by nobody")
                else:  # one that has the bytes of another that was removed a moment ago has moved
                    self._told[body["file_path"]] = body
            self._read = len(self.fold.events)
            missing = [path for path in new.files if path not in self._told]
            if not missing:
                return
            if not is_running or time.monotonic() > deadline_s:
                state = "not told in time" if is_running else f"the daemon has ended ({self.running.exit_code})"
                said = self.running.stderr()[-2000:]
                raise Problem(f"{state}: {len(missing)} files, {missing[0]!r} among them; {said}")
            time.sleep(LOOK_S)

    def _judge(self, path: str, file: Made, crafted: Crafted | None) -> None:
        """Look at the one event of a file."""
        event, found = self._told[path], len(self.problems)
        metadata, error = event["metadata"], event["metadata_error"]
        self.outcomes.setdefault(file.kind, Counter())[outcome_of(event)] += 1
        hashes = (event["sha256_hash"], event["xxh128_hash"], event["size_bytes"])
        own = (hashlib.sha256(file.content).hexdigest(), xxhash.xxh3_128_hexdigest(file.content), len(file.content))
        self.check(hashes == own, f"{path}: told {hashes}, and its bytes have {own}")
        self.check((metadata is None) != (error is None), f"{path}: metadata {metadata}, metadata_error {error!r}")
        if error is not None:
            is_line = bool(error.strip()) and error.isprintable() and len(error) <= REASON_MAX
            self.check(is_line, f"{path}: no short line: {error!r}")
            self.check(file.kind not in ("fixture", "variant"), f"{path}: nothing is wrong with it: {error}")
        if crafted is not None:
            is_as_expected = crafted.is_readable is None or crafted.is_readable == (error is None)
            self.check(is_as_expected, f"{path}: {error or metadata}")
        else:
            self._ask_mutagen(path, file, metadata, error)
        if len(self.problems) > found:
            (self.folder / "found").mkdir(exist_ok=True)
            (self.folder / "found" / os.path.basename(path)).write_bytes(file.content)

    def _ask_mutagen(self, path: str, file: Made, metadata: Any, error: str | None) -> None:
        tried = PARSED_AS.match(error or "")
        parsed_as = metadata["format"] if metadata else tried[1] if tried else ""
        if parsed_as not in READERS:
            return  # nothing was found that could be asked about
        try:
            READERS[parsed_as](io.BytesIO(file.content))
        except Exception:  # what mutagen raises may be anything
            self.lenient[parsed_as] += metadata is not None
        else:
            self.check(error is None, f"{path}: mutagen reads it, and trackwatch says {error!r}")

    def _judge_crafted(self, new: Round, crafted: Crafted, began_s: float, cpu_s: float) -> None:
        event = self._told[new.crafted_path]
        others = [self._told[path] for path in new.files if path != new.crafted_path]
        suffered = Suffered(
            name=crafted.name,
            size_bytes=len(new.files[new.crafted_path].content),
            outcome=outcome_of(event),
            reason=event["metadata_error"] or "",
            seconds=told_at_s(event) - began_s,
            cpu_s=cpu_s,
            others=len(others),
            others_later=sum(other["sequence"] > event["sequence"] for other in others),
            others_s=max((told_at_s(other) - began_s for other in others), default=0.0),
        )
        self.suffered.append(suffered)
        self.check(cpu_s <= FILE_CPU_MAX_S, f"{crafted.name}: took {cpu_s:.1f} s of processor time")
        self.check(
            cpu_s < LONG_CPU_S or suffered.others_later <= CALL_FILES,
            f"{crafted.name}: {suffered.others_later} of {suffered.others} files beside it waited for it",
        )

    def _check_limits(self) -> None:
        seen = self.footprints
        self.check(bool(seen.workers), "no worker process was seen")
        self.check(
            seen.worker_address_bytes <= ADDRESS_SPACE_BYTES,
            f"a worker process has taken {seen.worker_address_bytes / MIB:.0f} MB of address space",
        )
        self.check(
            seen.daemon_bytes <= DAEMON_MAX_BYTES, f"the daemon has taken {seen.daemon_bytes / MIB:.0f} MB of memory"
        )

    def _read_log(self) -> None:
        """Count the files that have ended a process, by this start's log, which is for people: no tracebacks there."""
        said = self.running.stderr()
        for line in map(json.loads, said.splitlines()):
            if line["event"] == "file ended its process":
                self.deaths += 1 + line.get("held_back", 0)
        self.check("Traceback" not in said, f"the log has a traceback: {said[said.find('Traceback') :][:2000]}")

    # --- its result ---

    def summary(self) -> dict[str, Any]:
        """Return all figures."""
        total: Counter[str] = sum(self.outcomes.values(), Counter())
        return {
            "seconds": round(self.seconds),
            "seed": self.seed,
            "rounds": self._number,
            "files": total.total(),
            "outcomes": dict(total),
            "by_kind": {kind: dict(counts) for kind, counts in sorted(self.outcomes.items())},
            "crafted": [asdict(suffered) for suffered in self.suffered],
            "read_by_us_alone": dict(self.lenient),
            "files_that_ended_processes": self.deaths,
            "worker_processes": len(self.footprints.workers),
            "peak_mb": {
                "daemon": round(self.footprints.daemon_bytes / MIB),
                "worker": round(self.footprints.worker_bytes / MIB),
                "worker_address_space": round(self.footprints.worker_address_bytes / MIB),
            },
            "daemon_mb_after_rounds": [round(size / MIB) for size in self.daemon_bytes],
            "slowest_other_s": round(self.slowest_s, 2),
            "problems": self.problems,
        }


def outcome_of(event: Mapping[str, Any]) -> str:
    """Return how the description of a file has ended: with metadata, without, or at which limit."""
    error = event["metadata_error"]
    if error is None:
        return "metadata"
    return next((limit for limit, pattern in LIMITS.items() if pattern.search(error)), "metadata_error")


def told_at_s(event: Mapping[str, Any]) -> float:
    """Return when an event was made, by the wall clock."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def summary_line(figures: Mapping[str, Any]) -> str:
    """Return the figures in one line, for people."""
    outcomes = " · ".join(f"{name} {count:,}" for name, count in sorted(figures["outcomes"].items()))
    peak = figures["peak_mb"]
    return (
        f"seconds {figures['seconds']} · seed {figures['seed']} · rounds {figures['rounds']}"
        f" · files {figures['files']:,} · {outcomes}"
        f" · files that ended processes {figures['files_that_ended_processes']}"
        f" · worker processes {figures['worker_processes']} · peak MB: daemon {peak['daemon']}, worker {peak['worker']}"
        f" (address space {peak['worker_address_space']} of {ADDRESS_SPACE_BYTES >> 20})"
        f" · slowest file beside {figures['slowest_other_s']} s · problems {len(figures['problems'])}"
    )


def tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of each kind of file, and of each crafted one, as Markdown."""
    columns = ["metadata", "metadata_error", *LIMITS]
    yield "| files | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for kind, counts in figures["by_kind"].items():
        yield f"| {kind} | " + " | ".join(str(counts.get(column, 0)) for column in columns) + " |"
    if figures["crafted"]:
        yield ""
        yield "| crafted | MB | outcome | s to its event | CPU s | others told after it | longest wait of others, s |"
        yield "|---|---|---|---|---|---|---|"
        for row in figures["crafted"]:
            outcome = row["outcome"] + (f": {row['reason']}" if row["reason"] else "")
            yield (
                f"| {row['name']} | {row['size_bytes'] / 1e6:.1f} | {outcome.replace('|', '/')} | {row['seconds']:.1f}"
                f" | {row['cpu_s']:.1f} | {row['others_later']} of {row['others']} | {row['others_s']:.1f} |"
            )


def say(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description="damaged and crafted files in the library of a real daemon")
    parser.add_argument("--seconds", metavar="S", type=float, default=600)
    parser.add_argument("--seed", metavar="N", type=int, default=None, help="the same files again")
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="this crafted file alone")
    parser.add_argument("--json", metavar="FILE", help="write all figures there as well")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(CRAFTED):
        parser.error(f"no such file: {', '.join(sorted(unknown))}; there are: {', '.join(CRAFTED)}")
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 30)
    say(f"seed {seed}")
    with Fuzz(seed) as fuzz:
        with contextlib.suppress(AssertionError):  # it is in its problems
            fuzz.run(arguments.seconds, [CRAFTED[name] for name in arguments.only] or list(CRAFTED.values()))
        figures = fuzz.summary()
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
        print(summary_line(figures), "", *tables(figures), sep="\n")
        for problem in fuzz.problems:
            print(f"\nFAILED: {problem}")
        if fuzz.problems:
            print(f"\nkept: {fuzz.folder}")
        return 1 if fuzz.problems else 0


if __name__ == "__main__":
    sys.exit(main())
