"""The workers: take a job, have its file described, record what was seen, and say what came of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from trackwatch.errors import FileProblem
from trackwatch.probe import Request
from trackwatch.reconcile import Job
from trackwatch.record import Change, Unreadable
from trackwatch.settle import Rest
from trackwatch.store import Store
from trackwatch.track import Location, Observation

log = structlog.get_logger()


@dataclass(slots=True)
class WorkerStatistics:
    """What all workers have done since the start."""

    files: int = 0
    size_bytes: int = 0


class Describe(Protocol):
    """Has a file described (see `Pool.describe`)."""

    async def __call__(self, request: Request, *, size_bytes: int, is_live: bool) -> Observation | Rest:
        """Return what is in a file. Raises FileProblem."""


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """What the worker tasks share."""

    store: Store
    describe: Describe
    place: Callable[[Location, Observation], Awaitable[Change]]
    probed: Callable[[], None]
    finished: Callable[[Location, Rest], None]
    statistics: WorkerStatistics

    async def work(self, jobs: trio.MemoryReceiveChannel[Job]) -> None:
        """Work until the channel is closed; the file in hand is finished first."""
        async with jobs:
            async for job in jobs:
                await self._describe_and_record(job)

    async def _describe_and_record(self, job: Job) -> None:
        due = job.due
        request = Request(job.path, due.quiet_s, due.at_ceiling)
        try:
            seen = await self.describe(request, size_bytes=job.size_bytes, is_live=due.is_live)
        except FileProblem as problem:
            # Nothing is known of its content, so there is no event; it is tried at its next change and at each sweep.
            self.probed()
            log.debug("file problem", path=job.path, reason=str(problem))
            await self.record(Unreadable(due.location, str(problem)))
            self.finished(due.location, Rest.DONE)
            return
        self.probed()
        if isinstance(seen, Rest):
            self.finished(due.location, seen)
            return
        fits = await self.record(await self.place(due.location, seen))
        self.statistics.files += 1
        self.statistics.size_bytes += seen.signature.size_bytes
        self.finished(due.location, Rest.DONE if fits else Rest.LATER)

    async def record(self, change: Change) -> bool:
        """Record a change durably; False if it does not fit what is known any more."""
        return await self.store.write(lambda ledger: ledger.record(change))
