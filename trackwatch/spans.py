"""Where the encoded audio lies in a file: the bytes that stay as they are when only tags change.

Works from the first bytes of the file and a few small reads elsewhere, so it can be asked before the one pass that
hashes the file. It looks at the content alone, never at the name, and where anything is doubtful it says that it does
not know: two hashes of these bytes may be taken as "the same audio" and "other audio". Ogg is always unknown: its page
numbers and checksums change through the whole file when a comment grows.

A change of what is found here changes the hashes that are kept in the catalogue, and needs a migration that forgets
them: or else the first edit of each file's tags would be told as a change of its audio.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

# Reads of the file at (position, count); fewer bytes come only from its end.
ReadAt = Callable[[int, int], bytes]
Span = tuple[int, int]  # first byte, and the byte after the last

# A file that needs more is odd, and not worth the time: a long audiobook with moov at its end takes about ten reads.
READS_MAX = 200
STEPS_MAX = 1000  # atoms, chunks, blocks, objects and tags that are stepped over, in all
WINDOW_BYTES = 4096  # what one small read fetches, for the steps that follow
PARAMETERS_MAX_BYTES = 8 * 1024 * 1024  # sample tables of MP4 have some 170 bytes a second: 13 hours
TAGS_MAX = 8  # at each end; more than two is already a tagger's mistake
ZEROS_MAX = 4096  # padding that taggers have left behind an ID3 tag without counting it

ID3V1_BYTES, ENHANCED_BYTES = 128, 227
LYRICS3_V1_BYTES = 5120  # its text has at most 5,100 bytes, between two marks

_MPEG_KBPS = {
    # (MPEG version 1, layer): by index; a rate of 0 is "free", of which a header does not tell the length.
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}

_ATOM, _LONG_ATOM = struct.Struct(">I4s"), struct.Struct(">8xQ")
MP4_LEVELS = 5  # moov, trak, mdia, minf, stbl
_MP4_HOLDERS = frozenset((b"trak", b"edts", b"mdia", b"minf", b"stbl"))
# How the bytes in mdat are cut and decoded, all but where they lie: those offsets move with the size of the tags.
_MP4_PARAMETERS = frozenset((b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stz2", b"elst"))

_CHUNK, _DS64 = struct.Struct("<4sI"), struct.Struct("<8xQ")  # name and size; the size of `data` behind that of all

_ASF_START, _ASF_OBJECT = struct.Struct("<16sQI2x"), struct.Struct("<16sQ")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_STREAM = bytes.fromhex("9107dcb7b7a9cf118ee600c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA_HEADER_BYTES = 50


class EncodedAudio(NamedTuple):
    """The encoded audio of a file.

    `parameters` are a few bytes from its headers without which the same audio would sound otherwise (the sample rate,
    for instance); empty where frames say it all themselves. `spans` lie inside the file, in order, none empty, none
    overlapping another.
    """

    parameters: bytes
    spans: tuple[Span, ...]


def encoded_audio(head: bytes | memoryview, size_bytes: int, read_at: ReadAt) -> EncodedAudio | None:
    """Return where the audio is, None where that is not certain; `head` is the beginning of the file, or all of it.

    Raises:
        OSError: as `read_at` does.
    """
    file = _File(head, size_bytes, read_at)
    try:
        start = file.at(0, 12)
        if start[:4] in (b"RIFF", b"RF64", b"BW64") and start[8:] == b"WAVE":
            return _wave(file, is_64=start[:4] != b"RIFF")
        if start[4:8] == b"ftyp":
            return _mp4(file)
        if start == _ASF_HEADER[:12]:
            return _asf(file)
        return None if start[:4] == b"OggS" else _stream(file)
    except _Doubt:
        return None


class _Doubt(Exception):
    """Something is not as its format has it."""


def _doubt() -> NoReturn:
    raise _Doubt


class _File:
    """Bytes by position: from what was read before, else by a read; both that and the steps taken are limited."""

    __slots__ = ("_head", "_head_bytes", "_read_at", "_reads", "_steps", "_window", "_window_start", "size_bytes")

    def __init__(self, head: bytes | memoryview, size_bytes: int, read_at: ReadAt) -> None:
        self.size_bytes = size_bytes
        self._head, self._head_bytes = head, min(len(head), size_bytes)
        self._read_at = read_at
        self._reads, self._steps = 0, 0
        self._window, self._window_start = b"", 0

    def at(self, position: int, count: int) -> bytes:
        """Return exactly so many bytes; what is not all in the file is doubtful."""
        end = position + count
        if position < 0 or end > self.size_bytes:
            _doubt()
        if end <= self._head_bytes:
            return bytes(self._head[position:end])
        offset = position - self._window_start
        if offset < 0 or offset + count > len(self._window):
            self._reads += 1
            if self._reads > READS_MAX:
                _doubt()
            # Up to the file's end, and not beyond: what is written there just now is none of it.
            wanted = min(max(count, WINDOW_BYTES), self.size_bytes - position)
            self._window, self._window_start, offset = self._read_at(position, wanted), position, 0
            if len(self._window) < count:
                _doubt()
        return self._window[offset : offset + count]

    def unpack(self, form: struct.Struct, position: int) -> tuple[Any, ...]:
        """Return what stands at a position, of the given form; what is not all in the file is doubtful."""
        if position + form.size <= self._head_bytes:
            return form.unpack_from(self._head, position)
        return form.unpack(self.at(position, form.size))

    def step(self, count: int = 1) -> None:
        """Count some more pieces of the file that were stepped over."""
        self._steps += count
        if self._steps > STEPS_MAX:
            _doubt()


# ---- frames with tags around them: MP3, AAC, FLAC


def _stream(file: _File) -> EncodedAudio:
    start = _behind_id3v2(file)
    mark = file.at(start, 4)
    if mark == b"fLaC":
        parameters, start = _flac(file, start + 4)
        return EncodedAudio(parameters, ((start, _before_tags(file, start)),))
    if mark[0] == 0:
        start = _behind_zeros(file, start)
    end = _before_tags(file, start)
    _check_frames(file, start, end)
    return EncodedAudio(b"", ((start, end),))


def _behind_id3v2(file: _File) -> int:
    start = 0
    for _ in range(TAGS_MAX):
        if file.at(start, 3) != b"ID3":
            return start
        header = file.at(start, 10)
        start += 10 + _syncsafe(header)
        if header[5] & 0x10:
            if file.at(start, 3) != b"3DI":
                _doubt()
            start += 10
    _doubt()


def _syncsafe(header: bytes) -> int:
    """Return the size that an ID3v2 header or footer states: four times seven bits."""
    one, two, three, four = header[6:10]
    if (one | two | three | four) & 0x80 or header[3] == 0xFF:
        _doubt()
    return one << 21 | two << 14 | three << 7 | four


def _behind_zeros(file: _File, start: int) -> int:
    zeros = file.at(start, min(ZEROS_MAX, file.size_bytes - start))
    left = zeros.lstrip(b"\0")
    if not left:
        _doubt()
    return start + len(zeros) - len(left)


def _before_tags(file: _File, start: int) -> int:
    """Return where the audio ends that begins at `start`: before ID3v1, APEv2, Lyrics3 and an appended ID3v2."""
    end = file.size_bytes
    for _ in range(TAGS_MAX):
        tail = file.at(max(start, end - ID3V1_BYTES), min(ID3V1_BYTES, end - start))
        if len(tail) == ID3V1_BYTES and tail[:3] == b"TAG":
            tag_bytes = ID3V1_BYTES
            if end - start >= ID3V1_BYTES + ENHANCED_BYTES:
                is_enhanced = file.at(end - ID3V1_BYTES - ENHANCED_BYTES, 4) == b"TAG+"
                tag_bytes += ENHANCED_BYTES if is_enhanced else 0
        elif tail[-32:-24] == b"APETAGEX":
            tag_bytes = _ape_bytes(file, tail[-32:], end)
        elif tail[-9:] == b"LYRICS200":
            digits = tail[-15:-9]
            if not digits.isdigit():
                _doubt()
            tag_bytes = _begun_by(file, b"LYRICSBEGIN", end, int(digits) + 15)
        elif tail[-9:] == b"LYRICSEND":
            tag_bytes = _old_lyrics_bytes(file, start, end)
        elif tail[-10:-7] == b"3DI":
            tag_bytes = _begun_by(file, b"ID3", end, _syncsafe(tail[-10:]) + 20)
        else:
            break
        end -= tag_bytes
        if end <= start:
            _doubt()
    else:
        _doubt()
    return end


def _begun_by(file: _File, mark: bytes, end: int, tag_bytes: int) -> int:
    """Return the size of a tag whose beginning must have its mark."""
    if file.at(end - tag_bytes, len(mark)) != mark:
        _doubt()
    return tag_bytes


def _ape_bytes(file: _File, footer: bytes, end: int) -> int:
    version, footed_bytes, _, flags = struct.unpack_from("<4I", footer, 8)
    is_header, has_header = flags & 1 << 29, flags & 1 << 31
    if version not in (1000, 2000) or is_header or footed_bytes < len(footer):
        _doubt()
    tag_bytes: int = footed_bytes
    if has_header:
        return _begun_by(file, b"APETAGEX", end, tag_bytes + 32)
    return tag_bytes


def _old_lyrics_bytes(file: _File, start: int, end: int) -> int:
    text = file.at(max(start, end - LYRICS3_V1_BYTES), min(LYRICS3_V1_BYTES, end - start))
    begin = text.rfind(b"LYRICSBEGIN")
    if begin < 0:
        _doubt()
    return len(text) - begin


def _flac(file: _File, position: int) -> tuple[bytes, int]:
    """Return what is needed of the stream's description, and where the frames begin."""
    parameters = b""
    while True:
        file.step()
        header = file.at(position, 4)
        block_bytes = int.from_bytes(header[1:])
        if not parameters:
            if header[0] & 0x7F or block_bytes != 34:
                _doubt()
            # Sample rate, channels, bits and the number of samples: frames may leave these to the description. Block
            # and frame sizes and the MD5 may be filled in later by a tool, and the sound is the same.
            parameters = file.at(position + 14, 8)
        position += 4 + block_bytes
        if header[0] & 0x80:
            break
    sync = file.at(position, 2)
    if sync[0] != 0xFF or sync[1] & 0xFE != 0xF8:
        _doubt()
    return parameters, position


def _check_frames(file: _File, start: int, end: int) -> None:
    """Be sure that it is MPEG audio or ADTS: a frame, and right behind it another one of the same kind, or the end."""
    first = file.at(start, 7)
    if first[0] != 0xFF or first[1] < 0xE0:
        _doubt()
    is_adts = first[1] & 0xF6 == 0xF0
    following = start + (_adts_bytes(first) if is_adts else _mpeg_bytes(first))
    if following == end:
        return
    if following + 4 > end:
        _doubt()
    second = file.at(following, 3)
    rate = 0x3C if is_adts else 0x0C
    if second[0] != 0xFF or (second[1] ^ first[1]) & 0xFE or (second[2] ^ first[2]) & rate:
        _doubt()


def _adts_bytes(header: bytes) -> int:
    frame_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if header[2] >> 2 & 0xF > 12 or frame_bytes < 7:
        _doubt()
    return frame_bytes


def _mpeg_bytes(header: bytes) -> int:
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        _doubt()
    bps, hz = _MPEG_KBPS[version == 3, layer][bitrate] * 1000, _MPEG_HZ[version][rate]
    if layer == 1:
        return (12 * bps // hz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bps // hz + padding


# ---- containers


def _wave(file: _File, *, is_64: bool) -> EncodedAudio:
    """The payloads of `fmt ` and `data`; a `data` whose size is open or wrong is doubtful: what follows may be tags."""
    position, parameters, long_bytes = 12, b"", None
    while True:
        file.step()
        name, count = file.unpack(_CHUNK, position)
        position += 8
        if name == b"ds64" and is_64:
            (long_bytes,) = file.unpack(_DS64, position)
        elif name == b"fmt ":
            if parameters or not 14 <= count <= WINDOW_BYTES:
                _doubt()
            parameters = file.at(position, count)
        elif name == b"data":
            if is_64 and count == 0xFFFFFFFF:
                count = long_bytes or 0
            if not parameters or not 0 < count <= file.size_bytes - position:
                _doubt()
            return EncodedAudio(parameters, ((position, position + count),))
        position += count + count % 2


def _mp4(file: _File) -> EncodedAudio:
    """The payloads of all `mdat`; a fragmented file has its tables beside them, in as many pieces, and is left out."""
    parameters: list[bytes] = []
    spans: list[Span] = []
    is_described = False
    for name, start, end in _atoms(file, 0, file.size_bytes):
        if name == b"mdat" and start < end:
            spans.append((start, end))
        elif name == b"moov":
            if is_described:
                _doubt()
            is_described = True
            _mp4_parameters(file, start, end, parameters, MP4_LEVELS)
        elif name == b"moof":
            _doubt()
    if not spans or not parameters:
        _doubt()
    return EncodedAudio(b"".join(parameters), tuple(spans))


def _mp4_parameters(file: _File, start: int, end: int, found: list[bytes], levels: int) -> None:
    if levels == 0:
        _doubt()
    for name, inner, after in _atoms(file, start, end):
        if name in _MP4_HOLDERS:
            _mp4_parameters(file, inner, after, found, levels - 1)
        elif name in _MP4_PARAMETERS:
            if after - inner + sum(map(len, found)) > PARAMETERS_MAX_BYTES:
                _doubt()
            found.append(file.at(inner, after - inner))
        elif name == b"mvex":
            _doubt()


def _atoms(file: _File, position: int, limit: int) -> list[tuple[bytes, int, int]]:
    """Return the name of each atom of a range, and where its payload begins and ends."""
    atoms: list[tuple[bytes, int, int]] = []
    while position < limit:
        count, name = file.unpack(_ATOM, position)
        header_bytes = 8
        if count == 1:
            (count,) = file.unpack(_LONG_ATOM, position)
            header_bytes = 16
        elif count == 0 and limit == file.size_bytes:
            count = limit - position
        if count < header_bytes or count > limit - position or len(atoms) == STEPS_MAX:
            _doubt()
        atoms.append((name, position + header_bytes, position + count))
        position += count
    file.step(len(atoms))
    return atoms


def _asf(file: _File) -> EncodedAudio:
    """The packets of the data object, and the properties of the streams."""
    guid, header_bytes, count = file.unpack(_ASF_START, 0)
    if guid != _ASF_HEADER:
        _doubt()
    parameters: list[bytes] = []
    position = 30
    for _ in range(count):
        file.step()
        guid, object_bytes = file.unpack(_ASF_OBJECT, position)
        if object_bytes < 24 or object_bytes > header_bytes - position:
            _doubt()
        if guid == _ASF_STREAM:
            if object_bytes > WINDOW_BYTES:
                _doubt()
            parameters.append(file.at(position + 24, object_bytes - 24))
        position += object_bytes
    guid, object_bytes = file.unpack(_ASF_OBJECT, header_bytes)
    if guid != _ASF_DATA or not parameters:
        _doubt()
    if not _ASF_DATA_HEADER_BYTES < object_bytes <= file.size_bytes - header_bytes:
        _doubt()
    return EncodedAudio(b"".join(parameters), ((header_bytes + _ASF_DATA_HEADER_BYTES, header_bytes + object_bytes),))
