"""A snapshotter as `[proxy_plugins]` names it: a process of its own, over directories.

    python proxy.py SOCKET DIRECTORY

What it has survives it, in DIRECTORY. There are files that a test makes to change it: while `hang`
exists no call is answered; while `remote` exists it has every layer that it is told of;
`mounts.json` ([[type, source, [option], target]]) is what it gives for mounts; `fail-METHOD` holds
the status that the method ends with. `calls` lists what it was asked.
"""

import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass

from lighter.daemon.grpc.pb import snapshots_pb2 as pb
from lighter.daemon.grpc.pb import types_pb2

KINDS = {"active": pb.ACTIVE, "view": pb.VIEW, "committed": pb.COMMITTED}


class Plugin:
    """A method for each rpc; the handlers turn Refused into a status."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.lock = threading.Lock()
        self.index_file = directory / "index.json"
        self.index: dict[str, dict[str, Any]] = {}
        if self.index_file.exists():
            self.index = json.loads(self.index_file.read_text())

    def save(self) -> None:
        new = self.index_file.with_suffix(".new")
        new.write_text(json.dumps(self.index))
        new.rename(self.index_file)

    def find(self, key: str) -> dict[str, Any]:
        if key not in self.index:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"{key} is not here")
        return self.index[key]

    def files(self, key: str) -> str:
        return f"{self.dir}/{self.index[key]['number']}/fs"

    def make(self, request: Any, kind: str) -> list[types_pb2.Mount]:
        if request.key in self.index:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{request.key} is here")
        below = request.parent
        if below and self.find(below)["kind"] != "committed":
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"{below} is not committed")
        number = max([0, *(entry["number"] for entry in self.index.values())]) + 1
        place = self.dir / str(number)
        for name in ("fs", "work"):
            (place / name).mkdir(parents=True)
        self.index[request.key] = {"number": number, "parent": below, "kind": kind}
        if below:
            found = os.stat(self.files(below))
            os.chown(place / "fs", found.st_uid, found.st_gid)
            os.chmod(place / "fs", found.st_mode & 0o7777)
        self.save()
        return self.mounts(request.key)

    def mounts(self, key: str) -> list[types_pb2.Mount]:
        lie = self.dir / "mounts.json"
        if lie.exists():
            return [
                types_pb2.Mount(type=kind, source=source, options=options, target=target)
                for kind, source, options, target in json.loads(lie.read_text())
            ]
        entry = self.find(key)
        lowers, below = [], entry["parent"]
        while below:
            lowers.append(self.files(below))
            below = self.index[below]["parent"]
        how = "rw" if entry["kind"] == "active" else "ro"
        if not lowers or (how == "ro" and len(lowers) == 1):
            source = lowers[0] if lowers else self.files(key)
            return [types_pb2.Mount(type="bind", source=source, options=["rbind", how])]
        options = ["index=off", "lowerdir=" + ":".join(lowers)]
        if how == "rw":
            work = os.path.dirname(self.files(key)) + "/work"
            options += [f"upperdir={self.files(key)}", f"workdir={work}"]
        return [types_pb2.Mount(type="overlay", source="overlay", options=options)]

    # --- the service

    def Prepare(self, request: Any) -> Any:
        target = request.labels.get("containerd.io/snapshot.ref")
        if target and (self.dir / "remote").exists():
            self.make(request, "active")
            Path(self.files(request.key), "remote").touch()
            self.index[target] = {**self.index.pop(request.key), "kind": "committed"}
            self.save()
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{target} is here")
        return pb.PrepareSnapshotResponse(mounts=self.make(request, "active"))

    def View(self, request: Any) -> Any:
        return pb.ViewSnapshotResponse(mounts=self.make(request, "view"))

    def Mounts(self, request: Any) -> Any:
        return pb.MountsResponse(mounts=self.mounts(request.key))

    def Commit(self, request: Any) -> Any:
        entry = self.find(request.key)
        if request.name in self.index:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{request.name} is here")
        self.index[request.name] = {**entry, "kind": "committed"}
        del self.index[request.key]
        self.save()
        return Empty()

    def Remove(self, request: Any) -> Any:
        entry = self.find(request.key)
        if any(other["parent"] == request.key for other in self.index.values()):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"{request.key} has children")
        shutil.rmtree(self.dir / str(entry["number"]))
        del self.index[request.key]
        self.save()
        return Empty()

    def Stat(self, request: Any) -> Any:
        entry = self.find(request.key)
        info = pb.Info(name=request.key, parent=entry["parent"], kind=KINDS[entry["kind"]])
        return pb.StatSnapshotResponse(info=info)

    def Usage(self, request: Any) -> Any:
        self.find(request.key)
        root = Path(self.files(request.key))
        found = {path.lstat().st_ino: path.lstat() for path in (root, *root.rglob("*"))}
        size = sum(of.st_blocks * 512 for of in found.values())
        return pb.UsageResponse(size=size, inodes=len(found))


class Refused(Exception):
    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


def handler(plugin: Plugin, method: Any) -> grpc.RpcMethodHandler:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        namespace = dict(context.invocation_metadata())["containerd-namespace"]
        with (plugin.dir / "calls").open("a") as calls:
            calls.write(f"{method.name} {namespace} {request.key}\n")
        while (plugin.dir / "hang").exists() and context.is_active():
            time.sleep(0.02)  # it is a plugin that hangs
        spoilt = plugin.dir / f"fail-{method.name}"
        if spoilt.exists():
            context.abort(grpc.StatusCode[spoilt.read_text()], "as the test wants it")
        try:
            with plugin.lock:
                return getattr(plugin, method.name)(request)
        except Refused as err:
            context.abort(err.status, str(err))

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def main(address: str, directory: str) -> None:
    os.umask(0)
    plugin = Plugin(Path(directory))
    service = pb.DESCRIPTOR.services_by_name["Snapshots"]
    handlers = {
        method.name: handler(plugin, method)
        for method in service.methods
        if hasattr(plugin, method.name)
    }
    server = grpc.server(ThreadPoolExecutor(16))
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))
    Path(address).unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{address}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
