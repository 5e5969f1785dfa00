"""The image, built from the Dockerfile and run, on a machine without a container engine.

buildah builds it in chroots, on a base that debootstrap makes once from the machine's own Debian mirror. What an engine
would do to run it read-only, without capabilities and with its volumes, util-linux does here: mount and process
namespaces of its own, the image's tree mounted read-only, `chroot`, and `setpriv` to the image's user.

What that proves: what the Dockerfile makes, and how it behaves under that user, as process 1, without one byte that it
may write outside its volume. What it does not: the real base image (another build of Python than Debian's), a network
namespace, an engine's seccomp profile, SELinux and AppArmor.

`python -m tests.image.engine prepare FOLDER` makes the base and tries the namespaces; it ends with 1 and says why where
that cannot be. Needs root.
"""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

TOOLS = ("buildah", "debootstrap", "unshare", "nsenter", "setpriv", "chroot", "mount", "tar")
PACKAGES = ("python3", "python3-venv", "ca-certificates")
BASE = "localhost/trackwatch-base"
# Slim Python images come without bytecode of the standard library; so does this one. The rest is what apt leaves.
LEFT_OUT = ("__pycache__", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*", "./dev/*", "./usr/share/doc/*")
# Where to keep the base between runs; `make` sets it.
BASE_VARIABLE = "TRACKWATCH_TEST_IMAGE_DIR"
BUILD_DEADLINE_S = 600.0
START_DEADLINE_S = 60.0
POLL_S = 0.02
TAIL_CHARACTERS = 4000
# Where the Dockerfile mounts the secrets of a build.
PIP_SECRET, AUTHORITY_SECRET = "pip.conf", "ca.crt"
AUTHORITY_PLACE = "/run/secrets/ca.crt"
# Of pip's settings, those that say how to reach an index; a build has no business with the rest.
PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "cert")
# Runs as root in namespaces of its own: mounts the tree of an image as an engine does, then becomes the command.
# Arguments: root, user, group, working directory; source, target and options of each mount; `--`; the command.
ENTER = """
set -eu
root=$1 user=$2 group=$3 place=$4; shift 4
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,noexec,mode=755,size=64k none "$root/dev"
for device in null zero full random urandom; do
    : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mount -o remount,bind,ro "$root/dev"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"; mount -o "remount,bind,$3" "$root$2"; shift 3
done
shift
exec chroot "$root" /usr/bin/env -C "$place" setpriv --reuid="$user" --regid="$group" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all -- "$@"
"""


class EngineError(AssertionError):
    """Something could not be built or run; the message ends with what was said."""


class Mount(NamedTuple):
    """A directory of the host and where a container sees it."""

    source: Path
    target: str
    options: str = "ro"


@dataclass(frozen=True)
class Image:
    """A built image: its tree on disk (not to be written to), and what it says of how to run it."""

    name: str
    base: str
    tree: Path
    config: Mapping[str, Any] = field(repr=False)
    build_seconds: float

    @property
    def command(self) -> list[str]:
        """What runs when nobody says otherwise."""
        return [*(self.config["Entrypoint"] or []), *(self.config["Cmd"] or [])]

    @property
    def health_command(self) -> list[str]:
        """The health check, as it is in the Dockerfile."""
        kind, *command = self.config["Healthcheck"]["Test"]
        return ["/bin/sh", "-c", *command] if kind == "CMD-SHELL" else command

    @property
    def environ(self) -> dict[str, str]:
        """The environment that the image sets."""
        return dict(variable.split("=", 1) for variable in self.config["Env"])


class Buildah:
    """buildah with a storage of its own in a folder, so that nothing of the machine's is touched."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()

    def base(self) -> str:
        """Return the name of the base image, made now if it is not there: a minimal Debian with Python.

        Raises:
            EngineError: there is no mirror, or it could not be reached.
        """
        codename, mirror = debian_mirror()
        name = f"{BASE}:{codename}"
        if self._call("images", "--quiet", "--filter", f"reference={name}").strip():
            return name
        with self._scratch() as scratch:
            tree, archive = scratch / "tree", scratch / "base.tar"
            call("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", codename, str(tree), mirror)
            left_out = [f"--exclude={pattern}" for pattern in LEFT_OUT]
            call("tar", *left_out, "-C", str(tree), "-cf", str(archive), ".")
            container = self._call("from", "scratch").strip()
            self._call("add", "--quiet", container, str(archive), "/")
            self._call("commit", "--quiet", "--rm", container, name)
        return name

    @contextmanager
    def built(self, context: Path, name: str, arguments: Mapping[str, str]) -> Iterator[Image]:
        """Build a context's Dockerfile, and unpack it for as long as the block runs.

        Raises:
            EngineError: a step has failed.
        """
        base = self.base()
        with self._scratch() as scratch:
            options = [f"--build-arg={key}={value}" for key, value in {**arguments, "BASE": base}.items()]
            options += [f"--secret=id={key},src={file}" for key, file in secrets(scratch).items()]
            # Docker's format: the OCI one has no health check.
            began = time.monotonic()
            self._call("build", "--format=docker", "--layers=false", *options, "--tag", name, str(context))
            build_seconds = time.monotonic() - began
        container = self._call("from", "--pull-never", name).strip()
        try:
            tree = Path(self._call("mount", container).strip())
            described = json.loads(self._call("inspect", "--type=image", name))
            yield Image(name, base, tree, described["Docker"]["config"], build_seconds)
        finally:
            self._call("umount", container)
            self._call("rm", container)
            self._call("rmi", name)

    @contextmanager
    def unpacked(self, name: str) -> Iterator[Path]:
        """Give the tree of an image that is there, for as long as the block runs."""
        container = self._call("from", "--pull-never", name).strip()
        try:
            yield Path(self._call("mount", container).strip())
        finally:
            self._call("umount", container)
            self._call("rm", container)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            yield Path(scratch)

    def _call(self, *arguments: str) -> str:
        # Nothing but a file system and chroot is asked of the machine: no overlay, no user namespaces, no runc.
        storage = ("--root", f"{self.folder}/storage", "--runroot", f"{self.folder}/run", "--storage-driver", "vfs")
        return call("buildah", *storage, *arguments, BUILDAH_ISOLATION="chroot")


class Container:
    """An image at work: its command, or another, in namespaces of its own. A context manager, or call `close`.

    The tree is read-only, `/tmp` and `/dev/shm` too, which is stricter than an engine's `--read-only`. The network is
    the host's, so that a broker on the loopback address can be reached.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        *,
        mounts: Sequence[Mount] = (),
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.image = image
        self.env = {**image.environ, **(env or {})}
        folder.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        user, _, group = str(image.config["User"]).partition(":")
        self._become = [user, group or user, str(image.config["WorkingDir"] or "/")]
        arguments = [str(image.tree), *self._become, *(str(part) for mount in mounts for part in mount), "--"]
        spaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--"]
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._unshare = subprocess.Popen(
                [*spaces, "/bin/sh", "-c", ENTER, "sh", *arguments, *(image.command if command is None else command)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process 1 of the container, by its number on the host.

        Raises:
            EngineError: it has ended.
        """
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        while self.running:
            if numbers := children.read_text().split():
                return int(numbers[0])
            time.sleep(POLL_S)  # it is being made
        raise self._failure("is not running")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._unshare.poll() is None

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._stderr.read_text(errors="replace")

    def exec(self, command: Sequence[str], *, as_root: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command beside it, as `docker exec` does, under the image's user."""
        user, group, place = self._become
        spaces = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--ipc", "--uts", "--root", "--"]
        become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        become += ["--bounding-set=-all", "--inh-caps=-all", "--"]
        return subprocess.run(
            [*spaces, "/usr/bin/env", "-C", place, *([] if as_root else become), *command],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_DEADLINE_S,
            check=False,
        )

    def stop(self) -> tuple[int, float]:
        """Send the image's stop signal; return the exit code and how many seconds it took."""
        began = time.monotonic()
        os.kill(self.pid, signal.Signals[str(self.image.config["StopSignal"])])
        return self.wait(), time.monotonic() - began

    def wait(self, timeout_s: float = START_DEADLINE_S) -> int:
        """Wait until it ends by itself; return its exit code.

        Raises:
            EngineError: it did not.
        """
        try:
            return self._unshare.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {timeout_s:g} s") from None

    def close(self) -> None:
        """Kill what still runs of it; the kernel ends whatever else was in its process namespace."""
        self._unshare.kill()
        self._unshare.wait()

    def _failure(self, what: str) -> EngineError:
        return EngineError(f"the container {what}; it said:\n{self.stderr[-TAIL_CHARACTERS:]}")


def call(*command: str, **environment: str) -> str:
    """Run a tool of the machine to its end, and return what it printed.

    Raises:
        EngineError: it failed, with its words.
    """
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = f"{done.stdout[-TAIL_CHARACTERS:]}{done.stderr[-TAIL_CHARACTERS:]}"
        raise EngineError(f"{' '.join(command)}: exit {done.returncode}:\n{said}")
    return done.stdout


def debian_mirror() -> tuple[str, str]:
    """Return the release that this machine runs and the mirror that it gets it from, as apt knows them.

    Raises:
        EngineError: apt knows none.
    """
    release = re.search(r"^VERSION_CODENAME=\"?(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    form = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    indexes = call("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for codename, component, mirror in (line.split(" ", 2) for line in indexes.splitlines()):
        if release and (codename, component) == (release[1], "main"):
            return codename, mirror
    raise EngineError("apt knows no mirror of this machine's release; `apt-get update` tells what is wrong")


def secrets(folder: Path) -> dict[str, Path]:
    """Write what pip needs on this machine to reach its index, for the secrets of a build: perhaps nothing.

    Settings come from the places where pip looks for them, the environment last. Indexes that are folders of this
    machine are left out: a build does not see them.
    """
    settings: dict[str, str] = {}
    files = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
    reader = configparser.RawConfigParser()
    reader.read([*map(os.path.expanduser, files), os.environ.get("PIP_CONFIG_FILE", "")])
    for section in ("global", "install"):
        if reader.has_section(section):
            settings |= {key: value for key, value in reader.items(section) if key in PIP_KEYS}
    # The environments were made by uv, which may have been told of an index by its own names alone.
    names = {"index-url": ("UV_INDEX_URL", "UV_DEFAULT_INDEX"), "cert": ("SSL_CERT_FILE",)}
    for key in PIP_KEYS:
        own_name = f"PIP_{key.upper().replace('-', '_')}"
        for name in (*(name for name in names.get(key, ()) if key not in settings), own_name):
            if value := os.environ.get(name):
                settings[key] = value
    for key in ("index-url", "extra-index-url"):
        reachable = [url for url in settings.pop(key, "").split() if not url.startswith(("file:", "/"))]
        if reachable:
            settings[key] = " ".join(reachable)
    made: dict[str, Path] = {}
    if authority := settings.pop("cert", None):
        made[AUTHORITY_SECRET] = folder / AUTHORITY_SECRET
        shutil.copyfile(authority, made[AUTHORITY_SECRET])
        settings["cert"] = AUTHORITY_PLACE
    if settings:
        made[PIP_SECRET] = folder / PIP_SECRET
        lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
        made[PIP_SECRET].write_text("\n".join([*lines, ""]))
    return made


def prepare(folder: Path) -> str:
    """Make the base, and try whether this machine allows what running an image takes.

    Raises:
        EngineError: a tool is missing, there is no mirror, or the kernel refuses.
    """
    if os.geteuid() != 0:
        raise EngineError("building and running an image takes root")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise EngineError(f"not installed: {', '.join(missing)}")
    call("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "mount", "-t", "proc", "proc", "/proc")
    return Buildah(folder).base()


def main() -> None:
    """Prepare the machine, or say in one line why that cannot be."""
    match sys.argv[1:]:
        case ["prepare", folder]:
            try:
                print(prepare(Path(folder)))
            except EngineError as error:
                sys.exit(f"the image cannot be built or run here: {error}")
        case _:
            sys.exit("python -m tests.image.engine prepare FOLDER")


if __name__ == "__main__":
    main()
