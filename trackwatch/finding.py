"""What `trackwatch check` finds: a word, facts, and what to do; as lines for people, and as a document for machines.

What `report` returns is public: what was once in it stays.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trackwatch import __version__
from trackwatch.clock import wall_clock_us
from trackwatch.errors import ExitCode
from trackwatch.event import rfc3339
from trackwatch.words import Line, line

SCHEMA_VERSION = 1
# Less room than this on a disk counts as none: almost anything may fill it.
LEAST_ROOM_BYTES = 100_000_000


class Word(StrEnum):
    """What was found, in one word."""

    OK = "ok"
    WARN = "warn"  # it runs, but not as well as it could, or not for long
    FAIL = "fail"  # it does not run, or delivers nothing
    SKIP = "skip"  # not looked at, for the reason that is told


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer: what was looked at, how that is, facts, and what to do about it.

    A remedy that begins with "$ " can be typed. `data` has the same facts as numbers, for machines.
    """

    subject: str
    word: Word
    facts: tuple[str, ...]
    remedies: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """Return what `check` exits with: 2 for wrong settings, as `run` does, 1 for anything else that failed."""
    failed = {finding.subject for finding in findings if finding.word is Word.FAIL}
    return ExitCode.USAGE if "settings" in failed else ExitCode.DEFECT if failed else ExitCode.OK


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "checked_at": rfc3339(wall_clock_us()),
        "user": os.geteuid(),
        "ok": exit_code(findings) is ExitCode.OK,
        "exit_code": exit_code(findings).value,
        "counts": _counts(findings),
        "findings": [
            {
                "subject": finding.subject,
                "word": finding.word.value,
                "facts": list(finding.facts),
                "remedies": list(finding.remedies),
                "data": dict(finding.data),
            }
            for finding in findings
        ],
    }


def lines(findings: Sequence[Finding]) -> Iterator[Line]:
    """Yield what people read: a verdict, what it is about, facts; below it what to do."""
    for finding in findings:
        yield Line(finding.word.value, finding.subject, finding.facts)
        for remedy in finding.remedies:
            yield line("↳", "", remedy)


def summary(findings: Sequence[Finding]) -> str:
    """Return how it went, in one line."""
    counts = _counts(findings)
    told = [
        ("failed", counts["fail"]),
        ("warnings" if counts["warn"] > 1 else "warning", counts["warn"]),
        ("ok", counts["ok"]),
        ("skipped", counts["skip"]),
    ]
    return " · ".join(f"{count} {words}" for words, count in told if count)


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    words = [finding.word for finding in findings]
    return {word.value: words.count(word) for word in Word}


def skip(subject: str, *facts: str) -> Finding:
    """Return that something was not looked at, and why."""
    return Finding(subject, Word.SKIP, facts)


def worse(one: Word, other: Word) -> Word:
    """Return the worse of two words."""
    order = (Word.SKIP, Word.OK, Word.WARN, Word.FAIL)
    return max(one, other, key=order.index)


def many(count: int, noun: str) -> str:
    """Return a number with its noun, `1 file` or `2,000 files`."""
    if count != 1:
        first, _, rest = noun.partition(" or ")
        first = first[:-1] + "ies" if first.endswith("y") else first + ("es" if first.endswith("s") else "s")
        noun = f"{first} or {rest}" if rest else first
    return f"{count:,} {noun}"


def reason(error: OSError) -> str:
    """Return why the system refused, in lower case."""
    return (error.strerror or str(error)).lower()


def room_bytes(path: bytes) -> int | None:
    """Return how much room is free for this user on the disk of a path; None where it is not told."""
    try:
        room = os.statvfs(path)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize
