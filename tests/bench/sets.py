"""The three libraries that imports are measured with: large FLACs, usual MP3s, and many small files of all kinds.

Every file is unique and parses to its end. The large ones have what real ones have, text tags and a cover of 100 KB,
and real frames: noise is what FLAC stores verbatim, so these frames are what an encoder would have written, with their
checksums and with the MD5 of the samples; the MP3 frames (320 kbit/s) are silence whose ancillary data are noise. The
small ones are the 15 formats of tests/data/make_library.py in turn. Nothing here asks for an encoder.
"""

# Mutagen has annotations for some of what it exports, and none for the rest.
# mypy: allow-untyped-calls

import hashlib
import io
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutagen.flac import Picture, VCFLACDict
from mutagen.id3 import APIC, ID3, TALB, TCOM, TCON, TDRC, TIT2, TPE1, TPE2, TPOS, TRCK

from tests.bench.measure import bench
from tests.data.make_library import make_library
from trackwatch.settle import UNKNOWN_WRITER_QUIET_S

COVER_BYTES = 100_000
ALBUM_FILES = 12
RATE, CHANNELS, SAMPLE_BITS = 44_100, 2, 16
FLAC_BLOCK = 4096  # samples of a channel in each frame
MP3_FRAME_BYTES, MP3_SIDE_BYTES, MP3_SAMPLES = 1044, 32, 1152
MP3_HEADER = bytes.fromhex("fffbe000")  # MPEG 1, layer III, 320 kbit/s, 44.1 kHz, stereo
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Library:
    """A kind of library: its name, how many files it has by default, how large each is, and what writes it."""

    name: str
    files: int
    size_bytes: int
    write: Callable[[Path, int], None]

    @property
    def option(self) -> str:
        """What the option is called that says how many files there are to be."""
        return "files_" + self.name.split(" FLAC")[0].split(" MP3")[0].replace(" ", "").lower()


@dataclass(frozen=True)
class Made:
    """A library that is on the disk, in the page cache, and at rest."""

    library: Library
    root: Path
    files: int
    size_bytes: int

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"{self.files:,} x {self.library.name}"


def write_flacs(root: Path, count: int) -> None:
    """Write FLAC files of 30 MB."""
    noise = random.Random(0)
    block_bytes = FLAC_BLOCK * CHANNELS * SAMPLE_BITS // 8
    room_bytes = 30_000_000 - COVER_BYTES - 2 * block_bytes
    frames: list[bytes] = []
    samples = hashlib.md5(usedforsecurity=False)
    while (len(frames) + 1) * (block_bytes + 13) <= room_bytes:
        block = noise.randbytes(block_bytes)
        frames.append(_flac_frame(len(frames), block))
        samples.update(_interleaved(block))
    shared = b"".join(frames)
    for index in range(count):
        block = random.Random(f"flac {index}").randbytes(block_bytes)
        whole = samples.copy()
        whole.update(_interleaved(block))
        head = _flac_head(index, (len(frames) + 1) * FLAC_BLOCK, whole.digest())
        _write_file(root, index, "flac", head, shared, _flac_frame(len(frames), block))


def _flac_head(index: int, samples: int, md5: bytes) -> bytes:
    comments = VCFLACDict()
    for name, value in _tags(index).items():
        comments[name.replace("_", "")] = value
    cover = Picture()
    cover.type, cover.mime, cover.width, cover.height, cover.depth, cover.data = 3, "image/jpeg", 600, 600, 24, _cover()
    packed = RATE << 44 | (CHANNELS - 1) << 41 | (SAMPLE_BITS - 1) << 36 | samples
    info = struct.pack(">HH", FLAC_BLOCK, FLAC_BLOCK) + bytes(6) + packed.to_bytes(8) + md5
    # Block types: stream information, comments, picture, and padding, which is the last one.
    blocks = ((0, info), (4, comments.write(framing=False)), (6, cover.write()), (0x81, bytes(8192)))
    return b"fLaC" + b"".join(bytes([kind]) + len(data).to_bytes(3) + data for kind, data in blocks)


def _flac_frame(number: int, block: bytes) -> bytes:
    """Return a frame of two verbatim subframes; `block` has the samples of one channel, then those of the other."""
    head = bytes.fromhex("fff8c918") + chr(number).encode()  # 4096 samples, 44.1 kHz, stereo, 16 bits
    frame = head + bytes([_crc(head, _CRC_8, 8)])
    half = len(block) // 2
    frame += b"\x02" + block[:half] + b"\x02" + block[half:]
    return frame + _crc(frame, _CRC_16, 16).to_bytes(2)


def _interleaved(block: bytes) -> bytes:
    """Return samples in the order and form of which FLAC takes the MD5: channels in turn, little-endian."""
    half = len(block) // 2
    mixed = bytearray(len(block))
    for channel in range(CHANNELS):
        part = block[channel * half : (channel + 1) * half]
        mixed[2 * channel :: 4], mixed[2 * channel + 1 :: 4] = part[1::2], part[::2]
    return bytes(mixed)


def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
        table.append(value & ((1 << bits) - 1))
    return table


_CRC_8, _CRC_16 = _crc_table(0x107, 8), _crc_table(0x18005, 16)


def _crc(data: bytes, table: list[int], bits: int) -> int:
    value, shift, mask = 0, bits - 8, (1 << bits) - 1
    for byte in data:
        value = (value << 8) & mask ^ table[value >> shift ^ byte]
    return value


def write_mp3s(root: Path, count: int) -> None:
    """Write MP3 files of 5 MB."""
    noise = random.Random(0)
    frames = (5_000_000 - COVER_BYTES - 4096) // MP3_FRAME_BYTES
    silence = MP3_HEADER + bytes(MP3_SIDE_BYTES)
    ancillary_bytes = MP3_FRAME_BYTES - len(silence)
    # As encoders do, the first frame holds no sound but says how many follow.
    first = silence + b"Info" + struct.pack(">III", 3, frames, frames * MP3_FRAME_BYTES)
    shared = first.ljust(MP3_FRAME_BYTES, b"\0")
    shared += b"".join(silence + noise.randbytes(ancillary_bytes) for _ in range(frames - 2))
    for index in range(count):
        last = silence + random.Random(f"mp3 {index}").randbytes(ancillary_bytes)
        _write_file(root, index, "mp3", _id3(index), shared, last)


def _id3(index: int) -> bytes:
    said = _tags(index)
    tags = ID3()
    kinds = {"title": TIT2, "artist": TPE1, "album": TALB, "album_artist": TPE2, "date": TDRC, "genre": TCON}
    kinds |= {"composer": TCOM}
    for name, kind in kinds.items():
        tags.add(kind(3, said[name]))
    tags.add(TRCK(3, f"{said['track_number']}/{said['track_total']}"))
    tags.add(TPOS(3, said["disc_number"]))
    tags.add(APIC(0, "image/jpeg", 3, "", _cover()))
    held = io.BytesIO()
    tags.save(held)
    return held.getvalue()


def _tags(index: int) -> dict[str, str]:
    return {
        "title": f"Ein Lied über Bäume, die im Regen stehen, Teil {index}",
        "artist": "Erste Sängerin",
        "album": f"Gesammelte Lieder, Folge {index // ALBUM_FILES}",
        "album_artist": "Verschiedene",
        "date": "2004-05-01",
        "genre": "Chanson",
        "composer": "Unbekannt",
        "track_number": str(index % ALBUM_FILES + 1),
        "track_total": str(ALBUM_FILES),
        "disc_number": "1",
    }


def _cover() -> bytes:
    # Nobody looks at it here, and a JPEG is as good as noise to who reads past it.
    return b"\xff\xd8\xff" + random.Random(1).randbytes(COVER_BYTES - 5) + b"\xff\xd9"


def _write_file(root: Path, index: int, suffix: str, *parts: bytes) -> None:
    folder = root / f"Artist {index // ALBUM_FILES // 10:03}" / f"Album {index // ALBUM_FILES:04}"
    if index % ALBUM_FILES == 0:
        folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{index % ALBUM_FILES + 1:02} {index:05}.{suffix}", "wb") as file:
        file.writelines(parts)


def write_small(root: Path, count: int) -> None:
    """Write files of 130 KB in all formats."""
    make_library(str(root), count, size_bytes=130_000)


LIBRARIES = (
    Library("30 MB FLAC", 300, 30_000_000, write_flacs),
    Library("5 MB MP3", 2_000, 5_000_000, write_mp3s),
    Library("130 KB", 10_000, 130_000, write_small),
)
SMALL = LIBRARIES[-1]


def size_options(*libraries: Library) -> dict[str, tuple[Any, str]]:
    """Return the command line's options that say how many files each library has."""
    return {each.option: (each.files, f"files of {each.name}; 0 leaves them out") for each in libraries}


@contextmanager
def made(library: Library, count: int, directory: str | Path | None) -> Iterator[Made]:
    """Write a library, which is deleted afterwards, and yield it when it is on the disk, in the cache, and at rest."""
    with bench(directory) as folder:
        root = folder / "music"
        root.mkdir()
        library.write(root, count)
        os.sync()
        written_s = time.monotonic()
        paths = files(root)
        size_bytes = sum(map(_read, paths))
        # What is measured is not how long somebody waits for a writer.
        time.sleep(max(0.0, written_s + UNKNOWN_WRITER_QUIET_S + 0.5 - time.monotonic()))
        yield Made(library, root, len(paths), size_bytes)


def files(root: Path) -> list[bytes]:
    """Return the paths of all files, in the order of their names."""
    found = [os.path.join(where, name) for where, _, names in os.walk(os.fsencode(root)) for name in names]
    return sorted(found)


def _read(path: bytes) -> int:
    size_bytes = 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            size_bytes += len(data)
    return size_bytes
