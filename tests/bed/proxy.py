"""A TCP proxy in front of a broker, which a test can tell to refuse, stall, cut in mid-frame, slow down, or let pass.

What it does to a connection is what a network does: bytes come late, in pieces, or not at all, and connections end in
between. It changes no byte and drops none of a connection that lives. It knows just enough of AMQP to tell where a
frame begins. Threads, so that it needs nothing of what is under test.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from copy import copy
from enum import Enum
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16
SLOW_STEP_S = 0.02  # a slow line gets its bytes in so many seconds' worth at a time
CONNECT_DEADLINE_S = 5.0
END_DEADLINE_S = 10.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST and drops what was on its way


class Direction(Enum):
    """Which way bytes go."""

    UP = "to the broker"
    DOWN = "to the client"


BOTH = frozenset(Direction)


class Frames:
    """Where the frames of one direction of an AMQP connection begin and end."""

    GREETING_BYTES = 8  # a client begins with these, then come frames
    HEADER = struct.Struct(">BHI")  # type, channel, size of the payload; one end byte follows the payload

    def __init__(self, direction: Direction) -> None:
        self._missing = self.GREETING_BYTES if direction is Direction.UP else 0  # bytes to the end of this frame
        self._header = b""

    @property
    def inside(self) -> bool:
        """Whether the bytes so far end within a frame."""
        return bool(self._missing or self._header)

    def feed(self, data: bytes) -> None:
        """Take note of the bytes that come next."""
        position = 0
        while position < len(data):
            if not self._missing:
                wanted = self.HEADER.size - len(self._header)
                self._header += data[position : position + wanted]
                position += wanted
                if len(self._header) == self.HEADER.size:
                    self._missing = self.HEADER.unpack(self._header)[2] + 1
                    self._header = b""
            else:
                step = min(self._missing, len(data) - position)
                self._missing -= step
                position += step

    def middle(self, data: bytes) -> int | None:
        """Return how many of the next bytes to take to stop inside a frame, None if every one of them ends a frame.

        Some way before their end, so that whole frames pass before the broken one if there are several.
        """
        probe = copy(self)
        inside = []
        for count in range(1, len(data) + 1):
            probe.feed(data[count - 1 : count])
            inside.append(probe.inside)
        places = [count for count, within in enumerate(inside, 1) if within]
        return places[-(len(places) // 4) - 1] if places else None


class Proxy:
    """Listens on a port and passes everything on to another one of this machine. A context manager, or call `close`.

    All its orders take effect at once, on the connections there are and on those that come.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.target_port = target_port
        self.connections = 0  # how many were taken since the start
        self.cuts = 0  # connections cut in mid-frame
        # Everything below is read and written under this condition's lock.
        self._changed = threading.Condition()
        self._stalled: frozenset[Direction] = frozenset()
        self._cutting: Direction | None = None
        self._bytes_per_s: float | None = None
        self._listener: socket.socket | None = None
        self._lines: set[_Line] = set()
        self._threads: list[threading.Thread] = []
        self._listen(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> int:
        """How many connections there are now."""
        with self._changed:
            return len(self._lines)

    # --- orders ---

    def let_pass(self) -> None:
        """Be a good line again, for all: what was stalled goes on, and connections are taken."""
        with self._changed:
            self._stalled, self._cutting, self._bytes_per_s = frozenset(), None, None
            self._changed.notify_all()
        if self._listener is None:
            self._listen(self.port)

    def refuse(self) -> None:
        """End all connections (RST), and take none: whoever connects is refused, as by a machine without a broker."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for a connection
            listener.close()
        self.reset()

    def reset(self) -> None:
        """End all connections now (RST); new ones are taken."""
        with self._changed:
            lines = list(self._lines)
        for line in lines:
            line.end(reset=True)
        with self._changed:
            self._changed.notify_all()

    def stall(self, directions: frozenset[Direction] = BOTH) -> None:
        """Pass no more bytes on, in one direction or both; keep them, and keep taking connections."""
        with self._changed:
            self._stalled = directions

    def slow_down(self, bytes_per_s: float) -> None:
        """Pass so many bytes on in a second, in each direction of each connection."""
        with self._changed:
            self._bytes_per_s = bytes_per_s

    def cut_mid_frame(self, direction: Direction) -> None:
        """End each connection in the middle of the next frame in a direction, until told to let pass."""
        with self._changed:
            self._cutting = direction

    def wait_for_cut(self, cuts: int, timeout_s: float) -> bool:
        """Wait until so many connections were cut in mid-frame since the start; return whether they were."""
        with self._changed:
            return self._changed.wait_for(lambda: self.cuts >= cuts, timeout_s)

    def close(self) -> None:
        """End all connections and threads."""
        self.refuse()
        with self._changed:
            self._stalled, self._bytes_per_s = frozenset(), None
            self._changed.notify_all()
        deadline = time.monotonic() + END_DEADLINE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise RuntimeError(f"{thread.name} does not end")

    # --- its threads ---

    def _listen(self, port: int) -> None:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True, name=f"proxy on port {self.port}")
        with self._changed:
            self._threads = [*(other for other in self._threads if other.is_alive()), thread]
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed: we refuse
            while True:
                client, _ = listener.accept()
                self.connections += 1
                self._spawn(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        """Connect to the broker; if it takes nobody, neither do we, as far as that can be shown to a client."""
        try:
            broker = socket.create_connection(("127.0.0.1", self.target_port), CONNECT_DEADLINE_S)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        broker.settimeout(None)
        line = _Line(client, broker)
        with self._changed:
            self._lines.add(line)
            refusing = self._listener is None
        if refusing:  # told so in between
            line.end(reset=True)
        self._spawn(self._pump, line, Direction.UP)
        self._spawn(self._pump, line, Direction.DOWN)

    def _pump(self, line: "_Line", direction: Direction) -> None:
        source, target = (line.client, line.broker) if direction is Direction.UP else (line.broker, line.client)
        frames = Frames(direction)
        try:
            while data := source.recv(CHUNK_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: direction not in self._stalled or line.ended)
                    cut_at = frames.middle(data) if self._cutting is direction else None
                data = data[:cut_at]
                self._send(target, data, line)
                frames.feed(data)
                if cut_at is not None:
                    line.end()
                    with self._changed:
                        self.cuts += 1
                        self._changed.notify_all()
            target.shutdown(socket.SHUT_WR)  # who has said all may still listen
        except OSError:
            line.end()
        with self._changed:
            line.pumping -= 1
            self._changed.notify_all()
            if not line.pumping:
                self._lines.discard(line)
                line.close()

    def _send(self, target: socket.socket, data: bytes, line: "_Line") -> None:
        position = 0
        while position < len(data):
            bytes_per_s = self._bytes_per_s
            if bytes_per_s is None or line.ended:  # it need not be slow, or not any more
                step = len(data)
            else:
                step = max(1, int(bytes_per_s * SLOW_STEP_S))
                time.sleep(SLOW_STEP_S)
            target.sendall(data[position : position + step])
            position += step


class _Line:
    """One connection of a client, and ours to the broker for it."""

    def __init__(self, client: socket.socket, broker: socket.socket) -> None:
        self.client = client
        self.broker = broker
        self.pumping = len(Direction)  # threads that use it; the last one closes it
        self.ended = False
        for end in (client, broker):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def end(self, *, reset: bool = False) -> None:
        """End both halves; what was sent arrives before an orderly end, and is dropped by a reset."""
        self.ended = True
        for end in (self.client, self.broker):
            with contextlib.suppress(OSError):  # it has ended by itself
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)  # wakes its threads; to close it is theirs

    def close(self) -> None:
        """Give both sockets back."""
        self.client.close()
        self.broker.close()
