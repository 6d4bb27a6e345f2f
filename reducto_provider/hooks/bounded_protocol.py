"""Limit the headers and trailers of a response. aiohttp does so itself from 3.14 on."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

MAX_BYTES_WITHOUT_BODY: Final = 128 * 1024
"""Maximum number of bytes, one after the other, that are no part of a body: headers, interim responses, trailers."""

_PIECE_BYTES = 16 * 1024


def limit_headers(connector: aiohttp.TCPConnector) -> None:
    """
    Limit the headers and trailers on all connections of a connector.

    Older versions keep any number of headers. Their parser then makes a dict of them, also if the connection is closed
    before the last one: a million of the same name block the event loop for minutes, which no time limit can end.
    """
    if tuple(int(part) for part in aiohttp.__version__.split(".")[:2]) < (3, 14):
        handler = cast("type[ResponseHandler]", _BoundedResponseHandler)  # a partial's type is invariant
        connector._factory = partial(handler, loop=asyncio.get_running_loop())


class _BoundedResponseHandler(ResponseHandler):
    _received = 0
    _body: tuple[Any, int] = (None, 0)

    def set_response_params(self, **parameters: Any) -> None:
        self._received = 0
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            super().data_received(piece)
            if self.exception() is not None:
                return
            body = (self._payload, getattr(self._payload, "total_bytes", 0))
            self._received = self._received + len(piece) if body == self._body else 0
            self._body = body
            if self._received > MAX_BYTES_WITHOUT_BODY:
                self._refuse()
                return

    def _refuse(self) -> None:
        self._parser = None  # it would make a dict of all headers when the connection is lost
        if self._payload is not None:
            self._payload.set_exception(aiohttp.ClientPayloadError("too many trailers"))
        self.set_exception(HttpProcessingError(message="too many headers"))
        if self.transport is not None:
            self.transport.abort()
