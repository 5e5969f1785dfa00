"""MP4 as nearly every music file has it, read from its `moov` atom at once; mutagen visits each atom in the file.

Whatever is out of the ordinary (other codecs, atoms that do not fit) is left to somebody who knows better: Unusual
says so. Of what is read here mutagen reads the same, but for three things: mono, where writers say 2 channels in the
outer header, which mutagen believes over the header of the AAC inside; the bit rate of what iTunes once encrypted; and
the silence around the sound, which players leave out.
"""

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass

from trackwatch.id3 import Readable, Unusual

MAX_MOOV_BYTES = 1 << 25  # 20 hours of AAC have tables of 14 MB, and pictures lie in there as well
MAX_TOP_ATOMS = 1000  # each fragment of a stream has two; such files say their length elsewhere anyway

AAC_LC = 2
SBR = 5  # doubles the rate of the AAC below it; its companion PS makes stereo from mono
MAX_CORE_RATE = 24000  # Hz; beyond it no encoder hides SBR or PS in plain AAC
RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)

_HEADER = struct.Struct(">I4s")
_ENTRY = struct.Struct(">16xHH4xI")  # of the sample description: channels, bits, rate * 65536
_DECODER = struct.Struct(">BB3xII")  # object type, stream type, greatest and average bit rate
_ALAC = struct.Struct(">4x4xB4xB2x4xII")  # version, channels, bit rate, sample rate
_TEXTS = frozenset({b"\xa9nam", b"\xa9ART", b"\xa9alb", b"aART", b"\xa9day", b"\xa9gen", b"\xa9wrt"})
_VALUE = struct.Struct(">I4sI4x")
_IS_TEXT = (0, 1)  # types of a value: implicit, UTF-8
_PAIR, _BOOL, _NUMBER = struct.Struct(">2xHH"), struct.Struct("?"), struct.Struct(">H")

Span = tuple[int, int]  # from, to


@dataclass(frozen=True, slots=True)
class Sound:
    """The first sound track, by the names that mutagen has for these facts; 0 means unknown."""

    length: float
    bitrate: int
    sample_rate: int
    channels: int


def read(file: Readable) -> tuple[Sound, dict[str, list[object]]]:
    """Return the sound and the tags, by their atoms' names in lower case ("©nam", "----:com.apple.itunes:isrc").

    Pairs of numbers are texts ("3/12"), `cpil` is a bool, and genres by number (`gnre`) come as their numbers.

    Raises:
        Unusual: the file is not plain.
        struct.error, IndexError, UnicodeDecodeError: neither.
    """
    data = _moov(file)
    movie: Span | None = None
    udta: Span | None = None
    sound: Sound | None = None
    for name, start, stop in _atoms(data, 0, len(data)):
        if name == b"mvhd" and movie is None:
            movie = start, stop
        elif name == b"trak" and sound is None:
            sound = _sound(data, (start, stop), movie)
        elif name == b"udta" and udta is None:
            udta = start, stop
    if sound is None:
        raise Unusual
    return sound, _tags(data, udta) if udta else {}


def _moov(file: Readable) -> bytes:
    """Return the content of the first `moov` atom."""
    position = 0
    for _ in range(MAX_TOP_ATOMS):
        file.seek(position)
        header = file.read(16)
        length, name = _HEADER.unpack_from(header)
        header_bytes = 8
        if length == 1:
            header_bytes, length = 16, int.from_bytes(header[8:16], "big")
        if length < header_bytes:
            raise Unusual
        if name == b"moov":
            if length > MAX_MOOV_BYTES:
                raise Unusual
            file.seek(position + header_bytes)
            data = file.read(length - header_bytes)
            if len(data) != length - header_bytes:
                raise Unusual
            return data
        position += length
    raise Unusual


def _atoms(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the names of the atoms side by side, and where their contents are."""
    while start < stop:
        length, name = _HEADER.unpack_from(data, start)
        if length < 8 or start + length > stop:
            raise Unusual
        yield name, start + 8, start + length
        start += length


def _child(data: bytes, within: Span, *path: bytes) -> Span | None:
    """Return where the content of the first atom of each name is, one within the other."""
    for name in path:
        for found, start, stop in _atoms(data, *within):
            if found == name:
                within = start, stop
                break
        else:
            return None
    return within


def _sound(data: bytes, track: Span, movie: Span | None) -> Sound | None:
    """Return what a track says if it is sound."""
    media = _child(data, track, b"mdia")
    handler = media and _child(data, media, b"hdlr")
    if not media or not handler:
        raise Unusual
    if data[handler[0] + 8 : handler[0] + 12] != b"soun":
        return None
    header, entries = _child(data, media, b"mdhd"), _child(data, media, b"minf", b"stbl", b"stsd")
    if not header or not entries:
        raise Unusual
    seconds = _seconds(data, header)
    if movie and (edits := _child(data, track, b"edts", b"elst")):
        seconds = _heard(data, edits, seconds, movie)
    # A version, the number of entries, and the entries; the first one counts.
    if data[entries[0]] != 0 or int.from_bytes(data[entries[0] + 4 : entries[0] + 8], "big") == 0:
        raise Unusual
    codec, start, stop = next(_atoms(data, entries[0] + 8, entries[1]))
    if data[start + 8 : start + 10] != b"\0\0":  # QuickTime has more to say
        raise Unusual
    channels, _, rate = _ENTRY.unpack_from(data, start)
    extra, extra_start, extra_stop = next(_atoms(data, start + 28, stop))
    match codec, extra:
        case ((b"mp4a" | b"drms"), b"esds"):  # drms: bought from iTunes, and encrypted, but not its headers
            return _aac(data[extra_start:extra_stop], seconds, channels, rate >> 16)
        case b"alac", b"alac":
            version, channels, bitrate, rate = _ALAC.unpack_from(data, extra_start)
            if data[extra_start] or version:
                raise Unusual
            return Sound(seconds, bitrate, rate, channels)
    raise Unusual


def _unit_and_length(data: bytes, header: Span) -> tuple[int, int]:
    """Return the units of a second, and how many of them, from the header of a movie or a medium."""
    match data[header[0]]:
        case 0:
            unit, length = struct.unpack_from(">II", data, header[0] + 12)
        case 1:
            unit, length = struct.unpack_from(">IQ", data, header[0] + 20)
        case _:
            raise Unusual
    return unit, length


def _seconds(data: bytes, header: Span) -> float:
    unit, length = _unit_and_length(data, header)
    return length / unit if unit else 0.0


def _heard(data: bytes, edits: Span, seconds: float, movie: Span) -> float:
    """Return how much of a track is played, which leaves out the silence that AAC encoders put around the sound.

    Only a single edit, of a part of the track, is that; the units are the movie's, and mostly milliseconds.
    """
    version, count = data[edits[0]], int.from_bytes(data[edits[0] + 4 : edits[0] + 8], "big")
    if count != 1 or version > 1:
        return seconds
    length, start = struct.unpack_from(">Qq" if version else ">Ii", data, edits[0] + 8)
    unit, _ = _unit_and_length(data, movie)
    played = length / unit if unit else 0.0
    return played if start >= 0 and 0 < played < seconds else seconds


def _aac(esds: bytes, seconds: float, channels: int, rate: int) -> Sound:
    """Return what an elementary stream descriptor says, and of what it leaves open, what the entry around it said."""
    if esds[0] != 0:
        raise Unusual
    at = _descriptor(esds, 4, 3)
    if esds[at + 2] & 0xE0:  # optional fields
        raise Unusual
    at = _descriptor(esds, at + 3, 4)
    object_type, stream_type, _, bitrate = _DECODER.unpack_from(esds, at)
    if object_type != 0x40 or stream_type >> 2 != 5:
        raise Unusual
    at = _descriptor(esds, at + 13, 5)
    length = esds[at - 1]
    config = esds[at : at + length]
    if len(config) < max(2, length):
        raise Unusual
    # AudioSpecificConfig (ISO 14496-3): 5 bits object type, 4 rate, 4 channels, 3 flags that lead to more fields; then
    # perhaps a mark of 11 bits, 5 bits object type, and whether there is SBR.
    bits = int.from_bytes(config[:2], "big")
    rate_index, layout = bits >> 7 & 0xF, bits >> 3 & 0xF
    if bits >> 11 != AAC_LC or rate_index >= len(RATES) or not 1 <= layout <= 7 or bits & 7:
        raise Unusual
    has_sbr = None
    core_rate = RATES[rate_index]
    if len(config) >= 5 and config[2] == 0x56 and config[3] >> 5 == 0x7:
        if config[3] & 0x1F != SBR or config[4] & 0x80:
            raise Unusual
        has_sbr = False
    elif len(config) > 2:
        raise Unusual
    elif core_rate > MAX_CORE_RATE:
        has_sbr = False
    if has_sbr is False:
        rate = core_rate
    if layout > 1 or has_sbr is False:
        channels = 8 if layout == 7 else layout
    return Sound(seconds, bitrate, rate, channels)


def _descriptor(data: bytes, at: int, tag: int) -> int:
    """Return where the content of a descriptor begins: behind its tag, and a length of one to four bytes."""
    if data[at] != tag:
        raise Unusual
    for _ in range(4):
        at += 1
        if data[at] < 0x80:
            return at + 1
    raise Unusual


def _tags(data: bytes, udta: Span) -> dict[str, list[object]]:
    """Return the values by atom, of those that the contract needs."""
    found: dict[str, list[object]] = {}
    meta = _child(data, udta, b"meta")
    items = meta and _child(data, (meta[0] + 4, meta[1]), b"ilst")
    if not items:
        return found
    for name, start, stop in _atoms(data, *items):
        if name in _TEXTS:
            values = found.setdefault(name.decode("latin-1").lower(), [])
            values += (text.decode("utf-8") for text in _values(data, start, stop, _IS_TEXT))
        elif name in (b"trkn", b"disk"):
            values = found.setdefault(name.decode(), [])
            values += ("{}/{}".format(*_PAIR.unpack_from(pair)) for pair in _values(data, start, stop))
        elif name == b"cpil":
            found["cpil"] = [_BOOL.unpack(value)[0] for value in _values(data, start, stop)]
        elif name == b"gnre":
            values = found.setdefault("gnre", [])
            values += (_NUMBER.unpack(value)[0] for value in _values(data, start, stop))
        elif name == b"----":
            key, values = _freeform(data, start, stop)
            found.setdefault(key, []).extend(values)
    return found


def _values(data: bytes, start: int, stop: int, types: Container[int] = range(1 << 24)) -> list[bytes]:
    """Return an item's values, which must be of one of the types if these matter."""
    found = []
    while start < stop:
        length, name, kind = _VALUE.unpack_from(data, start)
        if name != b"data" or length < 16 or start + length > stop or kind & 0xFFFFFF not in types:
            raise Unusual
        found.append(data[start + 16 : start + length])
        start += length
    return found


def _freeform(data: bytes, start: int, stop: int) -> tuple[str, list[object]]:
    """Return the key, "----:mean:name", and the values of an item that anybody may name."""
    (mean, mean_start, mean_stop), (name, name_start, name_stop) = (
        (kind, first, last) for (kind, first, last), _ in zip(_atoms(data, start, stop), range(2), strict=False)
    )
    if mean != b"mean" or name != b"name":
        raise Unusual
    key = b":".join((b"----", data[mean_start + 4 : mean_stop], data[name_start + 4 : name_stop]))
    return key.decode("latin-1").lower(), [*_values(data, name_stop, stop)]
