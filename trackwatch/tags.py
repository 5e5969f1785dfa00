"""What an audio file says of itself: duration, format and tags, read and normalised. The only place that knows mutagen.

One table for each family of tags maps the names of the contract to the native ones. Whatever a file holds, the answer
is Metadata or TagsUnreadable. Some files take minutes or gigabytes to parse, and nothing here can stop that: the caller
runs this in a process with limits.
"""

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from mutagen import MutagenError
from mutagen.aac import AAC
from mutagen.apev2 import TEXT as APE_TEXT
from mutagen.apev2 import APEv2
from mutagen.asf import ASF
from mutagen.flac import FLAC
from mutagen.id3 import ID3
from mutagen.mp3 import MP3
from mutagen.mp4 import MP4
from mutagen.oggflac import OggFLAC
from mutagen.oggopus import OggOpus
from mutagen.oggspeex import OggSpeex
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from trackwatch.errors import FileProblem
from trackwatch.track import Metadata, TagValue

# What goes beyond these is damage, not music: mutagen believes any header.
MAX_DURATION_S = 1e7  # 115 days
MAX_BITRATE = 1e9  # bit/s; eight channels of 32 bits at 768 kHz are a fifth of that
MAX_SAMPLE_RATE = 1e8  # Hz; DSD 512 has 2.3e7
MAX_CHANNELS = 1024
MAX_TEXT = 4096  # characters of one tag, its values together: a message is no place for a novel
MAX_VALUES = 256  # of one tag that are looked at: a few bytes of file make an empty value, and there can be millions
MAX_REASON = 200  # characters

HEAD_BYTES = 512  # the first pages of a multiplexed Ogg, one for each stream, fit into this
MAX_ID3_TAGS = 4  # before the audio; more than one is already a tagger's mistake
OPUS_RATE = 48000  # Hz: what Opus decodes to, whatever went in (RFC 7845), so it stores no rate
MAX_RIFF_CHUNKS = 1000
MAX_RIFF_INFO_BYTES = 65536

_NUMBERS = ("track", "track_total", "disc", "disc_total")
_NUMBER_OF_TOTAL = re.compile(r"0*([0-9]{0,9})(?:\s*/\s*0*([0-9]{0,9}))?")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_ASF_GUID = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


class TagsUnreadable(FileProblem):
    """The file cannot be parsed as audio; the message is the reason, one short line without its path."""


class _Source:
    """What mutagen sees of a file: nothing to write or close it with, and no path for its messages to quote."""

    name = "the file"

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@dataclass(frozen=True, slots=True)
class _Family:
    """One kind of tags: the native names for each name of the contract, the best first, and how to get at values."""

    names: Mapping[str, tuple[str, ...]]
    values: Callable[[Any, str], Iterable[object]]

    def read(self, tags: Any) -> dict[str, TagValue]:
        """Return what the tags (None: there are none) say, normalised."""
        found: dict[str, TagValue] = {}
        for name, natives in self.names.items() if tags is not None else ():
            texts = next(filter(None, (_texts(self.values(tags, native)) for native in natives)), None)
            if texts:
                found.update(_typed(name, texts))
        return found


def _item_values(tags: Any, name: str) -> Iterable[object]:
    return tags.get(name) or ()


def _id3_values(tags: Any, name: str) -> Iterable[object]:
    frame = tags.get(name)
    values: Iterable[object] = () if frame is None else frame.genres if name == "TCON" else frame.text
    return values  # .genres spells out numbers, such as (17)


def _mp4_values(tags: Any, name: str) -> Iterable[object]:
    value = tags.get(name)
    if isinstance(value, bool):
        return (value,)
    return ["{}/{}".format(*item) if isinstance(item, tuple) else item for item in value or ()]


def _asf_values(tags: Any, name: str) -> Iterable[object]:
    return [item for item in tags.get(name) or () if not isinstance(item.value, bytes)]  # pictures, GUIDs


def _ape_values(tags: Any, name: str) -> Iterable[object]:
    value = tags.get(name)
    return value if value is not None and value.kind == APE_TEXT else ()


# A total after a slash ("3/12") needs no entry. Explicit totals come after the numbers, and so win.
_VORBIS = _Family({
    "title": ("title",), "artist": ("artist",), "album": ("album",), "album_artist": ("albumartist", "album artist"),
    "date": ("date", "year"), "genre": ("genre",), "composer": ("composer",),
    "track": ("tracknumber", "track"), "track_total": ("tracktotal", "totaltracks"),
    "disc": ("discnumber", "disc"), "disc_total": ("disctotal", "totaldiscs"), "compilation": ("compilation",),
}, _item_values)  # fmt: skip
_ID3 = _Family({
    "title": ("TIT2",), "artist": ("TPE1",), "album": ("TALB",), "album_artist": ("TPE2",), "date": ("TDRC", "TDRL"),
    "genre": ("TCON",), "composer": ("TCOM",), "track": ("TRCK",), "disc": ("TPOS",), "compilation": ("TCMP",),
}, _id3_values)  # fmt: skip
_APE = _Family({
    "title": ("Title",), "artist": ("Artist",), "album": ("Album",), "album_artist": ("Album Artist", "AlbumArtist"),
    "date": ("Year", "Date"), "genre": ("Genre",), "composer": ("Composer",), "track": ("Track",), "disc": ("Disc",),
    "compilation": ("Compilation",),
}, _ape_values)  # fmt: skip
_MP4 = _Family({
    "title": ("\xa9nam",), "artist": ("\xa9ART",), "album": ("\xa9alb",), "album_artist": ("aART",),
    "date": ("\xa9day",), "genre": ("\xa9gen",), "composer": ("\xa9wrt",), "track": ("trkn",), "disc": ("disk",),
    "compilation": ("cpil",),
}, _mp4_values)  # fmt: skip
_ASF = _Family({
    "title": ("Title",), "artist": ("Author", "WM/Author"), "album": ("WM/AlbumTitle",),
    "album_artist": ("WM/AlbumArtist",), "date": ("WM/Year", "date"), "genre": ("WM/Genre",),
    "composer": ("WM/Composer",), "track": ("WM/TrackNumber",), "track_total": ("TotalTracks",),
    "disc": ("WM/PartOfSet",), "compilation": ("WM/IsCompilation",),
}, _asf_values)  # fmt: skip
_RIFF_INFO = _Family({
    "title": ("INAM",), "artist": ("IART",), "album": ("IPRD",), "date": ("ICRD",), "genre": ("IGNR",),
    "composer": ("IMUS",), "track": ("ITRK", "IPRT"),
}, _item_values)  # fmt: skip


def _texts(values: Iterable[object]) -> list[str]:
    """Return values as clean text, each once (FFmpeg writes Author into a WMA twice)."""
    return [text for text in dict.fromkeys(map(_text, islice(values, MAX_VALUES))) if text]


def _text(value: object) -> str:
    """Return one value without NULs, surrounding space and lone surrogates, which neither JSON nor SQLite can hold."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.replace("\0", "").strip()[:MAX_TEXT]
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _typed(name: str, texts: list[str]) -> dict[str, TagValue]:
    """Return a tag with the type that the contract gives it, and nothing at all when it has none of that type."""
    if name == "compilation":
        flag = _FLAGS.get(texts[0].lower())
        return {} if flag is None else {name: flag}
    if name not in _NUMBERS:
        return {name: "; ".join(texts)[:MAX_TEXT].rstrip()}
    match = _NUMBER_OF_TOTAL.fullmatch(texts[0])
    numbers = zip((name, f"{name}_total"), match.groups(), strict=True) if match else ()
    return {key: int(digits) for key, digits in numbers if digits and key in _NUMBERS}


def _second_look(tags: type[ID3] | type[APEv2], source: _Source) -> Any:
    """Return tags that mutagen's class for the stream does not look for, None when there are none.

    Broken ones count as none, whatever the exception: the stream was read, and that is worth more.
    """
    try:
        source.seek(0)
        return tags(source)
    except Exception:
        return None


def _mp3_tags(audio: Any, source: _Source) -> dict[str, TagValue]:
    """Read ID3v2, else APEv2, else ID3v1, which cuts its texts off at 30 characters."""
    found = _ID3.read(audio.tags)
    if found and audio.tags.version >= (2,):
        return found
    return _APE.read(_second_look(APEv2, source)) or found


def _aac_tags(audio: Any, source: _Source) -> dict[str, TagValue]:
    """Read what surrounds raw AAC, where mutagen itself looks for no tags."""
    audio.tags = _second_look(ID3, source)
    return _mp3_tags(audio, source)


def _wave_tags(audio: Any, source: _Source) -> dict[str, TagValue]:
    """Read the ID3 chunk, else LIST INFO, which mutagen does not know."""
    return _ID3.read(audio.tags) or _RIFF_INFO.read(_riff_info(source))


def _riff_info(source: _Source) -> dict[str, list[str]]:
    """Return the texts of the first LIST INFO chunk, as UTF-8 when they are that, else as what Windows wrote."""
    source.seek(12)
    for _ in range(MAX_RIFF_CHUNKS):
        header = source.read(8)
        if len(header) < 8:
            break
        name, length = struct.unpack("<4sI", header)
        following = source.tell() + length + length % 2
        if name == b"LIST" and length >= 4 and source.read(4) == b"INFO":
            return _riff_texts(source.read(min(length - 4, MAX_RIFF_INFO_BYTES)))
        source.seek(following)
    return {}


def _riff_texts(content: bytes) -> dict[str, list[str]]:
    """Return the entries of a LIST INFO chunk."""
    texts: dict[str, list[str]] = {}
    position = 0
    while position + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, position)
        value = content[position + 8 : position + 8 + length].partition(b"\0")[0]
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:  # expected of old files
            text = value.decode("cp1252", "replace")
        texts.setdefault(name.decode("latin-1"), []).append(text)
        position += 8 + length + length % 2
    return texts


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format: mutagen's class for it, its MIME type, and how to read its tags once it is parsed."""

    parse: Callable[[_Source], Any]
    mime: str
    tags: Callable[[Any, _Source], dict[str, TagValue]]


def _tags_of(family: _Family) -> Callable[[Any, _Source], dict[str, TagValue]]:
    return lambda audio, _source: family.read(audio.tags)


# MP4 is audio/mp4 also when it holds pictures: a library's m4v is announced for its sound, and cover art is a video
# track to some writers. Ogg names its codec, as RFC 5334 and RFC 7845 have it: .ogg may hold any of these, and what
# plays one of them may not play another. Whoever wants the container reads up to the semicolon.
_FLAC_KIND = _Kind(FLAC, "audio/flac", _tags_of(_VORBIS))
_WAVE_KIND = _Kind(WAVE, "audio/wav", _wave_tags)
_MP3_KIND = _Kind(MP3, "audio/mpeg", _mp3_tags)
_AAC_KIND = _Kind(AAC, "audio/aac", _aac_tags)
_MP4_KIND = _Kind(MP4, "audio/mp4", _tags_of(_MP4))
_ASF_KIND = _Kind(ASF, "audio/x-ms-wma", _tags_of(_ASF))
_OGG_KINDS = {
    b"OpusHead": _Kind(OggOpus, "audio/ogg; codecs=opus", _tags_of(_VORBIS)),
    b"\x01vorbis": _Kind(OggVorbis, "audio/ogg; codecs=vorbis", _tags_of(_VORBIS)),
    b"\x7fFLAC": _Kind(OggFLAC, "audio/ogg; codecs=flac", _tags_of(_VORBIS)),
    b"Speex   ": _Kind(OggSpeex, "audio/ogg; codecs=speex", _tags_of(_VORBIS)),
}

# What may begin with anything: MPEG audio with junk before its first frame, MP4 older than its `ftyp`.
_BY_SUFFIX = {"mp3": _MP3_KIND, "aac": _AAC_KIND} | dict.fromkeys(("m4a", "m4b", "m4p", "m4v", "m4r", "mp4"), _MP4_KIND)


def read_tags(file: BinaryIO, suffix: str, size_bytes: int) -> Metadata:
    """Describe an audio file from its content; `suffix` (lower case, no dot) decides only when that is ambiguous.

    The file may be at any position, and is left at any; it is neither closed nor written.

    Raises:
        TagsUnreadable: the content is no audio that we know, or is damaged.
    """
    if size_bytes == 0:
        raise TagsUnreadable("the file is empty")
    source, kind = _Source(file), None
    try:
        kind = _sniffed(source, suffix)
        if kind is None:
            raise TagsUnreadable("the content is in no known audio format")
        source.seek(0)
        audio = kind.parse(source)
        return _metadata(kind, audio.info, kind.tags(audio, source), size_bytes)
    except TagsUnreadable:
        raise
    except Exception as error:
        # A damaged file makes mutagen raise anything, MemoryError and RecursionError included. Not one of them says
        # anything of the next file, so this one is unreadable and the rest goes on.
        raise TagsUnreadable(_reason(error, kind)) from error


def _sniffed(source: _Source, suffix: str) -> _Kind | None:
    """Return the format by what the file begins with. Mutagen's own guess costs more and takes AAC with ID3 for MP3."""
    source.seek(0)
    head = source.read(HEAD_BYTES)
    if head[:4] == b"OggS":
        return next((kind for mark, kind in _OGG_KINDS.items() if mark in head), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return _WAVE_KIND
    if head[4:8] == b"ftyp":
        return _MP4_KIND
    if head[:16] == _ASF_GUID:
        return _ASF_KIND
    return _sniffed_mpeg(source, head, suffix)


def _sniffed_mpeg(source: _Source, head: bytes, suffix: str) -> _Kind | None:
    """Return the format of what may have ID3 tags before it: MP3, AAC and, against its rules, FLAC."""
    start, tagged = 0, head[:3] == b"ID3"
    for _ in range(MAX_ID3_TAGS):
        if head[:3] != b"ID3" or len(head) < 10:
            break
        start += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        source.seek(start)
        head = source.read(10)
    if head[:4] == b"fLaC":
        return _FLAC_KIND
    if head[:4] == b"ADIF":
        return _AAC_KIND
    if len(head) > 1 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:  # ADTS: the sync word, then a layer of 0
            return _AAC_KIND
        if head[1] & 0xE0 == 0xE0:
            return _MP3_KIND
    return _BY_SUFFIX.get(suffix, _MP3_KIND if tagged else None)


def _metadata(kind: _Kind, info: Any, tags: dict[str, TagValue], size_bytes: int) -> Metadata:
    """Put together what is known; where a format does not state its bit rate, the average over the file stands in."""
    duration_s = getattr(info, "length", None)
    if duration_s is not None:
        duration_s = round(float(duration_s), 6) if 1e-6 <= duration_s <= MAX_DURATION_S else None
    bitrate = _whole(getattr(info, "bitrate", None), MAX_BITRATE)
    if bitrate is None and duration_s is not None:
        bitrate = _whole(size_bytes * 8 / duration_s, MAX_BITRATE)
    return Metadata(
        format=kind.mime,
        duration_s=duration_s,
        bitrate=bitrate,
        sample_rate=_whole(OPUS_RATE if kind.parse is OggOpus else info.sample_rate, MAX_SAMPLE_RATE),
        channels=_whole(info.channels, MAX_CHANNELS),
        tags=tags,
    )


def _whole(value: float | None, most: float) -> int | None:
    """Return a number from 1 to `most`, None for any other (NaN compares false) and for what is unknown."""
    return int(value) if value is not None and 1 <= value <= most else None


def _reason(error: Exception, kind: _Kind | None) -> str:
    """Return one short line; only mutagen's own messages say enough without the exception's name."""
    deed = f"cannot be parsed as {kind.mime}" if kind else "cannot be read"
    message = " ".join(_text(str(error).replace(repr(_Source.name), _Source.name)).split())
    if not isinstance(error, MutagenError) or not message:
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return "".join(char if char.isprintable() else "?" for char in f"{deed}: {message}"[:MAX_REASON])
