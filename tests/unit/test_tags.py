"""Tags of real files of every format, of hand-made odd ones, and of what is no audio at all."""

# Mutagen has annotations for some of what it exports, and none for the rest.
# mypy: allow-untyped-calls

import io
import os
import random
import struct
import zlib

import pytest
from mutagen.apev2 import APEv2
from mutagen.asf import ASF
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TCMP, TCON, TPE1, TRCK
from mutagen.mp4 import MP4

from tests.data import expected, variants
from trackwatch import id3, mp4, tags
from trackwatch.tags import MAX_TEXT, TagsUnreadable, _text, read_tags
from trackwatch.track import AUDIO_SUFFIXES, Metadata, TagValue


def fixture_bytes(suffix: str) -> bytes:
    with open(expected.path_of(suffix), "rb") as file:
        return file.read()


FIXTURES = {suffix: fixture_bytes(suffix) for suffix in AUDIO_SUFFIXES}
VARIANTS = variants.variants()
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


def leave_all_to_mutagen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the plain readers decline whatever they are given."""

    def no_id3(file: id3.Readable) -> tuple[dict[str, list[str]], int]:
        if file.read(3) == b"ID3":
            raise id3.Unusual
        return {}, 0

    def no_mp4(file: id3.Readable) -> tuple[mp4.Sound, dict[str, list[object]]]:
        raise id3.Unusual

    monkeypatch.setattr(id3, "read_v2", no_id3)
    monkeypatch.setattr(mp4, "read", no_mp4)


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


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_the_channels_are_those_it_was_made_with(suffix: str) -> None:
    assert read(FIXTURES[suffix], suffix).channels == expected.FIXTURES[suffix].channels


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


def test_a_format_that_states_no_bit_rate_gets_the_average_over_the_file() -> None:
    metadata = read(FIXTURES["oga"], "oga")
    assert metadata.bitrate == pytest.approx(len(FIXTURES["oga"]) * 8 / (metadata.duration_s or 0), rel=0.001)


def test_a_bought_song_states_its_bit_rate_as_the_others_do() -> None:
    """Its sound is encrypted, but not what is said of it; mutagen does not look there."""
    assert read(FIXTURES["m4p"], "m4p").bitrate == read(FIXTURES["m4a"], "m4a").bitrate


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


# Kinds of tags


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_with_each_kind_of_tags_says_what_they_hold(name: str) -> None:
    assert tags_of(VARIANTS[name].content, VARIANTS[name].suffix) == VARIANTS[name].tags


@pytest.mark.parametrize("name", VARIANTS)
def test_the_plain_readers_read_what_mutagen_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there for their speed. But mutagen takes mono in MP4 for stereo, does not look into bought songs, and
    counts the silence around the sound."""
    variant = VARIANTS[name]
    plain = read(variant.content, variant.suffix)
    leave_all_to_mutagen(monkeypatch)
    whole = read(variant.content, variant.suffix)
    if variant.suffix == "m4b":
        assert (plain.channels, whole.channels) == (1, 2)
        plain = plain._replace(channels=2)
    if variant.suffix == "m4p":
        assert (plain.bitrate or 0) < (whole.bitrate or 0)
        plain = plain._replace(bitrate=whole.bitrate)
    if plain.format == "audio/mp4":
        assert (plain.duration_s or 0) < (whole.duration_s or 0)
        plain = plain._replace(duration_s=whole.duration_s)
    assert plain == whole


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in VARIANTS
        if name.startswith(("mp3, ID3v2.3", "mp3, ID3v2.4 in", "wav, ", "m4", "mp4")) and "unsynchronised" not in name
    ],
)
def test_what_is_usual_never_gets_to_mutagen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ID3 costs ten microseconds a frame there, and MP4 a visit to each atom."""
    monkeypatch.setattr(tags, "ID3", None)
    monkeypatch.setattr(tags, "MP4", None)
    assert tags_of(VARIANTS[name].content, VARIANTS[name].suffix) == VARIANTS[name].tags


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
        tags={"title": "Zażółć", "artist": "Café", "album": "Odd length", "date": "2001", "track": 4, "track_total": 9},
    )  # fmt: skip


def test_apev2_is_read_from_an_mp3_and_its_pictures_are_not_text() -> None:
    file = io.BytesIO(MP3_WITHOUT_TAGS)
    ape = APEv2()
    ape.update({"Title": "Ape", "Artist": ["One", "Two"], "Track": "3/12", "Year": "1987", "Genre": b"\xff\xd8binary"})
    ape.save(file)
    assert tags_of(file.getvalue(), "mp3") == {
        "title": "Ape", "artist": "One; Two", "date": "1987", "track": 3, "track_total": 12,
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


def test_an_id3_tag_of_a_version_that_there_is_not_is_skipped() -> None:
    content = b"ID3\x0c\0\0\0\0\0\x20" + bytes(32) + variants.BARE_MP3 + variants.id3v1("Title", "Artist")
    metadata = read_tags(io.BytesIO(content), "mp3", len(content))
    assert metadata.duration_s == pytest.approx(expected.DURATION_S, abs=0.1)
    assert (metadata.tags or {})["title"] == "Title"


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
    assert read(silent, "m4a") == Metadata("audio/mp4", 0.3, 93_413, tags=expected.TAGS)


def aac_in_mp4(config: bytes, channels: int = 2, rate: int = 22050) -> bytes:
    """Return an M4A with another AudioSpecificConfig, padded to the old one's length, and another sample entry."""
    content = bytearray(FIXTURES["m4a"])
    entry = content.index(b"mp4a", content.index(b"stsd")) + 4
    content[entry + 16 : entry + 18] = struct.pack(">H", channels)
    content[entry + 24 : entry + 28] = struct.pack(">I", rate << 16)
    old = content.index(AAC_CONFIG)
    content[old - 1] = len(config)
    content[old : old + len(AAC_CONFIG)] = config.ljust(len(AAC_CONFIG), b"\0")
    return bytes(content)


# Of the fixture: AAC LC, 22,050 Hz, stereo; then the mark that tells of SBR, and that there is none.
AAC_CONFIG = bytes.fromhex("139056e500")


@pytest.mark.parametrize(
    ("config", "outer", "channels"),
    [
        ("139056e500", (1, 22050), 2),  # the AAC header beats what is around it
        ("138856e500", (2, 22050), 1),  # mono, and SBR ruled out
        ("1208", (2, 44100), 1),  # mono at a rate at which SBR is never hidden
        ("1388", (2, 22050), 2),  # mono, perhaps with hidden parametric stereo: the writer knew
        ("1388", (1, 22050), 1),
        ("12b0", (2, 48000), 6),
        ("12b8", (2, 48000), 8),
    ],
)
def test_aac_in_mp4_has_the_channels_of_its_own_header(config: str, outer: tuple[int, int], channels: int) -> None:
    assert read(aac_in_mp4(bytes.fromhex(config), *outer), "m4a").channels == channels


@pytest.mark.parametrize(
    "config",
    [
        "2b92080000",  # HE-AAC, said outright: 44,100 Hz made of 22,050
        "139056e5a0",  # the same in a way that old readers skip
        "eb098800",  # HE-AAC with parametric stereo
        "0000",
        "",
    ],
)
def test_unusual_aac_in_mp4_is_left_to_mutagen(config: str) -> None:
    content = aac_in_mp4(bytes.fromhex(config))
    with pytest.raises((ValueError, IndexError)):
        mp4.read(io.BytesIO(content))
    read_or_reason(content, "m4a")


def test_a_rate_doubled_by_sbr_is_the_rate_that_is_heard() -> None:
    assert read(aac_in_mp4(bytes.fromhex("2b92080000")), "m4a").sample_rate == 44100


@pytest.mark.parametrize(
    ("edits", "seconds"),
    [
        ((0, 1, 300, 1024), 0.3),  # as the fixture has it
        ((0, 1, 250, 0), 0.25),
        ((0, 2, 300, 1024), 0.34644),  # several edits: a player may repeat a part, or be silent
        ((0, 1, 300, -1), 0.34644),  # silence
        ((0, 1, 0, 0), 0.34644),  # the length of a fragmented file, when its header was written
        ((0, 1, 900, 0), 0.34644),  # more than there is
        ((2, 1, 300, 1024), 0.34644),
    ],
)
def test_the_silence_that_an_encoder_puts_around_aac_does_not_count(
    edits: tuple[int, int, int, int], seconds: float
) -> None:
    content = bytearray(FIXTURES["m4a"])
    version, count, length, start = edits
    at = content.index(b"elst") + 4
    content[at : at + 16] = struct.pack(">B3xIIi", version, count, length, start)
    assert read(bytes(content), "m4a").duration_s == seconds


def test_alac_in_mp4_says_itself_what_it_is() -> None:
    """The entry around it has 44,100 Hz and 2 channels for lack of room or will."""
    with open(expected.ALAC_PATH, "rb") as file:
        metadata = read(file.read(), "m4a")
    assert (metadata.sample_rate, metadata.channels) == (expected.ALAC.sample_rate, expected.ALAC.channels)
    assert metadata.duration_s == pytest.approx(expected.ALAC_DURATION_S, abs=expected.ALAC.slack_s)


def test_the_index_of_an_mp4_may_be_at_its_end_and_behind_more_than_4_gb() -> None:
    """Only headers are read on the way there; this file has its 64-bit size and no content to it."""
    content = FIXTURES["m4b"]
    start = content.index(b"moov") - 4
    length = int.from_bytes(content[start : start + 4], "big")
    moov = content[start : start + length]
    ftyp = content[: int.from_bytes(content[:4], "big")]
    jump = 5 << 30

    class Sparse(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            return super().seek(offset - jump if offset > jump else offset, whence)

    wide = ftyp + struct.pack(">I4sQ", 1, b"mdat", 16 + jump) + moov
    assert mp4.read(Sparse(wide))[0].channels == 1


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


@pytest.mark.parametrize(
    ("text", "gain"),
    [("-7.03 dB", -7.03), ("+1.5dB", 1.5), ("-6", -6.0), ("-1,25 DB", -1.25), ("129 dB", None), ("nan dB", None)],
)
def test_a_gain_is_a_number_of_decibels_or_left_out(text: str, gain: float | None) -> None:
    assert vorbis(replaygain_track_gain=text).get("replaygain_track_gain") == gain


@pytest.mark.parametrize(
    ("text", "peak"), [("0.988", 0.988), ("0", 0.0), ("1.25", 1.25), ("-0.5", None), ("32768", None), ("1e-3", None)]
)
def test_a_peak_is_a_part_of_full_scale_or_left_out(text: str, peak: float | None) -> None:
    assert vorbis(replaygain_album_peak=text).get("replaygain_album_peak") == peak


@pytest.mark.parametrize(("text", "gain"), [("-1280", -1280), ("32767", 32767), ("32768", None), ("-5.00 dB", None)])
def test_the_gain_of_opus_stays_the_integer_that_its_standard_has(text: str, gain: int | None) -> None:
    assert vorbis(r128_track_gain=text).get("r128_track_gain") == gain


@pytest.mark.parametrize(
    ("text", "code"),
    [("GBAYE0601498", "GBAYE0601498"), ("gb-aye-06-01498", "GBAYE0601498"), ("US RC1 76 07839", "USRC17607839"),
     ("GBAYE0601498/USRC17607839", "GBAYE0601498; USRC17607839"), ("GBAYE060149", None), ("Columbia", None)],
)  # fmt: skip
def test_an_isrc_is_twelve_characters_or_left_out(text: str, code: str | None) -> None:
    assert vorbis(isrc=text).get("isrc") == code


@pytest.mark.parametrize("separator", ["; ", "/", ", ", " "])
def test_musicbrainz_ids_in_one_text_are_told_apart_whatever_joins_them(separator: str) -> None:
    ids = variants.ARTIST_IDS.split("; ")
    found = vorbis(musicbrainz_artistid=separator.join([*ids, ids[0].upper(), "unknown"]))
    assert found == {"musicbrainz_artistid": variants.ARTIST_IDS}


@pytest.mark.parametrize("text", ["0", "0000", "0000-00-00", "--"])
def test_a_date_of_zeros_is_no_date(text: str) -> None:
    assert vorbis(date=[text]) == {}
    assert vorbis(date=[text, "2001"]) == {"date": "2001"}
    assert vorbis(date="2000") == {"date": "2000"}


@pytest.mark.parametrize(
    ("text", "genre"),
    [("17", "Rock"), ("(17)", "Rock"), ("(4)Eurodisco", "Disco; Eurodisco"), ("(RX)(CR)", "Remix; Cover"),
     ("((sic)", "(sic)"), ("(sic)", "(sic)"), ("Rock/Pop", "Rock/Pop"), ("RX", "Remix"), ("255", None),
     ("(250)", None), ("1984", "1984"), ("Unknown", "Unknown")],
)  # fmt: skip
def test_genres_of_id3_by_number_get_their_names_and_unassigned_numbers_none(text: str, genre: str | None) -> None:
    content = variants.tagged(variants.frame("TCON", variants.latin(text), version=3), version=3)
    assert tags_of(content, "mp3").get("genre") == genre


@pytest.mark.parametrize(
    ("frames", "date"),
    [({"TYER": "2019"}, "2019"), ({"TYER": "2019", "TDAT": "1705"}, "2019-05-17"), ({"TDAT": "1705"}, None),
     ({"TYER": "2019", "TDAT": "1705", "TIME": "2130"}, "2019-05-17 21:30"),
     ({"TYER": "2019", "TIME": "2130"}, "2019"), ({"TYER": "19"}, None), ({"TYER": "2019", "TDRC": "2001"}, "2001"),
     ({"TYER": "2019-05-17"}, "2019-05-17"), ({"TDRC": "2019/05/17"}, "2019-05-17"), ({"TDRL": "2018"}, "2018"),
     ({"TDRC": "2019-05-17T21:30"}, "2019-05-17 21:30"), ({"TDRC": "spring"}, None)],
)  # fmt: skip
def test_the_parts_of_a_date_in_id3_are_put_together(frames: dict[str, str], date: str | None) -> None:
    """Other families leave it whole, and so it has their form."""
    made = [variants.frame(name, variants.latin(text), version=3) for name, text in frames.items()]
    assert tags_of(variants.tagged(*made, version=3), "mp3").get("date") == date


def test_a_total_is_taken_from_where_its_number_is() -> None:
    """ID3v2 has been edited, and what APEv2 still says of the track is not of this one."""
    content = variants.ape(variants.tagged(variants.frame("TRCK", variants.latin("5"))), {"Track": "3/12"})
    assert tags_of(content, "mp3") == {"track": 5}


def test_a_tag_of_id3_that_is_not_read_is_no_reason_to_read_less() -> None:
    """A picture of which mutagen makes nothing, a compressed frame, an encrypted one."""
    content = variants.tagged(
        variants.frame("APIC", b"\x09not a picture"),
        variants.frame("COMM", zlib.compress(bytes(100)), flags=0x0008),
        variants.frame("TIT1", b"?", flags=0x0004),
        variants.frame("TIT2", variants.utf8("Title")),
    )
    assert tags_of(content, "mp3") == {"title": "Title"}


def test_a_compressed_frame_is_read() -> None:
    text = variants.utf8("Title")
    packed = variants.synchsafe(len(text)) + zlib.compress(text)
    assert tags_of(variants.tagged(variants.frame("TIT2", packed, flags=0x0009)), "mp3") == {"title": "Title"}


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_both_byte_orders_of_utf_16_are_read(order: str) -> None:
    content = b"\x01" + "\ufeffФ\0\ufeffΩ".encode(order)
    assert tags_of(variants.tagged(variants.frame("TPE1", content)), "mp3") == {"artist": "Ф; Ω"}


def test_frames_that_come_twice_are_merged() -> None:
    """As ID3v2.3 has it for lists, which it does not know otherwise."""
    content = variants.tagged(variants.frame("TPE1", variants.latin("A")), variants.frame("TPE1", variants.latin("B")))
    assert tags_of(content, "mp3") == {"artist": "A; B"}


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
    """FLAC from a pipe knows of 0 samples."""
    samples = FIXTURES["flac"].index(b"fLaC") + 8 + 13
    content = bytearray(FIXTURES["flac"])
    content[samples] &= 0xF0
    content[samples + 1 : samples + 5] = bytes(4)
    metadata = read(bytes(content), "flac")
    assert (metadata.duration_s, metadata.bitrate) == (None, None)
    assert metadata.tags == expected.TAGS


def test_fragmented_mp4_has_no_duration_in_its_index() -> None:
    at = FIXTURES["m4p"].index(b"mdhd") + 4 + 4 + 8 + 4
    content = FIXTURES["m4p"][:at] + bytes(4) + FIXTURES["m4p"][at + 4 :]
    metadata = read(content, "m4p")
    assert (metadata.duration_s, metadata.bitrate) == (None, 34407)
    assert metadata.tags == expected.TAGS


def test_a_wav_whose_id3_chunk_is_broken_is_described_without_it() -> None:
    """The stream needs no tag; and LIST INFO, which is sound, still says what it says."""
    fmt, data = (b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)), (b"data", bytes(16000))
    info = (b"LIST", b"INFO" + struct.pack("<4sI", b"INAM", 6) + b"Title\0")
    frame = variants.frame("TIT2", variants.latin("Not to be had"))
    broken = {
        "claims more than the file has": b"ID3\3\0\0" + b"\x7f" * 4 + frame,
        "claims more than the file has, from a version that is rare": b"ID3\2\0\0" + b"\x7f" * 4 + frame,
        "has flags that nobody knows": b"ID3\3\0\x0f" + bytes([0, 0, 0, len(frame)]) + frame,
        "is its first letters": b"ID3",
        "is not there": b"",
    }
    for damage, tag in broken.items():
        for content in (riff(fmt, data, info, (b"id3 ", tag)), riff(fmt, (b"id3 ", tag), data, info)):
            metadata = read(content, "wav")
            assert (metadata.duration_s, metadata.sample_rate, metadata.tags) == (1.0, 8000, {"title": "Title"}), damage


def test_a_wav_that_ends_within_its_id3_chunk_is_described_without_it() -> None:
    """The chunk behind a damaged one, where mutagen stops: found by fuzzing."""
    content = FIXTURES["wave"]
    at = content.index(b"id3 ")
    for cut in (at + 8 + 10, at + 100, len(content) - 1):
        assert read(content[:cut], "wave") == read(content, "wave")._replace(tags={})
    damaged = content[: at - 2].replace(b"fact", b"\xe4act") + content[at - 2 : at + 40]
    metadata = read(damaged, "wave")
    assert (metadata.sample_rate, metadata.duration_s, metadata.tags) == (11025, None, {})


def test_a_lack_of_memory_is_not_taken_for_a_broken_tag() -> None:
    class Starved(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= start and size not in (8, 16):
                raise MemoryError
            return super().read(size)

    content = FIXTURES["wave"]
    start = content.index(b"ID3")
    with pytest.raises(TagsUnreadable) as caught:
        read_tags(Starved(content), "wave", len(content))
    assert isinstance(caught.value.__cause__, MemoryError)


# What is no audio


def test_an_id3_tag_that_is_longer_than_the_file_is_named_with_its_size() -> None:
    content = b"ID3\3\0\0" + b"\x7f" * 4 + MP3_WITHOUT_TAGS
    reason = f"the ID3 tag claims 268,435,465 bytes, and the file ends after {len(content):,}"
    assert read_or_reason(content, "mp3") == f"cannot be parsed as audio/mpeg: {reason}"


def test_an_extended_header_of_id3_that_is_longer_than_the_file_is_named() -> None:
    content = b"ID3\4\0\x40\0\0\0\x20" + b"\x7f" * 4 + bytes(28) + MP3_WITHOUT_TAGS
    assert read_or_reason(content, "mp3") == "cannot be parsed as audio/mpeg: the file ends before a part of it does"


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
        file.write(b"ID3\x04\0\1\0\0\0\x0a" + bytes(10) + MP3_WITHOUT_TAGS)
    with open(path, "rb") as opened, pytest.raises(TagsUnreadable) as caught:
        read_tags(opened, "mp3", os.path.getsize(path))
    assert str(caught.value) == "cannot be parsed as audio/mpeg: the file has invalid flags 0x1"
