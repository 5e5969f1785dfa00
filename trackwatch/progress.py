"""How far an import is, how fast it goes, and how long it will take. Pure: the caller gives the time."""

from collections import deque
from dataclasses import dataclass

# What is called fast is an average over the last so many seconds.
PACE_S = 10.0
# Reading so much takes as long as the rest of what is done for a file, so that a folder of songs after one of films (or
# the other way round) does not make the time that is left jump.
FILE_COSTS_BYTES = 512 * 1024


class Pace:
    """How fast a counter grows, on an average of the last seconds."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, count: int) -> float:
        """Note the counter as it is now, on any steady clock; return by how much it grows a second."""
        self._notes.append((now_s, count))
        while len(self._notes) > 2 and self._notes[1][0] <= now_s - PACE_S:
            self._notes.popleft()
        first_s, first = self._notes[0]
        return (count - first) / (now_s - first_s) if now_s > first_s else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is. What was described before it was interrupted counts as done."""

    files: int
    files_total: int  # 0: not counted yet
    size_bytes: int
    total_bytes: int
    bytes_per_s: float
    left_s: float | None  # None: not to be told yet
    done: bool = False


class ImportPace:
    """Makes each Progress out of bare counts, remembering how fast files were read.

    What was described before the import was interrupted is met within moments, and says nothing about the rest.
    """

    def __init__(self) -> None:
        self._bytes, self._work = Pace(), Pace()

    def note(
        self,
        now_s: float,
        *,
        files: int,
        files_total: int,
        size_bytes: int,
        total_bytes: int,
        read_files: int,
        read_bytes: int,
        done: bool = False,
    ) -> Progress:
        """Return how far an import is that has done so much by now, and has read so much of it by itself."""
        bytes_per_s = self._bytes.note(now_s, read_bytes)
        work_per_s = self._work.note(now_s, read_bytes + read_files * FILE_COSTS_BYTES)
        left = max(0, total_bytes - size_bytes) + max(0, files_total - files) * FILE_COSTS_BYTES
        left_s = left / work_per_s if work_per_s > 0 and files_total else None
        return Progress(files, files_total, size_bytes, total_bytes, bytes_per_s, left_s, done)
