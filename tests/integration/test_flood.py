"""F58: connections of every kind at once, to a manager that has the fewest descriptors it may have.

libzmq accepts in a thread of its own and aborts the process at the limit (test_load.py shows that).
So this manager lives because of its shares alone (daemon/limits.py).
"""

import contextlib
import select
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from lighter.daemon.grpc.pb import version_pb2
from lighter.daemon.limits import CLIENTS, FLOOR, PAGE
from lighter.proto import errors
from lighter.proto.version import VERSION
from tests import lives
from tests.client import Client
from tests.grpc.client import Api
from tests.harness import Lighterd, await_that
from tests.integration.test_shim_memory import descriptors
from tests.lives import NO_STDIO, ask
from tests.registries import free_port

ANSWER_S = 180.0
NAMES = [f"c{number}" for number in range(3)]

# Connects without a pause longer than that of its pace, and holds what it has: so many at most.
SILENT = """
import select, socket, sys, time
where, most, burst = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if where[0] == "/":
    family, address = socket.AF_UNIX, where
else:
    family, address = socket.AF_INET, ("127.0.0.1", int(where))
held, made = [], 0
while not select.select([sys.stdin], [], [], 0.01 if burst else 0)[0]:
    for _ in range(burst or 100):
        one = socket.socket(family)
        one.setblocking(False)
        held.append(one)
        try:
            one.connect(address)
            made += 1
        except OSError:
            pass
    for one in held[:-most]:
        one.close()
    del held[:-most]
print(made)
"""

# Clients that say hello and call once; it says when some were served and some refused in words.
GREETING = """
import collections, select, sys
from lighter.proto import codec
from lighter.proto.dealer import Dealer
dealers = [Dealer(sys.argv[1], b"", 65536) for _ in range(int(sys.argv[2]))]
heard = collections.Counter()
told = False
while not select.select([sys.stdin], [], [], 0.05)[0]:
    for dealer in dealers:
        if not dealer.connected:
            dealer.connect()
        for frames in dealer.receive():
            message = codec.decode(frames)
            if isinstance(message, codec.Welcome):
                dealer.send(codec.encode(codec.Hello(message.generation, 1, [], {})))
                call = (message.generation, 1, "version", "get", None, {"namespace": ""}, {})
                dealer.send(codec.encode(codec.Request(*call)))
            else:
                heard[getattr(message, "code", "answered")] += 1
    if not told and heard["answered"] and heard["resource-exhausted"]:
        told = True
        print("both", flush=True)
"""


@contextlib.contextmanager
def flooding(program: str, *args: object) -> Iterator["subprocess.Popen[str]"]:
    """Runs it within the block."""
    argv = [sys.executable, "-I", "-c", program, *map(str, args)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        try:
            yield one
        finally:
            one.communicate("\n", timeout=ANSWER_S)


def has_said(one: "subprocess.Popen[str]") -> bool:
    return bool(select.select([one.stdout], [], [], 0)[0])


@contextlib.contextmanager
def peak(pid: int) -> Iterator[list[int]]:
    """The list has, afterwards, the most descriptors that the process was seen to have."""
    highest, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            with contextlib.suppress(OSError):
                highest[0] = max(highest[0], descriptors(pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()


def one_life(address: str, image: str, name: str) -> str:
    """A whole life of a container, or what was said against it."""
    try:
        with Client(address, timeout_s=ANSWER_S) as client:
            client.call("containers", "create", id=name, image=image, args=["true"])
            client.call("tasks", "create", id=name, timeout_s=ANSWER_S, **NO_STDIO)
            client.call("tasks", "start", id=name, timeout_s=ANSWER_S)
            client.call("tasks", "wait", id=name, exec_id="", timeout_s=ANSWER_S)
            return "lived"
    except (errors.ResourceExhausted, errors.Unavailable, errors.DeadlineExceeded) as err:
        return err.code


def page(port: int) -> int:
    """The status of Prometheus' page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/metrics", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as err:
        return err.code
    except OSError:  # it was let go before it had asked
        return 503


# How long it goes on, and how many connect at once, a hundred times a second: 0 for all they can.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("duration_s", "burst"), [(4, 20), pytest.param(120, 0, marks=pytest.mark.soak)]
)
def test_f58_floods_of_every_kind_end_no_manager(
    make_lighterd: Callable[..., Lighterd],
    record_property: Callable[[str, object], None],
    duration_s: float,
    burst: int,
) -> None:
    port = free_port()
    lighterd = make_lighterd(config=f'[metrics]\naddress = "127.0.0.1:{port}"\n', log_level="info")
    lighterd.prefix = ["prlimit", f"--nofile={FLOOR}:{FLOOR}"]
    lighterd.start()
    image = lighterd.import_busybox()
    old = {name: lives.begin(lighterd, image, name, "sleep", "1000") for name in NAMES}
    shims = lighterd.shims()
    await_that(lambda: page(port) == 200, 30, "the page is served")
    before = descriptors(lighterd.pid)
    lived: Counter[str] = Counter()

    def go_on(client: Client, pool: ThreadPoolExecutor, until: Callable[[], bool]) -> None:
        """Lives of others, while the floods go on."""
        end, last = time.monotonic() + duration_s / 2, time.monotonic() + ANSWER_S
        while time.monotonic() < end or not until():
            assert time.monotonic() < last, (highest, lived, lighterd.log_end())
            names = [f"n{lived.total() + more}" for more in range(4)]
            lived.update(pool.map(partial(one_life, lighterd.address, image), names))
            # Who was there before is served.
            assert client.call("version", "get", timeout_s=ANSWER_S)["version"] == VERSION
            assert lighterd.process is not None and lighterd.process.poll() is None
            assert page(port) in (200, 503)

    with (
        contextlib.ExitStack() as floods,
        peak(lighterd.pid) as highest,
        lighterd.client() as client,
        ThreadPoolExecutor(4) as pool,
    ):
        assert client.call("version", "get")["version"] == VERSION
        # Where a loaded machine may hold the loop up for a second, not more than fit at all.
        most = FLOOR // 2 if burst else 2 * FLOOR
        floods.enter_context(flooding(SILENT, lighterd.address, most, burst))
        floods.enter_context(flooding(SILENT, f"{lighterd.state}/shims.sock", 300, burst))
        floods.enter_context(flooding(SILENT, lighterd.grpc_address, 600, burst))
        floods.enter_context(flooding(SILENT, port, 2 * PAGE.places(FLOOR), burst))
        go_on(client, pool, lambda: lived["lived"] > 0)
        clients = CLIENTS.places(FLOOR) + 100
        crowd = floods.enter_context(flooding(GREETING, lighterd.address, clients))
        go_on(client, pool, lambda: has_said(crowd))
    record_property("descriptors at most", highest[0])
    record_property("lives", dict(lived))
    assert lighterd.process is not None and lighterd.process.poll() is None, lighterd.log_end()

    # All as it was, and as it is of use.
    assert (lighterd.shims()[: len(shims)], shims) == (shims, lighterd.shims()[: len(shims)])
    assert [lives.process_state(pid) for pid in old.values()] == ["S"] * len(old)
    for row in ask(lighterd, "containers.list", cursor="", limit=500)["containers"]:
        if row["id"] not in old:
            ask(lighterd, "containers.delete", id=row["id"], force=True)
    await_that(lambda: lighterd.shims() == shims, 30, "the others' shims have ended")
    await_that(lambda: descriptors(lighterd.pid) <= before + 10, 40, "descriptors are back")
    assert one_life(lighterd.address, image, "after") == "lived"
    with Api(lighterd.grpc_address) as api:
        assert api.call(version_pb2, "Version", "Version").version == VERSION
    assert page(port) == 200
    for name in NAMES:
        assert lighterd.ctl("exec", name, "true").returncode == 0
