"""Warm worker processes that describe files, and what becomes of a file that ends the process which reads it.

A call into another process costs as much as a small file, so several small ones share one. Changes that somebody waits
for have a process of their own beside those of an import: they never wait behind a film. Figures: decision 0010.
"""

import math
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio
import trio_parallel

from trackwatch.backoff import Backoff
from trackwatch.errors import FileProblem
from trackwatch.meters import Total
from trackwatch.probe import (
    ADDRESS_SPACE_BYTES,
    NO_MEMORY,
    PARSE_KILL_CPU_S,
    Answer,
    Request,
    describe_all,
    is_worn_out,
    prepare_process,
)
from trackwatch.settle import Rest
from trackwatch.track import Observation

# One call: at most so many files, of together so many bytes.
CALL_FILES, CALL_BYTES = 32, 64 * 1024 * 1024
# A process that an import needed is ended after so long without work. That of the live changes stays.
IDLE_S = 30.0
# Idle processes end as soon as they see that their pipe is closed; one that does not is killed.
CLOSE_S = 1.0
# A file is tried so often: alone after it was among those of a process that ended, then without reading its tags.
TRIES = 3

log = structlog.get_logger()


def room(processes: int) -> int:
    """Return how many small files of an import keep so many processes busy, with the next call of each ready."""
    return 2 * processes * CALL_FILES


@dataclass(slots=True, eq=False)
class _Asked:
    """A file that somebody waits for."""

    request: Request
    size_bytes: int
    is_live: bool
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    tries: int = 0  # that ended a process


@dataclass(slots=True)
class PoolStatistics:
    """What the processes have done since the start."""

    calls: Total = field(default_factory=Total)
    deaths: int = 0  # processes that a file, the kernel or a person has ended


class Pool:
    """Describes files in other processes; made by `open_pool`."""

    def __init__(self, processes: int, call_files: int, statistics: PoolStatistics) -> None:
        self.statistics = statistics
        self._processes = processes
        self._call_files = call_files
        self._live: deque[_Asked] = deque()
        self._bulk: deque[_Asked] = deque()
        self._idle_for_live, self._idle = trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot()

    async def describe(self, request: Request, *, size_bytes: int = 0, is_live: bool = False) -> Observation | Rest:
        """Return what is in a file, or why it has to be looked at again later; live ones come before others.

        `size_bytes` is what the file is believed to hold.

        Raises:
            FileProblem: the file cannot be read, or ends every process that tries.
        """
        asked = _Asked(request, size_bytes, is_live)
        queue = self._live if is_live else self._bulk
        queue.append(asked)
        self._wake(is_live)
        try:
            await asked.answered.wait()
        finally:
            if not asked.answered.is_set() and asked in queue:  # cancelled before anybody began
                queue.remove(asked)
        answer = asked.answer
        assert answer is not None, "answered without an answer"
        if isinstance(answer, FileProblem):
            raise answer
        return answer

    def _wake(self, is_live: bool) -> None:
        (self._idle_for_live if is_live and self._idle_for_live else self._idle).unpark()

    async def serve(self, context: trio_parallel.WorkerContext, *, only_live: bool) -> None:
        """Keep one process busy until cancelled, which kills the process if it is at work."""
        limiter = trio.CapacityLimiter(1)
        while True:
            if batch := self._take(only_live):
                await self._ask(context, limiter, batch)
            else:
                await (self._idle_for_live if only_live else self._idle).park()

    def _take(self, only_live: bool) -> list[_Asked]:
        """Take what goes into one call; no more than a fair part, so that none holds what another could begin with."""
        if only_live or self._live:
            queue, sharing = self._live, self._processes + 1
        else:
            queue, sharing = self._bulk, self._processes
        batch: list[_Asked] = []
        left_bytes = CALL_BYTES
        most = min(self._call_files, math.ceil(len(queue) / sharing))
        while len(batch) < most and (not batch or queue[0].size_bytes <= left_bytes):
            batch.append(queue.popleft())
            left_bytes -= batch[-1].size_bytes
        return batch

    async def _ask(
        self, context: trio_parallel.WorkerContext, limiter: trio.CapacityLimiter, batch: list[_Asked]
    ) -> None:
        requests = [asked.request for asked in batch]
        began_at = trio.current_time()
        try:
            answers = await _call(context, limiter, requests)
        except trio_parallel.BrokenWorkerError as error:
            self.statistics.deaths += 1
            for asked in batch:
                asked.tries += 1
                await self._ask_again(context, limiter, asked, error)
            return
        self.statistics.calls.note(trio.current_time() - began_at)
        for asked, answer in zip(batch, answers, strict=False):
            asked.answer = answer
            asked.answered.set()
        for asked in reversed(batch[len(answers) :]):  # there was no time for these; whoever comes first takes them
            (self._live if asked.is_live else self._bulk).appendleft(asked)
            self._wake(asked.is_live)

    async def _ask_again(
        self,
        context: trio_parallel.WorkerContext,
        limiter: trio.CapacityLimiter,
        asked: _Asked,
        error: trio_parallel.BrokenWorkerError,
    ) -> None:
        """Describe a file that may have ended its process; whichever it was, the others are not to suffer."""
        cause = _cause(error)
        if asked.tries >= TRIES:
            asked.answer = FileProblem(f"reading it ends every process that tries ({cause})")
            asked.answered.set()
            return
        if asked.tries == TRIES - 1:
            log.warning("file ended its process", path=asked.request.path, reason=cause)
            asked.request = asked.request._replace(refusal=f"reading its tags ended the process that did it ({cause})")
        await self._ask(context, limiter, [asked])


async def _call(
    context: trio_parallel.WorkerContext, limiter: trio.CapacityLimiter, requests: list[Request]
) -> list[Answer]:
    backoff = Backoff(base_s=0.1, cap_s=5)
    while True:
        try:
            answers: list[Answer] = await context.run_sync(describe_all, requests, kill_on_cancel=True, limiter=limiter)
        except OSError as error:
            # No process could be made (their number or memory is limited): the files wait, nothing is lost.
            if not backoff.attempt:
                log.warning("process cannot be started", reason=(error.strerror or str(error)).lower())
            await trio.sleep(backoff.next_s())
        else:
            if backoff.attempt:
                log.info("process can be started again")
            return answers


def _cause(error: trio_parallel.BrokenWorkerError) -> str:
    """Return in words how a process ended."""
    code = error.args[-1].exitcode
    if code == -signal.SIGPROF:
        return f"more than {PARSE_KILL_CPU_S:.0f} s of processor time"
    if code == -signal.SIGKILL:
        return "killed, perhaps for want of memory"
    if code == NO_MEMORY:
        return f"more than {ADDRESS_SPACE_BYTES >> 20} MB of memory"
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


@asynccontextmanager
async def open_pool(
    processes: int, *, call_files: int = CALL_FILES, statistics: PoolStatistics | None = None
) -> AsyncIterator[Pool]:
    """Open a pool of so many processes for an import, and one more for what changes live.

    Each is started when it is needed. At most `call_files` files share a call. Leaving the scope kills what is at work.
    """
    pool = Pool(processes, call_files, statistics or PoolStatistics())
    async with _open_context(IDLE_S) as warm, _open_context(math.inf) as live, trio.open_nursery() as nursery:
        for _ in range(processes):
            nursery.start_soon(partial(pool.serve, warm, only_live=False))
        nursery.start_soon(partial(pool.serve, live, only_live=True))
        yield pool
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_context(idle_s: float) -> AsyncIterator[trio_parallel.WorkerContext]:
    try:
        async with trio_parallel.open_worker_context(
            idle_timeout=idle_s, init=prepare_process, retire=is_worn_out, grace_period=CLOSE_S
        ) as context:
            yield context
    except trio_parallel.BrokenWorkerError as error:
        # An idle one had been ended by somebody, or did not end by itself: no file was in its hand, and it is gone now.
        log.debug("process ended idle", reason=_cause(error))
