"""A socket and uvicorn: the application until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

import uvicorn
from starlette.applications import Starlette

from minillama.errors import MinillamaError
from minillama.serving.engine import Engine

# By these a machine is asked on its own loopback. A web page from elsewhere that makes its own name point there (DNS
# rebinding) comes under that name, and is refused.
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
GRACE = 2  # seconds at Ctrl-C to send what has to be sent


def bind(host: str, port: int) -> socket.socket:
    """A socket at host and port; port 0 is any that is free. Raises MinillamaError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where reuse would take over a port in use
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # from now on whoever comes waits, also while the model is loaded
    except OSError as error:
        raise MinillamaError(f"{host}:{port}: cannot listen there ({error.strerror or error})") from None
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def url(bound: socket.socket) -> str:
    """Where the socket is, for a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, which ends the engine first: answers under way are told so, and nobody is kept waiting."""

    def __init__(self, application: Starlette, engine: Engine) -> None:
        super().__init__(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=GRACE))
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What happens at Ctrl-C."""
        await asyncio.to_thread(self._engine.close)
        await super().shutdown(sockets)


def run(application: Starlette, engine: Engine, bound: socket.socket) -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        Server(application, engine).run(sockets=[bound])
