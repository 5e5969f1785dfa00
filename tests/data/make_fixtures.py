"""Make tests/data/audio: one small real file for each format, from the values in expected.py.

Needs ffmpeg (with LAME, Vorbis and Opus), sox and mutagen. The files are committed, so it runs only when they are to
change: python -m tests.data.make_fixtures. The same tools make the same bytes again.
"""

# Mutagen has annotations for some of what it exports, and none for the rest.
# mypy: allow-untyped-calls

import base64
import os
import shutil
import struct
import subprocess
import tempfile
from typing import Any

from mutagen.aac import AAC
from mutagen.asf import ASF
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TALB, TCOM, TCON, TDRC, TIT2, TPE1, TPE2, TPOS, TRCK
from mutagen.mp4 import MP4, MP4Cover
from mutagen.oggflac import OggFLAC
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from tests.data import expected as x

JPEG = "image/jpeg"
FRONT_COVER = 3  # the picture type that ID3, FLAC and ASF share

# How FFmpeg encodes each format; sox makes the one that is not here. The low rates keep the files at a few KB.
ENCODERS: dict[str, list[str]] = {
    "flac": ["-c:a", "flac"],
    "wav": ["-c:a", "pcm_s16le"],
    "mp3": ["-c:a", "libmp3lame", "-b:a", "32k", "-id3v2_version", "0"],
    "ogg": ["-c:a", "libvorbis", "-q:a", "0"],
    "oga": ["-c:a", "flac", "-f", "oga"],
    "aac": ["-c:a", "aac", "-b:a", "32k", "-f", "adts"],
    "opus": ["-c:a", "libopus", "-b:a", "32k"],
    "m4a": ["-c:a", "aac", "-b:a", "32k", "-f", "ipod", "-movflags", "+faststart"],
    "m4b": ["-c:a", "aac", "-b:a", "24k", "-f", "ipod"],
    "m4p": ["-c:a", "aac", "-b:a", "32k", "-f", "ipod"],
    "m4v": ["-c:v", "mpeg4", "-c:a", "aac", "-b:a", "32k", "-f", "ipod"],
    "m4r": ["-c:a", "aac", "-b:a", "32k", "-f", "ipod"],
    "mp4": ["-c:v", "mpeg4", "-c:a", "aac", "-b:a", "32k"],
    "wma": ["-c:a", "wmav2", "-b:a", "32k", "-f", "asf"],
}
MP4_FAMILY = ("m4a", "m4b", "m4p", "m4v", "m4r", "mp4")
WITH_VIDEO = ("m4v", "mp4")


def ffmpeg(*arguments: str) -> None:
    """Run FFmpeg so that it writes neither its version nor the time into the file."""
    *first, output = arguments
    plain = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]
    subprocess.run(["ffmpeg", "-loglevel", "error", "-nostdin", "-y", *first, *plain, output], check=True)


def encode(suffix: str, path: str) -> None:
    """Write a file without tags: a tone, under a test card where the format is for video."""
    rate, channels = x.FIXTURES[suffix].sample_rate, x.FIXTURES[suffix].channels
    if suffix == "wave":
        tone = ["-n", "-r", str(rate), "-b", "24", "-c", str(channels), "-t", "wav", path]
        subprocess.run(["sox", "-R", *tone, "synth", str(x.DURATION_S), "sine", "300"], check=True)
        return
    sources = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={x.DURATION_S}:sample_rate={rate},volume=0.3"]
    if suffix in WITH_VIDEO:
        sources += ["-f", "lavfi", "-i", f"testsrc=d={x.DURATION_S}:s=32x32:r=10"]
    ffmpeg(*sources, "-ac", str(channels), "-ar", str(rate), *ENCODERS[suffix], path)


def protect(path: str) -> None:
    """Make an MP4 file look bought: iTunes renamed the sample entry of what it encrypted from mp4a to drms."""
    with open(path, "r+b") as file:
        content = file.read()
        file.seek(content.index(b"mp4a", content.index(b"stsd")))
        file.write(b"drms")


def no_padding(_info: Any) -> int:
    """Tell mutagen to leave no room for later tags: the files are to be small."""
    return 0


def picture(cover: bytes) -> Picture:
    """Return a cover as FLAC and Vorbis comments hold it."""
    made = Picture()
    made.data, made.mime, made.type, made.width, made.height, made.depth = cover, JPEG, FRONT_COVER, 16, 16, 24
    return made


def write_vorbis(suffix: str, path: str, cover: bytes) -> None:
    """Tag a file that has Vorbis comments; the totals are comments of their own there."""
    audio: Any = {"flac": FLAC, "ogg": OggVorbis, "oga": OggFLAC, "opus": OggOpus}[suffix](path)
    audio.update(
        title=x.TITLE, artist=list(x.ARTISTS), album=x.ALBUM, albumartist=x.ALBUM_ARTIST, date=x.DATE,
        genre=list(x.GENRES), composer=x.COMPOSER, tracknumber=str(x.TRACK), tracktotal=str(x.TRACK_TOTAL),
        discnumber=str(x.DISC), disctotal=str(x.DISC_TOTAL),
    )  # fmt: skip
    if suffix == "flac":
        audio.add_picture(picture(cover))
    else:
        audio["metadata_block_picture"] = base64.b64encode(picture(cover).write()).decode()
    audio.save(padding=no_padding)


def write_id3(suffix: str, path: str, cover: bytes) -> None:
    """Tag a file with ID3v2.4: a chunk in RIFF, before the first frame elsewhere."""
    if suffix in ("wav", "wave"):
        audio = WAVE(path)
        audio.add_tags()
        tags: Any = audio.tags
    else:
        tags = ID3()
    utf8 = 3
    for frame in (
        TIT2(utf8, [x.TITLE]), TPE1(utf8, list(x.ARTISTS)), TALB(utf8, [x.ALBUM]), TPE2(utf8, [x.ALBUM_ARTIST]),
        TDRC(utf8, [x.DATE]), TCON(utf8, list(x.GENRES)), TCOM(utf8, [x.COMPOSER]),
        TRCK(utf8, [f"{x.TRACK}/{x.TRACK_TOTAL}"]), TPOS(utf8, [f"{x.DISC}/{x.DISC_TOTAL}"]),
        APIC(utf8, JPEG, FRONT_COVER, "cover", cover),
    ):  # fmt: skip
        tags.add(frame)
    tags.save(path, padding=no_padding)


def write_mp4(path: str, cover: bytes) -> None:
    """Tag a file of the MP4 family the way iTunes does."""
    audio = MP4(path)
    if audio.tags is None:
        audio.add_tags()
    audio.update({
        "\xa9nam": [x.TITLE], "\xa9ART": list(x.ARTISTS), "\xa9alb": [x.ALBUM], "aART": [x.ALBUM_ARTIST],
        "\xa9day": [x.DATE], "\xa9gen": list(x.GENRES), "\xa9wrt": [x.COMPOSER], "trkn": [(x.TRACK, x.TRACK_TOTAL)],
        "disk": [(x.DISC, x.DISC_TOTAL)], "covr": [MP4Cover(cover, MP4Cover.FORMAT_JPEG)],
    })  # fmt: skip
    audio.save(padding=no_padding)


def write_asf(path: str, cover: bytes) -> None:
    """Tag a WMA file; its cover is type, length, and then MIME type and description in UTF-16."""
    audio = ASF(path)
    head = struct.pack("<BI", FRONT_COVER, len(cover)) + f"{JPEG}\0\0".encode("utf-16-le")
    audio.update({
        "Title": x.TITLE, "Author": list(x.ARTISTS), "WM/AlbumTitle": x.ALBUM, "WM/AlbumArtist": x.ALBUM_ARTIST,
        "WM/Year": x.DATE, "WM/Genre": list(x.GENRES), "WM/Composer": x.COMPOSER,
        "WM/TrackNumber": f"{x.TRACK}/{x.TRACK_TOTAL}", "WM/PartOfSet": f"{x.DISC}/{x.DISC_TOTAL}",
        "WM/Picture": head + cover,
    })  # fmt: skip
    audio.save(padding=no_padding)


def encode_alac(path: str) -> None:
    """Write an M4A with ALAC of a rate that has no room in the header around it, and no tags."""
    rate = x.ALAC.sample_rate
    tone = f"sine=frequency=440:duration={x.ALAC_DURATION_S}:sample_rate={rate},volume=0.3"
    ffmpeg("-f", "lavfi", "-i", tone, "-ac", str(x.ALAC.channels), "-c:a", "alac", "-f", "ipod", path)


def make(suffix: str, path: str, cover: bytes) -> None:
    """Make the file of one format."""
    encode(suffix, path)
    if suffix in ("flac", "ogg", "oga", "opus"):
        write_vorbis(suffix, path, cover)
    elif suffix in MP4_FAMILY:
        if suffix == "m4p":
            protect(path)
        write_mp4(path, cover)
    elif suffix == "wma":
        write_asf(path, cover)
    else:
        if suffix == "aac":
            AAC(path)  # a stream too short for mutagen would be no fixture
        write_id3(suffix, path, cover)


def main() -> None:
    """Make all files, and replace the old ones once every new one is there."""
    os.makedirs(x.AUDIO, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        cover_path = os.path.join(folder, "cover.jpg")
        ffmpeg("-f", "lavfi", "-i", "testsrc=d=1:s=16x16:r=1", "-frames:v", "1", cover_path)
        with open(cover_path, "rb") as file:
            cover = file.read()
        made = {suffix: os.path.join(folder, f"track.{suffix}") for suffix in x.FIXTURES}
        for suffix, path in made.items():
            make(suffix, path, cover)
        alac = os.path.join(folder, "alac.m4a")
        encode_alac(alac)
        for path, kept in [(alac, x.ALAC_PATH), *((path, x.path_of(suffix)) for suffix, path in made.items())]:
            shutil.copyfile(path, kept)
            print(f"{os.path.getsize(path):6} {kept}")


if __name__ == "__main__":
    main()
