"""The sink contract, run against every real sink."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.bed.recorder import Recorder
from tests.sink_suite import PATIENCE_S, SUITE, Bench, Check
from trackwatch.amqp import Broker, open_amqp
from trackwatch.jsonl import open_json_lines
from trackwatch.publisher import Sink


class AmqpBench:
    """A vhost whose events are all recorded, by another AMQP implementation."""

    def __init__(self, url: str, recorder: Recorder) -> None:
        self._url = url
        self._recorder = recorder

    def open(self) -> AbstractAsyncContextManager[Sink]:
        return open_amqp(Broker(self._url), instance_id="suite")

    async def arrived(self, wanted: Iterable[bytes]) -> list[bytes]:
        payloads = set(wanted)
        complete = partial(self._recorder.wait_until, lambda seen: payloads <= {message.raw for message in seen})
        return [message.raw for message in await trio.to_thread.run_sync(complete)]


class FileBench:
    """A file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> AbstractAsyncContextManager[Sink]:
        return open_json_lines(str(self._path))

    async def arrived(self, wanted: Iterable[bytes]) -> list[bytes]:
        seen = self._path.read_bytes().split(b"\n")[:-1]
        assert set(wanted) <= set(seen)  # nothing to wait for: what is confirmed is on the disk
        return seen


class PipeBench:
    """A pipe, as standard output is one, with a reader at its other end."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        self._content = bytearray()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        os.close(self._write_end)
        self._reader.join()
        os.close(self._read_end)

    def open(self) -> AbstractAsyncContextManager[Sink]:
        return open_json_lines(self._write_end)

    async def arrived(self, wanted: Iterable[bytes]) -> list[bytes]:
        return await trio.to_thread.run_sync(self._wait, set(wanted))

    def _read(self) -> None:
        while data := os.read(self._read_end, 1 << 16):
            with self._changed:
                self._content += data
                self._changed.notify_all()

    def _lines(self) -> list[bytes]:
        return bytes(self._content).split(b"\n")[:-1]

    def _wait(self, wanted: set[bytes]) -> list[bytes]:
        with self._changed:
            assert self._changed.wait_for(lambda: wanted <= set(self._lines()), PATIENCE_S)
            return self._lines()


@pytest.fixture(params=[pytest.param("amqp", marks=pytest.mark.broker), "file", "pipe"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Each kind of sink, with the place where its events arrive."""
    match request.param:
        case "amqp":
            url = request.getfixturevalue("vhost_url")
            with Recorder(url) as recorder:
                yield AmqpBench(url, recorder)
        case "file":
            yield FileBench(tmp_path / "events.jsonl")
        case "pipe":
            pipe = PipeBench()
            yield pipe
            pipe.close()


@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
async def test_sink(check: Check, bench: Bench) -> None:
    """Every sink keeps every clause."""
    with trio.fail_after(2 * PATIENCE_S):
        await check(bench)
