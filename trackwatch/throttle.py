"""How many lines about one thing may be told before the rest is counted. Pure: the caller gives the time.

A thing that goes up and down, or fails again and again, is told a few times, then once a minute: by its last line, and
how many there were besides. The last line that is told about a thing is always the last there was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# So many lines about one thing are told at once (a broker that is restarted a few times takes as many), and one more
# for each time of so many seconds that passes.
BURST = 10
EVERY_S = 60.0

T = TypeVar("T")


@dataclass(slots=True)
class _Subject(Generic[T]):
    """What was told about one thing lately, and what was not."""

    at_s: float  # when `left` was true
    left: float = BURST  # lines that may be told at once
    names: set[str] = field(default_factory=set)  # kinds of lines that were told
    last: T | None = None  # of those held back
    held: int = 0

    def look(self, now_s: float) -> None:
        self.left = min(float(BURST), self.left + (now_s - self.at_s) / EVERY_S)
        self.at_s = now_s


class Throttle(Generic[T]):
    """Decides which lines are told now. Neither threads nor clocks: calls come one at a time, time never goes back."""

    def __init__(self) -> None:
        self._subjects: dict[str, _Subject[T]] = {}

    def take(self, subject: str, name: str, line: T, now_s: float) -> int | None:
        """Return how many lines about its subject were held back before this one; None: this one is held back as well.

        `name` is what kind of line it is, of which there are few: the first of a kind is always told.
        """
        known = self._subjects.setdefault(subject, _Subject(now_s))
        known.look(now_s)
        if known.left < 1 and name in known.names:
            known.last, known.held = line, known.held + 1
            return None
        known.left = max(0.0, known.left - 1)
        known.names.add(name)
        held, known.last, known.held = known.held, None, 0
        return held

    def take_held(self, now_s: float) -> Iterator[tuple[T, int]]:
        """Yield what may be told by now of what was held back: the last line of each subject, and how many others."""
        for subject, known in list(self._subjects.items()):
            known.look(now_s)
            if known.last is not None and known.left >= 1:
                last, others = known.last, known.held - 1
                known.left, known.last, known.held = known.left - 1, None, 0
                yield last, others
            elif known.left >= BURST:
                del self._subjects[subject]

    def take_all(self) -> Iterator[tuple[T, int]]:
        """Yield what was held back: nothing is left afterwards."""
        for known in self._subjects.values():
            if known.last is not None:
                yield known.last, known.held - 1
        self._subjects.clear()
