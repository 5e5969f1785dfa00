"""Files with every kind of tags that the formats know, made at once from tests/data/audio: for tests and formats.py.

Each says what it should be read as. Written with mutagen where that writes such a thing, else byte by byte.
"""

# Mutagen has annotations for some of what it exports, and none for the rest.
# mypy: allow-untyped-calls

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mutagen import id3
from mutagen.apev2 import APEv2
from mutagen.asf import ASF
from mutagen.flac import FLAC
from mutagen.id3 import ID3, RVA2, TXXX, UFID
from mutagen.mp4 import MP4, AtomDataType, MP4FreeForm
from mutagen.oggflac import OggFLAC
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from tests.data import expected

Tags = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Variant:
    """A file, the suffix that it would have, and the tags that it holds by the contract's names."""

    suffix: str
    content: bytes
    tags: Mapping[str, str | int | float | bool]


def fixture(suffix: str) -> bytes:
    """Return a file of tests/data/audio."""
    with open(expected.path_of(suffix), "rb") as file:
        return file.read()


BARE_MP3 = fixture("mp3")[fixture("mp3").index(b"\xff\xf3") :]
BARE_AAC = fixture("aac")[fixture("aac").index(b"\xff\xf1") :]

ARTIST_IDS = "87c5dedd-371d-4a53-9f7f-80522fb7f3cb; 1c5efd53-d6b6-4d63-9d22-a15025cf5f07"
# What Picard writes beyond the tags of the fixtures, by its names in Vorbis comments.
IDS = {
    "musicbrainz_trackid": "0cdc9b5b-b16b-4ff1-9f16-5b4ba76f1c17",
    "musicbrainz_releasetrackid": "d9991644-fd89-33b0-9ea6-7aa7c5f5d5e5",
    "musicbrainz_albumid": "fed37cfc-2a6d-4569-9ac0-501a7c7598eb",
    "musicbrainz_artistid": ARTIST_IDS,
    "musicbrainz_albumartistid": "4e60d7ad-2a9b-4a5c-8d4d-0b0a4ed9bf9c",
    "musicbrainz_releasegroupid": "f4a31f0a-51dd-4fa7-986d-3095c40c5ed9",
    "musicbrainz_workid": "7e0a2e1c-0b0c-4b0e-9b0e-3a5f0c6b1d2e",
}
LEVELS = {
    "replaygain_track_gain": "-7.03 dB",
    "replaygain_track_peak": "0.988281",
    "replaygain_album_gain": "+1.50 dB",
    "replaygain_album_peak": "1.000000",
}
ISRC = "GBAYE0601498"
# What Picard calls the ids in ID3, MP4 and ASF.
WORDS = {
    "musicbrainz_trackid": "Track Id",
    "musicbrainz_releasetrackid": "Release Track Id",
    "musicbrainz_albumid": "Album Id",
    "musicbrainz_artistid": "Artist Id",
    "musicbrainz_albumartistid": "Album Artist Id",
    "musicbrainz_releasegroupid": "Release Group Id",
    "musicbrainz_workid": "Work Id",
}
EXTRA: Tags = {
    **IDS, "isrc": ISRC, "compilation": True, "replaygain_track_gain": -7.03, "replaygain_track_peak": 0.988281,
    "replaygain_album_gain": 1.5, "replaygain_album_peak": 1.0,
}  # fmt: skip
FULL: Tags = {**expected.TAGS, **EXTRA}


def saved(content: bytes, kind: Callable[[io.BytesIO], Any], change: Callable[[Any], object]) -> bytes:
    """Return a file after mutagen's class for it has changed its tags."""
    file = io.BytesIO(content)
    audio = kind(file)
    change(audio)
    file.seek(0)
    audio.save(file)
    return file.getvalue()


def full(suffix: str) -> bytes:
    """Return the fixture of a format with all that Picard would add to it."""
    content = fixture(suffix)
    match suffix:
        case "flac" | "ogg" | "oga" | "opus":
            kinds: Mapping[str, Any] = {"flac": FLAC, "ogg": OggVorbis, "oga": OggFLAC, "opus": OggOpus}
            comments: dict[str, Any] = {name: ids.split("; ") for name, ids in IDS.items()}
            comments |= {name.upper(): level for name, level in LEVELS.items()} | {"isrc": ISRC, "compilation": "1"}
            return saved(content, kinds[suffix], lambda audio: audio.update(comments))
        case "wma":
            attributes: dict[str, Any] = {f"MusicBrainz/{WORDS[name]}": ids.split("; ") for name, ids in IDS.items()}
            attributes |= LEVELS | {"WM/ISRC": ISRC, "WM/IsCompilation": "1"}
            return saved(content, ASF, lambda audio: audio.update(attributes))
        case "mp3" | "aac":
            return saved(content, ID3, add_frames)
        case "wav" | "wave":
            return saved(content, WAVE, lambda audio: add_frames(audio.tags))
        case _:
            return saved(content, MP4, add_atoms)


def add_frames(tags: Any) -> None:
    """Add what Picard would to ID3."""
    for name, ids in IDS.items():
        if name == "musicbrainz_trackid":
            tags.add(UFID("http://musicbrainz.org", ids.encode()))
        else:
            tags.add(TXXX(3, f"MusicBrainz {WORDS[name]}", ids.split("; ")))
    for name, level in LEVELS.items():
        tags.add(TXXX(3, name.upper(), [level]))
    tags.add(id3.TSRC(3, [ISRC]))
    tags.add(id3.TCMP(3, ["1"]))


def add_atoms(audio: Any) -> None:
    """Add what Picard would to MP4."""
    free: dict[str, list[str]] = {f"MusicBrainz {WORDS[name]}": ids.split("; ") for name, ids in IDS.items()}
    free |= {name: [level] for name, level in LEVELS.items()} | {"ISRC": [ISRC]}
    for name, values in free.items():
        audio[f"----:com.apple.iTunes:{name}"] = [MP4FreeForm(value.encode(), AtomDataType.UTF8) for value in values]
    audio["cpil"] = True


# ---- ID3, byte by byte


def synchsafe(number: int) -> bytes:
    """Return a number with seven bits in each of four bytes."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def frame(name: str, content: bytes, *, version: int = 4, flags: int = 0) -> bytes:
    """Return a frame of ID3v2; a size as ID3v2.3 has it when the version says so, or is None."""
    if version == 2:
        return name.encode() + len(content).to_bytes(3, "big") + content
    size = synchsafe(len(content)) if version == 4 else struct.pack(">I", len(content))
    return name.encode() + size + struct.pack(">H", flags) + content


def id3v2(*frames: bytes, version: int = 4, flags: int = 0, padding: int = 10) -> bytes:
    """Return a tag of frames."""
    body = b"".join(frames) + bytes(padding)
    return b"ID3" + bytes([version, 0, flags]) + synchsafe(len(body)) + body


def latin(*texts: str) -> bytes:
    """Return a text frame's content in ISO 8859-1."""
    return b"\0" + "\0".join(texts).encode("latin-1")


def utf16(*texts: str) -> bytes:
    """Return a text frame's content in UTF-16, each value with a byte order mark of its own."""
    return b"\x01" + b"\0\0".join(b"\xff\xfe" + text.encode("utf-16-le") for text in texts)


def utf8(*texts: str) -> bytes:
    """Return a text frame's content in UTF-8."""
    return b"\x03" + "\0".join(texts).encode()


def id3v1(title: str, artist: str, genre: int = 255, track: int = 7) -> bytes:
    """Return an ID3v1.1 tag."""
    texts = [text.encode("latin-1")[:30] for text in (title, artist, "Old Album")]
    return struct.pack("<3s30s30s30s4s28sBBB", b"TAG", *texts, b"1999", b"", 0, track, genre)


def ape(content: bytes, items: dict[str, Any]) -> bytes:
    """Return a file with an APEv2 tag."""
    file = io.BytesIO(content)
    tags = APEv2()
    tags.update(items)
    tags.save(file)
    return file.getvalue()


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a RIFF/WAVE file of chunks."""
    body = b"".join(struct.pack("<4sI", name, len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return struct.pack("<4sI", b"RIFF", 4 + len(body)) + b"WAVE" + body


PCM = ((b"fmt ", struct.pack("<HHIIHH", 1, 2, 8000, 32000, 4, 16)), (b"data", bytes(8000)))


def info(*entries: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return a LIST INFO chunk."""
    return b"LIST", b"INFO" + riff(*entries)[12:]


def tagged(*frames: bytes, **header: int) -> bytes:
    """Return an MP3 with these frames and no other tag."""
    return id3v2(*frames, **header) + BARE_MP3


def commented(**comments: str | list[str]) -> bytes:
    """Return a FLAC with these comments only."""

    def replace(audio: Any) -> None:
        audio.clear()
        audio.update(comments)

    return saved(fixture("flac"), FLAC, replace)


def atoms(values: dict[str, Any]) -> bytes:
    """Return an M4A with these tags only."""

    def replace(audio: Any) -> None:
        audio.tags.clear()
        audio.update(values)

    return saved(fixture("m4a"), MP4, replace)


def attributes(values: dict[str, Any]) -> bytes:
    """Return a WMA with these tags only."""

    def replace(audio: Any) -> None:
        audio.clear()
        audio.update(values)

    return saved(fixture("wma"), ASF, replace)


def unsynchronised(tag: bytes) -> bytes:
    """Return a tag of ID3v2.3 whose body looks nothing like the beginning of an MPEG frame."""
    body = tag[10:].replace(b"\xff\0", b"\xff\0\0").replace(b"\xff\xfe", b"\xff\0\xfe")
    return tag[:5] + b"\x80" + synchsafe(len(body)) + body


OLD: Tags = {"title": "Old", "artist": "Timer", "album": "Old Album", "date": "1999", "genre": "Rock", "track": 7}
MP3GAIN = {"REPLAYGAIN_TRACK_GAIN": "-3.000000 dB", "REPLAYGAIN_TRACK_PEAK": "0.5", "MP3GAIN_MINMAX": "089,179"}
GAINED: Tags = {"replaygain_track_gain": -3.0, "replaygain_track_peak": 0.5}


def variants() -> dict[str, Variant]:
    """Make all of them, by name."""
    made = {f"{suffix}, as Picard writes it": Variant(suffix, full(suffix), FULL) for suffix in expected.FIXTURES}
    made |= {
        "mp3, no tags": Variant("mp3", BARE_MP3, {}),
        "mp3, ID3v1": Variant("mp3", BARE_MP3 + id3v1("Old", "Timer", 17), OLD),
        "mp3, ID3v2.2": Variant(
            "mp3",
            tagged(
                frame("TT2", latin("Two"), version=2), frame("TP1", utf16("Björk"), version=2),
                frame("TAL", latin("Álbum"), version=2), frame("TYE", latin("1998"), version=2),
                frame("TRK", latin("3/12"), version=2), frame("TCO", latin("(17)"), version=2),
                frame("UFI", b"http://musicbrainz.org\0" + IDS["musicbrainz_trackid"].encode(), version=2),
                version=2,
            ),
            {"title": "Two", "artist": "Björk", "album": "Álbum", "date": "1998", "track": 3, "track_total": 12,
             "genre": "Rock", "musicbrainz_trackid": IDS["musicbrainz_trackid"]},
        ),
        "mp3, ID3v2.3": Variant(
            "mp3",
            tagged(
                frame("TIT2", utf16("日本語"), version=3), frame("TPE1", latin("AC/DC"), version=3),
                frame("TYER", latin("2019"), version=3), frame("TDAT", latin("1705"), version=3),
                frame("TIME", latin("2130"), version=3), frame("TCON", latin("(17)(18)Eurodisco"), version=3),
                frame("TRCK", latin("03/12"), version=3), frame("TCMP", latin("1"), version=3),
                frame("TXXX", latin("MusicBrainz Artist Id", ARTIST_IDS.replace("; ", "/")), version=3),
                version=3,
            ),
            {"title": "日本語", "artist": "AC/DC", "date": "2019-05-17 21:30", "genre": "Rock; Techno; Eurodisco",
             "track": 3, "track_total": 12, "compilation": True, "musicbrainz_artistid": ARTIST_IDS},
        ),
        "mp3, ID3v2.3 with artists joined by a slash": Variant(
            "mp3", tagged(frame("TPE1", latin("Simon/Garfunkel"), version=3), version=3), {"artist": "Simon/Garfunkel"}
        ),
        "mp3, ID3v2.3 with artists joined by NUL": Variant(
            "mp3", tagged(frame("TPE1", utf16("Björk", "Сплин"), version=3), version=3), {"artist": "Björk; Сплин"}
        ),
        "mp3, ID3v2.3, unsynchronised": Variant(
            "mp3",
            unsynchronised(
                id3v2(frame("TIT2", utf16("ÿþ"), version=3), frame("TPE1", latin("ÿ"), version=3), version=3)
            ) + BARE_MP3,
            {"title": "ÿþ", "artist": "ÿ"},
        ),
        "mp3, ID3v2.4 in four encodings": Variant(
            "mp3",
            tagged(
                frame("TIT2", latin("Füße")), frame("TPE1", utf16("Björk", "久石譲")),
                frame("TALB", b"\x02" + "Ωmega".encode("utf-16-be")), frame("TPE2", utf8("Тест", "🎵")),
            ),
            {"title": "Füße", "artist": "Björk; 久石譲", "album": "Ωmega", "album_artist": "Тест; 🎵"},
        ),
        "mp3, ID3v2.4 with a size as iTunes wrote it": Variant(
            "mp3",
            tagged(frame("TIT2", latin("x" * 300), version=3), frame("TALB", latin("A"), version=3)),
            {"title": "x" * 300, "album": "A"},
        ),
        "mp3, ID3v2.4 and ID3v1": Variant(
            "mp3", tagged(frame("TIT2", utf8("New"))) + id3v1("Old", "Timer", 17), {**OLD, "title": "New"}
        ),
        "mp3, ReplayGain in RVA2": Variant(
            "mp3", saved(id3v2(frame("TIT2", utf8("Loud"))) + BARE_MP3, ID3, lambda tags: [
                tags.add(RVA2("track", 1, -7.25, 0.75)), tags.add(RVA2("album", 1, 2.5, 0)),
            ]),
            {"title": "Loud", "replaygain_track_gain": -7.25, "replaygain_track_peak": 0.75,
             "replaygain_album_gain": 2.5},
        ),
        "mp3, APEv2": Variant(
            "mp3",
            ape(BARE_MP3, {
                "Title": "Ape", "Artist": ["One", "Two"], "Track": "3/12", "Year": "1987", "Compilation": "1",
                "ISRC": ISRC, "MUSICBRAINZ_ALBUMID": IDS["musicbrainz_albumid"], **MP3GAIN,
            }),
            {"title": "Ape", "artist": "One; Two", "track": 3, "track_total": 12, "date": "1987", "compilation": True,
             "isrc": ISRC, "musicbrainz_albumid": IDS["musicbrainz_albumid"], **GAINED},
        ),
        "mp3, ID3v2.4 and what mp3gain adds in APEv2": Variant(
            "mp3", ape(tagged(frame("TIT2", utf8("New"))), MP3GAIN), {"title": "New", **GAINED}
        ),
        "aac, no tags": Variant("aac", BARE_AAC, {}),
        "aac, ID3v1": Variant("aac", BARE_AAC + id3v1("Old", "Timer", 17), OLD),
        "aac, APEv2": Variant("aac", ape(BARE_AAC, {"Title": "Ape"}), {"title": "Ape"}),
        "wav, no tags": Variant("wav", riff(*PCM), {}),
        "wav, RIFF INFO": Variant(
            "wav",
            riff(*PCM, info(
                (b"INAM", "Zażółć\0".encode()), (b"IART", b"Odd\0"), (b"IPRD", b"Album\0"), (b"ITRK", b"4/9\0"),
                (b"ICRD", b"2001-02-03\0"), (b"IGNR", b"Rock\0"), (b"IMUS", b"Bach\0"), (b"ISRC", b"a shop\0"),
            )),
            {"title": "Zażółć", "artist": "Odd", "album": "Album", "track": 4, "track_total": 9, "date": "2001-02-03",
             "genre": "Rock", "composer": "Bach"},
        ),
        "wav, RIFF INFO of Windows": Variant(
            "wav", riff(*PCM, info((b"INAM", "Café\0".encode("cp1252")))), {"title": "Café"}
        ),
        "wav, ID3 and RIFF INFO": Variant(
            "wav",
            riff(
                *PCM, info((b"INAM", b"Cut\0"), (b"IART", b"Only here\0")),
                (b"id3 ", id3v2(frame("TIT2", utf8("Whole")))),
            ),
            {"title": "Whole", "artist": "Only here"},
        ),
        "flac, names in any case and both spellings": Variant(
            "flac", commented(TITLE="T", Artist=["A", "B"], **{"ALBUM ARTIST": "C", "Totaltracks": "9", "Track": "2"}),
            {"title": "T", "artist": "A; B", "album_artist": "C", "track": 2, "track_total": 9},
        ),
        "flac, values without sense": Variant(
            "flac",
            commented(
                title="T", tracknumber="A1", date="0000", compilation="perhaps", isrc="none",
                musicbrainz_trackid="unknown", replaygain_track_gain="loud", replaygain_track_peak="32767",
            ),
            {"title": "T"},
        ),
        "opus, R128 gain": Variant(
            "opus",
            saved(fixture("opus"), OggOpus, lambda audio: audio.update(R128_TRACK_GAIN="-1280", R128_ALBUM_GAIN="300")),
            {**expected.TAGS, "r128_track_gain": -1280, "r128_album_gain": 300},
        ),
        "m4a, several values and no totals": Variant(
            "m4a",
            atoms({"\xa9ART": ["A", "B"], "trkn": [(3, 0)], "disk": [(0, 2)], "cpil": False,
                   "----:com.apple.iTunes:replaygain_track_gain": [b"-1,5 dB"]}),
            {"artist": "A; B", "track": 3, "disc_total": 2, "compilation": False, "replaygain_track_gain": -1.5},
        ),
        "m4a, a genre by number": Variant("m4a", numbered_genre(18), {"title": "T", "genre": "Rock"}),
        "wma, numbers as numbers": Variant(
            "wma",
            attributes({"Title": "T", "Author": ["A", "A", "B"], "date": "2001", "WM/TrackNumber": 3,
                        "WM/IsCompilation": True}),
            {"title": "T", "artist": "A; B", "date": "2001", "track": 3, "compilation": True},
        ),
    }  # fmt: skip
    return made


def numbered_genre(number: int) -> bytes:
    """Return an M4A with a genre as iTunes writes it: a number, which mutagen reads but does not write."""
    content = atoms({"\xa9nam": ["T"], "\xa9gen": ["xx"]})
    old = content.index(b"\xa9gen")
    changed = bytearray(content)
    changed[old : old + 4] = b"gnre"
    changed[old + 12 + 3] = 0  # no longer text
    changed[old + 20 : old + 22] = struct.pack(">H", number)
    return bytes(changed)
