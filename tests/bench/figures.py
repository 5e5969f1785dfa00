"""What a benchmark says: ratios of two things measured in turn, how they spread, and how a cost grows with the size.

Pure: it knows nothing of daemons. A figure that has a limit (what is asked for at least) or a goal says whether it was
met, by its median. A budget of time decides how often something is measured.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from tests.bench.measure import Spread

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """What we took, what something else took in the same turns, and the ratio of the two, turn by turn.

    `limit` and `goal` are for the ratio: from below where more is `better`, from above where less is.
    """

    what: str
    unit: str
    ours: Spread
    beside: str
    theirs: Spread
    ratio: Spread
    better: Literal["more", "less"]
    limit: float | None = None
    goal: float | None = None
    missing: str = ""  # why it was not measured
    question: str = ""  # that it answers best of all: it is then among the first of the page

    @classmethod
    def of(
        cls,
        what: str,
        unit: str,
        ours: Sequence[float],
        beside: str,
        theirs: Sequence[float],
        better: Literal["more", "less"],
        *,
        limit: float | None = None,
        goal: float | None = None,
        question: str = "",
    ) -> Self:
        """Compare two things that were measured in turn, as often as each other."""
        ratio = Spread.of(own / other if other else math.inf for own, other in zip(ours, theirs, strict=True))
        return cls(
            what, unit, Spread.of(ours), beside, Spread.of(theirs), ratio, better, limit, goal, question=question
        )

    @classmethod
    def not_measured(cls, what: str, why: str) -> Self:
        """Return a figure that is not there, and says why."""
        nothing = Spread.of(())
        return cls(what, "", nothing, "", nothing, nothing, "more", missing=why)

    @property
    def verdict(self) -> str:
        """Whether the median meets what is asked for: `goal`, `limit` (that only), `missed`; nothing if nothing is."""
        if self.missing:
            return "not measured"
        for name, wanted in (("goal", self.goal), ("limit", self.limit)):
            if wanted is not None and self._meets(wanted):
                return name
        return "" if self.goal is None and self.limit is None else "missed"

    def _meets(self, wanted: float) -> bool:
        return self.ratio.median >= wanted if self.better == "more" else self.ratio.median <= wanted


@dataclass
class Part:
    """What one part of the benchmark has to say."""

    name: str
    method: str  # what was measured, and how: the page shows it
    figures: list[Figure] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # computed sentences
    answers: list[str] = field(default_factory=list)  # the same, among the first of the page
    left_out: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # all that was measured, for the JSON alone
    seconds: float = 0.0
    others_share: float = 0.0


class Budget:
    """Seconds that may be used. Nothing is broken off: it says whether there is time for another one."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = clock() + seconds

    @property
    def left_s(self) -> float:
        """How much is left; 0 when it is used up."""
        return max(0.0, self._end_s - self._clock())

    def extend(self, seconds: float) -> None:
        """Give so much more."""
        self._end_s += seconds

    def share(self, part: float) -> "Budget":
        """Return a budget of a part of what is left."""
        return Budget(self.left_s * part, self._clock)

    def turns(self, least: int, most: int) -> Iterator[int]:
        """Count turns, as long as there is time for another one like the longest so far, within limits."""
        longest_s = 0.0
        for number in range(most):
            if number >= least and self.left_s <= longest_s:
                return
            began_s = self._clock()
            yield number
            longest_s = max(longest_s, self._clock() - began_s)


def in_turn(
    ways: Mapping[str, Callable[[], T]], budget: Budget, *, least: int = 2, most: int = 5
) -> dict[str, list[T]]:
    """Do each of some things in turn (A B A B ...) as often as the budget allows; return what each has given."""
    given: dict[str, list[T]] = {way: [] for way in ways}
    for _ in budget.turns(least, most):
        for way, run in ways.items():
            given[way].append(run())
    return given


# --- how a cost grows ---


@dataclass(frozen=True)
class Growth:
    """A straight line through points on logarithmic scales: cost = factor * size ** slope."""

    factor: float
    slope: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Self | None:
        """Fit the line (least squares); None with fewer than two sizes, or where a cost is not above 0."""
        if len({size for size, _ in points}) < 2 or any(cost <= 0 for _, cost in points):
            return None
        logs = [(math.log(size), math.log(cost)) for size, cost in points]
        slope, intercept = statistics.linear_regression(*zip(*logs, strict=True))
        return cls(math.exp(intercept), slope)

    def at(self, size: float) -> float:
        """Return the cost at a size."""
        return float(self.factor * size**self.slope)

    def size_at(self, cost: float) -> float:
        """Return the size at which so much is reached; infinite if it never is."""
        return math.inf if self.slope <= 0 else float((cost / self.factor) ** (1 / self.slope))
