"""A watchdog observer over a tree, and nothing else: what it costs to be told of changes at all."""

import sys
import time

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer


def main() -> None:
    """Watch what the command line says, for ever."""
    observer = Observer()
    observer.schedule(FileSystemEventHandler(), sys.argv[1], recursive=True)
    observer.start()
    print("watching", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
