"""The HTTP face: `/livez`, `/readyz` and `/metrics`, for orchestrators and Prometheus. Knows hypercorn and starlette.

It has no authentication, and is on no address unless TRACKWATCH_HTTP names one. Whatever becomes of it, the daemon's
work goes on: an address that is taken is asked for again.
"""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import structlog
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from trackwatch.backoff import Backoff

# How long a client may take to say what it wants, and an idle connection lasts.
READ_S, KEEP_S = 10, 5.0
# What is being answered while everything stops has so long.
GRACE_S = 0.3
# hypercorn does not let go of an answer that its client does not read, not even when cancelled. So there is one answer
# a connection, and that fits into what the kernel takes of it at once.
SEND_BUFFER_BYTES = 4 * 1024 * 1024
RETRY_S = (1.0, 30.0)

log = structlog.get_logger()


@dataclass(slots=True)
class WebState:
    """How the face stands; written by its task alone."""

    address: str
    word: str = "starting"  # listening, unavailable
    reason: str = ""
    failures: int = 0  # times it was begun again


@dataclass(frozen=True, slots=True)
class Answers:
    """Where the answers come from."""

    not_ready: Callable[[], list[str]]  # reasons; none: ready
    metrics: Callable[[], Awaitable[tuple[bytes, str]]]  # the text, and its content type


class Web:
    """Answers while `run` runs."""

    def __init__(self, host: str, port: int, answers: Answers) -> None:
        self.state = WebState(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self._host = host
        self._port = port
        self._app = Starlette(
            routes=[
                Route("/livez", _live),
                Route("/readyz", partial(_ready, answers)),
                Route("/metrics", partial(_metrics, answers)),
            ]
        )

    async def run(self) -> None:
        """Answer until cancelled."""
        backoff = Backoff(*RETRY_S)
        while True:
            try:
                await self._serve(backoff)
            except* OSError as group:
                self._lost(_reason(group))
            except* Exception as group:
                # A defect of a server that no event depends on: told with its story, and begun again.
                self._lost("its server failed: " + _reason(group), group)
            self.state.failures += 1
            await trio.sleep(backoff.next_s())

    async def _serve(self, backoff: Backoff) -> None:
        config = _Config(self._host, self._port)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, cast("ASGIFramework", self._app), config, mode="asgi"))
            self.state.word, self.state.reason = "listening", ""
            backoff.reset()
            log.info("http listening", address=self.state.address, words=self.state.address)

    def _lost(self, reason: str, defect: BaseException | None = None) -> None:
        words = f"{reason}; trying again (TRACKWATCH_HTTP={self.state.address})"
        if (self.state.word, self.state.reason) != ("unavailable", words):
            log.error("http unavailable", address=self.state.address, reason=words, exc_info=defect)
        self.state.word, self.state.reason = "unavailable", words


class _Config(Config):
    """hypercorn's settings; it would parse an address again, and fall back to port 8000 in silence."""

    def __init__(self, host: str, port: int) -> None:
        self._at = host, port
        self.accesslog = None
        self.errorlog = logging.getLogger("trackwatch.web")
        self.loglevel = "WARNING"
        self.include_server_header = False
        self.read_timeout = READ_S
        self.keep_alive_timeout = KEEP_S
        self.keep_alive_max_requests = 1
        self.graceful_timeout = GRACE_S

    def create_sockets(self) -> Sockets:
        """Open the one socket. Raises OSError."""
        host, port = self._at
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            listening.bind(address)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
        return Sockets([], [listening], [])


async def _live(_request: Request) -> Response:
    """Whoever gets this knows that the event loop turns; a broker that is away would not be healed by a restart."""
    return PlainTextResponse("ok\n")


async def _ready(answers: Answers, _request: Request) -> Response:
    reasons = answers.not_ready()
    return PlainTextResponse("\n".join(reasons or ["ok"]) + "\n", 503 if reasons else 200)


async def _metrics(answers: Answers, _request: Request) -> Response:
    content, content_type = await answers.metrics()
    return Response(content, headers={"content-type": content_type})


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError):
        if error.errno == errno.EADDRINUSE:
            return "the address is in use by another program"
        return (error.strerror or str(error)).lower()
    return f"{type(error).__name__}: {error}"
