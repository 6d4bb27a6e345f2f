"""Servers on loopback that the simulator can't be, for `pytest_plugins = ["tests.loopback"]` in a `conftest.py`."""

from __future__ import annotations

import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

Answer = Callable[[bytes, bytes], Iterable[bytes]]
"""Makes the bytes to send, of a request and what the service would answer to it, had nothing been used."""


class Listener(socketserver.ThreadingTCPServer):
    """A server on loopback that keeps what it is sent, byte for byte, and answers as badly as a test wants.

    Without an answer of its own it is the service: the echo of the query, without rows.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Answer | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.answer: Answer = answer or (lambda request, proper: [proper])
        self.tls = tls
        self.requests: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Conversation)

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def headers(self, name: str) -> list[str | None]:
        """The values of a header in all requests."""
        fields = [dict(line.split(": ", 1) for line in text.decode().split("\r\n")[1:-2]) for text in self.requests]
        return [{key.lower(): value for key, value in each.items()}.get(name.lower()) for each in fields]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or refuses the certificate, is what many tests are about."""


class _Conversation(socketserver.BaseRequestHandler):
    server: Listener

    def handle(self) -> None:
        self.request.settimeout(10)
        stream = self.server.tls.wrap_socket(self.request, server_side=True) if self.server.tls else self.request
        with stream, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                if not (received := stream.recv(65536)):
                    return
                request += received
            self.server.requests.append(request)
            for piece in self.server.answer(request, proper_answer(request)):
                stream.sendall(piece)


def proper_answer(request: bytes) -> bytes:
    """What the service would answer, had nothing been used."""
    query = parse_qs(urlsplit(request.split(b" ", 2)[1].decode()).query)
    echo = {name: query.get(name, ["org_acme"])[0] for name in ("orgId", "startDate", "endDate", "groupBy")}
    body = json.dumps({**echo, "data": []}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n".encode() + body


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Start a listener: ``listen(answer, tls)``, where ``answer(request, proper)`` makes the bytes to send."""
    with ExitStack() as stack:

        def start(answer: Answer | None = None, tls: ssl.SSLContext | None = None) -> Listener:
            listener = stack.enter_context(Listener(answer, tls))
            threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(listener.shutdown)
            return listener

        yield start
