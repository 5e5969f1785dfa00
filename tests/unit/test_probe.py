"""Describing one real file: what is in it, or why it has to be looked at again."""

import errno
import fcntl
import hashlib
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import xxhash

from tests.data import expected
from trackwatch.errors import FileProblem
from trackwatch.probe import BUFFER_BYTES, describe
from trackwatch.settle import UNKNOWN_WRITER_QUIET_S, Rest
from trackwatch.statx import signature_of
from trackwatch.track import Observation

CONTENT = os.urandom(3 * BUFFER_BYTES + 17)
NOBODY = 65534
LONG_S = 100.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")


@pytest.fixture(autouse=True)
def _sigio_ignored() -> Iterator[None]:
    """As in the daemon: a lease that is broken would end the process."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def folder() -> Iterator[bytes]:
    """A folder that everybody may enter; pytest's own is for its user alone."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield os.fsencode(path)


@pytest.fixture
def song(folder: bytes) -> bytes:
    """A file that nobody writes, with a name that is not audio."""
    return write(os.path.join(folder, b"song.bin"), CONTENT)


def write(path: bytes, content: bytes) -> bytes:
    with open(path, "wb") as file:
        file.write(content)
    return path


def described(path: bytes, **options: Callable[[], None] | bool) -> Observation:
    seen = describe(path, quiet_s=LONG_S, **options)  # type: ignore[arg-type] # options are those of describe
    assert isinstance(seen, Observation)
    return seen


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be an ordinary user, without root's capabilities."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Meddler:
    """Does something to the file between two reads, once; to be given as `check_cancelled`."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self._deed = deed
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            self._deed()


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, len(CONTENT)])
def test_hashes_are_those_of_the_whole_content(folder: bytes, size: int) -> None:
    path = write(os.path.join(folder, b"x.bin"), CONTENT[:size])
    seen = described(path)
    assert seen.sha256 == hashlib.sha256(CONTENT[:size]).digest()
    assert seen.xxh128 == xxhash.xxh3_128_digest(CONTENT[:size])
    assert seen.signature.size_bytes == size


def test_the_signature_is_that_of_the_path_with_its_birth(song: bytes) -> None:
    assert described(song).signature == signature_of(song)


def test_what_is_not_audio_has_neither_metadata_nor_an_error(song: bytes) -> None:
    seen = described(song)
    assert (seen.metadata, seen.metadata_error) == (None, None)


def test_audio_has_metadata_and_hashes(folder: bytes) -> None:
    path = os.path.join(folder, b"\xff.FLAC")
    shutil.copy(os.fsencode(expected.path_of("flac")), path)
    seen = described(path)
    assert seen.metadata is not None
    assert seen.metadata.format == "audio/flac"
    assert seen.metadata_error is None
    with open(path, "rb") as file:
        assert seen.sha256 == hashlib.sha256(file.read()).digest()


@pytest.mark.parametrize("content", [b"", b"no sound at all"], ids=["empty", "rubbish"])
def test_broken_audio_has_an_error_and_hashes(folder: bytes, content: bytes) -> None:
    seen = described(write(os.path.join(folder, b"song.flac"), content))
    assert seen.metadata is None
    assert seen.metadata_error
    assert seen.sha256 == hashlib.sha256(content).digest()


def test_a_file_that_somebody_writes_has_moved_on(song: bytes) -> None:
    with open(song, "ab"):
        assert describe(song, quiet_s=LONG_S) is Rest.MOVED_ON
    assert isinstance(describe(song, quiet_s=0.0), Observation)


def test_at_the_ceiling_a_file_is_described_as_it_is_beside_its_writer(song: bytes) -> None:
    with open(song, "ab"):
        assert described(song, at_ceiling=True).sha256 == hashlib.sha256(CONTENT).digest()


def test_a_file_that_somebody_only_reads_is_described(song: bytes) -> None:
    with open(song, "rb"):
        described(song)


def test_a_writer_that_comes_during_the_read_makes_it_move_on(song: bytes) -> None:
    """Nothing has changed yet, but it is about to."""
    opened: list[int] = []
    meddler = Meddler(lambda: opened.append(os.open(song, os.O_WRONLY)))
    assert describe(song, quiet_s=LONG_S, check_cancelled=meddler) is Rest.MOVED_ON
    os.close(opened[0])
    assert isinstance(describe(song, quiet_s=LONG_S), Observation)


def append(path: bytes) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def overwrite(path: bytes) -> None:
    with open(path, "rb+") as file:
        file.write(b"other")


def overwrite_in_secret(path: bytes) -> None:
    """Put the modification time back, as taggers do that preserve it: the ctime tells."""
    result = os.stat(path)
    overwrite(path)
    os.utime(path, ns=(result.st_atime_ns, result.st_mtime_ns))


def replace(path: bytes) -> None:
    os.replace(write(path + b".new", CONTENT), path)


def replace_by_symlink(path: bytes) -> None:
    os.rename(path, path + b".away")
    os.symlink(path + b".away", path)


def move_its_folder(path: bytes) -> None:
    os.rename(os.path.dirname(path), os.path.dirname(path) + b".away")


@pytest.mark.parametrize("at_ceiling", [False, True])
@pytest.mark.parametrize(
    "deed",
    [
        overwrite,
        overwrite_in_secret,
        replace,
        replace_by_symlink,
        os.unlink,
        move_its_folder,
        lambda path: os.truncate(path, 10),
        lambda path: os.rename(path, path + b".away"),
    ],
    ids=["overwrite", "overwrite-utime", "replace", "symlink", "unlink", "folder", "truncate", "rename"],
)
def test_a_file_that_changes_while_it_is_read_has_moved_on(
    folder: bytes, deed: Callable[[bytes], object], at_ceiling: bool
) -> None:
    """Also at the ceiling: hashes of what never was on the disk at one moment are worth nothing."""
    os.mkdir(os.path.join(folder, b"album"))
    path = write(os.path.join(folder, b"album", b"song.bin"), CONTENT)
    meddler = Meddler(lambda: deed(path))
    assert describe(path, quiet_s=LONG_S, at_ceiling=at_ceiling, check_cancelled=meddler) is Rest.MOVED_ON
    assert meddler.calls > 0


def test_a_file_that_grows_while_it_is_read_has_moved_on(song: bytes) -> None:
    meddler = Meddler(lambda: append(song))
    assert describe(song, quiet_s=LONG_S, check_cancelled=meddler) is Rest.MOVED_ON
    assert meddler.calls > 0


def test_at_the_ceiling_a_file_that_grows_is_described_as_it_was_when_the_look_began(song: bytes) -> None:
    """A recording that never ends: its first bytes were its content at one moment, and the rest makes it differ."""
    before = signature_of(song)
    meddler = Meddler(lambda: append(song))
    seen = described(song, at_ceiling=True, check_cancelled=meddler)
    assert meddler.calls > 0
    assert os.stat(song).st_size == len(CONTENT) + len(b"more")
    assert seen.sha256 == hashlib.sha256(CONTENT).digest()
    assert seen.xxh128 == xxhash.xxh3_128_digest(CONTENT)
    assert seen.signature == before, "the next sweep finds that it has changed since"


def test_at_the_ceiling_an_empty_file_that_grows_is_described_as_empty(folder: bytes) -> None:
    path = write(os.path.join(folder, b"x.flac"), b"")
    with open(path, "ab") as file:
        file.write(b"not yet flushed")
        seen = described(path, at_ceiling=True)
    assert (seen.signature.size_bytes, seen.sha256) == (0, hashlib.sha256(b"").digest())


def test_at_the_ceiling_a_file_that_was_begun_again_has_moved_on(song: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends up larger than it was, but what was read is no part of what was there at one moment."""
    looks: list[os.stat_result] = []
    fstat = os.fstat

    def look(descriptor: int) -> os.stat_result:
        """Let its writer catch up right before the second look, where no other hook reaches."""
        if len(looks) == 1:
            write(song, b"x" * (len(CONTENT) + 1))
        looks.append(fstat(descriptor))
        return looks[-1]

    monkeypatch.setattr(os, "fstat", look)
    meddler = Meddler(lambda: os.truncate(song, 0))
    assert describe(song, quiet_s=LONG_S, at_ceiling=True, check_cancelled=meddler) is Rest.MOVED_ON
    assert meddler.calls > 0


def test_reading_a_file_does_not_make_it_move_on(song: bytes) -> None:
    def read() -> None:
        with open(song, "rb") as file:
            file.read()

    described(song, check_cancelled=Meddler(read))


def test_being_cancelled_ends_the_read_and_closes_the_file(song: bytes) -> None:
    class CancelledError(BaseException):
        """Like trio's, which is no Exception either."""

    def cancel() -> None:
        raise CancelledError

    before = len(os.listdir("/proc/self/fd"))
    meddler = Meddler(cancel)
    with pytest.raises(CancelledError):
        describe(song, quiet_s=LONG_S, check_cancelled=meddler)
    assert meddler.calls == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_there_has_moved_on(folder: bytes) -> None:
    assert describe(os.path.join(folder, b"missing.mp3"), quiet_s=LONG_S) is Rest.MOVED_ON
    assert describe(os.path.join(folder, b"missing", b"song.mp3"), quiet_s=LONG_S) is Rest.MOVED_ON


def test_what_lies_below_a_file_has_moved_on(song: bytes) -> None:
    assert describe(song + b"/x.mp3", quiet_s=LONG_S) is Rest.MOVED_ON


def test_a_symlink_has_moved_on_and_is_not_followed(song: bytes) -> None:
    os.symlink(song, song + b".link")
    assert describe(song + b".link", quiet_s=LONG_S) is Rest.MOVED_ON


def test_a_pipe_has_moved_on_and_blocks_nobody(folder: bytes) -> None:
    os.mkfifo(os.path.join(folder, b"pipe.mp3"))
    assert describe(os.path.join(folder, b"pipe.mp3"), quiet_s=LONG_S) is Rest.MOVED_ON


def test_a_directory_in_the_files_place_has_moved_on_and_leaks_nothing(folder: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert describe(folder, quiet_s=LONG_S) is Rest.MOVED_ON
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_with_a_write_lease_has_moved_on(song: bytes) -> None:
    """Samba holds one for a client that writes; to open the file asks for it back, and it is at rest soon."""
    holder = os.open(song, os.O_RDWR)
    fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        assert describe(song, quiet_s=LONG_S) is Rest.MOVED_ON
    finally:
        os.close(holder)
    described(song)


@needs_root
def test_a_file_that_must_not_be_read_is_a_problem(song: bytes) -> None:
    os.chmod(song, 0)
    with somebody_else(), pytest.raises(FileProblem, match=r"^not readable \(permission denied\)$"):
        describe(song, quiet_s=LONG_S)


def test_a_failing_disk_is_a_problem_and_the_file_is_closed(song: bytes) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileProblem, match="input/output error"):
        describe(song, quiet_s=LONG_S, check_cancelled=fail)
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
def test_of_somebody_elses_file_that_just_changed_nobody_can_be_sure(
    song: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = os.stat(song).st_ctime + UNKNOWN_WRITER_QUIET_S - 0.01
    monkeypatch.setattr(time, "time", lambda: soon)
    with somebody_else():
        assert describe(song, quiet_s=0.25) is Rest.UNSURE


@needs_root
def test_somebody_elses_file_is_described_once_it_was_quiet_for_long(
    song: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = os.stat(song).st_ctime + UNKNOWN_WRITER_QUIET_S + 0.001
    monkeypatch.setattr(time, "time", lambda: later)
    with somebody_else():
        assert isinstance(describe(song, quiet_s=UNKNOWN_WRITER_QUIET_S), Observation)


@needs_root
def test_quiet_alone_says_nothing_of_somebody_elses_file_that_changed_just_now(
    song: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint can be lost, or never come (another machine writes): the file's own ctime has to agree."""
    soon = os.stat(song).st_ctime + UNKNOWN_WRITER_QUIET_S - 0.01
    monkeypatch.setattr(time, "time", lambda: soon)
    with somebody_else():
        assert describe(song, quiet_s=LONG_S) is Rest.UNSURE
        assert describe(song, quiet_s=math.inf) is Rest.UNSURE


@needs_root
def test_age_alone_says_nothing_of_somebody_elses_file_that_was_heard_of_just_now(
    song: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's clock that is behind makes every file look old."""
    later = os.stat(song).st_ctime + LONG_S
    monkeypatch.setattr(time, "time", lambda: later)
    with somebody_else():
        assert describe(song, quiet_s=UNKNOWN_WRITER_QUIET_S - 0.01) is Rest.UNSURE


@needs_root
def test_somebody_elses_file_is_described_at_the_ceiling(song: bytes) -> None:
    with somebody_else():
        assert isinstance(describe(song, quiet_s=0.25, at_ceiling=True), Observation)


@needs_root
def test_somebody_elses_old_file_is_described_at_once(song: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first import: nothing was heard of these files because nobody was listening, and they are years old."""
    later = os.stat(song).st_ctime + UNKNOWN_WRITER_QUIET_S + 0.001
    monkeypatch.setattr(time, "time", lambda: later)
    with somebody_else():
        assert isinstance(describe(song, quiet_s=math.inf), Observation)


@needs_root
def test_a_file_from_the_future_is_not_old(song: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was set back, so that the ctime tells nothing: then what was heard of it decides."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with somebody_else():
        assert describe(song, quiet_s=0.25) is Rest.UNSURE
        assert describe(song, quiet_s=math.inf) is Rest.UNSURE, "nobody was listening: it goes where somebody is"
        assert isinstance(describe(song, quiet_s=UNKNOWN_WRITER_QUIET_S), Observation)


@needs_root
def test_a_file_from_the_near_future_has_just_changed(song: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's clock is ahead by a little: its word is good, only later."""
    now = os.stat(song).st_ctime - 1.0
    monkeypatch.setattr(time, "time", lambda: now)
    with somebody_else():
        assert describe(song, quiet_s=LONG_S) is Rest.UNSURE


# ---- the audio alone


@pytest.mark.parametrize("padding", [0, 300, BUFFER_BYTES - 2000, BUFFER_BYTES - 1000, 2 * BUFFER_BYTES + 5])
def test_the_hash_of_the_audio_is_that_of_its_bytes(folder: bytes, padding: int) -> None:
    """Wherever it begins and ends among the reads of the pass: one byte of a chunk, or many chunks."""
    with open(expected.path_of("wav"), "rb") as file:
        form, samples = file.read()[12:36], CONTENT[: BUFFER_BYTES + 3]
    junk = b"JUNK" + padding.to_bytes(4, "little") + bytes(padding + padding % 2)
    data = b"data" + len(samples).to_bytes(4, "little") + samples
    path = write(os.path.join(folder, b"x.wav"), b"RIFF\0\0\0\0WAVE" + junk + form + data + b"\0LIST\4\0\0\0INFO")
    assert described(path).audio_xxh128 == xxhash.xxh3_128_digest(form[8:] + samples)


def test_the_hash_of_the_audio_is_unknown_where_it_is_not_certain(folder: bytes, song: bytes) -> None:
    """What has no name of audio, what is no audio, Ogg, and what has grown meanwhile."""
    assert described(song).audio_xxh128 is None
    assert described(write(os.path.join(folder, b"x.flac"), b"no sound")).audio_xxh128 is None
    for suffix, is_known in (("ogg", False), ("mp3", True)):
        path = os.path.join(folder, b"song." + suffix.encode())
        shutil.copy(os.fsencode(expected.path_of(suffix)), path)
        assert (described(path).audio_xxh128 is not None) == is_known
    grown = described(path, at_ceiling=True, check_cancelled=Meddler(lambda: append(path)))
    assert grown.metadata is not None
    assert grown.audio_xxh128 is None


def test_the_md5_that_a_flac_encoder_has_written_is_passed_on(folder: bytes) -> None:
    """As it stands there; zero means that the encoder made none."""
    with open(expected.path_of("flac"), "rb") as file:
        content = bytearray(file.read())
    written = slice(content.index(b"fLaC") + 26, content.index(b"fLaC") + 42)
    for md5, told in (
        (content[written], content[written].hex()),
        (bytes(16), None),
        (b"\0" * 15 + b"\1", "0" * 31 + "1"),
    ):
        content[written] = md5
        metadata = described(write(os.path.join(folder, b"x.flac"), bytes(content))).metadata
        assert metadata is not None
        assert metadata.audio_md5 == told
