"""Stopping processes from running, so that they have really stopped when the call returns."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

DEADLINE_S = 30.0
POLL_S = 0.001
_STOPPED = {"T", "t", "Z", "X"}


def freeze(pids: Iterable[int]) -> None:
    """Stop processes (SIGSTOP) and wait until no thread of theirs runs any more; one that has ended counts as stopped.

    The signal is answered by each thread at its next return from the kernel: on a busy machine some go on for a while
    after `kill` has returned, and a broker of a dozen threads may still answer a greeting.
    """
    pids = list(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE_S
    for pid in pids:
        while not _states(pid) <= _STOPPED:
            assert time.monotonic() < deadline, f"process {pid} goes on running after SIGSTOP: {_states(pid)}"
            time.sleep(POLL_S)


def _states(pid: int) -> set[str]:
    states = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states
