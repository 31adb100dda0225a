"""Runtime options of a container or task: what is understood of them, and what is refused."""

from typing import Any as Anything

from google.protobuf.any_pb2 import Any

from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb.runc_options_pb2 import Options
from lighter.daemon.tasks.calling import REFUSED, to_record
from lighter.daemon.types import RuntimeOptions
from lighter.proto.errors import InvalidArgument, Unimplemented

_NOT_HERE = {
    "shim_cgroup": "shims are in a cgroup of their own",
    "criu_image_path": "containers are not restored from checkpoints",
    "criu_work_path": "containers are not restored from checkpoints",
}


def runtime_options(value: Any) -> RuntimeOptions:
    """Read containerd.runc.v1.Options. Raises InvalidArgument, Unimplemented."""
    if not value.type_url and not value.value:
        return RuntimeOptions()
    options = Options()
    anys.unpack(value, options)
    for name, why in _NOT_HERE.items():
        if getattr(options, name):
            raise Unimplemented(f"use runtime option {name}: {why}")
    for name in ("binary_name", "root"):
        if "\0" in getattr(options, name):
            raise InvalidArgument(f"use runtime option {name}: it holds a NUL")
    return RuntimeOptions(
        binary_name=options.binary_name,
        root=options.root,
        systemd_cgroup=options.systemd_cgroup,
        no_pivot_root=options.no_pivot_root,
        no_new_keyring=options.no_new_keyring,
        io_uid=options.io_uid,
        io_gid=options.io_gid,
    )


def understood(value: Any) -> dict[str, Anything]:
    """The options as a container's record keeps them. What is not supported is refused only when a
    task is made.
    """
    try:
        return to_record(runtime_options(value))
    except (InvalidArgument, Unimplemented) as err:
        return {REFUSED: err.message}
