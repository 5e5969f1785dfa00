"""What the audio files of tests/data/audio were made with, independent of any reader.

make_fixtures.py makes the files from these values, and the tests compare them with what trackwatch reads. A file is
`audio/track.<suffix>`.
"""

import os
from dataclasses import dataclass

AUDIO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "audio")

DURATION_S = 0.3

TITLE = "Ünïcödé 日本語 – Тест 🎵"  # noqa: RUF001 - the dash is one of the characters to come through
ARTISTS = ("Björk", "Сплин", "久石譲")
ALBUM = "Álbum Ωmega"
ALBUM_ARTIST = "Ólafur Arnalds"
DATE = "2019-05-17"
GENRES = ("Electronic", "Ambient")
COMPOSER = "Дмитрий Шостакович"
TRACK, TRACK_TOTAL = 3, 12
DISC, DISC_TOTAL = 1, 2

# The same in every file, for every format can hold all of it.
TAGS: dict[str, str | int | bool] = {
    "title": TITLE,
    "artist": "Björk; Сплин; 久石譲",
    "album": ALBUM,
    "album_artist": ALBUM_ARTIST,
    "date": DATE,
    "genre": "Electronic; Ambient",
    "composer": COMPOSER,
    "track": TRACK,
    "track_total": TRACK_TOTAL,
    "disc": DISC,
    "disc_total": DISC_TOTAL,
}


@dataclass(frozen=True, slots=True)
class Fixture:
    """How one file was made. `slack_s` is how far its own idea of its duration may be from what went in."""

    mime: str
    sample_rate: int
    channels: int
    slack_s: float


# Lossless formats count samples, and Vorbis and Opus say where the last one is. The others count frames: encoders fill
# up the last frame, LAME and AAC encoders begin with a silent one or two, and readers leave that in. In MP4 a list of
# edits takes it out again.
EXACT_S = 0.001
MP3_FRAME_S = 576 / 22050
AAC_FRAME_S = 1024 / 22050
WMA_FRAME_S = 1024 / 22050

FIXTURES = {
    "flac": Fixture("audio/flac", 8000, 2, EXACT_S),
    "wav": Fixture("audio/wav", 8000, 1, EXACT_S),
    "wave": Fixture("audio/wav", 11025, 1, EXACT_S),
    "mp3": Fixture("audio/mpeg", 22050, 2, 3 * MP3_FRAME_S),
    "ogg": Fixture("audio/ogg; codecs=vorbis", 22050, 2, EXACT_S),
    "oga": Fixture("audio/ogg; codecs=flac", 16000, 1, EXACT_S),
    "aac": Fixture("audio/aac", 22050, 2, 2 * AAC_FRAME_S),
    "opus": Fixture("audio/ogg; codecs=opus", 48000, 2, EXACT_S),
    "m4a": Fixture("audio/mp4", 22050, 2, EXACT_S),
    "m4b": Fixture("audio/mp4", 22050, 1, EXACT_S),
    "m4p": Fixture("audio/mp4", 22050, 2, EXACT_S),
    "m4v": Fixture("audio/mp4", 22050, 2, EXACT_S),
    "m4r": Fixture("audio/mp4", 22050, 2, EXACT_S),
    "mp4": Fixture("audio/mp4", 22050, 2, EXACT_S),
    "wma": Fixture("audio/x-ms-wma", 22050, 2, WMA_FRAME_S),
}

# Beside the formats' files: MP4 with another codec.
ALAC = Fixture("audio/mp4", 96000, 1, EXACT_S)
ALAC_DURATION_S = 0.05
ALAC_PATH = os.path.join(os.path.dirname(AUDIO), "codecs", "alac.m4a")


def path_of(suffix: str) -> str:
    """Return where the file of a format is."""
    return os.path.join(AUDIO, f"track.{suffix}")
