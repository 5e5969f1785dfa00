"""What every peer tells of a file: what trackwatch tells, as far as a program without a memory can know it."""

import json
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mutagen

EXCHANGE = "file_events"
SUFFIXES = {
    ".flac", ".wav", ".wave", ".mp3", ".ogg", ".oga", ".aac", ".opus", ".m4a", ".m4b", ".m4p", ".m4v", ".m4r", ".mp4",
    ".wma",
}  # fmt: skip

Hashes = tuple[str, str]


def is_audio(path: str) -> bool:
    """Whether a file is one to be told."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def audio_files(root: Path) -> Iterator[Path]:
    """Yield the files to be told below a root."""
    for where, _, names in os.walk(root):
        for name in names:
            if is_audio(name):
                yield Path(where, name)


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


def event(
    kind: str,
    path: str,
    hashes: Hashes | None,
    *,
    old_path: str | None = None,
    found: os.stat_result | None = None,
    metadata: tuple[dict[str, Any] | None, str | None] = (None, None),
) -> tuple[str, bytes]:
    """Return the id and the body of a message."""
    event_id = str(uuid.uuid4())
    body = {
        "event_type": kind,
        "file_path": path,
        "old_path": old_path,
        "timestamp": datetime.now(UTC).isoformat(),
        "sha256_hash": hashes and hashes[0],
        "xxh128_hash": hashes and hashes[1],
        "metadata": metadata[0],
        "metadata_error": metadata[1],
        "event_id": event_id,
        "size_bytes": found and found.st_size,
        "modified_at": found and datetime.fromtimestamp(found.st_mtime, UTC).isoformat(),
    }
    return event_id, json.dumps(body, default=str).encode()
