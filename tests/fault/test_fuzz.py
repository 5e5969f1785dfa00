"""The fuzz of describing (tests/fuzz.py), short and always with the same seed; and its judge, seen to condemn.

`make fuzz SECONDS=600` does this for as long as one likes, with every crafted file that we know of.
"""

import hashlib
import random
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import xxhash

from tests.data import hostile
from tests.data.hostile import CRAFTED, Crafted, Made, damaged, sound_files
from tests.fuzz import Fuzz, outcome_of, summary_line, tables

# One for each way in which a file can be too much, and one that is not even a file of audio.
WORST = {
    "ID3 frame of 1 GB, compressed": "memory",
    "MP4 with 2 million atoms in moov": "memory",  # so full that even the complaint finds no room
    "ID3v2.2 with 300,000 texts": "time",
    "nothing": "metadata_error",
}


def test_hostile_files_are_told_and_hurt_nobody() -> None:
    with Fuzz(seed=5) as fuzz:
        fuzz.run(0, [CRAFTED[name] for name in WORST], damaged_files=120)
        figures = fuzz.summary()
    print(summary_line(figures), *tables(figures), sep="\n")
    assert figures["problems"] == []
    assert figures["files"] > 4 * 120
    assert {suffered["name"]: suffered["outcome"] for suffered in figures["crafted"]} == WORST
    assert figures["outcomes"]["metadata"] > 100
    assert figures["outcomes"]["metadata_error"] > 100


# --- the files ---


def test_the_same_seed_damages_the_same_files_in_the_same_way() -> None:
    first, second, other = (
        [damaged(chance) for _ in range(50)] for chance in (random.Random(7), random.Random(7), random.Random(8))
    )
    assert first == second != other


def test_damage_comes_to_files_of_every_format_and_in_every_kind() -> None:
    chance = random.Random(1)
    many = [damaged(chance) for _ in range(1500)]
    assert {made.suffix for made in many} == {made.suffix for made in sound_files()}
    assert {made.kind for made in many} == {*hostile.EDITS, "several"}
    untouched = {made.content for made in sound_files()}
    assert sum(made.content in untouched for made in many) < len(many) / 10


def test_a_compressed_frame_of_zeros_is_what_zlib_would_have_made_of_them() -> None:
    assert zlib.decompress(hostile._packed_zeros(3)) == bytes(3 << 20)


# --- the judge ---


@pytest.fixture
def fuzz() -> Iterator[Fuzz]:
    with Fuzz(seed=0) as made:
        yield made
        made.problems.clear()  # as wanted: nothing is to be kept


SOUND = sound_files()[0]


def event(made: Made, **changes: Any) -> dict[str, Any]:
    """Return the event of a file as it should be."""
    return {
        "sha256_hash": hashlib.sha256(made.content).hexdigest(),
        "xxh128_hash": xxhash.xxh3_128_hexdigest(made.content),
        "size_bytes": len(made.content),
        "metadata": {"format": "audio/flac"},
        "metadata_error": None,
        **changes,
    }


def judged(fuzz: Fuzz, made: Made, crafted: Crafted | None = None, **changes: Any) -> list[str]:
    """Return what the judge finds wrong with an event."""
    fuzz._told["/music/a"] = event(made, **changes)
    fuzz._judge("/music/a", made, crafted)
    return fuzz.problems


def test_nothing_is_wrong_with_a_good_event(fuzz: Fuzz) -> None:
    assert judged(fuzz, SOUND) == []
    broken = Made("truncated", "flac", SOUND.content[:30])
    assert judged(fuzz, broken, metadata=None, metadata_error="cannot be parsed as audio/flac: it ends early") == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sha256_hash": "0" * 64}, id="another SHA-256"),
        pytest.param({"xxh128_hash": "0" * 32}, id="another XXH3-128"),
        pytest.param({"size_bytes": 1}, id="another size"),
        pytest.param({"metadata": None}, id="neither metadata nor a reason"),
        pytest.param({"metadata_error": "cannot be read"}, id="metadata and a reason"),
        pytest.param({"metadata": None, "metadata_error": "cannot be read"}, id="a reason against a sound file"),
    ],
)
def test_a_wrong_event_of_a_sound_file_is_condemned(fuzz: Fuzz, changes: dict[str, Any]) -> None:
    assert judged(fuzz, SOUND, **changes)
    assert (fuzz.folder / "found" / "a").read_bytes() == SOUND.content


@pytest.mark.parametrize("reason", ["", "one\ntwo", "x" * 1000, "\0"])
def test_a_reason_that_is_no_short_line_is_condemned(fuzz: Fuzz, reason: str) -> None:
    assert judged(fuzz, Made("truncated", "flac", b"x"), metadata=None, metadata_error=reason)


def test_a_reason_against_what_mutagen_reads_is_condemned(fuzz: Fuzz) -> None:
    still_sound = Made("bits flipped", "flac", SOUND.content)
    reason = "cannot be parsed as audio/flac: it is too ugly"
    assert any("mutagen reads it" in found for found in judged(fuzz, still_sound, metadata=None, metadata_error=reason))


def test_metadata_of_a_crafted_file_that_can_have_none_are_condemned(fuzz: Fuzz) -> None:
    assert judged(fuzz, Made("crafted", "flac", b""), CRAFTED["nothing"])


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (None, "metadata"),
        ("tags need more than 512 MB to read", "memory"),
        ("tags take more than 10 s to read", "time"),
        ("reading its tags ended the process that did it (SIGKILL)", "killed"),
        ("cannot be parsed as audio/mpeg: can't sync to MPEG frame", "metadata_error"),
    ],
)
def test_each_limit_is_counted_apart(reason: str | None, outcome: str) -> None:
    assert outcome_of({"metadata_error": reason}) == outcome
