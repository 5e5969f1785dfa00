"""A watcher as people write it with watchdog, a pool of threads and pika: a fair peer of `trackwatch run`.

An observer notices what changes; everything that was there before is told first (the initial scan). A pool of threads
reads files in chunks of 1 MB for both hashes and parses their tags with mutagen; one thread owns pika's connection, for
that is not safe among threads, and publishes persistent messages, each confirmed before the next (pika's blocking
connection does it so). A file is told when somebody closes it after writing. What was told is remembered in memory
alone: there is no state on a disk, no check whether a file changes while it is read, and no comparison with the disk.
"""

import argparse
import hashlib
import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pika
import xxhash
from watchdog.events import FileClosedEvent, FileDeletedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from tests.bench.peers.event import EXCHANGE, Hashes, audio_files, event, is_audio, read_metadata

CHUNK_BYTES = 1 << 20

Outgoing = tuple[str, str, bytes]  # kind, id, body


def hash_file(path: Path) -> Hashes:
    """Return both hashes of a file."""
    sha256, xxh128 = hashlib.sha256(), xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            xxh128.update(chunk)
    return sha256.hexdigest(), xxh128.hexdigest()


class Teller(FileSystemEventHandler):  # type: ignore[misc] # watchdog need not be installed for mypy
    """Gives files to the pool, and messages to the thread that publishes."""

    def __init__(self, outgoing: "queue.SimpleQueue[Outgoing | None]") -> None:
        self.pool = ThreadPoolExecutor()
        self._outgoing = outgoing
        self._known: dict[str, Hashes] = {}

    def tell(self, path: str) -> None:
        """Describe a file, and have it published; runs in the pool."""
        try:
            found, hashes = Path(path).stat(), hash_file(Path(path))
            metadata = read_metadata(Path(path))
        except FileNotFoundError:
            return
        kind = "modified" if path in self._known else "created"
        self._known[path] = hashes
        self._outgoing.put((kind, *event(kind, path, hashes, found=found, metadata=metadata)))

    def on_closed(self, event: FileSystemEvent) -> None:
        """Tell a file that was written."""
        path = str(event.src_path)
        if isinstance(event, FileClosedEvent) and is_audio(path):
            self.pool.submit(self.tell, path)

    def on_moved(self, event_seen: FileSystemEvent) -> None:
        """Tell a file that was renamed; watchdog itself names each one below a renamed directory."""
        old, new = str(event_seen.src_path), str(event_seen.dest_path)
        if isinstance(event_seen, FileMovedEvent) and is_audio(new):
            if hashes := self._known.pop(old, None):
                self._known[new] = hashes
            self._outgoing.put(("moved", *event("moved", new, hashes, old_path=old)))

    def on_deleted(self, event_seen: FileSystemEvent) -> None:
        """Tell a file that is gone."""
        path = str(event_seen.src_path)
        if isinstance(event_seen, FileDeletedEvent) and is_audio(path):
            self._outgoing.put(("deleted", *event("deleted", path, self._known.pop(path, None))))


def publish_all(url: str, outgoing: "queue.SimpleQueue[Outgoing | None]") -> None:
    """Publish what comes, until None does."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        channel.confirm_delivery()
        while (message := outgoing.get()) is not None:
            kind, event_id, body = message
            properties = pika.BasicProperties("application/json", delivery_mode=2, message_id=event_id)
            channel.basic_publish(EXCHANGE, f"file.{kind}", body, properties, mandatory=True)


def run(root: Path, url: str, once: bool) -> None:
    """Tell what is there, then what changes, for ever or only once."""
    outgoing: queue.SimpleQueue[Outgoing | None] = queue.SimpleQueue()
    teller, observer = Teller(outgoing), Observer()
    with ThreadPoolExecutor(1) as publishing, teller.pool:
        published = publishing.submit(publish_all, url, outgoing)
        if not once:
            observer.schedule(teller, str(root), recursive=True)
            observer.start()
        for told in [teller.pool.submit(teller.tell, str(path)) for path in audio_files(root)]:
            told.result()
        if once:
            outgoing.put(None)
        else:
            print("watching", flush=True)
        published.result()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("url", help="of the broker")
    parser.add_argument("--once", action="store_true", help="end when all that is there is told")
    options = parser.parse_args()
    run(options.root, options.url, options.once)


if __name__ == "__main__":
    main()
