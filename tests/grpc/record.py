"""Record what real clients ask: `.venv/bin/python tests/grpc/record.py`, as root.

ctr 1.7, dockerd 26 with its images in the manager and Debian's ctr ask a manager through a proxy,
which writes down what passes. Of requests of one method that have the same fields one is kept.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

# At the end: the repository's folder `daemon` must not hide python-daemon.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests import census, images
from tests.docker.enclosure import Enclosure
from tests.docker.engine import Engine
from tests.grpc import requests
from tests.grpc.newer import CTR
from tests.grpc.test_fuzz import input_of
from tests.harness import Lighterd

MOST_BYTES = 24 << 10
MOST_OF_A_METHOD = 6
ANSWERED_S = 120.0
# No request is kept that names a path here.
LOCAL = (b"/tmp/", b"/home/", b"/root/", bytes(Path(__file__).resolve().parents[2]))

BY_CTR = """
version
plugins ls
namespaces create other a=b
namespaces label other a=c
namespaces ls
namespaces rm other
leases create --id mine a=b
leases ls
images import {archive}
images import --local=false {archive}
images tag --force {image} made:1
images label made:1 a=b
images ls
images check
images usage {image}
images export {base}/out.tar {image}
images export --local=false {base}/out.tar {image}
images convert --uncompress {image} made:2
images mount {image} {base}/mounted
images unmount --rm {base}/mounted
images rm --sync made:1 made:2
content ls
content active
content label {digest} a=b
content get {digest}
snapshots ls
snapshots tree
snapshots usage
snapshots prepare --mounts work
snapshots info work
snapshots label work a=b
snapshots mounts {base}/mounted work
snapshots diff work
snapshots commit made work
snapshots view {base}/mounted made
snapshots rm {base}/mounted
snapshots rm made
containers create --env A=b --label a=b {image} made sleep 600
containers ls
containers info made
containers label made a=c
containers rm made
run -d --memory-limit 67108864 --cwd /tmp {image} c sleep 600
tasks ls
tasks ps c
tasks exec --exec-id x --user 1 c true
tasks exec --exec-id y --cwd /tmp c sh -c true
tasks metrics c
tasks pause c
tasks resume c
tasks kill -s KILL c
tasks delete -f c
containers rm c
leases rm --sync mine
images rm --sync {image}
"""
BY_DOCKER = """
run -d --name box -m 64m --pids-limit 50 -e A=b -v data:/data {image} sleep 600
exec box true
exec -u 1 -w /tmp box true
top box
pause box
unpause box
update --pids-limit 60 box
stats --no-stream box
commit box made:1
tag made:1 made:2
history made:1
save -o {base}/saved.tar made:2
rmi made:1 made:2
load -i {base}/saved.tar
stop -t 0 box
start box
rm -fv box
image prune -af
system df
"""


class Recorder(grpc.GenericRpcHandler):
    """A server at `path` that passes everything on to `behind`. `lighterd`: whose paths to hide."""

    def __init__(self, path: str, behind: str, hide: list[Path]) -> None:
        self.kept: dict[str, dict[object, bytes]] = {}
        self._hide = [str(one).encode() for one in hide]
        sizes = [("grpc.max_receive_message_length", 64 << 20)]
        self._behind = grpc.insecure_channel(f"unix:{behind}", options=sizes)
        self._server = grpc.server(ThreadPoolExecutor(200), handlers=[self], options=sizes)
        self._server.add_insecure_port(f"unix:{path}")

    def __enter__(self) -> "Recorder":
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(1).wait()
        self._behind.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = handler_call_details.method

        def pass_on(asked: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            headers = [pair for pair in context.invocation_metadata() if pair[0] != "user-agent"]
            call = self._behind.stream_stream(name)(self._note(name, asked), metadata=headers)
            context.add_callback(call.cancel)
            try:
                yield from call
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata() or ())
                context.abort(call.code(), call.details() or "")

        return grpc.stream_stream_rpc_method_handler(pass_on)

    def _note(self, name: str, asked: Iterator[bytes]) -> Iterator[bytes]:
        for data in asked:
            self._keep(name.removeprefix("/"), data)
            yield data

    def _keep(self, name: str, data: bytes) -> None:
        for path in self._hide:
            # As long as it was: what contains it says so before it.
            data = data.replace(path, b"/nowhere".ljust(len(path), b"x"))
        taken = input_of(name) if name.startswith("containerd.") else None
        if taken is None or len(data) > MOST_BYTES or any(path in data for path in LOCAL):
            return
        kept = self.kept.setdefault(name, {})
        if len(kept) < MOST_OF_A_METHOD:
            kept.setdefault(shape(GetMessageClass(taken).FromString(data)), data)


def shape(message: Message) -> object:
    """Which fields it has, and those of what is in them."""
    found = []
    for field, held in message.ListFields():
        deeper: object = None
        if field.message_type and not field.message_type.GetOptions().map_entry:
            deeper = frozenset(map(shape, held)) if field.is_repeated else shape(held)
        found.append((field.name, deeper))
    return tuple(found)


def main() -> None:
    enclosure = Enclosure()
    lighterd = Lighterd(census.Owners())
    lighterd.prefix = enclosure.prefix
    lighterd.start()
    path = f"{enclosure.base}/recorded.sock"
    try:
        with Recorder(path, lighterd.grpc_address, [lighterd.base, enclosure.base]) as recorder:
            ask(path, lighterd, enclosure)
            ask_docker(path, lighterd, enclosure)
        requests.write({name: list(kept.values()) for name, kept in recorder.kept.items()})
        for name, kept in sorted(recorder.kept.items()):
            sys.stdout.write(f"{len(kept):3} {name}\n")
    finally:
        lighterd.close()
        enclosure.close()


def ask(path: str, lighterd: Lighterd, enclosure: Enclosure) -> None:
    """ctr 1.7, then Debian's: inside, where the pipes are seen that they make in /run."""
    archive = images.busybox_archive()
    (enclosure.base / "mounted").mkdir()
    for ctr in (str(CTR), "ctr"):
        digest = ""
        for line in BY_CTR.strip().splitlines():
            words: dict[str, Any] = {"archive": archive, "image": images.REFERENCE}
            argv = line.format(**words, base=enclosure.base, digest=digest).split()
            tell(enclosure.run(ctr, "--address", path, *argv, timeout=ANSWERED_S))
            if "images check" in line:
                digest = lighterd.ctl("content", "ls", "-q", check=True).stdout.decode().split()[0]


def ask_docker(path: str, lighterd: Lighterd, enclosure: Enclosure) -> None:
    engine = Engine(enclosure, path, "26.1", snapshotter=True)
    lighterd.cgroups.add(f"/{engine.cgroup}")
    engine.start()
    try:
        archive = enclosure.base / "image.tar"
        reference = lighterd.import_busybox()
        lighterd.ctl("images", "export", "--all-platforms", str(archive), reference, check=True)
        engine.docker("load", "-i", str(archive), check=True)
        for line in BY_DOCKER.strip().splitlines():
            words = line.format(image=images.REFERENCE, base=enclosure.base).split()
            tell(engine.docker(*words, timeout=ANSWERED_S))
    finally:
        engine.close()


def tell(done: Any) -> None:
    if done.returncode:
        sys.stdout.write(f"{' '.join(done.args[4:])}: {done.stderr.decode().strip()[-300:]}\n")


if __name__ == "__main__":
    assert os.getuid() == 0, "a manager and dockerd need root"
    main()
