"""A manager made of scripted answers: a real ROUTER, the real codec, and nothing behind them.

    with FakeManager(path) as manager:
        manager.on("tasks.list", {"tasks": []})        answered with this body
        manager.on("tasks.kill", NotFound("…"))        answered with this error
        manager.on("events.subscribe", [item, item])   answered with a stream and an empty end
        manager.on("tasks.create", function)           called in the manager's thread with the
                                                       Ask; what it returns is treated as above
        manager.on("tasks.wait", HOLD)                 not answered until `ask.reply(…)`

`asked(method)` waits for a request and returns it. `restart()` is what a new manager is to its
clients: the socket goes, and comes back with a higher generation.
"""

import os
import queue
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import zmq

from lighter.daemon.wire import sockets
from lighter.proto import codec
from lighter.proto.errors import LighterError, Unimplemented

HOLD = object()
ASKED_S = 10.0


class Ask:
    """One request as it arrived."""

    def __init__(self, manager: "FakeManager", peer: bytes, request: codec.Request) -> None:
        self.method = f"{request.service}.{request.method}"
        self.body: dict[str, Any] = request.body
        self.namespace = request.metadata["namespace"]
        self.forced = "force" in request.metadata
        self.deadline_ns = request.deadline_ns
        self.generation = request.generation
        self._manager = manager
        self._peer = peer
        self._ident = request.ident

    def reply(self, answer: Any) -> None:
        """Answer from any thread: a body, an error, or a list of stream items."""
        generation, ident = self.generation, self._ident
        if isinstance(answer, LighterError):
            error = codec.Error(generation, ident, answer.code, answer.message, answer.details)
            self._send(error)
        elif isinstance(answer, list):
            self.items(answer)
            self._send(codec.End(generation, ident, {}))
        else:
            self._send(codec.Response(generation, ident, answer))

    def items(self, items: list[Any]) -> None:
        """Stream items without an end."""
        for item in items:
            self._send(codec.Data(self.generation, self._ident, item))

    def _send(self, message: codec.Message) -> None:
        self._manager.send(self._peer, message)


class FakeManager:
    """Bound in a thread of its own from `__enter__` to `__exit__`; its answers may change."""

    def __init__(self, path: str, *, generation: int = 1, versions: tuple[int, ...] = (1,)) -> None:
        self.path = path
        self.generation = generation
        self.hellos: queue.Queue[codec.Hello] = queue.Queue()
        self.credits: queue.Queue[codec.Credit] = queue.Queue()
        self.cancels: queue.Queue[codec.Cancel] = queue.Queue()
        self._versions = list(versions)
        self._answers: dict[str, Any] = {}
        self._asked: dict[str, queue.Queue[Ask]] = {}
        self._lock = threading.Lock()
        self._outgoing: queue.Queue[tuple[bytes, codec.Message] | None] = queue.Queue()

    def on(self, method: str, answer: Any) -> None:
        self._answers[method] = answer

    def asked(self, method: str, timeout_s: float = ASKED_S) -> Ask:
        """The next request for `method`. Raises queue.Empty when none comes."""
        return self._queue(method).get(timeout=timeout_s)

    def was_asked(self, method: str) -> bool:
        return not self._queue(method).empty()

    def send(self, peer: bytes, message: codec.Message) -> None:
        self._outgoing.put((peer, message))
        os.write(self._wake_writer, b"x")

    def stop(self) -> None:
        self._outgoing.put(None)
        os.write(self._wake_writer, b"x")
        self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def start(self) -> None:
        self._wake_reader, self._wake_writer = os.pipe()
        bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(bound,))
        self._thread.start()
        assert bound.wait(ASKED_S), "the fake manager could not bind"

    def restart(self) -> None:
        self.stop()
        self.generation += 1
        self.start()

    def __enter__(self) -> "FakeManager":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # inside the thread

    def _serve(self, bound: threading.Event) -> None:
        with sockets.context() as context:
            router = sockets.bind_router(context, self.path, 0o600, -1, sockets.SHIM_HWM)
            bound.set()
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            poller.register(self._wake_reader, zmq.POLLIN)
            try:
                while self._pass_on(router):
                    ready = dict(poller.poll())
                    if self._wake_reader in ready:
                        os.read(self._wake_reader, 4096)
                    if router in ready:
                        self._receive(router)
            finally:
                router.close(0)

    def _pass_on(self, router: "zmq.Socket[bytes]") -> bool:
        """Send what was asked for; whether to go on."""
        while not self._outgoing.empty():
            entry = self._outgoing.get()
            if entry is None:
                return False
            self._send_now(router, *entry)
        return True

    def _send_now(self, router: "zmq.Socket[bytes]", peer: bytes, message: codec.Message) -> None:
        try:
            router.send_multipart([peer, *codec.encode(message)])
        except zmq.ZMQError:
            pass  # the client has gone

    def _receive(self, router: "zmq.Socket[bytes]") -> None:
        peer, *frames = router.recv_multipart()
        if frames == [b""]:
            welcome = codec.Welcome(self.generation, self._versions, [])
            self._send_now(router, peer, welcome)
            return
        match codec.decode(frames):
            case codec.Hello() as hello:
                self.hellos.put(hello)
            case codec.Credit() as credit:
                self.credits.put(credit)
            case codec.Cancel() as cancel:
                self.cancels.put(cancel)
            case codec.Request() as request if request.generation == self.generation:
                self._answer(Ask(self, peer, request))

    def _answer(self, ask: Ask) -> None:
        self._queue(ask.method).put(ask)
        missing = Unimplemented(f"call {ask.method}: the test has no answer for it")
        answer = self._answers.get(ask.method, missing)
        if callable(answer):
            answer = answer(ask)
        if answer is not HOLD:
            ask.reply(answer)

    def _queue(self, method: str) -> "queue.Queue[Ask]":
        with self._lock:
            return self._asked.setdefault(method, queue.Queue())


class FakeProcess:
    """What a shim does with a caller's streams: opens their ends, and closes them at the end."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._fds = {
            name: os.open(body[name], os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            for name in ("stdin", "stdout", "stderr")
            if body[name]
        }

    def write(self, data: bytes, stream: str = "stdout") -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fds[stream], view) :]

    def read(self, size: int = 65536) -> bytes:
        return os.read(self._fds["stdin"], size)

    def has(self, stream: str) -> bool:
        return stream in self._fds

    def end(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
