"""Who tells a library: trackwatch, its peers, and bare watchers, each as a process of its own that is driven alike."""

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import a_daemon

POLL_S = 0.01
END_S = 10.0


@dataclass(frozen=True)
class Teller:
    """A program that is given a root; one that `tells` is given a broker's address as well."""

    name: str
    module: str = ""  # of the peer; trackwatch itself has none
    needs: str = ""  # the package without which it cannot run
    tells: bool = True

    @property
    def missing(self) -> str:
        """Why it cannot run here; nothing, if it can."""
        there = not self.needs or importlib.util.find_spec(self.needs) is not None
        return "" if there else f"{self.needs} is not installed; `make bench` does it"


OURS = Teller("trackwatch")
ASYNCIO = Teller("asyncio way", "asyncio_way", "aiofiles")
THREADS = Teller("watchdog, threads, pika", "watchdog_threads", "watchdog")
TASKS = Teller("watchdog, asyncio, aio-pika", "watchdog_asyncio", "watchdog")
BARE_WATCHDOG = Teller("bare watchdog", "watchdog_bare", "watchdog", tells=False)
FILTERED_WATCHDOG = Teller("bare watchdog, filtered", "watchdog_filtered", "watchdog", tells=False)
BARE_WATCHFILES = Teller("bare watchfiles", "watchfiles_bare", "watchfiles", tells=False)
WATCHING_PEERS = (THREADS, TASKS)
IMPORTING_PEERS = (ASYNCIO, THREADS, TASKS)
BARE = (BARE_WATCHFILES, BARE_WATCHDOG, FILTERED_WATCHDOG)


@dataclass(frozen=True)
class Running:
    """One that runs: the leader of a session of its own."""

    pid: int
    wait_watching: Callable[[float], None]  # the import is over
    wait_end: Callable[[float], None]  # it has ended, and all is well
    said: Callable[[], str]  # on standard error so far


@contextmanager
def telling(
    teller: Teller,
    root: Path,
    url: str,
    state: Path,
    *,
    once: bool = False,
    env: Mapping[str, str] = {},
) -> Iterator[Running]:
    """Run one until the end of the scope; ours keeps its state there, the others what they say beside it.

    Without an address ours writes its events to a file. The waits take a deadline in seconds, and raise AssertionError
    with what was said last.
    """
    if not teller.module:
        with _ours(root, url, state, once, env) as running:
            yield running
        return
    arguments = [str(root), *([url] if teller.tells else []), *(["--once"] if once else [])]
    with _peer(teller, arguments, state) as running:
        yield running


@contextmanager
def _ours(root: Path, url: str, state: Path, once: bool, env: Mapping[str, str]) -> Iterator[Running]:
    arguments = [*(["--once"] if once else []), *(["--to", url] if url else [])]
    with a_daemon(root, state, args=arguments, env=env) as daemon:
        daemon.start(wait=False)

        def wait_end(timeout_s: float) -> None:
            code = daemon.wait_for_exit(timeout_s)
            assert code == 0, f"trackwatch: exit {code}: {daemon.stderr()[-2000:]}"

        def wait_watching(timeout_s: float) -> None:
            daemon.wait_until(daemon.is_ready, timeout_s, "to be watching")

        yield Running(daemon.pid, wait_watching, wait_end, daemon.stderr)
        if daemon.running:
            daemon.stop()


@contextmanager
def _peer(teller: Teller, arguments: Sequence[str], state: Path) -> Iterator[Running]:
    state.mkdir(parents=True, exist_ok=True)
    said = state / f"{teller.module}.txt"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.peers.{teller.module}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_watching(timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while b"watching" not in said.read_bytes().splitlines():
            assert process.poll() is None, f"{teller.name} has ended: {said.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{teller.name} does not watch after {timeout_s:g} s"
            time.sleep(POLL_S)

    def wait_end(timeout_s: float) -> None:
        code = process.wait(timeout_s)
        assert code == 0, f"{teller.name}: exit {code}: {said.read_text()[-2000:]}"

    try:
        yield Running(process.pid, wait_watching, wait_end, lambda: said.read_text(errors="replace"))
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(END_S)
        process.kill()
        process.wait()
