"""The line that says what was done lately, in virtual time."""

from dataclasses import replace

import trio
import trio.testing
from structlog.testing import capture_logs

from trackwatch.summary import EVERY_S, Counts, keep_summarising

FIELDS = {
    "period_s", "created", "modified", "deleted", "moved", "renamed", "published", "described", "described_bytes",
    "pending", "parked", "problems", "words",
}  # fmt: skip


async def test_a_summary_says_what_was_done_since_the_last_one(autojump_clock: trio.testing.MockClock) -> None:
    """Differences of what is counted, and how much there is of the rest."""
    counts = Counts({"created": 5}, published=5, described=5, described_bytes=5000, pending=1)
    with capture_logs() as told:
        async with trio.open_nursery() as nursery:

            async def look() -> Counts:
                return counts

            nursery.start_soon(keep_summarising, look)
            await trio.sleep(EVERY_S / 2)
            counts = Counts({"created": 1205, "renamed": 3}, 1200, 1205, 8_105_000, pending=9, parked=1, problems=2)
            await trio.sleep(EVERY_S)
            nursery.cancel_scope.cancel()
    (summary,) = told
    assert summary.pop("event") == "summary"
    assert summary.pop("log_level") == "info"
    assert summary.keys() == FIELDS
    assert summary["words"] == (
        "5 min · 1,200 created · 3 renamed · 1,195 published · 1,200 files described (8.1 MB) · 9 pending · 1 parked"
        " · 2 problems"
    )
    assert (summary["created"], summary["modified"], summary["renamed"]) == (1200, 0, 3)
    assert (summary["published"], summary["described"], summary["described_bytes"]) == (1195, 1200, 8_100_000)
    assert (summary["pending"], summary["parked"], summary["problems"]) == (9, 1, 2)


async def test_there_is_one_each_five_minutes_while_something_happens_and_none_otherwise(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Twelve in a busy hour; an idle day, also one with a broker that is away, has none."""
    counts = Counts(pending=7, problems=1)
    with capture_logs() as told:
        async with trio.open_nursery() as nursery:

            async def look() -> Counts:
                return counts

            nursery.start_soon(keep_summarising, look)
            await trio.sleep(86400)
            assert told == []
            for _ in range(3600):
                await trio.sleep(1)
                counts = replace(counts, published=counts.published + 1)
            await trio.sleep(86400)
            nursery.cancel_scope.cancel()
    assert 12 <= len(told) <= 13
    assert sum(summary["published"] for summary in told) == 3600
