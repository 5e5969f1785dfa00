"""Whatever happens to the bytes of a file, reading its tags ends in metadata that can be sent, or in TagsUnreadable."""

import io
import json
import math
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import expected, variants
from trackwatch import id3, mp4
from trackwatch.event import metadata_json
from trackwatch.tags import MAX_DURATION_S, MAX_TEXT, TagsUnreadable, read_tags
from trackwatch.track import AUDIO_SUFFIXES, Metadata

TAG_NAMES = set(variants.FULL) | {"r128_track_gain", "r128_album_gain"}


def fixture_bytes(suffix: str) -> bytes:
    with open(expected.path_of(suffix), "rb") as file:
        return file.read()


FIXTURES = {suffix: fixture_bytes(suffix) for suffix in AUDIO_SUFFIXES}

# The first and the last few hundred bytes say where everything else is, so more than half of the edits go there.
places = st.one_of(st.floats(0, 1), st.floats(0, 0.1), st.floats(0.9, 1))
interesting = st.sampled_from([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x08", b"\x80", b"ID3\x04", b"OggS"])
replacements = st.one_of(st.binary(min_size=1, max_size=8), interesting)
edits = st.tuples(
    st.sampled_from(["overwrite", "insert", "cut", "truncate"]), places, replacements, st.integers(1, 400)
)


# What the readers of plain ID3 and MP4 have to do with, and where in the file that is.
PLAIN = [
    (variant.content, variant.suffix)
    for variant in variants.variants().values()
    if variant.suffix not in ("flac", "ogg", "oga", "opus", "wma")
]


def edited(content: bytes, edit: tuple[str, float, bytes, int]) -> bytes:
    deed, place, replacement, length = edit
    at = int(place * len(content))
    match deed:
        case "overwrite":
            return content[:at] + replacement + content[at + len(replacement) :]
        case "insert":
            return content[:at] + replacement + content[at:]
        case "cut":
            return content[:at] + content[at + length :]
        case _:
            return content[:at]


def read_or_reason(content: bytes, suffix: str) -> Metadata | str:
    try:
        return read_tags(io.BytesIO(content), suffix, len(content))
    except TagsUnreadable as unreadable:
        return str(unreadable)


def read_by_mutagen(content: bytes, suffix: str) -> Metadata | str:
    """Read with plain readers that decline whatever they are given."""

    def no_id3(file: id3.Readable) -> tuple[dict[str, list[str]], int]:
        if file.read(3) == b"ID3":
            raise id3.Unusual
        return {}, 0

    with mock.patch.object(id3, "read_v2", no_id3), mock.patch.object(mp4, "read", side_effect=id3.Unusual):
        return read_or_reason(content, suffix)


@settings(max_examples=300)
@given(made=st.sampled_from(PLAIN), changes=st.lists(edits, max_size=3))
def test_the_plain_readers_never_say_something_else_than_mutagen(
    made: tuple[bytes, str], changes: list[tuple[str, float, bytes, int]]
) -> None:
    """They may say more of a damaged file: mutagen looks at all of an MP4, and gives up where it is damaged."""
    content, suffix = made
    for change in changes:
        content = edited(content, change)
    plain, whole = read_or_reason(content, suffix), read_by_mutagen(content, suffix)
    if isinstance(plain, str) or isinstance(whole, str):
        assert isinstance(whole, str), "what mutagen can read has to be read"
        return
    if plain.format == "audio/mp4":
        assert {name: value for name, value in (plain.tags or {}).items() if name in (whole.tags or {})} == whole.tags
    else:
        assert plain == whole


@settings(max_examples=1200)
@given(made=st.sampled_from(AUDIO_SUFFIXES), named=st.sampled_from(AUDIO_SUFFIXES), changes=st.lists(edits, max_size=6))
def test_a_mutated_file_is_described_in_the_words_of_the_contract_or_unreadable(
    made: str, named: str, changes: list[tuple[str, float, bytes, int]]
) -> None:
    content = FIXTURES[made]
    for change in changes:
        content = edited(content, change)
    metadata = read_or_reason(content, named)
    if isinstance(metadata, str):
        assert metadata.isprintable()
        return
    json.dumps(metadata_json(metadata), allow_nan=False, ensure_ascii=False).encode()
    assert metadata.duration_s is None or 0 < metadata.duration_s <= MAX_DURATION_S
    for whole in (metadata.bitrate, metadata.sample_rate, metadata.channels):
        assert whole is None or (type(whole) is int and whole > 0)
    for name, value in (metadata.tags or {}).items():
        assert name in TAG_NAMES
        if isinstance(value, str):
            assert 0 < len(value) <= MAX_TEXT
            assert value == value.strip()
        elif isinstance(value, float):
            assert name.startswith("replaygain_")
            assert math.isfinite(value)
        else:
            assert value > 0 or name in ("compilation", "r128_track_gain", "r128_album_gain")
