"""A ClientServer or ShimRouter that runs in a thread, for tests that talk to it over real ipc."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from lighter.daemon.rpc.methods import Call, Method, Result
from lighter.daemon.rpc.server import ClientServer
from lighter.daemon.tasks.shims import ShimRouter
from lighter.daemon.wire import sockets
from lighter.proto.errors import NotFound

GENERATION = 7


class Service:
    """Methods to be called, and what became of the calls."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.cancelled: list[str] = []
        self.callers: list[Call] = []

    def methods(self) -> dict[str, Method]:
        return {
            "test.echo": Method(unary=self.echo),
            "test.fail": Method(unary=self.fail),
            "test.hang": Method(unary=self.hang),
            "test.big": Method(unary=self.big),
            "test.count": Method(stream=self.count),
        }

    async def echo(self, call: Call, body: Mapping[str, Any]) -> Any:
        self.executed.append("echo")
        self.callers.append(call)
        return body

    async def fail(self, _call: Call, body: Mapping[str, Any]) -> Any:
        if body.get("broken"):
            raise RuntimeError("a bug")
        if body.get("memory"):
            raise MemoryError
        if number := body.get("errno"):
            raise OSError(number, os.strerror(number), "/a/file")
        raise NotFound(f"find \udcff{'x' * body.get('length', 0)}: there is none")

    async def hang(self, _call: Call, _body: Mapping[str, Any]) -> Any:
        self.executed.append("hang")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append("hang")
            raise

    async def big(self, _call: Call, body: Mapping[str, Any]) -> Any:
        return {"data": b"x" * body["size"]}

    async def count(self, _call: Call, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        self.executed.append("count")
        try:
            number = 0
            while number != body.get("to"):
                number += 1
                yield {"n": number, "pad": b"x" * body.get("pad", 0)}
                await asyncio.sleep(0)
            yield Result({"total": number})
        finally:
            self.cancelled.append("count")


class Serving:
    """A running server; `do` runs something on its loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.address = ""

    def do(self, act: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)


@contextmanager
def _on_a_loop() -> Iterator[Serving]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Serving(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@contextmanager
def client_server(
    directory: Path, service: Service, gid: int = -1, **limits: Any
) -> Iterator[tuple[Serving, ClientServer]]:
    """Listening at `<directory>/c`, for this process's user alone, or a group too."""
    context: zmq.Context[zmq.Socket[bytes]] = sockets.context()
    with _on_a_loop() as serving:
        server = ClientServer(GENERATION, service.methods(), **limits)
        serving.address = str(directory / "c")
        serving.do(lambda: server.bind(context, serving.address, gid, 0o600))
        try:
            yield serving, server
        finally:
            serving.do(server.close)
    context.destroy(0)


@contextmanager
def shim_router(directory: Path, router: ShimRouter) -> Iterator[Serving]:
    """Listening at `<directory>/s`."""
    context: zmq.Context[zmq.Socket[bytes]] = sockets.context()
    with _on_a_loop() as serving:
        serving.address = str(directory / "s")
        serving.do(lambda: router.bind(context, serving.address))
        try:
            yield serving
        finally:
            serving.do(router.close)
    context.destroy(0)
