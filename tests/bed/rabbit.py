"""A private RabbitMQ node: the installed server, run in a folder and on ports of its own, by whoever runs the tests.

It owns the node's process, its `epmd` (Erlang's name server, which would otherwise outlive the node) and everything
they write. A node keeps its ports and its data over `stop`, `kill` and `restart`, as a broker in production does.
Waits are for conditions, with deadlines. It knows nothing of trackwatch.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self
from urllib.parse import quote

from tests.bed.frozen import freeze

PLACE_VARIABLE = "TRACKWATCH_TEST_RABBITMQ"
# The ones on PATH switch to the user of the system's own broker, so these places come first and PATH is not asked.
SERVER_PLACES = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/rabbitmq*/sbin",
    "/usr/local/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
)
ERLANG_PLACES = ("/usr/lib/erlang", "/usr/lib64/erlang", "/usr/local/lib/erlang", "/opt/erlang*")
INSTALL = (
    f"no RabbitMQ server found: apt-get install rabbitmq-server, or set {PLACE_VARIABLE} to the folder of an unpacked "
    "server (the one that holds sbin/rabbitmq-server)"
)
NODE_NAME = "trackwatch@localhost"  # the private epmd keeps it apart from others of the same name
# Below Linux's range for outgoing connections, any of which could take a port while the node is down. Tests that run
# beside each other (pytest-xdist says which of how many these are) choose from a share of their own.
PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PORTS = range(20_000 + PROCESS, 32_000, PROCESSES)
START_DEADLINE_S = 120.0  # 4-6 s on an idle machine
STOP_DEADLINE_S = 60.0  # 1 s on an idle machine
POLL_S = 0.02
SHOWN = 3000  # characters of what it said, from the beginning: there is the cause, and then long crash reports
PORT_IN_USE = re.compile(r"eaddrinuse|dist_port_already_used|could not bind to distribution port")


class RabbitError(RuntimeError):
    """The node did not do what it was told; the message ends with what it said."""


class RabbitNotInstalledError(RabbitError):
    """There is no RabbitMQ server on this machine."""


class PortInUseError(RabbitError):
    """Somebody else took one of the node's ports between choosing and listening."""


class Installation(NamedTuple):
    """Where the programs are."""

    server: Path
    rabbitmqctl: Path
    epmd: Path
    path: str  # PATH for the scripts: they call `erl`


class Ports(NamedTuple):
    """The three ports of a node, all different."""

    amqp: int
    dist: int
    epmd: int


def find_installation() -> Installation:
    """Find the server's own scripts and Erlang's epmd, wherever the package put them.

    Raises:
        RabbitNotInstalledError: with what to install
    """
    chosen = os.environ.get(PLACE_VARIABLE)
    places = [f"{chosen}/sbin", f"{chosen}/bin", chosen] if chosen else SERVER_PLACES
    for folder in globbed(places):
        server, rabbitmqctl = folder / "rabbitmq-server", folder / "rabbitmqctl"
        if server.is_file() and rabbitmqctl.is_file():
            break
    else:
        raise RabbitNotInstalledError(INSTALL)
    erlangs = list(globbed(ERLANG_PLACES))
    if erl := shutil.which("erl"):
        erlangs.insert(0, Path(erl).resolve().parent.parent)
    for erlang in erlangs:
        for epmd in globbed([f"{erlang}/erts-*/bin/epmd"]):
            return Installation(server, rabbitmqctl, epmd, f"{erlang}/bin:/usr/local/bin:/usr/bin:/bin")
    raise RabbitNotInstalledError("RabbitMQ is installed but Erlang is not: apt-get install erlang-base")


def globbed(patterns: Iterable[str]) -> Iterator[Path]:
    """Yield what exists, the latest version of a pattern first."""
    for pattern in patterns:
        # A relative pattern (from the environment variable) is meant from here.
        absolute = Path(pattern).absolute()
        yield from sorted(Path("/").glob(str(absolute.relative_to("/"))), key=version, reverse=True)


def version(path: Path) -> tuple[int, ...]:
    """Return the numbers in a path, for putting versions in order."""
    return tuple(int(number) for number in re.findall(r"\d+", str(path)))


def free_ports() -> Ports:
    """Choose three ports that nobody listens on now (whether it stays so, only the start of the node can tell)."""
    chosen: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            # As the servers do it: connections of the past do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == len(Ports._fields):
            return Ports(*chosen)
    raise RabbitError(f"no free port in {PORTS}")


class RabbitNode:
    """One broker node. Use it as a context manager, or call `close`.

    `config` is added to its rabbitmq.conf; `environment` to the environment of its processes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        config: str = "",
        environment: Mapping[str, str] | None = None,
        ports: Ports | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()  # the scripts change their working directory
        self.installation = find_installation()
        self.config = config
        self.environment = dict(environment or {})
        self.ports: Ports = ports or free_ports()
        self._has_run = False  # from then on its ports are known to others, and stay
        self._vm: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- what it is ---

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self.ports.amqp

    @property
    def pid(self) -> int:
        """The process id of the Erlang VM.

        Raises:
            RabbitError: it is not running
        """
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process lives (a frozen one does)."""
        return self._vm is not None and self._vm.poll() is None

    def url(self, vhost: str = "/", *, user: str = "guest", password: str = "guest") -> str:
        """Return the AMQP URL of one of its vhosts."""
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"amqp://{credentials}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def log(self) -> str:
        """Return everything the node has written so far."""
        files = [self.folder / "console.log", *sorted((self.folder / "log").glob("*.log"))]
        return "".join(file.read_text(errors="replace") for file in files if file.is_file())

    # --- its life ---

    def start(self, *, wait: bool = True) -> None:
        """Start it with the data it has, and return when it greets; `wait=False` does not wait, but for the first time.

        A first start that loses a port to somebody else tries three other ports, a few times; a later one cannot.
        """
        if self.running:
            raise RabbitError("the node runs already")
        for attempt in range(5):
            try:
                self._start()
                if wait or not self._has_run:
                    self.wait_until_ready()
            except PortInUseError:
                self.close()
                if self._has_run or attempt == 4:
                    raise
                shutil.rmtree(self.folder / "mnesia")  # whatever a half start has left there
                self.ports = free_ports()
            except BaseException:
                self.close()
                raise
            else:
                break
        self._has_run = True

    def wait_until_ready(self, timeout_s: float = START_DEADLINE_S) -> None:
        """Wait until it greets a client.

        Raises:
            RabbitError: it ended instead, or took too long
        """
        deadline = time.monotonic() + timeout_s
        while not self.greets():
            if not self.running:
                raise self._failure("did not start")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {timeout_s:g} s")
            time.sleep(POLL_S)

    def greets(self) -> bool:
        """Whether a client that says hello gets an answer within a second."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(1)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"  # a method frame: connection.start
        except OSError:
            return False

    def stop(self, timeout_s: float = STOP_DEADLINE_S) -> None:
        """Stop it in an orderly way (SIGTERM); its data stays."""
        self.thaw()
        vm = self._running()
        vm.terminate()
        try:
            vm.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not stop within {timeout_s:g} s") from None

    def kill(self) -> None:
        """Kill it (SIGKILL); its data stays as it is."""
        vm = self._running()
        vm.kill()
        vm.wait()

    def freeze(self) -> None:
        """Stop it from running (SIGSTOP): the kernel goes on accepting connections and bytes, and nobody answers."""
        freeze([self.pid])

    def thaw(self) -> None:
        """Let a frozen one run again; nothing happens to any other."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop it if it runs, and start it again with its data, on its ports."""
        if self.running:
            self.stop()
        self.start()

    def close(self) -> None:
        """End all its processes. Its folder stays; `start` begins again from it."""
        for process in (self._vm, self._epmd):
            if process is not None:
                process.kill()
                process.wait()
        self._vm = self._epmd = None

    def flush_topology(self) -> None:
        """Have what was declared so far on disk, so that `kill` leaves it.

        Mnesia, which keeps exchanges, queues and bindings, writes its log some time after a declaration was answered.
        """
        self.rabbitmqctl("eval", "mnesia:sync_log().")

    def wait_until_registered(self, queue: str, vhost: str = "/", timeout_s: float = 10.0) -> None:
        """Wait until a quorum queue would survive `kill`.

        Ra, under the quorum queues, keeps its list of members in a file that it flushes some time after the declaration
        was answered. A queue that is not on it comes back empty and without a leader; publishing to it hangs.
        """
        name = f"{quote(vhost, safe='')}_{queue}".encode()
        deadline = time.monotonic() + timeout_s
        while not any(name in file.read_bytes() for file in self.folder.glob("mnesia/*/quorum/*/names.dets")):
            if time.monotonic() > deadline:
                raise self._failure(f"has no quorum queue {queue!r} on disk after {timeout_s:g} s")
            time.sleep(POLL_S)

    # --- asking it for things ---

    def rabbitmqctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """Run rabbitmqctl against the node and return what it printed (half a second a call).

        Raises:
            RabbitError: it failed, with its words
        """
        done = subprocess.run(
            [self.installation.rabbitmqctl, "-q", *args],
            env=self._environ(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise RabbitError(f"rabbitmqctl {' '.join(args)}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def add_vhost(self, *names: str, user: str = "guest") -> None:
        """Make vhosts in which a user may do everything; one call, however many there are."""
        permissions = {"user": user, "configure": ".*", "write": ".*", "read": ".*"}
        definitions = {
            "vhosts": [{"name": name} for name in names],
            "permissions": [{**permissions, "vhost": name} for name in names],
        }
        file = self.folder / "definitions.json"
        file.write_text(json.dumps(definitions))
        self.rabbitmqctl("import_definitions", str(file))

    def add_user(self, name: str, password: str, *, vhost: str | None = None, permissions: str = ".*") -> None:
        """Make a user; with a vhost, let it configure, write and read there what matches `permissions`."""
        self.rabbitmqctl("add_user", name, password)
        if vhost is not None:
            self.rabbitmqctl("set_permissions", "-p", vhost, name, permissions, permissions, permissions)

    # --- inside ---

    def _running(self) -> subprocess.Popen[bytes]:
        if self._vm is None or self._vm.poll() is not None:
            raise self._failure("is not running")
        return self._vm

    def _failure(self, what: str) -> RabbitError:
        """Return the error to raise: the kind that a start may answer with other ports, or the plain one."""
        console = self.folder / "console.log"
        said = console.read_text(errors="replace") if console.is_file() else ""
        kind = PortInUseError if not self.running and PORT_IN_USE.search(said) else RabbitError
        return kind(f"the RabbitMQ node in {self.folder} {what}; it said:\n{said[:SHOWN]}")

    def _start(self) -> None:
        for name in ("mnesia", "log", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.ports.amqp}\n"
            "log.console = false\nlog.file.level = info\n"
            f"disk_free_limit.absolute = 50MB\n{self.config}\n"
        )
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "console.log").unlink(missing_ok=True)  # an old start's clash is not this one's
        self._start_epmd()
        with (self.folder / "console.log").open("ab") as console:
            self._vm = self._spawn(console, self.installation.server)

    def _start_epmd(self) -> None:
        """Start our own epmd as our own child, unless it runs; otherwise the VM would start one that nobody ends."""
        if self._epmd is not None and self._epmd.poll() is None:
            return
        # Only its debugging output tells whether it listens; that somebody answers on its port would not.
        words = self.folder / "epmd.log"
        with words.open("wb") as output:
            arguments = ("-d", "-d", "-port", str(self.ports.epmd), "-address", "127.0.0.1")
            self._epmd = self._spawn(output, self.installation.epmd, *arguments)
        deadline = time.monotonic() + START_DEADLINE_S
        while "entering the main select() loop" not in words.read_text(errors="replace"):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                said = words.read_text(errors="replace")
                # It calls a taken port "already a epmd running", and a success.
                kind = PortInUseError if "already a epmd running" in said else RabbitError
                raise kind(f"epmd does not listen on port {self.ports.epmd}; it said:\n{said[:SHOWN]}")
            time.sleep(POLL_S)

    def _spawn(self, output: IO[bytes], *command: str | Path) -> subprocess.Popen[bytes]:
        # A session of its own: an interrupt at the terminal is for the tests, which then close the node.
        return subprocess.Popen(
            command,
            env=self._environ(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environ(self) -> dict[str, str]:
        """Return the whole environment: nothing of the machine's own broker, nothing of the caller's."""
        folder = self.folder
        return {
            "PATH": self.installation.path,
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),  # the VM makes its cookie there
            "detached": "1",  # the script then becomes the VM instead of staying its parent
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.ports.amqp),
            "RABBITMQ_DIST_PORT": str(self.ports.dist),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # No busy waiting in the schedulers: the machine is there for what is under test.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            **self.environment,
        }
