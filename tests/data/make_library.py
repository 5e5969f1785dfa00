"""Make a music library of any size for tests and measurements: real, parseable files, no two with the same bytes.

Each file is one of tests/data/audio with noise added to its end: as a chunk to skip in RIFF and MP4, as it is in the
other formats, whose readers stop before it or look past it (a decoder may grumble, and the duration of raw AAC, a mere
estimate, grows with it). Needs the standard library only: python tests/data/make_library.py DIR N [--size BYTES].
"""

import argparse
import os
import random
import struct
from typing import BinaryIO

AUDIO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "audio")
SUFFIXES = (
    "flac", "wav", "wave", "mp3", "ogg", "oga", "aac", "opus", "m4a", "m4b", "m4p", "m4v", "m4r", "mp4", "wma",
)  # fmt: skip
ALBUM_FILES = 100
ARTIST_ALBUMS = 10
ALBUM_ENDINGS = ("", " with spaces", " – Ünïcödé 日本語")  # noqa: RUF001 - names are as odd as people make them
ARTIST_ENDINGS = ("", " Sigur Rós", " & the Spaces ")

FILLER_BYTES = 1 << 20  # one block, used again and again: hashing costs the same, and making it does not count


def make_library(directory: str, count: int, *, size_bytes: int | None = None, seed: int = 0) -> None:
    """Write `count` files below `directory`: artist000/album0000/000000.flac, 000001.wav and so on, 100 in a folder.

    Each has `size_bytes` (one more where the format has to be even), or as many as its format needs when that is more
    or when no size is given. The same arguments give the same bytes; another seed gives other bytes in every file. Each
    file appears under its name at once and complete; a run that is killed leaves at most one hidden `.part` file.
    """
    bases = {}
    for suffix in SUFFIXES:
        with open(os.path.join(AUDIO, f"track.{suffix}"), "rb") as file:
            bases[suffix] = file.read()
    filler = random.Random(seed).randbytes(FILLER_BYTES)
    for index in range(count):
        album = index // ALBUM_FILES
        if index % ALBUM_FILES == 0:
            folder = os.path.join(directory, *_folders(album))
            os.makedirs(folder, exist_ok=True)
        suffix = SUFFIXES[index % len(SUFFIXES)]
        name = f"{index:06}.{suffix}"
        part = os.path.join(folder, f".{name}.part")
        with open(part, "wb") as file:
            _write(file, suffix, bases[suffix], f"trackwatch {seed} {index} ".encode(), filler, size_bytes or 0)
        os.replace(part, os.path.join(folder, name))


def _folders(album: int) -> tuple[str, str]:
    """Return the names of an album's folder and of the one around it; only the first ones are plain."""
    artist = album // ARTIST_ALBUMS
    return (
        f"artist{artist:03}{ARTIST_ENDINGS[artist % len(ARTIST_ENDINGS)]}",
        f"album{album:04}{ALBUM_ENDINGS[album % len(ALBUM_ENDINGS)]}",
    )


def _write(file: BinaryIO, suffix: str, base: bytes, unique: bytes, filler: bytes, size_bytes: int) -> None:
    """Write one file: the base, a header that makes the tail legal where the format has one, and the tail."""
    header_bytes, end = 8, b""
    if suffix in ("ogg", "oga", "opus"):
        # Readers expect a page in the last 64 KiB, and take the duration from it: the last one comes once more.
        header_bytes, end = 0, base[base.rindex(b"OggS") :]
    elif suffix in ("flac", "mp3", "aac", "wma"):
        header_bytes = 0
    tail_bytes = max(len(unique), size_bytes - len(base) - header_bytes - len(end))
    header = b""
    if suffix in ("wav", "wave"):
        tail_bytes += tail_bytes % 2
        header = struct.pack("<4sI", b"JUNK", tail_bytes)
        base = base[:4] + struct.pack("<I", len(base) + tail_bytes) + base[8:]  # all but the 8 bytes up to there
    elif header_bytes:
        header = struct.pack(">I4s", header_bytes + tail_bytes, b"free")
    file.write(base + header + unique)
    left = tail_bytes - len(unique)
    while left > 0:
        left -= file.write(filler[:left])
    file.write(end)


def main() -> None:
    """Make a library from the command line."""
    parser = argparse.ArgumentParser(description="make a music library of unique, parseable files")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("count", metavar="N", type=int)
    parser.add_argument("--size", metavar="BYTES", type=int, help="of each file; without it, as small as they get")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="another seed, other bytes (0)")
    arguments = parser.parse_args()
    make_library(arguments.directory, arguments.count, size_bytes=arguments.size, seed=arguments.seed)


if __name__ == "__main__":
    main()
