"""A watcher as people write it with watchdog, asyncio, aiofiles and aio-pika: a fair peer of `trackwatch run`.

An observer notices what changes and hands it to the event loop; everything that was there before is told first (the
initial scan). A hundred tasks take paths from a queue, read them with aiofiles in chunks of 64 KB for both hashes, have
mutagen parse the tags in a pool of threads, publish a persistent message and await its confirm. A file is told when
somebody closes it after writing. What was told is remembered in memory alone: there is no state on a disk, no check
whether a file changes while it is read, no comparison with the disk, and no order.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aio_pika
from watchdog.events import FileClosedEvent, FileDeletedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from tests.bench.peers.asyncio_way import FILES_AT_ONCE, PARSERS, describe, publish
from tests.bench.peers.event import EXCHANGE, Hashes, audio_files, event, is_audio

CHUNK_BYTES = 1 << 16

Change = tuple[str, str, str | None]  # what happened, the path, the old path


class Seen(FileSystemEventHandler):  # type: ignore[misc] # watchdog need not be installed for mypy
    """Hands changes to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changes: "asyncio.Queue[Change]") -> None:
        self._loop = loop
        self._changes = changes

    def on_any_event(self, event_seen: FileSystemEvent) -> None:
        """Take what concerns a file; watchdog itself names each one below a renamed directory."""
        kinds = {FileClosedEvent: "written", FileMovedEvent: "moved", FileDeletedEvent: "deleted"}
        kind, path = kinds.get(type(event_seen)), str(event_seen.dest_path or event_seen.src_path)
        if kind is not None and is_audio(path):
            old = str(event_seen.src_path) if kind == "moved" else None
            self._loop.call_soon_threadsafe(self._changes.put_nowait, (kind, path, old))


async def run(root: Path, url: str, once: bool) -> None:
    """Tell what is there, then what changes, for ever or only once."""
    changes: asyncio.Queue[Change] = asyncio.Queue()
    known: dict[str, Hashes] = {}
    connection = await aio_pika.connect_robust(url)
    async with connection, asyncio.TaskGroup() as tasks:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        parsers = ThreadPoolExecutor(PARSERS)

        async def tell(kind: str, path: str, old: str | None) -> None:
            if kind == "written":
                told = "modified" if path in known else "created"
                try:
                    event_id, body, known[path] = await describe(told, Path(path), parsers, CHUNK_BYTES)
                except FileNotFoundError:
                    return
            else:
                told, hashes = kind, known.pop(old or path, None)
                if hashes and kind == "moved":
                    known[path] = hashes
                event_id, body = event(told, path, hashes, old_path=old)
            await publish(exchange, told, event_id, body)

        async def work() -> None:
            while True:
                change = await changes.get()
                await tell(*change)
                changes.task_done()

        working = [tasks.create_task(work()) for _ in range(FILES_AT_ONCE)]
        if not once:
            observer = Observer()
            observer.schedule(Seen(asyncio.get_running_loop(), changes), str(root), recursive=True)
            observer.start()
        for path in await asyncio.to_thread(lambda: list(audio_files(root))):
            changes.put_nowait(("written", str(path), None))
        await changes.join()
        if once:
            for task in working:
                task.cancel()
        else:
            print("watching", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("url", help="of the broker")
    parser.add_argument("--once", action="store_true", help="end when all that is there is told")
    options = parser.parse_args()
    asyncio.run(run(options.root, options.url, options.once))


if __name__ == "__main__":
    main()
