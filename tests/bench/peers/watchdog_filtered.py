"""A watchdog observer that asks for what changes files alone, and nothing else: not for files that are only opened.

Without such a filter the observer is told of each directory that anybody lists, it itself included.
"""

import sys
import time

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

WANTED = [
    FileCreatedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent,
    DirCreatedEvent, DirMovedEvent, DirDeletedEvent,
]  # fmt: skip


def main() -> None:
    """Watch what the command line says, for ever."""
    observer = Observer()
    observer.schedule(FileSystemEventHandler(), sys.argv[1], recursive=True, event_filter=WANTED)
    observer.start()
    print("watching", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
