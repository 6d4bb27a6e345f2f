"""The service in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType

from aiohttp import web

from simulator.admin import admin_routes
from simulator.population import ORGANIZATIONS
from simulator.service import Service, utc_now
from simulator.usage import Organization


class Simulator(Service):
    """The service on a port of this machine, while the `with` block runs.

    ::

        with Simulator() as simulator:
            simulator.faults.add(status(503, retry_after=1), times=2)
            ...  # GET {simulator.url}/api/v1/usage/export with `Authorization: Bearer sim-key-acme`
            assert [request.status for request in simulator.requests] == [503, 503, 200]

    It runs in a daemon thread with its own event loop. Every method may be called from any thread. Port 0 picks a free
    one.
    """

    def __init__(
        self,
        organizations: Iterable[Organization] = ORGANIZATIONS,
        keys: Mapping[str, Collection[str]] | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(organizations, keys, clock=clock)
        self.host = host
        self.port = port
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        """Return the address of the service, without a path."""
        return f"http://{self.host}:{self.port}"

    def application(self) -> web.Application:
        """Return the service with its admin API."""
        app = super().application()
        app.add_routes(admin_routes(self))
        return app

    def start(self) -> None:
        """Serve, and return once requests are accepted."""
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="simulator", daemon=True)
        self._thread.start()
        ready.result()

    def stop(self) -> None:
        """Stop at once, whatever answers are in flight."""
        self._stop()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve(self, ready: Future[None]) -> None:
        # A handler is cancelled when its client disconnects, so that no fault outlives its request.
        runner = web.AppRunner(self.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        try:
            await runner.setup()
            await web.TCPSite(runner, self.host, self.port).start()
            self.port = runner.addresses[0][1]
            ready.set_result(None)
            await stop.wait()
            # A stalled or endless answer would not end by itself.
            for connection in runner.server.connections if runner.server else ():
                if connection.transport:
                    connection.transport.abort()
        except Exception as error:  # raised by the call that waits for the start
            ready.set_exception(error)
        finally:
            await runner.cleanup()
