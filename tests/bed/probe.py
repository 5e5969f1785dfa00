"""Describes files in threads of this process, where a test needs no worker processes."""

import trio

from trackwatch.probe import Request, describe
from trackwatch.settle import Rest
from trackwatch.track import Observation


async def describe_in_thread(request: Request, *, size_bytes: int, is_live: bool) -> Observation | Rest:
    """Do what the pool does, with no limit to what a file may do."""
    return await trio.to_thread.run_sync(
        lambda: describe(request.path, quiet_s=request.quiet_s, at_ceiling=request.at_ceiling)
    )
