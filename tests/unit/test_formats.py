"""The table of differences between trackwatch, ffprobe and exiftool: what can be known of it without these two."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import formats
from trackwatch.track import AUDIO_SUFFIXES

FILES = formats.files()
DOCUMENT = Path(__file__).parents[2] / "ops" / "formats.md"


def test_the_table_was_made_when_trackwatch_said_what_it_says_now() -> None:
    """Make it again with: python -m tests.formats > ops/formats.md."""
    assert f"<!-- what trackwatch says: {formats.digest()} -->" in DOCUMENT.read_text("utf-8")


def test_every_explanation_is_in_the_table_and_nothing_else() -> None:
    lines = DOCUMENT.read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| facts")]
    assert [row.rpartition(" | ")[2].removesuffix(" |") for row in rows] == [rule.why for rule in formats.RULES]


def test_every_format_and_every_tag_is_compared() -> None:
    assert {variant.suffix for variant in FILES.values()} == set(AUDIO_SUFFIXES)
    said = {name for variant in FILES.values() for name in formats.ours(variant)}
    assert said == set(formats.FIELDS)


@pytest.mark.parametrize("name", FILES)
def test_what_trackwatch_says_is_what_the_file_was_made_with(name: str) -> None:
    variant = FILES[name]
    said = {fact: value for fact, value in formats.ours(variant).items() if fact not in formats.STREAM}
    assert said == variant.tags


def test_a_difference_is_found_unless_it_is_one_of_rounding() -> None:
    assert formats.same("duration", 0.3, 0.304)
    assert not formats.same("duration", 0.3, 0.31)
    assert formats.same("replaygain_track_gain", -7.03, -7.0300)
    assert not formats.same("replaygain_track_gain", -7.03, -6.8)
    assert not formats.same("title", "a", None)
    assert formats.same("title", None, None)


def test_the_words_of_the_others_become_those_of_the_contract() -> None:
    said = [("TrackNumber", "3 of 12"), ("MusicBrainz Album Id", "x"), ("Compilation", "Yes"), ("WM/Year", "1999"),
            ("REPLAYGAIN_TRACK_GAIN", "-7,5 dB"), ("Artist", ["A", "B"]), ("Encoder", "Lavc"), ("disc", 0)]  # fmt: skip
    assert formats.translated(iter(said)) == {
        "track": 3, "track_total": 12, "musicbrainz_albumid": "x", "compilation": True, "date": "1999",
        "replaygain_track_gain": -7.5, "artist": "A; B", "disc": 0,
    }  # fmt: skip


def test_without_the_tools_the_program_says_what_to_install() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "tests.formats"], env={"PATH": "/nowhere"}, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert refused.stderr == "formats: needs ffprobe; install it: apt-get install ffmpeg\n"
