"""trackwatch as people run it: the installed console script as a real process, with an environment of its own.

Each start writes to files of its own (`stdout-1.jsonl`, `stderr-1.txt`, ...), so that a line which a kill has torn is
not glued to the next start's first one. Waits are for conditions, with deadlines, and a failed one shows the end of
what the daemon has said. Whatever it has left behind is killed at `close`.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bed.frozen import freeze

SCRIPT = Path(sys.executable).parent / "trackwatch"
POLL_S = 0.02
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 30.0  # its own graces add up to 15 s
TAIL_BYTES = 4000
ANSI = re.compile(r"\x1b\[[0-9;]*m")

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class DaemonError(AssertionError):
    """The daemon did not do what was expected; the message ends with what it said last."""


class Daemon:
    """One daemon with its roots and its state; it can be started many times. A context manager, or call `close`.

    `args` go to `trackwatch run`, `env` on top of a minimal environment. `unprivileged` takes root's powers away, so
    that permissions mean something to it whoever runs the tests. `user` is another id to run under (root only); it gets
    the state folder and must be able to reach that, the roots and the whole installation, interpreter included.
    Coverage slows down what it watches: where the load is the point, a daemon is not `measured`.
    """

    def __init__(
        self,
        roots: AnyPath | Iterable[AnyPath],
        state_dir: str | os.PathLike[str],
        *,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        user: int | None = None,
        unprivileged: bool = False,
        measured: bool = True,
    ) -> None:
        self.roots = [
            os.fsencode(root) for root in ([roots] if isinstance(roots, str | bytes | os.PathLike) else roots)
        ]
        self.state_dir = Path(state_dir).absolute()
        # What it says, and its HOME: its own, also where another one has the same state.
        places = (self.state_dir.with_name(f"{self.state_dir.name}-run-{number}") for number in count(1))
        self.folder = next(place for place in places if not place.exists())
        self.args = list(args)
        self.env = dict(env or {})
        self.user = user
        self.unprivileged = unprivileged
        self.measured = measured and user is None  # another user could not write the data where they belong
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: list[int] = []
        self._lines: dict[Path, JsonLines] = {}
        for folder in (self.state_dir, self.folder, self.folder / "home"):
            folder.mkdir(parents=True, exist_ok=True)
            if user is not None:
                os.chown(folder, user, user)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- its life ---

    @property
    def pid(self) -> int:
        """The process id of the daemon itself.

        Raises:
            DaemonError: it is not running
        """
        if not self.running:
            raise self._failure("is not running")
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What the last start ended with (negative: the signal), None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, wait: bool = True, timeout_s: float = START_DEADLINE_S) -> None:
        """Start it. With `wait`, return when it says that it is watching."""
        if self.running:
            raise DaemonError("the daemon runs already")
        self.starts += 1
        with self._stdout_file().open("wb") as stdout, self._stderr_file().open("wb") as stderr:
            # A session of its own, by which its worker processes can be found when it is dead.
            self._process = subprocess.Popen(
                self._command("run", *self.args, *self.roots),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                **self._surroundings(),
            )
        self._sessions.append(self._process.pid)
        if wait:
            self.wait_until(self.is_ready, timeout_s, "to be watching")

    def is_ready(self) -> bool:
        """Whether this start has said that it is watching, in people's words or as a JSON log event."""
        return any(log_event(line).startswith("watching") for line in self.stderr().splitlines())

    def stop(self, timeout_s: float = STOP_DEADLINE_S) -> int:
        """Ask it to stop (SIGTERM, to the daemon alone, as container engines do) and return its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait_for_exit(timeout_s)

    def wait_for_exit(self, timeout_s: float = STOP_DEADLINE_S) -> int:
        """Wait until it ends by itself and return its exit code.

        Raises:
            DaemonError: it did not in time
        """
        assert self._process is not None, "never started"
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {timeout_s:g} s") from None

    def kill(self) -> None:
        """Kill it (SIGKILL), the daemon alone: its worker processes have to notice by themselves."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def freeze(self) -> None:
        """Stop it and its worker processes from running (SIGSTOP), as pausing a container does."""
        freeze([self.pid])  # first, so that it starts no more
        freeze(self.descendants())

    def thaw(self) -> None:
        """Let a frozen one run again."""
        os.killpg(self.pid, signal.SIGCONT)

    def descendants(self) -> list[int]:
        """Return the ids of the processes that any start has left or has now, besides the daemon itself."""
        daemon = self._process.pid if self._process is not None and self.running else None
        return [pid for pid in self._processes() if pid != daemon]

    def close(self) -> None:
        """Kill it and whatever it has left behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- what it says ---

    def events(self) -> list[Any]:
        """Return the events on standard output, of all starts; an unfinished last line of a start is left out."""
        return [event for number in range(1, self.starts + 1) for event in self._json_lines(self._stdout_file(number))]

    def stderr(self) -> str:
        """Return what the last start has said on standard error so far."""
        return self._stderr_file().read_text(errors="replace") if self.starts else ""

    def wait_for_events(self, count: int, timeout_s: float = 30.0) -> list[Any]:
        """Wait until so many events were told, and return all: it watches before the last of an import is out."""
        self.wait_until(lambda: len(self.events()) >= count, timeout_s, f"{count} events")
        return self.events()

    def wait_for_event(self, predicate: Callable[[Any], bool], timeout_s: float = 30.0, what: str = "an event") -> Any:
        """Wait until standard output has an event for which the predicate is true, and return the first one."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [event for event in self.events() if predicate(event)][:1]
            return bool(found)

        self.wait_until(look, timeout_s, what)
        return found[0]

    def wait_until(self, predicate: Callable[[], bool], timeout_s: float = 30.0, what: str = "a condition") -> None:
        """Wait until a predicate is true.

        Raises:
            DaemonError: it was not in time, or the daemon has ended and it still is not
        """
        deadline = time.monotonic() + timeout_s
        while True:
            running = self.running  # before looking: what it did before its end counts
            if predicate():
                return
            if not running:
                raise self._failure(f"has ended; waited for {what}")
            if time.monotonic() > deadline:
                raise self._failure(f"was waited for {what}, {timeout_s:g} s")
            time.sleep(POLL_S)

    # --- other commands on the same state ---

    def run(self, *args: str, timeout_s: float = 60.0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a trackwatch command with the same environment and state, to its end, whatever its exit code."""
        return subprocess.run(
            self._command(*args),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **self._surroundings(),
        )

    def status(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code of `trackwatch status --json`, and what it printed.

        Raises:
            DaemonError: it did not print one JSON object
        """
        done = self.run("status", "--json")
        try:
            status = json.loads(done.stdout)
        except ValueError:
            status = None
        if not isinstance(status, dict):
            raise DaemonError(f"trackwatch status --json: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.returncode, status

    def environ(self) -> dict[str, str]:
        """Return the whole environment of the daemon and of the commands beside it."""
        coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        return {
            "PATH": f"{SCRIPT.parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "TRACKWATCH_STATE_DIR": str(self.state_dir),
            **(coverage if self.measured else {}),
            **self.env,
        }

    # --- inside ---

    def _command(self, *args: str | bytes) -> list[str | bytes]:
        command: list[str | bytes] = [str(SCRIPT), *args]
        if self.unprivileged and os.geteuid() == 0:
            # It replaces itself by the program: the process id stays.
            return ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", *command]
        return command

    def _surroundings(self) -> dict[str, Any]:
        options: dict[str, Any] = {"env": self.environ(), "cwd": self.folder, "start_new_session": True}
        if self.user is not None:
            options |= {"user": self.user, "group": self.user, "extra_groups": []}
        return options

    def _stdout_file(self, number: int | None = None) -> Path:
        return self.folder / f"stdout-{number or self.starts}.jsonl"

    def _stderr_file(self) -> Path:
        return self.folder / f"stderr-{self.starts}.txt"

    def _json_lines(self, file: Path) -> list[Any]:
        lines = self._lines.setdefault(file, JsonLines(file))
        lines.read()
        return lines.values

    def _processes(self) -> Iterator[int]:
        """Yield the ids of the processes in the sessions of our starts, this state's name in their environment."""
        mark = f"TRACKWATCH_STATE_DIR={self.state_dir}".encode()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            pid = int(entry)
            # It may end while we look; and a number may have come back to life as somebody else's.
            with contextlib.suppress(OSError):
                if os.getsid(pid) in self._sessions and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    yield pid

    def _failure(self, what: str) -> DaemonError:
        state = "running" if self.running else f"exit code {self.exit_code}"
        return DaemonError(f"the daemon {what} ({state}, start {self.starts}); it said:\n{self.stderr()[-TAIL_BYTES:]}")


class JsonLines:
    """The complete lines of a growing file, each parsed once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: list[Any] = []
        self._position = 0

    def read(self) -> None:
        """Parse what has been completed since the last time."""
        with self.file.open("rb") as stream:
            stream.seek(self._position)
            complete, newline, _ = stream.read().rpartition(b"\n")
        if newline:
            self.values += [json.loads(line.decode()) for line in complete.split(b"\n")]
            self._position += len(complete) + 1


def log_event(line: str) -> str:
    """Return what a log line says: its `event` if it is JSON, else the line without colours."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            return str(json.loads(line).get("event", ""))
    return ANSI.sub("", line)
