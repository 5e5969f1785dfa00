"""`trackwatch replay`: understands what people choose, says what that is, and queues it beside a running daemon.

It only makes events pending again; the daemon's publisher sends them, beside the new ones (decision 0004). Queueing is
done in short transactions with room between them, so that the daemon's own writer is never held up for long.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from datetime import time as time_of_day
from functools import partial
from pathlib import Path
from uuid import UUID

from trackwatch import outbox
from trackwatch.database import open_beside, write_beside
from trackwatch.errors import ConfigError, StoreBusy, StoreError
from trackwatch.event import EPOCH, displayed
from trackwatch.outbox import Chosen, Kept, Selected, Selection

# Some ten milliseconds of writing.
CHUNK_EVENTS = 500
# Between two transactions, at least: who waits for SQLite's lock looks again after some milliseconds only.
PAUSE_S = 0.01
# A state that cannot be written for so long is for a person to look at.
BUSY_MAX_S, BUSY_PAUSE_S = 60.0, 0.2
SEQUENCE_MAX = (1 << 63) - 1
SAMPLE_EVENTS = 5

_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LENGTH = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)\s*)")
_DAYS = {"today": 0, "yesterday": 1}
TIMES = "2026-11-20T18:00 (local, or with an offset), 18:00, yesterday 18:00, today, 2h, 3d"


def parse_time(option: str, text: str, now: datetime) -> int:
    """Return a time as people write it, in microseconds since 1970 UTC; `now` is in their time zone.

    Raises ConfigError when it is none.
    """
    try:
        return (_parsed_time(text.strip(), now) - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option}={text}: not a time such as {TIMES}") from None


def _parsed_time(text: str, now: datetime) -> datetime:
    words = text.lower().removesuffix(" ago").strip()
    if words == "now":
        return now
    if _LENGTH.sub("", words) == "" != words:
        return now - timedelta(seconds=sum(float(count) * _UNITS_S[unit] for count, unit in _LENGTH.findall(words)))
    day, _, hour = words.partition(" ")
    if day in _DAYS:
        return _local(now.date() - timedelta(days=_DAYS[day]), hour.strip() or "00:00")
    if re.match(r"\d\d?:\d\d", words):
        return _local(now.date(), words)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else _as_local(moment)


def _local(day: object, hour: str) -> datetime:
    padded = hour if hour[1:2] != ":" else f"0{hour}"
    return _as_local(datetime.fromisoformat(f"{day}T{time_of_day.fromisoformat(padded)}"))


def _as_local(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (ValueError, OverflowError, OSError):
        return moment.replace(tzinfo=EPOCH.tzinfo)  # before or after all zones


def parse_range(text: str) -> tuple[int, int]:
    """Return a range of sequences: `7`, `100-200`, or `100-` for all from there on. Raises ConfigError."""
    first, dash, last = text.partition("-")
    try:
        start = int(first)
        end = start if not dash else int(last) if last.strip() else SEQUENCE_MAX
    except ValueError:
        raise ConfigError(f"--sequence={text}: not a range such as 100-200, or 100- for all from there on") from None
    if end < start:
        raise ConfigError(f"--sequence={text}: the first is larger than the last")
    return start, end


def parse_event_id(text: str) -> UUID:
    """Return an event's id. Raises ConfigError."""
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError(f"--event={text}: not an event id") from None


def parse_path(text: str) -> bytes:
    """Return the pattern for a path; a relative one is meant from here."""
    pattern = os.fsencode(text)
    if pattern.startswith((b"/", b"*")):
        return pattern
    return os.path.normpath(os.path.join(os.fsencode(os.getcwd()), pattern))


def describe(selected: Selected, zone: datetime) -> str:
    """Return how many events were chosen, of what time and where, in the time zone of a moment."""
    count = "1 event" if selected.count == 1 else f"{selected.count:,} events"
    if selected.first_us is None or selected.last_us is None or selected.common is None:
        return count
    first, last = (shown_time(at_us, zone) for at_us in (selected.first_us, selected.last_us))
    day, _, hour = last.partition(" ")
    span = first if first == last else f"{first} … {hour if first.startswith(day) else last}"
    return f"{count}, {span}, {displayed(selected.common).rstrip('/')}/…"


def shown_time(at_us: int, zone: datetime) -> str:
    """Return a moment to the second, in the time zone of another moment."""
    return f"{(EPOCH + timedelta(microseconds=at_us)).astimezone(zone.tzinfo):%Y-%m-%d %H:%M:%S}"


def missing(selection: Selection, kept: Kept) -> bool:
    """Whether a selection asks for events that are no longer kept."""
    if kept.first_sequence <= 1:
        return False
    too_early = selection.since_us is not None and selection.since_us < kept.oldest_us
    return too_early or (selection.sequences is not None and selection.sequences[0] < kept.first_sequence)


def choose(state_dir: Path, selection: Selection) -> tuple[Selected, list[Chosen], Kept]:
    """Return what a selection chooses, the first few of it, and what is kept at all. Raises StoreError."""
    with open_beside(state_dir) as conn:
        selected = outbox.select(conn, selection)
        return selected, outbox.list_chosen(conn, selected.sequences[:SAMPLE_EVENTS]), outbox.kept(conn)


def queue(state_dir: Path, sequences: Sequence[int], progressed: Callable[[int], None]) -> None:
    """Make events pending again, a chunk at a time; `progressed` is told how many are so far.

    When it is interrupted, those are queued and the others are not; doing all of it again is harmless.
    Raises StoreError when the state cannot be written.
    """
    with open_beside(state_dir, writing=True) as conn:
        for start in range(0, len(sequences), CHUNK_EVENTS):
            began_s = time.monotonic()
            work = partial(outbox.replay, sequences=sequences[start : start + CHUNK_EVENTS])
            while True:
                try:
                    write_beside(conn, work)
                    break
                except StoreBusy as error:
                    if time.monotonic() > began_s + BUSY_MAX_S:
                        raise StoreError(f"{error}; {start:,} of {len(sequences):,} are queued, try again") from error
                    time.sleep(BUSY_PAUSE_S)
            progressed(min(start + CHUNK_EVENTS, len(sequences)))
            time.sleep(max(PAUSE_S, time.monotonic() - began_s))


def count_waiting(state_dir: Path, sequences: Sequence[int]) -> int:
    """Return how many events, of the range that these are in, still wait to be sent again. Raises StoreError."""
    with open_beside(state_dir) as conn:
        return min(len(sequences), outbox.count_replayed(conn, sequences[0], sequences[-1]))
