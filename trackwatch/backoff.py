"""How long to wait before the next try: capped exponential delays with full jitter.

Pure: the caller sleeps. Full jitter (a uniform draw between zero and the cap of this attempt) keeps many instances that
lost the same broker from coming back in step.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Delays of one retry loop; `reset` after a success."""

    base_s: float
    cap_s: float
    # Not a generator of our own: seeding one takes as long as writing an event, and some loops make many of these.
    uniform: Callable[[float, float], float] = field(default_factory=lambda: random.uniform)
    attempt: int = 0

    def next_s(self) -> float:
        """Return the next delay in seconds, drawn between a tenth of this attempt's ceiling and the ceiling."""
        # 2**30 * any base is far above any cap; the bound only keeps the power from growing without end.
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(self.attempt, 30))
        self.attempt += 1
        return self.uniform(ceiling / 10, ceiling)

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self.attempt = 0
