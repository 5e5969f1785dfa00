"""A state as the store makes it, copied into memory for each test: real SQL and the real schema, at no cost.

Making one asks the disk some twenty times to hold what it was given, a copy never.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trackwatch.database import open_for_writing


def made_state(folder: Path) -> sqlite3.Connection:
    """Make a state in a folder, and return the writer's connection to it."""
    return open_for_writing(folder / "trackwatch.db")


@contextmanager
def in_memory(state: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Yield a copy of a state in memory, that has nothing to do with it any more."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        state.backup(copy)
        copy.execute("PRAGMA foreign_keys = ON")
        yield copy
