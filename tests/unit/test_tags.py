"""Tags of real files of every format, of hand-made odd ones, and of what is no audio at all."""

# Mutagen has annotations for some of what it exports, and none for the rest.
# mypy: allow-untyped-calls

import io
import os
import random
import struct

import pytest
from mutagen.apev2 import APEv2
from mutagen.asf import ASF
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TCMP, TCON, TPE1, TRCK
from mutagen.mp4 import MP4

from tests.data import expected
from trackwatch.tags import MAX_TEXT, TagsUnreadable, _text, read_tags
from trackwatch.track import AUDIO_SUFFIXES, Metadata, TagValue


def fixture_bytes(suffix: str) -> bytes:
    with open(expected.path_of(suffix), "rb") as file:
        return file.read()


FIXTURES = {suffix: fixture_bytes(suffix) for suffix in AUDIO_SUFFIXES}
MP3_WITHOUT_TAGS = FIXTURES["mp3"][FIXTURES["mp3"].index(b"\xff\xf3") :]


def read(content: bytes, suffix: str) -> Metadata:
    return read_tags(io.BytesIO(content), suffix, len(content))


def tags_of(content: bytes, suffix: str) -> dict[str, TagValue]:
    return dict(read(content, suffix).tags or {})


def read_or_reason(content: bytes, suffix: str) -> Metadata | str:
    """Read what may be damaged: metadata or a short line of reason, never any other exception."""
    try:
        return read(content, suffix)
    except TagsUnreadable as unreadable:
        reason = str(unreadable)
        assert reason
        assert reason.isprintable()
        assert len(reason) <= 200
        return reason


def vorbis(**comments: str | list[str]) -> dict[str, TagValue]:
    """Return what is read from a FLAC file with these comments only."""
    file = io.BytesIO(FIXTURES["flac"])
    audio = FLAC(file)
    audio.clear()
    audio.update(comments)
    file.seek(0)
    audio.save(file)
    return tags_of(file.getvalue(), "flac")


def id3v1(title: bytes, artist: bytes, genre: int = 255) -> bytes:
    return struct.pack("<3s30s30s30s4s28sBBB", b"TAG", title, artist, b"Old Album", b"1999", b"", 0, 7, genre)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(struct.pack("<4sI", name, len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return struct.pack("<4sI", b"RIFF", 4 + len(body)) + b"WAVE" + body


def atom(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


# Every format


def test_there_is_a_fixture_for_every_format() -> None:
    assert set(expected.FIXTURES) == set(AUDIO_SUFFIXES)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_a_file_says_what_it_was_made_with(suffix: str) -> None:
    made, metadata = expected.FIXTURES[suffix], read(FIXTURES[suffix], suffix)
    assert metadata.tags == expected.TAGS
    assert metadata.format == made.mime
    assert metadata.sample_rate == made.sample_rate
    # expected.py says why each format may differ by how much.
    assert metadata.duration_s == pytest.approx(expected.DURATION_S, abs=made.slack_s)


@pytest.mark.parametrize("suffix", sorted(set(AUDIO_SUFFIXES) - {"m4b"}))
def test_the_channels_are_those_it_was_made_with(suffix: str) -> None:
    assert read(FIXTURES[suffix], suffix).channels == expected.FIXTURES[suffix].channels


@pytest.mark.xfail(
    reason="mutagen 1.48 trusts MP4's outer header, where writers put 2, over the AAC header", strict=True
)
def test_mono_in_mp4_is_mono() -> None:
    """The AAC header says one channel, but mutagen thinks it may hide parametric stereo, and so falls back."""
    assert read(FIXTURES["m4b"], "m4b").channels == 1


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_the_bit_rate_is_an_integer_that_the_file_has_room_for(suffix: str) -> None:
    metadata = read(FIXTURES[suffix], suffix)
    assert isinstance(metadata.bitrate, int)
    assert metadata.duration_s is not None
    # A nominal rate may exceed the real one: Vorbis and WMA state a target.
    assert 8_000 < metadata.bitrate <= 1.5 * len(FIXTURES[suffix]) * 8 / metadata.duration_s


def test_pcm_has_exactly_the_bit_rate_of_its_samples() -> None:
    assert read(FIXTURES["wav"], "wav").bitrate == 8000 * 16
    assert read(FIXTURES["wave"], "wave").bitrate == 11025 * 24


@pytest.mark.parametrize("suffix", ["oga", "m4p"])
def test_a_format_that_states_no_bit_rate_gets_the_average_over_the_file(suffix: str) -> None:
    """Ogg FLAC has none, and mutagen does not look into the encrypted entry of a bought song."""
    metadata = read(FIXTURES[suffix], suffix)
    assert metadata.bitrate == pytest.approx(len(FIXTURES[suffix]) * 8 / (metadata.duration_s or 0), rel=0.001)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_the_content_decides_and_not_the_suffix(suffix: str) -> None:
    truth = read(FIXTURES[suffix], suffix)
    for other in (*AUDIO_SUFFIXES, "txt", ""):
        assert read(FIXTURES[suffix], other) == truth


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_the_file_may_be_at_any_position_and_stays_open_and_unchanged(suffix: str) -> None:
    before = os.stat(expected.path_of(suffix))
    with open(expected.path_of(suffix), "rb") as file:
        file.seek(1234)
        assert read_tags(file, suffix, before.st_size).tags == expected.TAGS
        assert not file.closed
        file.seek(0)
        assert file.read() == FIXTURES[suffix]
    assert os.stat(expected.path_of(suffix)).st_mtime_ns == before.st_mtime_ns


# Families of tags


def test_riff_info_is_read_where_there_is_no_id3() -> None:
    entries = (
        (b"INAM", "Zażółć\0".encode()), (b"IART", "Café".encode("cp1252")), (b"IPRD", b"Odd length"),
        (b"ITRK", b"4/9\0"), (b"ICRD", b"2001"), (b"IGNR", b"\0\0"),
    )  # fmt: skip
    info = b"INFO" + riff(*entries)[12:]
    fmt = struct.pack("<HHIIHH", 1, 2, 8000, 32000, 4, 16)
    wav = riff((b"fmt ", fmt), (b"LIST", b"adtl"), (b"data", bytes(8000)), (b"LIST", info))
    assert read(wav, "wav") == Metadata(
        "audio/wav", 0.25, 256_000, 8000, 2,
        {"title": "Zażółć", "artist": "Café", "album": "Odd length", "date": "2001", "track": 4, "track_total": 9},
    )  # fmt: skip


def test_apev2_is_read_from_an_mp3_and_its_pictures_are_not_text() -> None:
    file = io.BytesIO(MP3_WITHOUT_TAGS)
    ape = APEv2()
    ape.update({"Title": "Ape", "Artist": ["One", "Two"], "Track": "3/12", "Year": "1987", "Genre": b"\xff\xd8binary"})
    ape.save(file)
    assert tags_of(file.getvalue(), "mp3") == {
        "title": "Ape", "artist": "One; Two", "date": "1987", "track": 3, "track_total": 12,
    }  # fmt: skip


def test_id3v1_alone_is_read() -> None:
    assert tags_of(MP3_WITHOUT_TAGS + id3v1(b"Old", b"Timer", genre=17), "mp3") == {
        "title": "Old", "artist": "Timer", "album": "Old Album", "date": "1999", "genre": "Rock", "track": 7,
    }  # fmt: skip


def test_apev2_beats_id3v1_which_cuts_texts_off() -> None:
    long = "A title of more than thirty characters, in full"
    file = io.BytesIO(MP3_WITHOUT_TAGS + id3v1(long[:30].encode(), b"Timer"))
    ape = APEv2()
    ape["Title"] = long
    ape.save(file)
    assert tags_of(file.getvalue(), "mp3")["title"] == long


def test_id3v2_beats_apev2() -> None:
    file = io.BytesIO(FIXTURES["mp3"])
    ape = APEv2()
    ape["Title"] = "Other"
    ape.save(file)
    assert tags_of(file.getvalue(), "mp3") == expected.TAGS


def test_wma_pictures_are_not_text_and_the_date_that_ffmpeg_writes_is_read() -> None:
    file = io.BytesIO(FIXTURES["wma"])
    audio = ASF(file)
    audio.clear()
    audio.update({"Title": b"\xff\xd8binary", "Author": ["A", "A", "B"], "date": "2001", "WM/TrackNumber": 3})
    audio["WM/IsCompilation"] = True
    file.seek(0)
    audio.save(file)
    assert tags_of(file.getvalue(), "wma") == {"artist": "A; B", "date": "2001", "track": 3, "compilation": True}


def test_raw_aac_without_tags_has_none_and_with_id3v1_has_those() -> None:
    bare = FIXTURES["aac"][FIXTURES["aac"].index(b"\xff\xf1") :]
    assert tags_of(bare, "aac") == {}
    assert tags_of(bare + id3v1(b"Old", b"Timer"), "aac")["artist"] == "Timer"


def test_flac_behind_id3_is_still_flac() -> None:
    """Against FLAC's rules, but some taggers do it."""
    file = io.BytesIO(FIXTURES["flac"])
    id3 = ID3()
    id3.add(TPE1(3, ["Nobody"]))
    id3.save(file)
    assert read(file.getvalue(), "flac").format == "audio/flac"
    assert tags_of(file.getvalue(), "flac") == expected.TAGS


def test_mp3_behind_two_id3_tags_is_mp3() -> None:
    tag = FIXTURES["mp3"][: -len(MP3_WITHOUT_TAGS)]
    assert read(tag + FIXTURES["mp3"], "").format == "audio/mpeg"


def test_junk_before_the_first_frame_is_skipped_where_the_suffix_says_mp3() -> None:
    assert read(b"junk" * 50 + MP3_WITHOUT_TAGS, "mp3").format == "audio/mpeg"


def test_id3_numbers_of_genres_become_names_and_compilations_are_flagged() -> None:
    file = io.BytesIO(MP3_WITHOUT_TAGS)
    id3 = ID3()
    for frame in (TCON(3, ["(17)(18)"]), TCMP(3, ["1"]), TRCK(3, ["3 of 12"])):
        id3.add(frame)
    id3.save(file)
    assert tags_of(file.getvalue(), "mp3") == {"genre": "Rock; Techno", "compilation": True}


def test_mp4_without_a_total_or_a_number_leaves_them_out() -> None:
    file = io.BytesIO(FIXTURES["m4a"])
    audio = MP4(file)
    audio.delete(file)
    audio.update({"trkn": [(3, 0)], "disk": [(0, 2)], "cpil": True})
    audio.save(file)
    assert tags_of(file.getvalue(), "m4a") == {"track": 3, "disc_total": 2, "compilation": True}


def test_mp4_without_sound_is_described_as_far_as_it_goes() -> None:
    silent = FIXTURES["m4a"].replace(b"soun", b"text")
    assert read(silent, "m4a") == Metadata("audio/mp4", 0.3, 93_413, None, None, expected.TAGS)


# Values


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", {"track": 3}),
        ("03", {"track": 3}),
        (" 3 / 12 ", {"track": 3, "track_total": 12}),
        ("3/", {"track": 3}),
        ("/12", {"track_total": 12}),
        ("0/12", {"track_total": 12}),
        ("3/0", {"track": 3}),
        ("0", {}),
        ("-1", {}),
        ("A1", {}),
        ("1.5", {}),
        ("٣", {}),
        ("9" * 5000, {}),
    ],
)
def test_a_track_number_is_a_positive_integer_or_left_out(text: str, numbers: dict[str, int]) -> None:
    assert vorbis(tracknumber=text) == numbers


def test_an_explicit_total_beats_the_one_behind_the_slash() -> None:
    assert vorbis(tracknumber="3/10", tracktotal="12", discnumber="1/2", totaldiscs="x") == {
        "track": 3, "track_total": 12, "disc": 1, "disc_total": 2,
    }  # fmt: skip


def test_a_total_is_a_single_number() -> None:
    assert vorbis(tracktotal="12/13") == {"track_total": 12}


@pytest.mark.parametrize(("text", "flags"), [("1", {"compilation": True}), ("No", {"compilation": False}), ("x", {})])
def test_a_compilation_flag_is_a_boolean_or_left_out(text: str, flags: dict[str, bool]) -> None:
    assert vorbis(compilation=text) == flags


def test_texts_are_stripped_of_space_and_nul_and_empty_ones_are_left_out() -> None:
    assert vorbis(title=" \0Ti\0tle\n ", artist=[" ", "\0", "A", "A ", "B"], album="  ") == {
        "title": "Title", "artist": "A; B",
    }  # fmt: skip


def test_texts_are_capped_one_by_one_and_together() -> None:
    tags = vorbis(title="x" * 10_000, artist=[f"artist {number}" for number in range(5000)])
    assert tags["title"] == "x" * MAX_TEXT
    assert len(str(tags["artist"])) <= MAX_TEXT
    assert str(tags["artist"]).startswith("artist 0; artist 1; ")


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    """Neither JSON in UTF-8 nor SQLite can hold one; today's mutagen lets none through, and does not promise it."""
    assert _text("a\ud83db") == "a\ufffdb"
    assert _text("\ud83d\ude00") == "\U0001f600"


def test_a_name_that_the_family_prefers_wins_over_its_alternative() -> None:
    assert vorbis(year="1999", date="2001") == {"date": "2001"}
    assert vorbis(year="1999", date=" ") == {"date": "1999"}


def test_an_absurd_duration_is_left_out() -> None:
    """The 36 bits for the number of samples, all set, at 20 Hz: a century."""
    info = FIXTURES["flac"].index(b"fLaC") + 8
    samples = info + 13
    content = bytearray(FIXTURES["flac"])
    content[samples] |= 0x0F
    content[samples + 1 : samples + 5] = b"\xff" * 4
    content[info + 10 : info + 13] = bytes([0, 0x01, content[info + 12] & 0x0F | 0x40])  # 20 Hz
    metadata = read(bytes(content), "flac")
    assert metadata.duration_s is None
    assert metadata.sample_rate == 20
    assert metadata.tags == expected.TAGS


def test_a_duration_of_nothing_is_unknown_and_so_is_the_bit_rate_made_from_it() -> None:
    """Fragmented MP4 says 0."""
    at = FIXTURES["m4p"].index(b"mdhd") + 4 + 4 + 8 + 4
    content = FIXTURES["m4p"][:at] + bytes(4) + FIXTURES["m4p"][at + 4 :]
    metadata = read(content, "m4p")
    assert (metadata.duration_s, metadata.bitrate) == (None, None)
    assert metadata.tags == expected.TAGS


# What is no audio


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_an_empty_file_is_unreadable(suffix: str) -> None:
    assert read_or_reason(b"", suffix) == "the file is empty"


@pytest.mark.parametrize("suffix", [*AUDIO_SUFFIXES, ""])
@pytest.mark.parametrize("content", [b"not audio\n" * 500, bytes(10_000), b"\xff" * 10_000, b"\0", b"ID3"])
def test_what_is_no_audio_is_unreadable(suffix: str, content: bytes) -> None:
    assert isinstance(read_or_reason(content, suffix), str)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_a_truncated_file_is_described_or_unreadable(suffix: str) -> None:
    content = FIXTURES[suffix]
    for length in (*range(64), *range(64, len(content), 97)):
        read_or_reason(content[:length], suffix)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_garbage_is_described_or_unreadable(suffix: str) -> None:
    """All of it, or behind the first bytes of a real file, which take the reader to deeper places."""
    rng = random.Random(suffix)
    for length in range(0, 400, 8):
        read_or_reason(FIXTURES[suffix][:length] + rng.randbytes(5000), suffix)


def test_a_stack_of_atoms_that_exhausts_the_stack_is_unreadable() -> None:
    deep = b""
    for _ in range(3000):
        deep = atom(b"udta", deep)
    assert isinstance(read_or_reason(atom(b"ftyp", b"M4A \0\0\0\0") + atom(b"moov", deep), "m4a"), str)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError("deep"), OSError(5, "Input/output error"), KeyError("x"), ValueError("a\nb")],
)
def test_whatever_the_parser_raises_makes_the_file_unreadable(error: Exception) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 16:
                raise error
            return super().read(size)

    with pytest.raises(TagsUnreadable) as caught:
        read_tags(Broken(FIXTURES["flac"]), "flac", len(FIXTURES["flac"]))
    assert "\n" not in str(caught.value)
    assert type(error).__name__ in str(caught.value) or "Input/output error" in str(caught.value)


def test_the_reason_does_not_quote_the_path(tmp_path: "os.PathLike[str]") -> None:
    """Mutagen's messages do: with it, the same damage would read differently in every place."""
    path = os.path.join(tmp_path, "secret.mp3")
    with open(path, "wb") as file:
        file.write(b"ID3\x05\0\0\0\0\0\x0a" + bytes(10) + MP3_WITHOUT_TAGS)
    with open(path, "rb") as opened, pytest.raises(TagsUnreadable) as caught:
        read_tags(opened, "mp3", os.path.getsize(path))
    assert str(caught.value) == "cannot be parsed as audio/mpeg: the file ID3v2.5 not supported"
