"""The example consumer as people run it: `ops/consumer/library_consumer.py`, a process with a database of its own."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = Path(__file__).parents[2] / "ops" / "consumer" / "library_consumer.py"
POLL_S = 0.05
STOP_DEADLINE_S = 30.0
TAIL_BYTES = 4000


class ConsumerError(AssertionError):
    """The consumer did not do what was expected; the message ends with what it said last."""


class Consumer:
    """One consumer with its database; it can be started many times. A context manager, or call `close`."""

    def __init__(self, folder: str | os.PathLike[str], url: str, *, queue: str = "library") -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.url = url
        self.queue = queue
        self.db = self.folder / "library.db"
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- its life ---

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it. With `wait`, return when it says that it consumes."""
        self.starts += 1
        with self._log().open("wb") as output:
            self._process = subprocess.Popen(
                self._command("run", "--queue", self.queue),
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if wait:
            self.wait_until(lambda: "consuming " in self._log().read_text(errors="replace"), 30, "to be consuming")

    def stop(self) -> int:
        """Ask it to stop (SIGTERM) and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not stop within {STOP_DEADLINE_S:g} s") from None

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            self.kill()

    def run(self, *arguments: str | bytes, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run one of its commands on its database, to its end, whatever its exit code."""
        return subprocess.run(
            self._command(*arguments),
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run_once(self) -> subprocess.CompletedProcess[str]:
        """Let it take what is in the queue."""
        return self.run("run", "--once", "--queue", self.queue)

    # --- what it has ---

    def said(self) -> str:
        """Return what all its starts have said."""
        logs = (self._log(number) for number in range(1, self.starts + 1))
        return "".join(log.read_text(errors="replace") for log in logs)

    def query(self, sql: str, *values: Any) -> list[Any]:
        """Return rows of its database; none while there is no table."""
        with contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True)) as conn:
            try:
                return conn.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def files(self) -> dict[bytes, str]:
        """Return the files that it believes to be there: absolute path and SHA-256."""
        return dict(self.query("SELECT path, sha256 FROM files WHERE sha256 IS NOT NULL"))

    def total(self, column: str) -> int:
        """Return the sum of a count over all instances of trackwatch: `events`, `doubles`, `late`, ..."""
        rows = self.query(f"SELECT coalesce(sum({column}), 0) FROM instances")
        return int(rows[0][0]) if rows else 0

    @contextlib.contextmanager
    def locked(self) -> Any:
        """Hold its database so that it cannot commit, and whatever it takes stays in its hands."""
        with contextlib.closing(sqlite3.connect(self.db, isolation_level=None)) as conn:
            conn.execute("BEGIN IMMEDIATE")
            yield
            conn.execute("ROLLBACK")

    def wait_until(self, predicate: Callable[[], bool], timeout_s: float = 60.0, what: str = "a condition") -> None:
        """Wait until a predicate is true.

        Raises:
            ConsumerError: it was not in time, or the consumer has ended and it still is not
        """
        deadline = time.monotonic() + timeout_s
        while True:
            running = self.running
            if predicate():
                return
            if not running:
                raise self._failure(f"has ended; waited for {what}")
            if time.monotonic() > deadline:
                raise self._failure(f"was waited for {what}, {timeout_s:g} s")
            time.sleep(POLL_S)

    # --- inside ---

    def _command(self, *arguments: str | bytes) -> list[str | bytes]:
        return [sys.executable, str(PROGRAM), "--db", str(self.db), *arguments]

    def _environ(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "RABBITMQ_URL": self.url}

    def _log(self, number: int | None = None) -> Path:
        return self.folder / f"log-{number or self.starts}.txt"

    def _failure(self, what: str) -> ConsumerError:
        return ConsumerError(f"the consumer {what} (start {self.starts}); it said:\n{self.said()[-TAIL_BYTES:]}")
