"""Audio files that nobody would want to read: real ones with damage, and ones made to cost a parser all it has.

A damaged file is a fixture or a variant with a few edits, decided by a generator of random numbers alone: the same seed
gives the same files. The crafted ones are the worst that we know of for each format, and say what they do to a parser.
"""

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from tests.data import expected
from tests.data.variants import variants
from trackwatch.track import AUDIO_SUFFIXES

# --- damage ---

EDITS_MAX = 6
HEAD_BYTES = 256  # says where everything else is, so half of the edits go there
REPEATS_MAX = 300
DAMAGED_BYTES_MAX = 1 << 20

# What a length, a count or a version may be that no program writes.
EXTREMES = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
MARKS = (b"ID3\3\0\0", b"ID3\4\0\xff", b"TAG", b"APETAGEX", b"OggS\0", b"fLaC", b"RIFF", b"moov", b"ilst", b"\xff\xfb")


@dataclass(frozen=True, slots=True)
class Made:
    """A file: what was done to it, the suffix that it gets, and what is in it."""

    kind: str
    suffix: str
    content: bytes


@cache
def sound_files() -> tuple[Made, ...]:
    """Return the files that damage begins with: fixtures of all formats, and variants with every kind of tags."""
    found = []
    for suffix in AUDIO_SUFFIXES:
        with open(expected.path_of(suffix), "rb") as file:
            found.append(Made("fixture", suffix, file.read()))
    return (*found, *(Made("variant", variant.suffix, variant.content) for variant in variants().values()))


def damaged(chance: random.Random) -> Made:
    """Return a file with one to six edits, all of one kind or of several; now and then with the suffix of another."""
    sound = chance.choice(sound_files())
    edits = [chance.choice(list(EDITS))] * chance.randint(1, EDITS_MAX)
    if chance.random() < 0.3:
        edits = [chance.choice(list(EDITS)) for _ in edits]
    content = sound.content
    for edit in edits:
        content = EDITS[edit](content, chance)[:DAMAGED_BYTES_MAX]
    suffix = chance.choice(AUDIO_SUFFIXES) if chance.random() < 0.1 else sound.suffix
    return Made(edits[0] if len(set(edits)) == 1 else "several", suffix, content)


def _place(content: bytes, chance: random.Random) -> int:
    """Return where to edit: anywhere, or in the first bytes."""
    return chance.randrange(min(len(content), HEAD_BYTES) if chance.random() < 0.5 else len(content)) if content else 0


def _chunk(content: bytes, chance: random.Random) -> tuple[int, int]:
    """Return where a piece begins and ends: often where a word of letters does, as chunks and atoms have it."""
    start = _place(content, chance)
    length = chance.choice((1, 4, 8, chance.randint(1, 64), chance.randint(1, 2048)))
    return start, min(len(content), start + length)


def _flip(content: bytes, chance: random.Random) -> bytes:
    edited = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64)) if content else 0):
        edited[_place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(edited)


def _truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _splice(content: bytes, chance: random.Random) -> bytes:
    """The beginning of one file, or all of it, and a piece of another one."""
    other = chance.choice(sound_files()).content
    start, end = _chunk(other, chance)
    at, rest = _place(content, chance), _place(content, chance)
    return content[:at] + other[start : len(other) if chance.random() < 0.5 else end] + content[rest:]


def _length(content: bytes, chance: random.Random) -> bytes:
    """An extreme number in two, three, four or eight bytes, either end first."""
    width = chance.choice((2, 3, 4, 4, 8))
    number = chance.choice(EXTREMES) % (1 << 8 * width)
    at = _place(content, chance)
    return content[:at] + number.to_bytes(width, chance.choice(("big", "little"))) + content[at + width :]


def _synchsafe(content: bytes, chance: random.Random) -> bytes:
    """The largest number that ID3 can write, or one that it cannot."""
    at = _place(content, chance)
    return content[:at] + chance.choice((b"\x7f\x7f\x7f\x7f", b"\0\0\x7f\x7f", b"\xff" * 4)) + content[at + 4 :]


def _repeat(content: bytes, chance: random.Random) -> bytes:
    start, end = _chunk(content, chance)
    return content[:end] + content[start:end] * chance.choice((1, 2, REPEATS_MAX)) + content[end:]


def _remove(content: bytes, chance: random.Random) -> bytes:
    start, end = _chunk(content, chance)
    return content[:start] + content[end:]


def _blank(content: bytes, chance: random.Random) -> bytes:
    start, end = _chunk(content, chance)
    return content[:start] + chance.choice((b"\0", b"\xff")) * (end - start) + content[end:]


def _mark(content: bytes, chance: random.Random) -> bytes:
    at, mark = _place(content, chance), chance.choice(MARKS)
    return content[:at] + mark + content[at + (len(mark) if chance.random() < 0.5 else 0) :]


EDITS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": _flip,
    "truncated": _truncate,
    "spliced": _splice,
    "extreme length": _length,
    "extreme synchsafe": _synchsafe,
    "piece repeated": _repeat,
    "piece removed": _remove,
    "piece blank": _blank,
    "mark in the middle": _mark,
}


# --- crafted ---


@dataclass(frozen=True, slots=True)
class Crafted:
    """A file that was made to hurt: the suffix, how it is made, and whether anybody can say what is in it.

    `is_readable` None: that depends on how fast the machine is, or on how much the parser lets itself be told.
    """

    name: str
    suffix: str
    make: Callable[[], bytes]
    is_readable: bool | None = None


def _fixture(suffix: str) -> bytes:
    with open(expected.path_of(suffix), "rb") as file:
        return file.read()


def _synchsafe_size(size: int) -> bytes:
    return bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))


def _id3(body: bytes, version: int = 3, claimed: int | None = None) -> bytes:
    return b"ID3" + bytes([version, 0, 0]) + _synchsafe_size(len(body) if claimed is None else claimed) + body


def _frame(name: bytes, body: bytes, *, flags: bytes = b"\0\0", claimed: int | None = None) -> bytes:
    return name + struct.pack(">I", len(body) if claimed is None else claimed) + flags + body


def _atom(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def _mp3_with(tag: bytes) -> bytes:
    return tag + _fixture("mp3")


def _packed_zeros(megabytes: int) -> bytes:
    """Zeros as zlib would pack them, a thousandth of their size: one block again and again, for packing takes long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    check = ((megabytes << 20) % 65521) << 16 | 1
    return b"\x78\xda" + block * megabytes + b"\3\0" + struct.pack(">I", check)


def _compressed_frame(name: bytes, megabytes: int) -> bytes:
    return _frame(name, struct.pack(">I", megabytes << 20) + _packed_zeros(megabytes), flags=b"\0\x80")


def _nested_frames(depth: int) -> bytes:
    # From the innermost out, and no more than the length of each: joined at the end, or it would take the square.
    heads, size = [], 0
    for _ in range(depth):
        size += 18
        heads.append(b"CHAP" + struct.pack(">I", size) + b"\0\0" + b"x\0" + bytes(16))
        size += 10
    return _mp3_with(_id3(b"".join(reversed(heads))))


def _nested_atoms(names: tuple[bytes, ...], depth: int) -> bytes:
    heads, size = [], 0
    for level in reversed(range(depth)):
        name = names[level % len(names)]
        extra = bytes(4) if name == b"meta" else b""
        size += 8 + len(extra)
        heads.append(struct.pack(">I", size) + name + extra)
    return FTYP + b"".join(reversed(heads))


FTYP = _atom(b"ftyp", b"M4A \0\0\0\0M4A mp42")
FLAC_HEAD_BYTES = 42  # mark and STREAMINFO
FLAC_BLOCK_MAX = 0xFFFFFF


def _ape(items: int, claimed: int) -> bytes:
    body = b"".join(struct.pack("<II", 1, 0) + b"K%06d\0x" % number for number in range(items))

    def edge(flags: int) -> bytes:
        return b"APETAGEX" + struct.pack("<IIII", 2000, len(body) + 32, claimed, flags) + bytes(8)

    return _fixture("mp3") + edge(0xA0000000) + body + edge(0x80000000)


def _flac_with(kind: int, block: bytes, *, before: bytes = b"", claimed: int | None = None) -> bytes:
    size = len(block) if claimed is None else claimed
    return _fixture("flac")[:FLAC_HEAD_BYTES] + before + bytes([0x80 | kind]) + size.to_bytes(3, "big") + block


def _comments(entry: bytes, count: int, claimed: int | None = None) -> bytes:
    one = struct.pack("<I", len(entry)) + entry
    return (struct.pack("<II", 0, count if claimed is None else claimed) + one * count)[:FLAC_BLOCK_MAX]


def _page(serial: bytes, sequence: int, body: bytes, *, is_continued: bool = False) -> bytes:
    laces = b"\xff" * 255 if len(body) == 255 * 255 else b"\xff" * (len(body) // 255) + bytes([len(body) % 255])
    head = b"OggS\0" + bytes([is_continued]) + b"\xff" * 8 + serial + struct.pack("<I", sequence) + bytes(4)
    return head + bytes([len(laces)]) + laces + body


def _ogg_head() -> tuple[bytes, bytes]:
    """Return the first page of a Vorbis file, and its serial number."""
    content = _fixture("ogg")
    return content[: content.index(b"OggS", 4)], content[14:18]


def _long_ogg_comment(pages: int) -> bytes:
    first, serial = _ogg_head()
    full = bytes(255 * 255)
    begun = _page(serial, 1, b"\x03vorbis" + struct.pack("<II", 0, 1 << 31) + full[15:])
    return first + begun + b"".join(_page(serial, number, full, is_continued=True) for number in range(2, pages))


def _many_ogg_pages() -> bytes:
    first, _ = _ogg_head()
    return first + b"".join(_page(b"zzzz", number, b"") for number in range(400_000))


def _wave_with(chunks: bytes) -> bytes:
    return _fixture("wav")[:36] + chunks


def _asf_with(objects: bytes, count: int) -> bytes:
    content = _fixture("wma")
    return content[:24] + struct.pack("<I", count) + content[28:30] + objects


def _asf_object(size: int) -> bytes:
    return bytes(16) + struct.pack("<Q", size)


def _big_table() -> bytes:
    """Four times a thousand million samples, of which there is none."""
    tables = _atom(b"stts", struct.pack(">II", 0, 0xFFFFFFFF)) + _atom(b"stsz", struct.pack(">III", 0, 0, 0xFFFFFFFF))
    content = _fixture("m4a")
    at = content.index(b"stts") - 4
    return content[:at] + tables + content[at:]


PICTURE = b"\0image/jpeg\0\3\0"


def _ilst(items: bytes) -> bytes:
    """An MP4 file with these items among its tags: its sound is of no matter, and comes first."""
    content = _fixture("m4a").replace(b"udta", b"free", 1)
    tags = _atom(b"udta", _atom(b"meta", bytes(4) + _atom(b"ilst", items)))
    at = content.index(b"moov") - 4
    (size,) = struct.unpack(">I", content[at : at + 4])
    return content[:at] + struct.pack(">I", size + len(tags)) + content[at + 4 : at + size] + tags


def _data(value: bytes, kind: int = 1) -> bytes:
    return _atom(b"data", struct.pack(">II", kind, 0) + value)


def _wave_id3(frame: bytes) -> bytes:
    tag = _id3(frame)
    return _fixture("wav")[36:] + b"id3 " + struct.pack("<I", len(tag)) + tag + bytes(len(tag) % 2)


FILLED_ATOMS = _atom(b"free") * 2_000_000
OPEN_ATOMS = b"\0\0\0\0moov\0\0\0\0udta\0\0\0\0meta"
MOOV_PATH = (b"moov", b"udta", b"meta", b"ilst")


def _crafted() -> Iterator[Crafted]:
    def mp3(name: str, frames: Callable[[], bytes], *, version: int = 3, claimed: int | None = None) -> Crafted:
        return Crafted(name, "mp3", lambda: _mp3_with(_id3(frames(), version, claimed)))

    def made(name: str, suffix: str, make: Callable[[], bytes], is_readable: bool | None = None) -> Crafted:
        return Crafted(name, suffix, make, is_readable)

    def not_audio(name: str, suffix: str, make: Callable[[], bytes]) -> Crafted:
        return Crafted(name, suffix, make, is_readable=False)

    yield mp3("ID3 frame of 1 GB, compressed", lambda: _compressed_frame(b"TIT2", 1024))
    yield mp3("ID3 frame of 200 MB, compressed", lambda: _compressed_frame(b"TIT2", 200))
    yield mp3(
        "ID3 frames of 64 MB, compressed, 64 of them",
        lambda: b"".join(_compressed_frame(b"T%03d" % n, 64) for n in range(64)),
    )
    yield mp3("ID3 comment of 1 GB, compressed", lambda: _compressed_frame(b"COMM", 1024))
    yield mp3("ID3 with 200,000 frames", lambda: _frame(b"TXXX", b"\0\0\0") * 200_000)
    yield mp3("ID3 with 200,000 texts", lambda: _frame(b"TPE1", b"\0a\0b") * 200_000, version=4)
    yield mp3("ID3 with 200,000 separators", lambda: _frame(b"TPE1", b"\3" + b"\0" * 200_000))
    # An unsynchronised frame is rare enough that nobody has a short way for it.
    yield mp3("ID3 with 200,000 rare frames", lambda: _frame(b"TXXX", b"\0\0\0", flags=b"\0\2") * 200_000, version=4)
    yield mp3("ID3 with 200,000 rare texts", lambda: _frame(b"TPE1", b"\0a", flags=b"\0\2") * 200_000, version=4)
    yield mp3("ID3 with a rare genre 300,000 times", lambda: _frame(b"TCON", b"\0" + b"(1)" * 300_000, flags=b"\0\x20"))
    yield mp3("ID3v2.2 with 300,000 frames", lambda: b"TXX\0\0\3\0\0\0" * 300_000, version=2)
    yield mp3("ID3v2.2 with 300,000 texts", lambda: b"TP1\0\0\2\0a" * 300_000, version=2)
    yield mp3("ID3 with a picture of 30 MB", lambda: _frame(b"APIC", PICTURE + bytes(30_000_000)))
    yield mp3("ID3 with a size of 256 MB", bytes, claimed=(1 << 28) - 1)
    yield mp3("ID3 frame with a size of 2 GB", lambda: _frame(b"TIT2", b"\0x", claimed=1 << 31))
    yield made("ID3 a hundred thousand times", "mp3", lambda: _mp3_with(_id3(b"") * 100_000))
    yield made("ID3 chapters in chapters, 40 deep", "mp3", lambda: _nested_frames(40))
    yield made("ID3 chapters in chapters, 50,000 deep", "mp3", lambda: _nested_frames(50_000))
    yield not_audio("MPEG sync words, 4 MB", "mp3", lambda: _id3(bytes(10)) + b"\xff\xe0" * 2_000_000)
    yield made("MPEG frame and 16 MB of zeros", "mp3", lambda: b"\xff\xfb\x90" + bytes(16_000_000))
    yield made("APEv2 with 300,000 items", "mp3", lambda: _ape(300_000, 300_000))
    yield made("APEv2 with 2^32 items", "mp3", lambda: _ape(3, 0xFFFFFFFF))
    yield made("ADTS sync words, 8 MB", "aac", lambda: b"\xff\xf1" * 4_000_000)
    yield made("FLAC with 4 million empty comments", "flac", lambda: _flac_with(4, _comments(b"", 4_000_000)))
    yield made("FLAC with 2 million comments", "flac", lambda: _flac_with(4, _comments(b"a=b", 2_400_000)))
    yield made("FLAC with a million blocks", "flac", lambda: _flac_with(1, b"", before=b"\2\0\0\0" * 1_000_000))
    yield not_audio("FLAC comments beyond the end", "flac", lambda: _flac_with(4, _comments(b"a=b", 3, 0xFFFFFFFF)))
    yield not_audio("FLAC block of 16 MB in 50 bytes", "flac", lambda: _flac_with(6, b"", claimed=FLAC_BLOCK_MAX))
    yield not_audio("Ogg with a comment of 32 MB", "ogg", lambda: _long_ogg_comment(500))
    yield not_audio("Ogg with 400,000 pages of another stream", "oga", _many_ogg_pages)
    yield not_audio("Ogg pages, 400,000 without a codec", "ogg", lambda: b"OggS\0" * 400_000)
    yield not_audio("MP4 with 2 million atoms", "m4a", lambda: FTYP + FILLED_ATOMS)
    yield not_audio("MP4 with 2 million atoms in moov", "m4b", lambda: FTYP + _atom(b"moov", FILLED_ATOMS))
    yield made("MP4 with 500,000 texts", "mp4", lambda: _ilst(_atom(b"\xa9nam", _data(b"x")) * 500_000))
    yield made("MP4 with 500,000 texts of one name", "mp4", lambda: _ilst(_atom(b"\xa9nam", _data(b"x") * 500_000)))
    yield made("MP4 with a picture of 60 MB", "m4a", lambda: _ilst(_atom(b"covr", _data(bytes(60_000_000), 13))))
    yield made("MP4 atoms in atoms, 900 deep", "m4r", lambda: _nested_atoms(MOOV_PATH[:2], 900))
    yield made("MP4 atoms in atoms, 500,000 deep", "m4p", lambda: _nested_atoms(MOOV_PATH, 500_000))
    yield not_audio("MP4 atom of 2^63 bytes", "m4v", lambda: FTYP + b"\0\0\0\1moov" + struct.pack(">Q", 1 << 63))
    yield made("MP4 atoms to the end, in each other", "m4a", lambda: FTYP + OPEN_ATOMS * 9999)
    yield made("MP4 with tables of 2^32 entries", "m4a", _big_table)
    yield made("WAVE with 2 million chunks", "wav", lambda: _wave_with((b"JUNK" + bytes(4)) * 2_000_000))
    yield made("WAVE with a chunk of 4 GB", "wave", lambda: _wave_with(b"LIST\xff\xff\xff\xffINFOINAM\xff\xff\xff\xff"))
    yield made(
        "WAVE with ID3 of 1 GB, compressed", "wav", lambda: _wave_with(_wave_id3(_compressed_frame(b"TIT2", 1024)))
    )
    yield made("ASF with 500,000 objects", "wma", lambda: _asf_with(_asf_object(24) * 500_000, 500_000))
    yield made("ASF object of 2^63 bytes", "wma", lambda: _asf_with(_asf_object(1 << 63), 1))
    yield made("ASF objects of no size", "wma", lambda: _asf_with(_asf_object(0) * 100_000, 0xFFFFFFFF))
    yield not_audio("zeros, 64 MB", "mp3", lambda: bytes(64 << 20))
    yield not_audio("noise, 8 MB", "opus", lambda: random.Random(0).randbytes(8 << 20))
    yield not_audio("nothing", "flac", lambda: b"")


CRAFTED = {crafted.name: crafted for crafted in _crafted()}


def write(path: str | bytes | os.PathLike[str], content: bytes) -> None:
    """Write a file so that it appears at once, complete."""
    part = os.fsencode(path) + b".part"
    with open(part, "wb") as file:
        file.write(content)
    os.replace(part, path)
