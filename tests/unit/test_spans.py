# mypy: allow-untyped-calls
"""Where the audio is in real files: the same bytes whatever their tags become, other ones when a byte of it changes."""

import os
import shutil
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mutagen
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mutagen.apev2 import APEv2
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TIT2, TXXX, ParseID3v1
from mutagen.mp4 import MP4, MP4Cover

from tests.data import expected
from trackwatch.spans import READS_MAX, EncodedAudio, encoded_audio

MP4_FAMILY = ("m4a", "m4b", "m4p", "m4v", "m4r", "mp4")
OGG = ("ogg", "oga", "opus")
KNOWN = tuple(suffix for suffix in expected.FIXTURES if suffix not in OGG)
LARGE = os.urandom(70_000)  # a picture that outgrows any padding


def bytes_of(suffix: str) -> bytes:
    """Return the fixture of a format."""
    return Path(expected.path_of(suffix)).read_bytes()


def find(content: bytes, head_bytes: int | None = None) -> EncodedAudio | None:
    """Return where the audio is, of a file whose first bytes alone (or all, by default) are at hand."""
    head = content if head_bytes is None else content[:head_bytes]
    return encoded_audio(memoryview(head), len(content), lambda position, count: content[position : position + count])


def audio(content: bytes) -> bytes:
    """Return what is hashed of a file, which must be known; the same whether it is all at hand or not."""
    found = find(content)
    assert found is not None
    assert found == find(content, 0) == find(content, 300)
    return found.parameters + b"".join(content[start:end] for start, end in found.spans)


def id3(title: str, filler: int = 0) -> bytes:
    """Return an ID3v2 tag of a given size at least."""
    frame = b"TIT2" + struct.pack(">IH", len(title) + 1, 0) + b"\0" + title.encode() + bytes(filler)
    size = len(frame)
    return b"ID3\3\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


def ape(has_header: bool, version: int = 2000) -> bytes:
    """Return an APE tag with one item."""
    item = struct.pack("<II", 3, 0) + b"Title\0abc"
    ends = [struct.pack("<8s4I8x", b"APETAGEX", version, len(item) + 32, 1, 1 << 31 | is_header << 29)
            for is_header in (1, 0)]  # fmt: skip
    footer = struct.pack("<8s4I8x", b"APETAGEX", version, len(item) + 32, 1, 0)
    return ends[0] + item + ends[1] if has_header else item + footer


LYRICS = b"LYRICSBEGININD00002" + b"10" + b"LYR00004abcd"
LYRICS = LYRICS + b"%06d" % len(LYRICS) + b"LYRICS200"
OLD_LYRICS = b"LYRICSBEGIN" + b"la la la" + b"LYRICSEND"
ID3V1 = b"TAG" + b"title".ljust(124, b"\0") + b"\0"
ENHANCED = b"TAG+" + b"title".ljust(223, b"\0") + ID3V1
APPENDED = b"ID3\4\0\x10\0\0\0\x05" + b"abcde" + b"3DI\4\0\x10\0\0\0\x05"

BEHIND = (
    b"", ID3V1, ENHANCED, ape(True), ape(False), ape(False, 1000), LYRICS + ID3V1, OLD_LYRICS + ID3V1, APPENDED,
    ape(True) + LYRICS + ID3V1, APPENDED + ape(True) + ENHANCED,
)  # fmt: skip


# ---- what taggers do to real files


def opened(path: Path) -> Any:
    """Return what edits a file's tags."""
    # Mutagen itself takes AAC with ID3 for MP3.
    return ID3(path) if path.suffix == ".aac" else mutagen.File(path)


def retag(path: Path) -> None:
    """Write another title, as short as it may be."""
    file = opened(path)
    tags = file if isinstance(file, ID3) else file.tags
    if isinstance(tags, ID3):
        tags.add(TIT2(3, "x"))
    else:
        tags[{"m": "\xa9nam", "w": "Title"}.get(path.suffix[1], "title")] = ["x"]
    file.save(path)


def add_picture(path: Path) -> None:
    """Add a picture that no padding has room for."""
    file = opened(path)
    tags = file if isinstance(file, ID3) else file.tags
    if isinstance(file, FLAC):
        picture = Picture()
        picture.data = LARGE
        file.add_picture(picture)
    elif isinstance(tags, ID3):
        tags.add(APIC(3, "image/jpeg", 3, "", LARGE))
    elif isinstance(file, MP4):
        tags["covr"] = [MP4Cover(LARGE)]
    else:
        head = struct.pack("<BI", 3, len(LARGE)) + "image/jpeg\0\0".encode("utf-16-le")
        tags["WM/Picture"] = head + LARGE
    file.save(path)


def grow_padding(path: Path) -> None:
    """Leave room for later tags, as mutagen and others do by default."""
    opened(path).save(path, padding=lambda _info: 30_000)


def remove_tags(path: Path) -> None:
    """Remove all of them."""
    opened(path).delete()


@pytest.mark.parametrize("edit", [retag, add_picture, grow_padding, remove_tags])
@pytest.mark.parametrize("suffix", KNOWN)
def test_tags_leave_the_audio_as_it_is(tmp_path: Path, suffix: str, edit: Callable[[Path], None]) -> None:
    """Every edit of every format, by mutagen, one after the other with a second one."""
    path = tmp_path / f"track.{suffix}"
    shutil.copyfile(expected.path_of(suffix), path)
    original = path.read_bytes()
    edit(path)
    once = path.read_bytes()
    assert once != original
    assert audio(once) == audio(original)
    if edit is not remove_tags:
        remove_tags(path)
        assert path.read_bytes() not in (once, original)
        assert audio(path.read_bytes()) == audio(original)


@pytest.mark.parametrize("suffix", ["mp3", "flac", "aac"])
def test_a_tag_of_each_kind_is_no_audio(suffix: str) -> None:
    """Before and behind frames, alone and several of them."""
    original = bytes_of(suffix)
    found = find(original)
    assert found is not None
    for before in (b"", id3("x"), id3("x", 5000), id3("x") + id3("y", 100)):
        for behind in BEHIND:
            assert audio(before + original + behind) == audio(original), (before[:20], behind[:20])


def test_mutagen_writes_the_tags_that_were_written_here_by_hand(tmp_path: Path) -> None:
    """Or else the test above would prove little: APEv2 behind, then ID3v1 behind that."""
    path = tmp_path / "track.mp3"
    path.write_bytes(bytes_of("mp3") + ape(True))
    assert str(APEv2(path)["Title"]) == "abc"
    tags = APEv2()
    tags["Artist"] = "Björk"
    tags.save(path)
    assert audio(path.read_bytes()) == audio(bytes_of("mp3"))
    ID3(path).save(path, v1=2)
    assert path.read_bytes()[-128:][:3] == b"TAG"
    assert ParseID3v1(ID3V1)
    assert audio(path.read_bytes()) == audio(bytes_of("mp3"))


def test_an_id3_tag_may_have_a_footer_and_zeros_behind_it(tmp_path: Path) -> None:
    """The footer by its flag; zeros that some taggers leave there are no sound."""
    content = bytes_of("mp3")
    found = find(content)
    assert found is not None
    ((start, _),) = found.spans
    footed = APPENDED
    assert audio(footed + content[start:]) == audio(content)
    assert find(footed[:-10] + content[start:]) is None
    for zeros in (1, 100, 3000):
        assert audio(id3("x") + bytes(zeros) + content[start:]) == audio(content)
    assert find(id3("x") + bytes(10_000) + content[start:]) is None


@pytest.mark.parametrize("suffix", KNOWN)
def test_another_byte_of_the_audio_is_other_audio(suffix: str) -> None:
    """The first (behind a header that says what it is), one in the middle, and the last."""
    content = bytes_of(suffix)
    found = find(content)
    assert found is not None
    for start, end in found.spans:
        for position in (start + 40, (start + end) // 2, end - 1):
            changed = bytearray(content)
            changed[position] ^= 1
            assert audio(bytes(changed)) != audio(content)


@pytest.mark.parametrize("suffix", OGG)
def test_ogg_is_unknown(suffix: str) -> None:
    """Its page numbers and checksums change with the size of the comment."""
    assert find(bytes_of(suffix)) is None


@pytest.mark.parametrize("suffix", KNOWN)
def test_a_file_that_ends_too_early_is_unknown_or_has_other_audio(suffix: str) -> None:
    """Never the same, wherever it was cut."""
    content = bytes_of(suffix)
    found = find(content)
    assert found is not None
    whole = audio(content)
    for length in range(0, found.spans[-1][1], 7):
        assert find(content[:length]) is None or audio(content[:length]) != whole


# ---- what the same bytes would sound like


def test_the_sample_rate_of_a_wave_file_is_part_of_its_audio() -> None:
    """The samples are the same, and what is heard is not."""
    content = bytearray(bytes_of("wav"))
    at = content.index(b"fmt ") + 12
    assert struct.unpack_from("<I", content, at) == (8000,)
    struct.pack_into("<I", content, at, 16000)
    assert audio(bytes(content)) != audio(bytes_of("wav"))


def test_of_flac_the_rate_counts_and_the_md5_does_not() -> None:
    """A tool that fills in the MD5 later has not changed the sound; frames may leave the rate to the description."""
    content = bytes_of("flac")
    description = content.index(b"fLaC") + 8
    with_md5, with_rate = bytearray(content), bytearray(content)
    with_md5[description + 18 : description + 34] = bytes(16)
    with_rate[description + 10] ^= 1
    assert bytes(with_md5) != content
    assert audio(bytes(with_md5)) == audio(content)
    assert audio(bytes(with_rate)) != audio(content)


@pytest.mark.parametrize("table", [b"stsd", b"stsz", b"stts", b"stsc", b"elst"])
def test_the_tables_of_mp4_are_part_of_its_audio(table: bytes) -> None:
    """They say how the bytes are cut and decoded."""
    content = bytearray(bytes_of("m4a"))
    content[content.index(table) + 4 + 4 + 11] ^= 1
    assert audio(bytes(content)) != audio(bytes_of("m4a"))


# ---- what is doubtful


def atom(name: bytes, payload: bytes) -> bytes:
    """Return an MP4 atom."""
    return struct.pack(">I4s", 8 + len(payload), name) + payload


def chunk(name: bytes, payload: bytes, stated: int | None = None) -> bytes:
    """Return a RIFF chunk, perhaps with a size that is not its own."""
    return struct.pack("<4sI", name, len(payload) if stated is None else stated) + payload + bytes(len(payload) % 2)


FORMAT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16))
MOOV = atom(b"moov", atom(b"trak", atom(b"mdia", atom(b"minf", atom(b"stbl", atom(b"stsz", bytes(12)))))))
FTYP = atom(b"ftyp", b"M4A \0\0\0\0")


def wave(*chunks: bytes, mark: bytes = b"RIFF") -> bytes:
    """Return a RIFF/WAVE file."""
    body = b"WAVE" + b"".join(chunks)
    return mark + struct.pack("<I", 0xFFFFFFFF if mark != b"RIFF" else len(body)) + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"R",
        bytes(100),
        b"no sound at all",
        id3("x"),
        id3("x") + ID3V1,
        ID3V1,
        b"\xff\xfe" + "text as Windows writes it".encode("utf-16-le"),
        b"ADIF" + bytes(100),
        wave(FORMAT),
        wave(FORMAT, chunk(b"data", b"")),
        wave(FORMAT, chunk(b"data", b"abcd", 0)),
        wave(FORMAT, chunk(b"data", b"abcd", 0xFFFFFFFF)),
        wave(FORMAT, chunk(b"data", b"abcd", 5)),
        wave(chunk(b"data", b"abcd"), FORMAT),
        wave(FORMAT, FORMAT, chunk(b"data", b"abcd")),
        wave(FORMAT, chunk(b"data", b"abcd", 0xFFFFFFFF), mark=b"RF64"),
        FTYP + MOOV,
        FTYP + atom(b"mdat", b"abcd"),
        FTYP + MOOV + atom(b"mdat", b""),
        FTYP + MOOV + atom(b"mdat", b"abcd")[:-1],
        FTYP + MOOV + MOOV + atom(b"mdat", b"abcd"),
        FTYP + MOOV + atom(b"moof", b"") + atom(b"mdat", b"abcd"),
        FTYP + atom(b"moov", atom(b"trak", atom(b"stsz", bytes(12))) + atom(b"mvex", b"")) + atom(b"mdat", b"abcd"),
        FTYP + MOOV + struct.pack(">I4s", 7, b"mdat"),
        FTYP + MOOV + struct.pack(">I4sQ", 1, b"mdat", 15),
        FTYP + MOOV + struct.pack(">I4sQ", 1, b"mdat", 1 << 63) + b"abcd",
        bytes_of("flac")[:42],
        bytes_of("wma")[:30] + struct.pack("<16sQ", b"a" * 16, 0),
        bytes_of("mp3") + LYRICS[:-15] + b"abcdef" + b"LYRICS200" + ID3V1,
        bytes_of("mp3") + LYRICS.replace(b"BEGIN", b"BEGUN") + ID3V1,
        bytes_of("mp3") + OLD_LYRICS.replace(b"BEGIN", b"BEGUN") + ID3V1,
        bytes_of("mp3") + APPENDED.replace(b"ID3", b"XXX"),
        bytes_of("mp3") + ape(False)[:-20] + struct.pack("<I", 1 << 30) + ape(False)[-16:],
        bytes_of("mp3") + 9 * ID3V1,
        9 * id3("x") + bytes_of("mp3"),
    ],
)  # fmt: skip
def test_what_is_not_as_its_format_has_it_is_unknown(content: bytes) -> None:
    """A size that is open or wrong, a part that is missing or there twice, tags without an end."""
    assert find(content) is None
    assert find(content, 0) is None


@pytest.mark.parametrize(
    ("content", "expected_audio"),
    [
        (wave(FORMAT, chunk(b"data", b"abcd")), b"abcd"),
        (wave(chunk(b"JUNK", b"odd"), FORMAT, chunk(b"data", b"abc"), chunk(b"id3 ", id3("x"))), b"abc"),
        (wave(FORMAT, chunk(b"data", b"abcd"), mark=b"RF64"), b"abcd"),
        (
            wave(
                chunk(b"ds64", struct.pack("<QQQI", 0, 4, 2, 0)), FORMAT, chunk(b"data", b"abcd", 0xFFFFFFFF),
                chunk(b"LIST", b"INFO"), mark=b"RF64",
            ),
            b"abcd",
        ),
        (FTYP + MOOV + atom(b"mdat", b"abcd"), b"abcd"),
        (FTYP + atom(b"mdat", b"abcd") + atom(b"free", b"") + MOOV, b"abcd"),
        (FTYP + atom(b"mdat", b"ab") + MOOV + atom(b"mdat", b"cd"), b"abcd"),
        (FTYP + MOOV + struct.pack(">I4sQ", 1, b"mdat", 20) + b"abcd" + atom(b"free", b"x"), b"abcd"),
        (FTYP + MOOV + struct.pack(">I4s", 0, b"mdat") + b"abcd", b"abcd"),
    ],
)  # fmt: skip
def test_the_audio_of_a_container_is_its_payload(content: bytes, expected_audio: bytes) -> None:
    """With sizes of 64 bits, open to the end, of odd numbers, in several pieces, before or behind the rest."""
    assert audio(content)[-len(expected_audio) :] == expected_audio
    assert len(audio(content)) == len(expected_audio) + (16 if content[8:12] == b"WAVE" else 12)


# ---- what it costs, and what never happens


def test_a_long_file_takes_few_reads() -> None:
    """Behind the first bytes of a file: some tens, though its tags and tables lie far apart."""
    picture = b"\6" + len(LARGE).to_bytes(3) + LARGE
    flac = bytes_of("flac")
    spread = {
        "flac": flac[:42] + picture * 30 + flac[42:] + ID3V1,
        "mp3": id3("x", 100_000) * 3 + bytes_of("mp3") + ape(True) + ENHANCED,
        "m4a": FTYP + atom(b"mdat", LARGE) + b"".join(atom(b"free", LARGE) for _ in range(30)) + MOOV,
    }
    for content in spread.values():
        reads: list[int] = []

        def read_at(position: int, count: int, content: bytes = content, reads: list[int] = reads) -> bytes:
            reads.append(count)
            return content[position : position + count]

        assert encoded_audio(content[:512], len(content), read_at) is not None
        assert len(reads) < 50
        assert max(reads) <= 4096


def test_a_file_of_nothing_but_headers_is_given_up() -> None:
    """Millions of empty atoms, chunks and blocks: each would be one step."""
    for content in (
        FTYP + atom(b"free", b"") * 2000 + MOOV + atom(b"mdat", b"abcd"),
        FTYP + atom(b"moov", atom(b"trak", b"") * 2000 + atom(b"trak", atom(b"stsz", bytes(12)))) + atom(b"mdat", b"x"),
        wave(chunk(b"JUNK", b"") * 2000, FORMAT, chunk(b"data", b"abcd")),
        bytes_of("flac")[:42] + b"\1\0\0\0" * 2000 + bytes_of("flac")[42:],
    ):
        assert find(content) is None
    far = FTYP + b"".join(atom(b"free", bytes(5000)) for _ in range(READS_MAX + 1)) + MOOV + atom(b"mdat", b"abcd")
    assert find(far, 0) is None
    assert find(far) is not None


def test_deep_atoms_end_the_search_and_not_the_program() -> None:
    """A crafted file nests them as deep as it likes."""
    nested = b""
    for _ in range(3000):
        nested = atom(b"trak", nested)
    assert find(FTYP + atom(b"moov", nested) + atom(b"mdat", b"abcd")) is None


def test_a_file_that_has_become_shorter_is_unknown() -> None:
    """Its size was taken before."""
    content = bytes_of("mp3")
    assert encoded_audio(b"", len(content), lambda _position, _count: b"") is None
    assert encoded_audio(content[:100], len(content) + 5000, lambda position, count: content[position:][:count]) is None


BASES = [bytes_of(suffix) for suffix in expected.FIXTURES]
MUTATIONS = st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=6)


@given(base=st.sampled_from(BASES), mutations=MUTATIONS, cut=st.integers(0, 12_000), head=st.integers(0, 3000))
def test_mutated_files_never_crash_it_nor_lead_it_outside(
    base: bytes, mutations: list[tuple[int, bytes]], cut: int, head: int
) -> None:
    """Spans are inside the file, in order, and not empty; whatever is at hand of the file, they are the same."""
    content = bytearray(base[:cut])
    for position, replacement in mutations:
        content[position : position + len(replacement)] = replacement
    check(bytes(content), head)


MARKS = st.sampled_from(
    [b"ID3", b"RIFF", b"RF64", b"WAVE", b"fmt ", b"data", b"ds64", b"fLaC", b"ftyp", b"moov", b"trak", b"mdat", b"stsz",
     b"TAG", b"TAG+", b"APETAGEX", b"LYRICSBEGIN", b"LYRICS200", b"LYRICSEND", b"3DI", b"\xff\xfb\x90\x64",
     b"\xff\xf1\x50\x80", b"\xff\xf8", bytes(4), b"\0\0\0\x10", b"\x10\0\0\0", b"\0\0\0\1", b"000012", bytes(128),
     bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")]
)  # fmt: skip


@given(parts=st.lists(st.one_of(MARKS, st.binary(max_size=40)), max_size=30), head=st.integers(0, 200))
@example(
    parts=[b"RIFF", bytes(4), b"WAVE", b"fmt ", b"\x10\0\0\0", bytes(16), b"data", b"\x10\0\0\0", bytes(16)], head=9
)
def test_junk_never_crashes_it_nor_leads_it_outside(parts: list[bytes], head: int) -> None:
    """Made of what it looks for, in any order."""
    check(b"".join(parts), head)


def check(content: bytes, head: int) -> None:
    found = find(content)
    assert find(content, head) == found
    if found is not None:
        assert found.spans
        edges = [0, *(edge for span in found.spans for edge in span), len(content)]
        assert all(one <= other for one, other in pairwise(edges))
        assert all(start < end for start, end in found.spans)


def test_errors_of_the_disk_are_not_swallowed() -> None:
    """They are a problem of the file, and not a doubt."""

    def fail(_position: int, _count: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        encoded_audio(b"", 100, fail)


def test_tags_of_other_kinds_are_left_to_the_audio(tmp_path: Path) -> None:
    """Whatever is not known to be a tag counts as audio: that may be said to have changed, but never to be the same."""
    path = tmp_path / "track.mp3"
    shutil.copyfile(expected.path_of("mp3"), path)
    tags = ID3(path)
    tags.add(TXXX(3, "note", "x"))
    tags.save(path)
    assert audio(path.read_bytes()) == audio(bytes_of("mp3"))
    assert audio(path.read_bytes() + b"18273645") != audio(bytes_of("mp3"))
