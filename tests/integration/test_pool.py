"""Worker processes that describe real files, and what becomes of a file whose process ends."""

import hashlib
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.data import expected
from trackwatch.errors import FileProblem
from trackwatch.pool import CALL_BYTES, CALL_FILES, Pool, open_pool
from trackwatch.probe import ADDRESS_SPACE_BYTES, Request, describe
from trackwatch.settle import Rest
from trackwatch.track import Observation

LONG_S = 100.0
AUDIO = os.fsencode(expected.AUDIO)
# Hashing these takes a good part of a second, or longer than any test; neither takes room on the disk.
LARGE_BYTES, ENDLESS_BYTES = 1 << 29, 1 << 40


@pytest.fixture(autouse=True)
def _sigio_ignored() -> Iterator[None]:
    """As in the daemon: the tests describe in this process as well."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


def hole(path: Path, size_bytes: int = LARGE_BYTES) -> bytes:
    """Make a file that is long to read."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return os.fsencode(path)


def children() -> set[int]:
    """Return the processes that describe files for this one."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        text = Path(f"/proc/self/task/{task}/children").read_text("ascii")
        found |= {int(pid) for pid in text.split()}
    return {pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def readers(path: bytes) -> list[int]:
    """Return the worker processes that have a file open."""
    found = []
    for pid in children():
        try:
            links = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue  # it has just ended, or closed a file
        if os.fsdecode(path) in links:
            found.append(pid)
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so; the test's own time limit ends it if it never is."""
    while not condition():  # noqa: ASYNC110 - what other processes do sets no event
        await trio.sleep(0.005)


async def kill_reader(path: bytes, times: int) -> None:
    """Kill whoever reads a file, so many times."""
    killed: set[int] = set()
    while len(killed) < times:
        await until(lambda: set(readers(path)) - killed)
        for pid in set(readers(path)) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)


async def seen(pool: Pool, path: bytes, *, is_live: bool = False) -> Observation | Rest:
    return await pool.describe(Request(path, LONG_S), size_bytes=os.lstat(path).st_size, is_live=is_live)


async def test_a_process_says_of_each_format_what_this_one_would_say() -> None:
    paths = [os.path.join(AUDIO, name) for name in sorted(os.listdir(AUDIO))]
    answers: dict[bytes, Observation | Rest] = {}

    async def ask(path: bytes) -> None:
        answers[path] = await seen(pool, path)

    async with open_pool(2) as pool:
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(ask, path)
        assert pool.statistics.calls.count < len(paths), "small files share a call"
    assert answers == {path: describe(path, quiet_s=LONG_S) for path in paths}


async def test_what_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    song = tmp_path / "song.bin"
    song.write_bytes(b"x" * 1000)
    loop = tmp_path / ("n" * 300)  # ENAMETOOLONG: no error that goes away by looking again
    outcomes: dict[str, object] = {}

    async def ask(name: str, path: bytes) -> None:
        try:
            outcomes[name] = await pool.describe(Request(path, LONG_S))
        except FileProblem as problem:
            outcomes[name] = str(problem)

    async with open_pool(1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(ask, "song", os.fsencode(song))
        nursery.start_soon(ask, "missing", os.fsencode(tmp_path / "missing.mp3"))
        nursery.start_soon(ask, "too long", os.fsencode(loop))
    song_seen = outcomes["song"]
    assert isinstance(song_seen, Observation)
    assert song_seen.sha256 == hashlib.sha256(b"x" * 1000).digest()
    assert outcomes["missing"] is Rest.MOVED_ON
    assert outcomes["too long"] == "not readable (file name too long)"


async def test_files_whose_process_is_killed_are_described_by_another(tmp_path: Path) -> None:
    """One process was ended, say for want of memory: neither its file nor those of the same call are lost."""
    large = hole(tmp_path / "large.bin")
    small = tmp_path / "small.bin"
    small.write_bytes(b"small")
    answers: dict[bytes, Observation | Rest] = {}

    async def ask(path: bytes) -> None:
        # Said to be small, so that both go into one call.
        answers[path] = await pool.describe(Request(path, LONG_S), size_bytes=1)

    async with open_pool(1) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, large)
            nursery.start_soon(ask, os.fsencode(small))
            nursery.start_soon(kill_reader, large, 1)
        assert pool.statistics.deaths == 1
    assert all(isinstance(answer, Observation) for answer in answers.values())


async def test_an_audio_file_that_ends_two_processes_is_told_without_its_tags(tmp_path: Path) -> None:
    large = hole(tmp_path / "large.mp3")
    async with open_pool(1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(kill_reader, large, 2)
        answer = await seen(pool, large)
    assert isinstance(answer, Observation)
    assert answer.signature.size_bytes == LARGE_BYTES
    assert answer.metadata is None
    assert answer.metadata_error == (
        "reading its tags ended the process that did it (killed, perhaps for want of memory)"
    )


async def test_a_file_that_ends_every_process_is_a_problem_and_the_next_one_is_described(tmp_path: Path) -> None:
    large = hole(tmp_path / "large.bin")
    small = tmp_path / "small.bin"
    small.write_bytes(b"small")
    async with open_pool(1) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_reader, large, 3)
            with pytest.raises(FileProblem, match="reading it ends every process that tries"):
                await seen(pool, large)
        assert isinstance(await seen(pool, os.fsencode(small)), Observation)


async def test_tags_that_need_too_much_memory_are_given_up_and_the_process_lives(tmp_path: Path) -> None:
    """A compressed frame of two megabytes that grows to half a gigabyte."""
    squeeze = zlib.compressobj(1)
    grown = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(ADDRESS_SPACE_BYTES >> 20)) + squeeze.flush()
    frame_id, flags = b"TXXX", b"\x00\x09"  # ID3v2.4: compressed, with the length that it has afterwards
    content = _syncsafe(1 << 27) + grown
    frame = frame_id + _syncsafe(len(content)) + flags + content
    bomb = tmp_path / "bomb.mp3"
    bomb.write_bytes(b"ID3\x04\x00\x00" + _syncsafe(len(frame)) + frame + bytes(1000))
    async with open_pool(1) as pool:
        answer = await seen(pool, os.fsencode(bomb))
        assert isinstance(answer, Observation)
        assert answer.sha256 == hashlib.sha256(bomb.read_bytes()).digest()
        assert answer.metadata_error == f"tags need more than {ADDRESS_SPACE_BYTES >> 20} MB to read"
        assert pool.statistics.deaths == 0


def _syncsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


async def test_a_live_change_does_not_wait_behind_large_files_of_an_import(tmp_path: Path) -> None:
    large = [hole(tmp_path / f"{index}.bin", ENDLESS_BYTES) for index in range(2)]
    small = tmp_path / "small.bin"
    small.write_bytes(b"small")
    async with open_pool(2) as pool, trio.open_nursery() as nursery:
        for path in large:
            nursery.start_soon(seen, pool, path)
        await until(lambda: all(readers(path) for path in large))
        await seen(pool, os.fsencode(small), is_live=True)
        assert all(readers(path) for path in large), "they are still being read"
        nursery.cancel_scope.cancel()


async def test_leaving_the_scope_kills_what_is_at_work(tmp_path: Path) -> None:
    large = hole(tmp_path / "large.bin", ENDLESS_BYTES)
    async with open_pool(1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(seen, pool, large)
        await until(lambda: readers(large))
        nursery.cancel_scope.cancel()
    assert not children()


async def test_a_caller_that_gives_up_leaves_the_others_alone(tmp_path: Path) -> None:
    large = hole(tmp_path / "large.bin", ENDLESS_BYTES)
    small = tmp_path / "small.bin"
    small.write_bytes(b"small")
    async with open_pool(1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(seen, pool, large)
        await until(lambda: readers(large))
        with trio.move_on_after(0) as given_up:
            await seen(pool, os.fsencode(small))
        assert given_up.cancelled_caught
        os.unlink(small)  # nobody asks for it any more, so nobody looks
        assert await pool.describe(Request(os.fsencode(small), LONG_S), is_live=True) is Rest.MOVED_ON
        nursery.cancel_scope.cancel()


async def test_an_idle_process_that_somebody_ends_is_replaced(tmp_path: Path) -> None:
    song = tmp_path / "song.bin"
    song.write_bytes(b"song")
    async with open_pool(1) as pool:
        first = await seen(pool, os.fsencode(song))
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not children())
        assert await seen(pool, os.fsencode(song)) == first
        for pid in children():
            os.kill(pid, signal.SIGKILL)
    assert not children()


async def test_a_call_takes_what_is_small_together_and_what_is_large_alone(tmp_path: Path) -> None:
    paths = [os.fsencode(tmp_path / f"{index}.bin") for index in range(3 * CALL_FILES)]
    for path in paths:
        with open(path, "wb") as file:  # noqa: ASYNC230 - nothing else runs yet
            file.write(path)

    async def calls(size_bytes: int) -> int:
        async with open_pool(1) as pool:
            async with trio.open_nursery() as nursery:
                for path in paths:
                    nursery.start_soon(_ask, pool, path, size_bytes)
            return pool.statistics.calls.count

    async def _ask(pool: Pool, path: bytes, size_bytes: int) -> None:
        assert isinstance(await pool.describe(Request(path, LONG_S), size_bytes=size_bytes), Observation)

    assert 3 <= await calls(1) < len(paths)
    assert await calls(CALL_BYTES) == len(paths)


def test_files_are_described_under_a_lower_limit_of_memory_than_our_own(library: Callable[..., Path]) -> None:
    """As a service manager or `ulimit -v` sets it: our limit cannot be raised above it."""
    (file,) = (path for path in library(1).rglob("*") if path.is_file())
    program = (
        "import sys\n"
        "from trackwatch.probe import Request, describe_all, prepare_process\n"
        "told = sys.stdout\n"
        "prepare_process()\n"
        "print(type(describe_all([Request(sys.argv[1].encode(), 9.0, True)])[0]).__name__, file=told, flush=True)\n"
    )
    limited = ["prlimit", f"--as={300 << 20}", sys.executable, "-c", program, str(file)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Observation\n", "")
