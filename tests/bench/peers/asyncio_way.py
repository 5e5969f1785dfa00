"""The usual asyncio way of importing a library, as most people write it: a fair peer of `trackwatch run --once`.

List the files; gather over all of them, a hundred at a time by a semaphore; read each with aiofiles in chunks of 8 KB
and feed both hashes; parse the tags with mutagen in a pool of threads; publish one persistent message a file with
aio-pika (whose channels have publisher confirms by default) and await it. What is told of a file is what trackwatch
tells. There is no catalogue, no outbox, no check whether a file is finished or changes meanwhile, and no order.
"""

import argparse
import asyncio
import hashlib
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import aiofiles
import aiofiles.os
import mutagen
import xxhash

CHUNK_BYTES = 8192
FILES_AT_ONCE = 100
PARSERS = 4
EXCHANGE = "file_events"
SUFFIXES = {
    ".flac", ".wav", ".wave", ".mp3", ".ogg", ".oga", ".aac", ".opus", ".m4a", ".m4b", ".m4p", ".m4v", ".m4r", ".mp4",
    ".wma",
}  # fmt: skip


async def hash_file(path: Path) -> tuple[str, str]:
    """Return both hashes of a file."""
    sha256, xxh128 = hashlib.sha256(), xxhash.xxh3_128()
    async with aiofiles.open(path, "rb") as file:
        while chunk := await file.read(CHUNK_BYTES):
            sha256.update(chunk)
            xxh128.update(chunk)
    return sha256.hexdigest(), xxh128.hexdigest()


def read_metadata(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return what mutagen says of a file, or why it says nothing."""
    try:
        file = mutagen.File(path, easy=True)
    except mutagen.MutagenError as error:
        return None, str(error)
    if file is None:
        return None, "unknown format"
    known = {
        name: getattr(file.info, native, None)
        for name, native in (
            ("duration", "length"),
            ("bitrate", "bitrate"),
            ("sample_rate", "sample_rate"),
            ("channels", "channels"),
        )
    }
    tags = {}
    for name, values in (file.tags or {}).items():
        texts = values if isinstance(values, list) else [values]
        # Covers are no tags for a message.
        tags[name] = "; ".join(str(text) for text in texts if not isinstance(text, bytes))[:4096]
    return {**known, "format": file.mime[0], "tags": tags}, None


async def tell(path: Path, parsers: ThreadPoolExecutor, exchange: aio_pika.abc.AbstractExchange) -> None:
    """Describe one file, and publish it."""
    found = await aiofiles.os.stat(path)
    sha256, xxh128 = await hash_file(path)
    metadata, problem = await asyncio.get_running_loop().run_in_executor(parsers, read_metadata, path)
    event_id = str(uuid.uuid4())
    body = {
        "event_type": "created",
        "file_path": str(path),
        "old_path": None,
        "timestamp": datetime.now(UTC).isoformat(),
        "sha256_hash": sha256,
        "xxh128_hash": xxh128,
        "metadata": metadata,
        "metadata_error": problem,
        "event_id": event_id,
        "size_bytes": found.st_size,
        "modified_at": datetime.fromtimestamp(found.st_mtime, UTC).isoformat(),
    }
    message = aio_pika.Message(
        json.dumps(body, default=str).encode(),
        message_id=event_id,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await exchange.publish(message, routing_key="file.created")


async def run(root: Path, url: str, files_at_once: int = FILES_AT_ONCE) -> int:
    """Tell all files of a library, and return how many there were."""
    paths = [
        Path(where, name)
        for where, _, names in os.walk(root)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    at_once = asyncio.Semaphore(files_at_once)
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        with ThreadPoolExecutor(PARSERS) as parsers:

            async def limited(path: Path) -> None:
                async with at_once:
                    await tell(path, parsers, exchange)

            await asyncio.gather(*(limited(path) for path in paths))
    return len(paths)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("url", help="of the broker")
    parser.add_argument("--files-at-once", type=int, default=FILES_AT_ONCE, help=f"({FILES_AT_ONCE})")
    options = parser.parse_args()
    print(asyncio.run(run(options.root, options.url, options.files_at_once)))


if __name__ == "__main__":
    main()
