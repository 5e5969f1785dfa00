"""The fixtures of the test bed: brokers, libraries and daemons, all real, all gone after the test.

Tests that use a broker carry the marker `broker`. Without the server package they fail, and say what to install.
"""

import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.bed.daemon import AnyPath, Daemon
from tests.bed.rabbit import RabbitNode, RabbitNotInstalledError
from tests.bed.recorder import Recorder
from tests.bed.state import in_memory, made_state

# How long an example takes to make or to try is the machine's business: a slow one must not fail a test.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

BROKER_FIXTURES = {"rabbit", "vhost_url", "own_rabbit"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a broker."""
    for item in items:
        if BROKER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


def started_rabbit(folder: Path, config: str = "") -> RabbitNode:
    """Return a running node. A machine without the server fails the test: a skipped one would look like a pass."""
    try:
        node = RabbitNode(folder, config=config)
    except RabbitNotInstalledError as error:
        pytest.fail(str(error), pytrace=False)
    node.start()
    return node


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """The broker that tests share, each in a vhost of its own. Not for killing or freezing."""
    node = started_rabbit(tmp_path_factory.mktemp("rabbit"))
    yield node
    node.close()


@pytest.fixture(scope="session")
def vhost_names(rabbit: RabbitNode) -> Iterator[str]:
    """Names of fresh vhosts, made ten at a time because a call costs half a second."""

    def names() -> Iterator[str]:
        for batch in count():
            fresh = [f"test-{batch}-{number}" for number in range(10)]
            rabbit.add_vhost(*fresh)
            yield from fresh

    return names()


@pytest.fixture
def vhost_url(rabbit: RabbitNode, vhost_names: Iterator[str]) -> str:
    """The AMQP URL of a fresh vhost on the shared broker."""
    return rabbit.url(next(vhost_names))


@pytest.fixture
def own_rabbit(tmp_path: Path) -> Iterator[Callable[..., RabbitNode]]:
    """Make started nodes for this test alone, to kill and to freeze: `own_rabbit(config="")`."""
    with ExitStack() as stack:
        numbers = count(1)

        def make(config: str = "") -> RabbitNode:
            node = started_rabbit(tmp_path / f"rabbit-{next(numbers)}", config)
            stack.callback(node.close)
            return node

        yield make


@pytest.fixture
def recorder() -> Iterator[Callable[..., Recorder]]:
    """Make recorders that end with the test: `recorder(url, queue_type="quorum", consume=False)`."""
    with ExitStack() as stack:

        def make(url: str, **options: Any) -> Recorder:
            made = Recorder(url, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def library(tmp_path: Path) -> Callable[..., Path]:
    """Make directories of real audio files: `library(12, name="music", size_bytes=None, seed=0)`."""

    def make(files: int, *, name: str = "music", size_bytes: int | None = None, seed: int = 0) -> Path:
        # Here, because most tests have no use for it.
        from tests.data.make_library import make_library

        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        make_library(str(directory), files, size_bytes=size_bytes, seed=seed)
        return directory

    return make


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Make daemons that are not yet started: `daemon(roots, state_dir=None, env=..., args=...)` and Daemon's others."""
    with ExitStack() as stack:
        numbers = count(1)

        def make(
            roots: AnyPath | Iterable[AnyPath],
            state_dir: str | os.PathLike[str] | None = None,
            *,
            env: Mapping[str, str] | None = None,
            args: Sequence[str] = (),
            user: int | None = None,
            unprivileged: bool = False,
            measured: bool = True,
        ) -> Daemon:
            state = state_dir or tmp_path / f"state-{next(numbers)}"
            made = Daemon(roots, state, env=env, args=args, user=user, unprivileged=unprivileged, measured=measured)
            return stack.enter_context(made)

        yield make


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user can reach, for daemons with `user=` (pytest's own belong to one user alone)."""
    with tempfile.TemporaryDirectory(prefix="trackwatch-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def mount() -> Iterator[Callable[..., Callable[[], None]]]:
    """Mount something: `unmount = mount("-t", "tmpfs", "none", path)`; what is left is unmounted after the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with ExitStack() as stack:

        def make(*arguments: str | Path) -> Callable[[], None]:
            done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"cannot mount here: {done.stderr.strip()}")
            is_mounted = [True]

            def unmount() -> None:
                if is_mounted:
                    # Lazily: the watcher may be looking at it this very moment, which is no business of this test.
                    subprocess.run(["umount", "--lazy", arguments[-1]], check=True)
                    is_mounted.clear()

            stack.callback(unmount)
            return unmount

        yield make


@pytest.fixture(scope="session")
def empty_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A new state, to be copied and not to be written to."""
    with closing(made_state(tmp_path_factory.mktemp("state"))) as made:
        yield made


@pytest.fixture
def conn(empty_state: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A new state in memory."""
    with in_memory(empty_state) as copy:
        yield copy
