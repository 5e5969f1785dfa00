"""The usual asyncio way of importing a library, as most people write it: a fair peer of `trackwatch run --once`.

List the files; gather over all of them, a hundred at a time by a semaphore; read each with aiofiles in chunks of 8 KB
and feed both hashes; parse the tags with mutagen in a pool of threads; publish one persistent message a file with
aio-pika (whose channels have publisher confirms by default) and await it. What is told of a file is what trackwatch
tells. There is no catalogue, no outbox, no check whether a file is finished or changes meanwhile, and no order.
"""

import argparse
import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aio_pika
import aiofiles
import aiofiles.os
import xxhash

from tests.bench.peers.event import EXCHANGE, Hashes, audio_files, event, read_metadata

CHUNK_BYTES = 8192
FILES_AT_ONCE = 100
PARSERS = 4


async def hash_file(path: Path, chunk_bytes: int) -> Hashes:
    """Return both hashes of a file."""
    sha256, xxh128 = hashlib.sha256(), xxhash.xxh3_128()
    async with aiofiles.open(path, "rb") as file:
        while chunk := await file.read(chunk_bytes):
            sha256.update(chunk)
            xxh128.update(chunk)
    return sha256.hexdigest(), xxh128.hexdigest()


async def describe(kind: str, path: Path, parsers: ThreadPoolExecutor, chunk_bytes: int) -> tuple[str, bytes, Hashes]:
    """Return the id and the body of the message about a file, and its hashes."""
    found = await aiofiles.os.stat(path)
    hashes = await hash_file(path, chunk_bytes)
    metadata = await asyncio.get_running_loop().run_in_executor(parsers, read_metadata, path)
    return *event(kind, str(path), hashes, found=found, metadata=metadata), hashes


async def publish(exchange: aio_pika.abc.AbstractExchange, kind: str, event_id: str, body: bytes) -> None:
    """Publish a message, and wait for its confirm."""
    message = aio_pika.Message(
        body,
        message_id=event_id,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await exchange.publish(message, routing_key=f"file.{kind}")


async def run(root: Path, url: str, files_at_once: int = FILES_AT_ONCE) -> int:
    """Tell all files of a library, and return how many there were."""
    paths = list(audio_files(root))
    at_once = asyncio.Semaphore(files_at_once)
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        with ThreadPoolExecutor(PARSERS) as parsers:

            async def tell(path: Path) -> None:
                async with at_once:
                    event_id, body, _ = await describe("created", path, parsers, CHUNK_BYTES)
                    await publish(exchange, "created", event_id, body)

            await asyncio.gather(*(tell(path) for path in paths))
    return len(paths)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("url", help="of the broker")
    parser.add_argument("--once", action="store_true", help="end when all are told; it can do nothing else")
    parser.add_argument("--files-at-once", type=int, default=FILES_AT_ONCE, help=f"({FILES_AT_ONCE})")
    options = parser.parse_args()
    print(asyncio.run(run(options.root, options.url, options.files_at_once)))


if __name__ == "__main__":
    main()
