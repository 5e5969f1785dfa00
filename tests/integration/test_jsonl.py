"""The JSON-lines sink: what only files and pipes can do to it. The common contract is in test_sinks."""

import json
import os
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.sink_suite import PATIENCE_S, rows
from trackwatch.errors import BrokerRefused, BrokerUnavailable, SinkClosed
from trackwatch.event import CONFIRMED, Outcome
from trackwatch.jsonl import open_json_lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the end to read from, and the end to write to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # closed by the test
            continue


def lines(path: Path) -> list[bytes]:
    """Return the payloads in a file, which must end in a whole line."""
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return content.splitlines()


async def until_full(write_end: int) -> None:
    """Wait until a pipe takes no more. The kernel tells when there is room again, but not when there is none left."""
    with trio.fail_after(PATIENCE_S):
        while True:
            _, with_room, _ = select.select([], [write_end], [], 0)
            if not with_room:
                return
            await trio.sleep(0.01)


async def test_a_file_is_made_and_appended_to(tmp_path: Path) -> None:
    """Each session goes on at the end; every line is JSON."""
    path = tmp_path / "events.jsonl"
    batch = rows(3)
    for row in batch:
        async with open_json_lines(str(path)) as sink:
            await sink.publish([row], {})
    assert lines(path) == [row.payload for row in batch]
    assert [json.loads(line)["sequence"] for line in lines(path)] == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"sequence":9,"pad', b'{"sequence":9}', b"\0" * 40, b'{"a":"' + b"z" * 200_000])
@pytest.mark.parametrize("whole", [b"", b'{"sequence":8}\n', b'{"sequence":7}\n{"b":"' + b"w" * 100_000 + b'"}\n'])
async def test_an_unfinished_line_is_cut_off(tmp_path: Path, whole: bytes, tail: bytes) -> None:
    """What a crash left behind the last newline was never confirmed, and would spoil the line after it."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(whole + tail)
    (row,) = rows(1)
    async with open_json_lines(str(path)) as sink:
        await sink.publish([row], {})
    assert path.read_bytes() == whole + row.payload + b"\n"


async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """A wrong path must not cost anyone a line of their file."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"first\nno newline at the end")
    with pytest.raises(BrokerRefused, match="name another file"):
        async with open_json_lines(str(path)):
            pass
    assert path.read_bytes() == b"first\nno newline at the end"


async def test_a_missing_folder_is_a_sink_that_is_away(tmp_path: Path) -> None:
    """It may be mounted later."""
    with pytest.raises(BrokerUnavailable, match="no such file or directory"):
        async with open_json_lines(str(tmp_path / "absent" / "events.jsonl")):
            pass


async def test_a_file_that_was_deleted_confirms_nothing(tmp_path: Path) -> None:
    """Writes into a file without a name succeed, and are lost."""
    path = tmp_path / "events.jsonl"
    outcomes: dict[int, Outcome] = {}
    async with open_json_lines(str(path)) as sink:
        await sink.publish(rows(1), outcomes)
        path.unlink()
        with pytest.raises(BrokerUnavailable, match="no such file"):
            await sink.publish(rows(1, start=2), outcomes)
    assert list(outcomes) == [1]


async def test_a_file_that_was_rotated_is_opened_again_by_the_next_session(tmp_path: Path) -> None:
    """The rotated file keeps what was confirmed into it, and nothing else."""
    path, rotated = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    first, second = rows(2)
    async with open_json_lines(str(path)) as sink:
        await sink.publish([first], {})
        path.rename(rotated)
        path.touch()
        with pytest.raises(BrokerUnavailable, match="moved or replaced"):
            await sink.publish([second], {})
    async with open_json_lines(str(path)) as sink:
        await sink.publish([second], {})
    assert lines(rotated) == [first.payload]
    assert lines(path) == [second.payload]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
async def test_a_full_disk_heals_by_itself() -> None:
    """It is no reason to stop, and nothing is confirmed."""
    outcomes: dict[int, Outcome] = {}
    with pytest.raises(BrokerUnavailable, match="write to '/dev/full': no space left on device"):
        async with open_json_lines("/dev/full") as sink:
            await sink.publish(rows(3), outcomes)
    assert outcomes == {}


async def test_a_file_limit_in_mid_batch_keeps_what_is_whole(tmp_path: Path) -> None:
    """Rows that fitted are confirmed; the half one is cut off at the next opening, and is sent again."""
    # A file size limit stands in for the full disk: the kernel writes what fits, then says no.
    path = tmp_path / "events.jsonl"
    batch = rows(5)
    line_bytes = len(batch[0].payload) + 1
    outcomes: dict[int, Outcome] = {}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * line_bytes + 10, before[1]))
    try:
        async with open_json_lines(str(path)) as sink:
            with pytest.raises(BrokerUnavailable, match="file too large"):
                await sink.publish(batch, outcomes)
            with pytest.raises(BrokerUnavailable, match="broken off"):  # not behind half a line
                await sink.publish(batch, outcomes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert outcomes == {1: CONFIRMED, 2: CONFIRMED}
    assert path.stat().st_size == 2 * line_bytes + 10
    async with open_json_lines(str(path)) as sink:
        await sink.publish(batch[2:], outcomes)
    assert lines(path) == [row.payload for row in batch]


async def test_a_closed_pipe_ends_it_quietly(pipe: tuple[int, int]) -> None:
    """The reader has gone for good: what it took is confirmed, nothing else."""
    read_end, write_end = pipe
    outcomes: dict[int, Outcome] = {}
    async with open_json_lines(write_end) as sink:
        await sink.publish(rows(2), outcomes)
        os.close(read_end)
        with pytest.raises(SinkClosed, match="the reader has gone"):
            await sink.publish(rows(2, start=3), outcomes)
    assert list(outcomes) == [1, 2]


async def test_a_closed_descriptor_ends_it_quietly(pipe: tuple[int, int]) -> None:
    """As a shell leaves standard output after `>&-`."""
    os.close(pipe[1])
    with pytest.raises(SinkClosed):
        async with open_json_lines(pipe[1]) as sink:
            await sink.publish(rows(1), {})


async def test_a_descriptor_stays_open(pipe: tuple[int, int]) -> None:
    """It belongs to the caller."""
    async with open_json_lines(pipe[1]) as sink:
        await sink.publish(rows(1), {})
    os.fstat(pipe[1])


async def test_a_full_pipe_does_not_hold_up_the_stop(pipe: tuple[int, int]) -> None:
    """Cancellation returns while the write is stuck; what is confirmed then is in the pipe, in whole lines."""
    read_end, write_end = pipe
    batch = rows(2000)
    outcomes: dict[int, Outcome] = {}
    async with open_json_lines(write_end) as sink:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sink.publish, batch, outcomes)
                await until_full(write_end)
                scope.cancel()
                cancelled_at = trio.current_time()
        assert trio.current_time() - cancelled_at < 5  # a stuck write ends when somebody reads, and nobody does
        assert scope.cancelled_caught
        with pytest.raises(BrokerUnavailable, match="broken off"):
            await sink.publish(batch, {})
    confirmed = len(outcomes)
    assert 0 < confirmed < len(batch)
    content = bytearray()
    while content.count(b"\n") < confirmed:
        content += os.read(read_end, 1 << 16)
    assert content.splitlines()[:confirmed] == [row.payload for row in batch[:confirmed]]
    # The thread that was left behind ends when the fixture closes the pipe.


async def test_a_pipe_that_somebody_made_nonblocking_is_waited_for(pipe: tuple[int, int]) -> None:
    """O_NONBLOCK belongs to the open file, and whoever shares it may set it: that is no error of the pipe."""
    read_end, write_end = pipe
    os.set_blocking(write_end, False)
    batch = rows(2000)
    outcomes: dict[int, Outcome] = {}
    content = bytearray()

    def read_all() -> None:
        while len(content) < sum(len(row.payload) + 1 for row in batch):
            content.extend(os.read(read_end, 1 << 16))

    async with open_json_lines(write_end) as sink, trio.open_nursery() as nursery:
        nursery.start_soon(sink.publish, batch, outcomes)
        await until_full(write_end)
        with trio.fail_after(PATIENCE_S):
            await trio.to_thread.run_sync(read_all)
    assert len(outcomes) == len(batch)
    assert content.splitlines() == [row.payload for row in batch]


async def test_a_named_pipe_without_a_reader_is_a_sink_that_is_away(tmp_path: Path) -> None:
    """Opening one waits for its reader otherwise, in a way that nothing can cancel."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(BrokerUnavailable, match="no such device or address"):
        async with open_json_lines(str(path)):
            pass
