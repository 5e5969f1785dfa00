"""The wall clock, for moments that are stored, told, or compared with another process's. Intervals are trio's."""

import time


def wall_clock_us() -> int:
    """Return the time in microseconds since 1970 UTC."""
    return time.time_ns() // 1000
