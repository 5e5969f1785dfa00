"""What an audio file says of itself: duration, format and tags, read and normalised. The only place that knows mutagen.

One table for each family of tags maps the native names to those of the contract. Whatever a file holds, the answer is
Metadata or TagsUnreadable. Some files take minutes or gigabytes to parse, and nothing here can stop that: the caller
runs this in a process with limits. Plain ID3 and MP4 are read by modules of their own, for speed alone: what these
decline, or stumble over, mutagen decides.
"""

# Mutagen has annotations for some of what it exports, and none for the rest.
# mypy: allow-untyped-calls

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from mutagen import MutagenError
from mutagen.aac import AACInfo
from mutagen.apev2 import TEXT as APE_TEXT
from mutagen.apev2 import APEv2
from mutagen.asf import ASF
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TCON, Frames, Frames_2_2, ID3TimeStamp, ID3UnsupportedVersionError
from mutagen.mp3 import MPEGInfo
from mutagen.mp4 import MP4
from mutagen.oggflac import OggFLAC
from mutagen.oggopus import OggOpus
from mutagen.oggspeex import OggSpeex
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WaveStreamInfo

from trackwatch import id3, mp4
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
MAX_GAIN_DB = 128  # what Opus can say, and two and a half times what ReplayGain 1 can
MAX_PEAK = 100  # of full scale: 40 dB above it, which floating point samples and bad masters can be, is no peak

HEAD_BYTES = 512  # the first pages of a multiplexed Ogg, one for each stream, fit into this
TAIL_BYTES = 256  # holds the last 128 bytes, which ID3v1 takes, and the 32 before that where APEv2 shows itself
MAX_ID3_TAGS = 4  # before the audio; more than one is already a tagger's mistake
OPUS_RATE = 48000  # Hz: what Opus decodes to, whatever went in (RFC 7845), so it stores no rate
MAX_RIFF_CHUNKS = 1000
MAX_RIFF_INFO_BYTES = 65536

_ASF_GUID = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


class TagsUnreadable(FileProblem):
    """The file cannot be parsed as audio; the message is the reason, one short line without its path."""


class _Source:
    """What mutagen sees of a file: nothing to write or close it with, and no path for its messages to quote."""

    __slots__ = ("read", "seek", "tell")
    name = "the file"

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


# ---- from native names to those of the contract

# Values by native name, in lower case.
_Raw = Mapping[str, Sequence[object]]
# Which name of the contract each native name means, the best native name first.
_Names = Mapping[str, str]


def _names(**natives: tuple[str, ...]) -> dict[str, str]:
    return {native: name for name, names in natives.items() for native in names}


# What has the same name wherever a tagger may choose names, which is in all families but RIFF's: as Picard writes it
# into Vorbis comments, and as it is spelt elsewhere. `musicbrainz_trackid` is a recording in all files; the id of the
# track on its release came later.
_MUSICBRAINZ = {
    "musicbrainz_trackid": "track id",
    "musicbrainz_releasetrackid": "release track id",
    "musicbrainz_albumid": "album id",
    "musicbrainz_artistid": "artist id",
    "musicbrainz_albumartistid": "album artist id",
    "musicbrainz_releasegroupid": "release group id",
    "musicbrainz_workid": "work id",
}
_REPLAYGAIN = ("replaygain_track_gain", "replaygain_track_peak", "replaygain_album_gain", "replaygain_album_peak")


def _free(musicbrainz: str | None, *prefixes: str) -> dict[str, str]:
    """Return the names that taggers choose, with each of the prefixes of a family."""
    names = {f"{prefix}{name}": name for prefix in prefixes for name in (*_MUSICBRAINZ, *_REPLAYGAIN)}
    if musicbrainz is not None:
        names |= {f"{musicbrainz}{words}": name for name, words in _MUSICBRAINZ.items()}
    return names


# A total after a slash ("3/12") needs no entry; explicit totals win, and so they come first.
_VORBIS: _Names = _names(
    title=("title",), artist=("artist",), album=("album",), album_artist=("albumartist", "album artist"),
    date=("date", "year"), genre=("genre",), composer=("composer",),
    track_total=("tracktotal", "totaltracks"), track=("tracknumber", "track"),
    disc_total=("disctotal", "totaldiscs"), disc=("discnumber", "disc"),
    compilation=("compilation",), isrc=("isrc",), r128_track_gain=("r128_track_gain",),
    r128_album_gain=("r128_album_gain",),
) | _free(None, "")  # fmt: skip
# FFmpeg copies what it has no frame for under its Vorbis name. RVA2 is where Quod Libet keeps ReplayGain.
_ID3: _Names = _names(
    title=("tit2",), artist=("tpe1",), album=("talb",), album_artist=("tpe2", "txxx:albumartist", "txxx:album artist"),
    date=("tdrc", "tdrl"), genre=("tcon",), composer=("tcom",),
    track_total=("txxx:tracktotal", "txxx:totaltracks"), track=("trck",),
    disc_total=("txxx:disctotal", "txxx:totaldiscs"), disc=("tpos",),
    compilation=("tcmp",), isrc=("tsrc", "txxx:isrc"), musicbrainz_trackid=("ufid:http://musicbrainz.org",),
) | _free("txxx:musicbrainz ", "txxx:") | {f"rva2:{name[11:]}": name for name in _REPLAYGAIN}  # fmt: skip
_APE: _Names = _names(
    title=("title",), artist=("artist",), album=("album",), album_artist=("album artist", "albumartist"),
    date=("year", "date"), genre=("genre",), composer=("composer",), track=("track",), disc=("disc",),
    compilation=("compilation",), isrc=("isrc",),
) | _free(None, "")  # fmt: skip
_MP4: _Names = _names(
    title=("\xa9nam",), artist=("\xa9art",), album=("\xa9alb",), album_artist=("aart",), date=("\xa9day",),
    genre=("\xa9gen", "gnre"), composer=("\xa9wrt",), track=("trkn",), disc=("disk",), compilation=("cpil",),
    isrc=("----:com.apple.itunes:isrc",),
) | _free("----:com.apple.itunes:musicbrainz ", "----:com.apple.itunes:") | {
    f"----:org.hydrogenaudio.replaygain:{name}": name for name in _REPLAYGAIN  # foobar2000, once
}  # fmt: skip
_ASF: _Names = _names(
    title=("title",), artist=("author", "wm/author"), album=("wm/albumtitle",), album_artist=("wm/albumartist",),
    date=("wm/year", "date"), genre=("wm/genre",), composer=("wm/composer",),
    track_total=("totaltracks",), track=("wm/tracknumber",), disc=("wm/partofset",),
    compilation=("wm/iscompilation",), isrc=("wm/isrc",),
) | _free("musicbrainz/", "")  # fmt: skip
# ISRC in LIST INFO is the source, not the code.
_RIFF_INFO: _Names = _names(
    title=("inam",), artist=("iart",), album=("iprd",), date=("icrd",), genre=("ignr",), composer=("imus",),
    track=("itrk", "iprt"),
)  # fmt: skip

# A number without its total is whole; the total from elsewhere would belong to another number.
_WITH_TOTAL = {"track": "track_total", "disc": "disc_total"}


def _tags(names: _Names, raw: _Raw) -> dict[str, TagValue]:
    """Return what the values say by the names of the contract, each from the best native name that has a sense."""
    found: dict[str, TagValue] = {}
    for native in filter(raw.__contains__, names):
        name = names[native]
        if name in found or not (texts := _texts(raw[native])):
            continue
        if name in _WITH_TOTAL:
            number, total = _number_of_total(texts[0])
            if number is not None:
                found[name] = number
            if total is not None:
                found.setdefault(_WITH_TOTAL[name], total)
        elif name in _TYPED:
            value = _TYPED[name](texts)
            if value is not None:
                found[name] = value
        else:
            found[name] = _joined(texts)
    return found


def _filled(*sources: dict[str, TagValue]) -> dict[str, TagValue]:
    """Return what several tags of one file say: each adds what those before it do not."""
    found = dict(sources[0])
    for source in sources[1:]:
        if source:
            taken = {total for number, total in _WITH_TOTAL.items() if number in found}
            found.update((name, value) for name, value in source.items() if name not in found and name not in taken)
    return found


def _texts(values: Sequence[object]) -> list[str]:
    """Return values as clean text, each once (FFmpeg writes Author into a WMA twice)."""
    if len(values) == 1:
        text = _text(values[0])
        return [text] if text else []
    return [text for text in dict.fromkeys(map(_text, islice(values, MAX_VALUES))) if text]


def _text(value: object) -> str:
    """Return one value without NULs, surrounding space and lone surrogates, which neither JSON nor SQLite can hold."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if "\0" in text:
        text = text.replace("\0", "")
    text = text.strip()
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT].rstrip()
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# ---- types of tags: None for what has no sense

_NUMBER_OF_TOTAL = re.compile(r"0*([0-9]{0,9})(?:\s*/\s*0*([0-9]{0,9}))?")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_NO_DATE = re.compile(r"[0\W]+")
_LISTED = re.compile(r"[;,/\s]+")  # how ids come in one text: ID3v2.3 knows no lists, and taggers differ
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ISRC = re.compile("[A-Z]{2}[A-Z0-9]{3}[0-9]{7}")
_LEVEL = re.compile(r"([+-]?[0-9]{1,4}(?:[.,][0-9]{1,16})?)\s*(?:dB)?", re.IGNORECASE)


def _joined(texts: Sequence[str]) -> str:
    """Return texts as one, joined as people read lists. A "/" is left alone: it joins in ID3v2.3, but not in AC/DC."""
    return "; ".join(texts)[:MAX_TEXT].rstrip() if len(texts) > 1 else texts[0]


def _number_of_total(text: str) -> tuple[int | None, int | None]:
    if text.isdecimal() and text.isascii() and len(text) < 10:  # nearly always
        return int(text) or None, None
    match = _NUMBER_OF_TOTAL.fullmatch(text)
    number, total = match.groups() if match else (None, None)
    return int(number) if number else None, int(total) if total else None


def _total(texts: Sequence[str]) -> int | None:
    return _number_of_total(texts[0])[0]


def _flag(texts: Sequence[str]) -> bool | None:
    return _FLAGS.get(texts[0].lower())


def _date(texts: Sequence[str]) -> str | None:
    """Return a date as it is, but not the zeros that mean none."""
    return _joined([text for text in texts if not _NO_DATE.fullmatch(text)] or [""]) or None


def _uuids(texts: Sequence[str]) -> str | None:
    """Return the MusicBrainz ids."""
    ids = (part for text in texts for part in _LISTED.split(text.lower()) if _UUID.fullmatch(part))
    return "; ".join(islice(dict.fromkeys(ids), MAX_TEXT // 38)) or None


def _isrcs(texts: Sequence[str]) -> str | None:
    """Return the codes without the hyphens and spaces that ISO 3901 has for the eye alone."""
    codes = (re.sub(r"[-\s]", "", part).upper() for text in texts for part in re.split("[;,/]", text))
    return "; ".join(islice(dict.fromkeys(code for code in codes if _ISRC.fullmatch(code)), MAX_TEXT // 14)) or None


def _level(texts: Sequence[str], least: float, most: float) -> float | None:
    """Return a number of ReplayGain, such as "-7.03 dB"; some have a comma for the point."""
    match = _LEVEL.fullmatch(texts[0])
    level = float(match[1].replace(",", ".")) if match else math.nan
    return level if least <= level <= most else None


def _gain(texts: Sequence[str]) -> float | None:
    return _level(texts, -MAX_GAIN_DB, MAX_GAIN_DB)


def _peak(texts: Sequence[str]) -> float | None:
    return _level(texts, 0, MAX_PEAK)


def _q78(texts: Sequence[str]) -> int | None:
    """Return a gain as RFC 7845 has it: an integer, in 1/256 dB. To make ReplayGain of it would be to invent."""
    value = int(texts[0]) if re.fullmatch("[+-]?[0-9]{1,5}", texts[0], re.ASCII) else 1 << 15
    return value if -(1 << 15) <= value < 1 << 15 else None


_TYPED: Mapping[str, Callable[[Sequence[str]], TagValue | None]] = {
    "date": _date, "track_total": _total, "disc_total": _total, "compilation": _flag, "isrc": _isrcs,
    "r128_track_gain": _q78, "r128_album_gain": _q78,
    **dict.fromkeys(_MUSICBRAINZ, _uuids),
    **{name: _gain if name.endswith("gain") else _peak for name in _REPLAYGAIN},
}  # fmt: skip


# ---- ID3, and what stands beside it


# Of the others, pictures above all, mutagen keeps the bytes as they are. It also asks which names are frames at all, to
# see how ID3v2.4 wrote its sizes: all of them, for that.
class _FramesToRead(dict[str, Any]):
    def __contains__(self, name: object) -> bool:
        return name in Frames or name in Frames_2_2


_FRAME_NAMES = sorted(id3.TEXT_FRAMES | id3.OTHER_FRAMES)
_READ_BY_MUTAGEN = _FramesToRead(
    {name: Frames[name] for name in _FRAME_NAMES}
    | {name: kind for name, kind in Frames_2_2.items() if kind.mro()[1].__name__ in _FRAME_NAMES}
)
_GENRES = re.compile(r"((?:\((?:[0-9]{1,3}|RX|CR)\))*)(.*)", re.DOTALL)
_GENRE_WORDS = {"RX": "Remix", "CR": "Cover"}
_ISO_DATE = re.compile("[0-9]{4}(?:-[0-9]{2}(?:-[0-9]{2})?)?")


def _id3v2(source: _Source, at: int = 0) -> tuple[dict[str, TagValue], int]:
    """Return what the ID3v2 tag at a position says, and how many bytes it has (0: there is none)."""
    try:
        source.seek(at)
        raw, size = id3.read_v2(source)
    except ValueError:
        source.seek(at)
        try:
            tags = ID3(source, known_frames=_READ_BY_MUTAGEN, translate=False, load_v1=False)
        except ID3UnsupportedVersionError:
            # What is in it is anybody's guess; how long it is, every version says in the same way.
            source.seek(at)
            return {}, _id3_bytes(source.read(id3.HEADER_BYTES))
        except MutagenError as error:
            if str(error):
                raise
            # It has no words for a tag that is cut off.
            source.seek(at)
            claimed, there = _id3_bytes(source.read(id3.HEADER_BYTES)), source.seek(0, 2) - at
            if claimed <= there:
                raise
            raise MutagenError(f"the ID3 tag claims {claimed:,} bytes, and the file ends after {there:,}") from error
        raw, size = _id3_raw(tags), tags.size
    return _id3_tags(raw), size


def _id3v2_if_sound(source: _Source, at: int = 0) -> dict[str, TagValue]:
    """Return what the ID3v2 tag at a position says; a broken one counts as none, where the stream is read without it.

    A lack of memory is no property of the tag: the process that runs this has a limit, and says so.
    """
    try:
        return _id3v2(source, at)[0]
    except MemoryError:
        raise
    except Exception:
        return {}


def _id3_bytes(header: bytes) -> int:
    """Return how long an ID3v2 tag says that it is, its ten bytes of header included."""
    return id3.HEADER_BYTES + sum(
        (byte & 0x7F) << shift for byte, shift in zip(header[6:10], (21, 14, 7, 0), strict=True)
    )


def _id3_raw(tags: Any) -> dict[str, Any]:
    """Return values by frame from mutagen's."""
    raw: dict[str, Any] = {}
    for key in tags.keys():  # noqa: SIM118 - its iterator may give something else
        frame, folded = tags[key], key.lower()
        if folded.startswith("ufid:"):
            raw[folded] = [frame.data]
        elif folded.startswith("rva2:"):
            if frame.channel != 1:  # all of them together
                continue
            raw[f"{folded}_gain"] = [f"{frame.gain:.2f}"]
            raw[f"{folded}_peak"] = [f"{frame.peak:.6f}"] if frame.peak else []  # zero bits of peak: there is none
        elif isinstance(getattr(frame, "text", None), list):
            raw.setdefault(folded, []).extend(frame.text)
    return raw


def _id3_tags(raw: Mapping[str, Sequence[object]]) -> dict[str, TagValue]:
    """Return what frames say, once genres by number have names, and timestamps the form that other families have."""
    typed: dict[str, Sequence[object]] = dict(raw)
    if "tcon" in typed:
        typed["tcon"] = _genres(typed["tcon"])
    if "tdrc" in typed:
        typed["tdrc"] = [_timestamp(str(value)) for value in islice(typed["tdrc"], MAX_VALUES)]
    elif "tyer" in typed:
        typed["tdrc"] = [id3.date_of_parts(typed)]
    if "tdrl" in typed:
        typed["tdrl"] = [_timestamp(str(value)) for value in islice(typed["tdrl"], MAX_VALUES)]
    return _tags(_ID3, typed)


def _genres(values: Iterable[object]) -> list[str]:
    """Return the names of genres: ID3v1's numbers, alone or in brackets before a refinement, and words as they are."""
    found: list[str] = []
    for value in map(str, islice(values, MAX_VALUES)):
        if value.isascii() and (value.isdecimal() or value in _GENRE_WORDS):
            found.append(_genre(value) if len(value) < 4 else value)
        elif value.startswith("("):
            match = _GENRES.match(value)
            references, words = match.groups() if match else ("", value)
            found.extend(map(_genre, references[1:-1].split(")(") if references else ()))
            found.append(words.removeprefix("(") if words.startswith("((") else words)
        else:
            found.append(value)
    return found


def _genre(reference: str) -> str:
    """Return the name behind a number or an abbreviation; nothing for a number that was never given to a genre."""
    if reference in _GENRE_WORDS:
        return _GENRE_WORDS[reference]
    number = int(reference)
    return str(TCON.GENRES[number]) if number < len(TCON.GENRES) else ""


def _timestamp(text: str) -> str:
    return text if _ISO_DATE.fullmatch(text) else ID3TimeStamp(text.strip("\0")).text


def _id3v1_and_ape(source: _Source) -> tuple[dict[str, TagValue], dict[str, TagValue]]:
    """Return what the ID3v1 and the APEv2 tag at the end say, and what an APEv2 tag says that is at the beginning."""
    source.seek(0)
    head = source.read(8)
    size_bytes = source.seek(0, 2)
    source.seek(max(0, size_bytes - TAIL_BYTES))
    tail = source.read(TAIL_BYTES)
    v1 = id3.read_v1(tail[-id3.V1_BYTES :])
    has_ape = b"APETAGEX" in tail or b"LYRICS200" in tail or head == b"APETAGEX"
    return _id3_tags(v1) if v1 else {}, _ape(source) if has_ape else {}


def _ape(source: _Source) -> dict[str, TagValue]:
    """Return what an APEv2 tag says; broken ones count as none, whatever the exception: the stream was read."""
    try:
        source.seek(0)
        tags = APEv2(source)
    except Exception:
        return {}
    return _tags(_APE, {key.lower(): tags[key] for key in tags.keys() if tags[key].kind == APE_TEXT})  # noqa: SIM118


# ---- RIFF


def _riff_tags(source: _Source) -> dict[str, TagValue]:
    """Return what the first ID3 chunk says, and the first LIST INFO chunk, which mutagen does not know.

    Neither is needed to play the rest, so a broken one says nothing.
    """
    from_id3: dict[str, TagValue] | None = None
    from_info: dict[str, TagValue] | None = None
    position = source.seek(12)
    for _ in range(MAX_RIFF_CHUNKS):
        header = source.read(8)
        if len(header) < 8:
            break
        name, length = struct.unpack("<4sI", header)
        if from_id3 is None and name in (b"id3 ", b"ID3 "):
            from_id3 = _id3v2_if_sound(source, position + 8)
        elif from_info is None and name == b"LIST" and length >= 4 and source.read(4) == b"INFO":
            from_info = _tags(_RIFF_INFO, _riff_texts(source.read(min(length - 4, MAX_RIFF_INFO_BYTES))))
        position = source.seek(position + 8 + length + length % 2)
    return _filled(from_id3 or {}, from_info or {})


def _riff_texts(content: bytes) -> dict[str, list[str]]:
    """Return the entries of a LIST INFO chunk, as UTF-8 when they are that, else as what Windows wrote."""
    texts: dict[str, list[str]] = {}
    position = 0
    while position + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, position)
        value = content[position + 8 : position + 8 + length].partition(b"\0")[0]
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:  # expected of old files
            text = value.decode("cp1252", "replace")
        texts.setdefault(name.decode("latin-1").lower(), []).append(text)
        position += 8 + length + length % 2
    return texts


# ---- formats: the stream, with `length`, `bitrate`, `sample_rate` and `channels` as mutagen has them, and its tags

_Described = tuple[Any, dict[str, TagValue]]


def _commented(kind: Callable[[_Source], Any]) -> Callable[[_Source], _Described]:
    """Return a reader of what has Vorbis comments."""

    def read(source: _Source) -> _Described:
        audio = kind(source)
        raw: dict[str, list[object]] = {}
        for native, value in audio.tags or ():
            if (folded := native.lower()) in _VORBIS:
                raw.setdefault(folded, []).append(value)
        return audio.info, _tags(_VORBIS, raw)

    return read


def _mp3(source: _Source) -> _Described:
    """Read MPEG audio, and its tags: ID3v2, then APEv2, then ID3v1, which cuts its texts off at 30 characters."""
    v2, size = _id3v2(source)
    info = MPEGInfo(source, size)
    v1, ape = _id3v1_and_ape(source)
    return info, _filled(v2, ape, v1)


def _aac(source: _Source) -> _Described:
    """Read raw AAC, and what surrounds it; broken tags count as none, as a stream has none by right."""
    info = AACInfo(source)
    v2 = _id3v2_if_sound(source)
    v1, ape = _id3v1_and_ape(source)
    return info, _filled(v2, ape, v1)


def _wave(source: _Source) -> _Described:
    info = WaveStreamInfo(source)
    return info, _riff_tags(source)


def _mp4(source: _Source) -> _Described:
    try:
        info, raw = mp4.read(source)
    except (ValueError, LookupError, struct.error):
        source.seek(0)
        audio: Any = MP4(source)
        tags = audio.tags or {}
        return audio.info, _tags(_MP4, {key.lower(): _mp4_values(tags[key]) for key in tags.keys()})  # noqa: SIM118
    if "gnre" in raw:  # counted from 1, where ID3 counts from 0
        raw["gnre"] = [_genre(str(number - 1)) for number in raw["gnre"] if isinstance(number, int) and number > 0]
    return info, _tags(_MP4, raw)


def _mp4_values(value: Any) -> list[object]:
    """Return one of mutagen's values of MP4 as the plain reader has them."""
    if isinstance(value, bool):
        return [value]
    return ["{}/{}".format(*item) if isinstance(item, tuple) else item for item in value]


def _asf(source: _Source) -> _Described:
    audio = ASF(source)
    raw: dict[str, list[object]] = {}
    for native, value in audio.tags or ():
        if (folded := native.lower()) in _ASF and not isinstance(value.value, bytes):  # pictures, GUIDs
            raw.setdefault(folded, []).append(value)
    return audio.info, _tags(_ASF, raw)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format: its MIME type, and how to read its stream and tags."""

    mime: str
    read: Callable[[_Source], _Described]


# MP4 is audio/mp4 also when it holds pictures: a library's m4v is announced for its sound, and cover art is a video
# track to some writers. Ogg names its codec, as RFC 5334 and RFC 7845 have it: .ogg may hold any of these, and what
# plays one of them may not play another. Whoever wants the container reads up to the semicolon.
_FLAC_KIND = _Kind("audio/flac", _commented(FLAC))
_WAVE_KIND = _Kind("audio/wav", _wave)
_MP3_KIND = _Kind("audio/mpeg", _mp3)
_AAC_KIND = _Kind("audio/aac", _aac)
_MP4_KIND = _Kind("audio/mp4", _mp4)
_ASF_KIND = _Kind("audio/x-ms-wma", _asf)
_OPUS_KIND = _Kind("audio/ogg; codecs=opus", _commented(OggOpus))
_OGG_KINDS = {
    b"OpusHead": _OPUS_KIND,
    b"\x01vorbis": _Kind("audio/ogg; codecs=vorbis", _commented(OggVorbis)),
    b"\x7fFLAC": _Kind("audio/ogg; codecs=flac", _commented(OggFLAC)),
    b"Speex   ": _Kind("audio/ogg; codecs=speex", _commented(OggSpeex)),
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
        info, tags = kind.read(source)
        return _metadata(kind, info, tags, size_bytes)
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
        start += _id3_bytes(head)
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
        sample_rate=_whole(OPUS_RATE if kind is _OPUS_KIND else info.sample_rate, MAX_SAMPLE_RATE),
        channels=_whole(info.channels, MAX_CHANNELS),
        audio_md5=f"{md5:032x}" if (md5 := getattr(info, "md5_signature", 0)) else None,  # 0: the encoder made none
        tags=tags,
    )


def _whole(value: float | None, most: float) -> int | None:
    """Return a number from 1 to `most`, None for any other (NaN compares false) and for what is unknown."""
    return int(value) if value is not None and 1 <= value <= most else None


def _reason(error: Exception, kind: _Kind | None) -> str:
    """Return one short line; only mutagen's own messages say enough without the exception's name."""
    deed = f"cannot be parsed as {kind.mime}" if kind else "cannot be read"
    message = " ".join(_text(str(error).replace(repr(_Source.name), _Source.name)).split())
    if not message and isinstance(error, MutagenError) and isinstance(error.__context__, OSError):
        message = "the file ends before a part of it does"  # which is all that mutagen knows then
    if not isinstance(error, MutagenError) or not message:
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return "".join(char if char.isprintable() else "?" for char in f"{deed}: {message}"[:MAX_REASON])
