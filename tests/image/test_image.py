"""The image: what is in it, and the daemon at work in it, as an engine would run it with everything read-only.

`make image-test` runs these; `engine` says what they prove and what they cannot.
"""

import json
import os
import re
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.bed.recorder import Recorder
from tests.image.engine import BASE_VARIABLE, Buildah, Container, Image, Mount
from trackwatch import __version__
from trackwatch.errors import ExitCode

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

CONTEXT = Path(__file__).parents[2]
STATE, LIBRARY = "/var/lib/trackwatch", "/data/music"
USER = 10001
SOMEBODY = 12345  # whose library it is
ARGUMENTS = {"VERSION": __version__, "REVISION": "0123abc", "CREATED": "2026-01-02T03:04:05Z"}
DEADLINE_S = 60.0
POLL_S = 0.05
MB = 1e6

Figures = dict[str, str]
Make = Callable[..., Container]


@pytest.fixture(scope="session")
def buildah() -> Buildah:
    """The builder, with the storage where `make image-test` keeps it."""
    return Buildah(os.environ.get(BASE_VARIABLE) or CONTEXT / ".cache" / "image")


@pytest.fixture(scope="session")
def image(buildah: Buildah, figures: Figures) -> Iterator[Image]:
    """The image, built once for all tests."""
    with buildah.built(CONTEXT, "localhost/trackwatch:test", ARGUMENTS) as built:
        figures["built in"] = f"{built.build_seconds:.0f} s, on {built.base}"
        yield built


@pytest.fixture(scope="session")
def base(buildah: Buildah) -> Iterator[Path]:
    """The tree of the base, which tells what is not ours."""
    with buildah.unpacked(buildah.base()) as tree:
        yield tree


@pytest.fixture
def music(tmp_path: Path, library: Callable[..., Path]) -> Path:
    """A library of five files that belongs to somebody else; everybody may read it."""
    made = library(5)
    for path in (made, *made.rglob("*")):
        give(path, SOMEBODY)
    return made


@pytest.fixture
def state(image: Image, tmp_path: Path) -> Path:
    """A new volume for the state: as engines do it, it takes over what the image has in its place, owner included."""
    place = image.tree / STATE.lstrip("/")
    volume = Path(shutil.copytree(place, tmp_path / "state"))
    os.chown(volume, *ownership(place))
    return volume


@pytest.fixture
def container(image: Image, tmp_path: Path, music: Path, state: Path) -> Iterator[Make]:
    """Start containers with the library read-only and the state in its volume: `container(command=None, env={})`."""
    with ExitStack() as stack:
        numbers = count(1)

        def make(
            command: Sequence[str] | None = None, *, user: str = "", mounts: Sequence[Mount] = (), **env: str
        ) -> Container:
            used = replace(image, config={**image.config, "User": user}) if user else image
            volumes = mounts or (Mount(music, LIBRARY), Mount(state, STATE, "rw"))
            folder = tmp_path / f"container-{next(numbers)}"
            return stack.enter_context(Container(used, folder, mounts=volumes, env=env, command=command))

        yield make


# --- what is in it ---


def test_it_says_how_it_is_to_be_run(image: Image) -> None:
    config = image.config
    assert config["User"] == f"{USER}:{USER}", "a number: Kubernetes cannot verify a name"
    assert (config["Entrypoint"], config["Cmd"]) == (["trackwatch"], ["run"])
    assert list(config["Volumes"]) == [STATE]
    assert config["StopSignal"] == "SIGTERM"
    assert not config.get("ExposedPorts"), "nothing listens by default"
    assert "TRACKWATCH_HTTP" not in image.environ
    second_ns = 1_000_000_000
    health = config["Healthcheck"]
    assert health["Timeout"] < health["Interval"]
    assert 5 * second_ns <= health["Timeout"], "a busy machine takes seconds to start a Python"


def test_its_labels_say_what_it_is_and_what_it_was_built_from(image: Image) -> None:
    prefix = "org.opencontainers.image."
    labels = {
        key.removeprefix(prefix): value for key, value in image.config["Labels"].items() if key.startswith(prefix)
    }
    assert labels.pop("description")
    assert labels == {
        "title": "trackwatch",
        "licenses": "MIT",
        "version": ARGUMENTS["VERSION"],
        "revision": ARGUMENTS["REVISION"],
        "created": ARGUMENTS["CREATED"],
    }


def test_it_holds_no_compiler_no_pip_and_no_cache(image: Image, base: Path, figures: Figures) -> None:
    """Also none of the base's: only the first stage has a use for them."""
    names = set(files(image.tree))
    tools = re.compile(r"(^|/)(pip\d*(\.\d+)?|gcc|g\+\+|cc|clang|make|ld|uv|hatch|hatchling)$")
    assert [path for path in names if tools.search(path) and not path.startswith("usr/share/")] == []
    packages = re.compile(r"(site|dist)-packages/(pip|setuptools|hatchling|uv|wheel)(-|/|$)|ensurepip/|\.whl$")
    assert [path for path in names if packages.search(path)] == []
    assert [path for path in names if re.match(r"(root|home|var/lib/trackwatch|data|tmp|src|dist)/.*cache", path)] == []
    assert {path for path in names if path.startswith(("tmp/", "var/tmp/", "src/", "dist/", "opt/build/"))} == set()
    # Of what was installed, the one command; python and its two other names are links to the base's.
    assert [path for path in names if path.startswith("opt/trackwatch/bin/") and "/python" not in path] == [
        "opt/trackwatch/bin/trackwatch"
    ]
    size, of_base = size_bytes(image.tree), size_bytes(base)
    figures["size"] = f"{size / MB:.0f} MB, {(size - of_base) / MB:.0f} MB of it on top of the base"


def test_how_the_index_was_reached_has_left_no_trace(image: Image) -> None:
    names = files(image.tree)
    assert [path for path in names if path.endswith(("pip.conf", "ca.crt")) or path.startswith("run/secrets")] == []
    assert "PIP_" not in json.dumps(dict(image.config))


def test_its_user_owns_the_state_folder_and_nothing_else(image: Image) -> None:
    """Nobody who breaks into the daemon can change the program, wherever the tree is writable."""
    owned = [path for path in (*files(image.tree), *folders(image.tree)) if USER in ownership(image.tree / path)]
    assert owned == [STATE.lstrip("/")]
    assert stat.S_IMODE((image.tree / STATE.lstrip("/")).stat().st_mode) == 0o750


def test_nothing_in_it_gives_more_rights_than_the_base_does(image: Image, base: Path) -> None:
    """No program of another user's rights, and no folder or file that everybody may write to."""

    def risky(tree: Path) -> set[str]:
        found = set()
        for path in (*files(tree), *folders(tree)):
            mode = (tree / path).lstat().st_mode
            if mode & (stat.S_ISUID | stat.S_ISGID) or (mode & stat.S_IWOTH and not stat.S_ISLNK(mode)):
                found.add(path)
        return found

    assert risky(image.tree) - risky(base) == set()


def test_nothing_is_compiled_when_it_starts(image: Image, container: Make) -> None:
    """It could not keep what it has compiled: each health check would do it again, the standard library included."""
    for command, code in ((["trackwatch", "run", "--once"], 0), (["trackwatch", "status"], ExitCode.NOT_RUNNING)):
        ended = container(command, PYTHONVERBOSE="1")
        assert ended.wait() == code
        # Python quotes the name only where it is one of bytecode.
        loaded = re.findall(r"code object from '?([^'\n]+)", ended.stderr)
        assert any("site-packages/trackwatch/" in file for file in loaded)
        assert [file for file in loaded if not file.endswith(".pyc")] == []


# --- at work ---


def test_a_daemon_in_it_tells_a_broker_of_a_library_that_belongs_to_somebody_else(
    container: Make, music: Path, vhost_url: str, recorder: Callable[..., Recorder], figures: Figures
) -> None:
    """The whole life: import, live events, health, stop, and a start that has nothing to say."""
    witness = recorder(vhost_url, consume=True)
    began = time.monotonic()
    daemon = container(RABBITMQ_URL=vhost_url)
    created = witness.wait_for(5, DEADLINE_S)
    figures["events"] = f"5 of an import {time.monotonic() - began:.1f} s after the start"
    assert {message.body["event_type"] for message in created} == {"created"}
    assert {message.body["file_path"] for message in created} == {
        f"{LIBRARY}/{path.relative_to(music)}" for path in music.rglob("*") if path.is_file()
    }

    process = dict(line.split(":\t", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    assert process["NSpid"].split()[-1] == "1"
    assert set(process["Uid"].split()) == set(process["Gid"].split()) == {str(USER)}
    assert {int(process[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert process["NoNewPrivs"] == "1"
    figures["user"] = f"{process['Uid'].split()[0]}, process 1, no capabilities, no new privileges"

    # Root in the same place may not write either, so it is the file system that refuses, not permissions.
    for place in ("/", "/tmp", "/dev", "/opt/trackwatch", LIBRARY):
        refused = daemon.exec(["touch", f"{place}/new"], as_root=True)
        assert "Read-only file system" in refused.stderr, place
    assert daemon.exec(["touch", f"{STATE}/new"]).returncode == 0
    figures["file system"] = f"read-only: /, /tmp, /dev, {LIBRARY}; writable: {STATE}"

    shutil.copyfile(next(path for path in music.rglob("*") if path.is_file()), music / "new.mp3")
    began = time.monotonic()
    give(music / "new.mp3", SOMEBODY)
    (told,) = witness.wait_for(6, DEADLINE_S)[5:]
    assert (told.body["event_type"], told.body["relative_path"]) == ("created", "new.mp3")
    figures["a new file"] = f"told {time.monotonic() - began:.1f} s after it was finished (owned by {SOMEBODY})"

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    health = daemon.exec(daemon.image.health_command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (health.returncode, health.stdout, health.stderr) == (0, "", "")
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures["health check"] = f"0, for {1000 * spent_s:.0f} ms of a processor"

    code, seconds = daemon.stop()
    assert code == ExitCode.OK, daemon.stderr
    figures["stopped by SIGTERM"] = f"exit code {code} after {seconds:.2f} s"

    again = container(RABBITMQ_URL=vhost_url)
    wait_until(lambda: '"watching"' in again.stderr, again)
    assert again.stop()[0] == ExitCode.OK
    assert len(witness.messages) == 6, "nothing had changed"


def test_its_health_check_fails_once_the_daemon_was_killed(container: Make, figures: Figures) -> None:
    """With its process 1 a container is gone, so it is asked by another one on the same volume."""
    daemon = container()
    wait_until(lambda: '"watching"' in daemon.stderr, daemon)
    assert daemon.exec(daemon.image.health_command).returncode == 0
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    assert container(daemon.image.health_command).wait() == 1
    figures["health check, killed"] = "1"


def test_a_broker_that_is_away_is_no_reason_to_restart_it(container: Make) -> None:
    """Degraded is healthy for an engine: events wait in the state, and a restart would mend nothing."""
    daemon = container(RABBITMQ_URL="amqp://guest:guest@127.0.0.1:1/")
    wait_until(lambda: '"watching"' in daemon.stderr, daemon)
    status = daemon.exec(["trackwatch", "status", "--json"])
    assert json.loads(status.stdout)["broker"]["state"] == "unavailable"
    assert daemon.exec(daemon.image.health_command).returncode == 0


def test_it_can_be_another_user(container: Make, state: Path) -> None:
    """Libraries are often for one user's eyes; `--user` needs no name in the image, and a volume of that user's."""
    give(state, SOMEBODY)
    ended = container(["trackwatch", "run", "--once"], user=f"{SOMEBODY}:{SOMEBODY}")
    assert ended.wait() == ExitCode.OK, ended.stderr
    assert len(ended.stdout.splitlines()) == 5


@pytest.mark.parametrize("case", ["another's", "read-only", "not mounted"])
def test_a_state_that_cannot_be_written_is_said_in_one_line(
    case: str, container: Make, music: Path, state: Path, figures: Figures
) -> None:
    mounts = [Mount(music, LIBRARY)]
    if case == "another's":
        give(state, 0)
    if case != "not mounted":
        mounts.append(Mount(state, STATE, "ro" if case == "read-only" else "rw"))
    ended = container(mounts=mounts)
    assert ended.wait() == ExitCode.STORE
    reason = "permission denied" if case == "another's" else "read-only file system"
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["event"], line["exit_code"]) == ("fatal", ExitCode.STORE)
    assert line["reason"] == (
        f"cannot use state '{STATE}': {reason}; make it writable for user {USER},"
        " or set TRACKWATCH_STATE_DIR to a folder that is"
    )
    figures["state not writable"] = f"exit code {ExitCode.STORE.value}: {line['reason']}"


# --- to look at a tree ---


def files(tree: Path) -> list[str]:
    """Return the paths of all that is no directory, links included."""
    return [os.path.relpath(Path(place, name), tree) for place, _, names in os.walk(tree) for name in names]


def folders(tree: Path) -> list[str]:
    return [os.path.relpath(Path(place, name), tree) for place, names, _ in os.walk(tree) for name in names]


def ownership(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def give(path: Path, user: int) -> None:
    os.chown(path, user, user)


def size_bytes(tree: Path) -> int:
    """Return what the files of a tree hold; those with several names count once."""
    found = (os.lstat(tree / path) for path in files(tree))
    return sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values())


def wait_until(predicate: Callable[[], bool], container: Container) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not predicate():
        assert container.running, container.stderr
        assert time.monotonic() < deadline, container.stderr
        time.sleep(POLL_S)
