"""ID3 tags as nearly every file has them, read without mutagen, which takes ten microseconds for each frame.

Knows plain ID3v2.3 and ID3v2.4, and ID3v1. Whatever is out of the ordinary (flags, other versions, doubtful sizes,
broken texts) is left to somebody who knows better: Unusual says so. Of what is read here, mutagen reads the same.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Protocol

HEADER_BYTES = 10
V1_BYTES = 128
MAX_VALUES = 1000  # of one frame: sixteen megabytes of NULs are as many empty ones

TEXT_FRAMES = frozenset({
    "TIT2", "TPE1", "TALB", "TPE2", "TDRC", "TDRL", "TYER", "TDAT", "TIME", "TCON", "TCOM", "TRCK", "TPOS", "TCMP",
    "TSRC", "TXXX",
})  # fmt: skip
OTHER_FRAMES = frozenset({"UFID", "RVA2"})

_BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_YEAR = re.compile("[0-9]{4}(?:-[0-9]{2}-[0-9]{2})?")  # a whole date is against the rules, but it happens
_TWO_PAIRS = re.compile("([0-9]{2})([0-9]{2})")


class Unusual(ValueError):
    """The tag is not as plain as this module has it."""


class Readable(Protocol):
    """A file that can be read and sought."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, fewer at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move, and return the new position."""


def read_v2(file: Readable) -> tuple[dict[str, list[str]], int]:
    """Return the values by frame, in lower case ("tit2", "txxx:isrc"), and the size in bytes of the whole tag.

    The tag begins at the file's position; without one nothing is returned, and a size of 0. Only frames that the
    contract needs are read: a picture costs nothing.

    Raises:
        Unusual: the tag, or a frame that is needed, is not plain.
        UnicodeDecodeError: a text is broken.
    """
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or header[:3] != b"ID3":
        return {}, 0
    version, flags, size = header[3], header[5], int.from_bytes(header[6:], "big")
    if version not in (3, 4) or flags or size & 0x80808080:
        raise Unusual
    size = _synchsafe(size)
    data = file.read(size)
    if len(data) < size:
        raise Unusual
    frames = _frames(data, is_synchsafe=version == 4)
    return frames, HEADER_BYTES + size


def _frames(data: bytes, *, is_synchsafe: bool) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    position = 0
    while position + HEADER_BYTES <= len(data):
        raw_name, size, flags = struct.unpack_from(">4sIH", data, position)
        if raw_name == b"\0\0\0\0":
            break
        # iTunes once wrote plain sizes into ID3v2.4. Reading them wrongly ends between frames, where no name is.
        if is_synchsafe and size > 0x7F:
            if size & 0x80808080:
                raise Unusual
            size = _synchsafe(size)
        if not raw_name.isalnum() or not raw_name.isupper() or position + HEADER_BYTES + size > len(data):
            raise Unusual
        start = position + HEADER_BYTES
        position = start + size
        name = raw_name.decode("ascii")
        if not size or (name not in TEXT_FRAMES and name not in OTHER_FRAMES):
            continue
        if flags:
            raise Unusual
        key, values = _frame(name, data[start:position])
        if name in TEXT_FRAMES:
            found.setdefault(key, []).extend(values)
        else:
            found[key] = values
    if data[position:].strip(b"\0"):
        raise Unusual
    return found


def _frame(name: str, content: bytes) -> tuple[str, list[str]]:
    """Return the key and the values of a frame."""
    if name in TEXT_FRAMES:
        first, *others = _decoded(content).split("\0", MAX_VALUES)[:MAX_VALUES]
        values = [value for value in others if value]  # the last one may have an end, and there may be padding
        if name == "TXXX":
            return f"txxx:{first.lower()}", values
        return name.lower(), [first, *values] if values else [first]
    if name == "UFID":
        owner, separator, identifier = content.partition(b"\0")
        if separator:
            return f"ufid:{owner.decode('latin-1').lower()}", [identifier.decode("ascii")]
    raise Unusual


def _decoded(content: bytes) -> str:
    """Return a text frame's content without its encoding, values separated by NUL."""
    match content[0]:
        case 0:
            return content[1:].decode("latin-1")
        case 3:
            return content[1:].decode("utf-8")
        case 2:
            return content[1:].decode("utf-16-be")
        case 1 if encoding := _BOMS.get(content[1:3]):
            # Each value may begin with the mark again; the mark of the other byte order comes out as U+FFFE.
            text = content[3:].decode(encoding).replace("\0\ufeff", "\0")
            if "\ufffe" not in text and "\ufeff" not in text:
                return text
    raise Unusual


def _synchsafe(size: int) -> int:
    """Return the number that has seven bits in each byte."""
    return size & 0x7F | size >> 1 & 0x3F80 | size >> 2 & 0x1FC000 | size >> 3 & 0xFE00000


def date_of_parts(frames: Mapping[str, Sequence[object]]) -> str:
    """Return ID3v2.3's year (2019), day (1705) and time (2130) put together as ID3v2.4 has them; empty for no year."""
    year, day, time = (next(filter(None, map(str, frames.get(key, ()))), "") for key in ("tyer", "tdat", "time"))
    if not _YEAR.fullmatch(year):
        return ""
    if day_month := _TWO_PAIRS.fullmatch(day):
        year = f"{year[:4]}-{day_month[2]}-{day_month[1]}"
    hour_minute = _TWO_PAIRS.fullmatch(time)
    return f"{year} {hour_minute[1]}:{hour_minute[2]}" if hour_minute and len(year) > 4 else year


def read_v1(tail: bytes) -> Mapping[str, list[str]]:
    """Return the values by ID3v2's names from the last 128 bytes of a file; nothing if they are no ID3v1 tag."""
    if len(tail) != V1_BYTES or tail[:3] != b"TAG":
        return {}
    title, artist, album, year, comment, genre = struct.unpack("<3x30s30s30s4s30sB", tail)
    texts = {"tit2": title, "tpe1": artist, "talb": album, "tdrc": year}
    values = {key: [text.partition(b"\0")[0].decode("latin-1")] for key, text in texts.items()}
    values["tcon"] = [str(genre)] if genre != 0xFF else []
    values["trck"] = [str(comment[29])] if comment[28] == 0 else []  # ID3v1.1
    return values
