"""What was done lately, as a line of the log each five minutes; none when there is nothing new."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
import trio

from trackwatch.event import EventType
from trackwatch.status import size

EVERY_S = 300.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Counts:
    """How far things are: counters since the start of the process, and how much there is of what."""

    events: Mapping[str, int] = field(default_factory=dict)  # recorded, by type
    published: int = 0
    described: int = 0
    described_bytes: int = 0
    pending: int = 0
    parked: int = 0
    problems: int = 0


async def keep_summarising(look: Callable[[], Awaitable[Counts]]) -> None:
    """Log what has changed, every now and then; until cancelled."""
    before, before_at = await look(), trio.current_time()
    while True:
        await trio.sleep(EVERY_S)
        now, now_at = await look(), trio.current_time()
        if now != before:
            _tell(before, now, now_at - before_at)
        before, before_at = now, now_at


def _tell(before: Counts, now: Counts, period_s: float) -> None:
    recorded = {kind: now.events.get(kind.value, 0) - before.events.get(kind.value, 0) for kind in EventType}
    published = now.published - before.published
    described, described_bytes = now.described - before.described, now.described_bytes - before.described_bytes
    words = [
        f"{period_s / 60:.0f} min",
        *(f"{count:,} {kind.value}" for kind, count in recorded.items() if count),
        f"{published:,} published",
        f"{described:,} files described ({size(described_bytes)})" if described else "",
        *(f"{getattr(now, name):,} {name}" for name in ("pending", "parked", "problems") if getattr(now, name)),
    ]
    log.info(
        "summary",
        period_s=round(period_s),
        created=recorded[EventType.CREATED],
        modified=recorded[EventType.MODIFIED],
        deleted=recorded[EventType.DELETED],
        moved=recorded[EventType.MOVED],
        renamed=recorded[EventType.RENAMED],
        published=published,
        described=described,
        described_bytes=described_bytes,
        pending=now.pending,
        parked=now.parked,
        problems=now.problems,
        words=" · ".join(word for word in words if word),
    )
