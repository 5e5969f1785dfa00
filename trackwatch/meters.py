"""What durations add up to, for those who ask how long things take. Pure, and cheap where it is counted."""

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(slots=True)
class Total:
    """How often something was done since the start, and how many seconds that took in all."""

    count: int = 0
    seconds: float = 0.0

    def note(self, seconds: float) -> None:
        """Count one more that took so long."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class Histogram:
    """How many durations were at most so long, for each of some bounds in seconds, rising."""

    bounds: tuple[float, ...]
    seconds: float = 0.0
    _counts: list[int] = field(init=False)  # between two bounds, and beyond the last

    def __post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def note(self, seconds: float) -> None:
        """Count one more that took so long."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def cumulated(self) -> list[int]:
        """Return how many were at most as long as each bound, and at last how many there were."""
        return list(accumulate(self._counts))
