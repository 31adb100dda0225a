"""Where everything of one instance lives. One root and one state directory make an instance.

    <root>   0700  lock  lighter.db  content/{ingest,writes,blobs/sha256}  snapshots/<name>/
                   exits/<ns>/<id>.json  logs/<ns>/<id>/
                   volumes/<ns>/<name>/_data  network/<key>/  addresses/<network>/
    <state>  0711  lock  generation  lighter.sock  containerd.sock  shims.sock  next.sock  ctl
                   lighterd.pid  lighterd.log  restarts.json  runc/<ns>/  s/<8 hex>  netns/<key>
                   rehearsal/  tasks/<ns>/<id>/{config.json,rootfs/,shim.json,…}

Sockets handed to runc live in `s/` under a short random name, because a path below `tasks/` may be
longer than a socket's may (socketpath.py).
"""

import os

# Where a runtime finds other programs, whatever the manager's own environment says.
RUNTIME_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _sha256(data: bytes) -> str:
    """As hashlib has it, which loads OpenSSL first: 3 ms of every start."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]  # from Python 3.12 on
        except ImportError:
            from hashlib import sha256
    return str(sha256(data).hexdigest())


class Root:
    """Paths below the root directory: what survives a reboot."""

    __slots__ = ("dir",)

    def __init__(self, root_dir: str) -> None:
        self.dir = os.path.abspath(root_dir)

    @property
    def lock(self) -> str:
        return self.dir + "/lock"

    @property
    def database(self) -> str:
        return self.dir + "/lighter.db"

    @property
    def content(self) -> str:
        return self.dir + "/content"

    @property
    def snapshots(self) -> str:
        return self.dir + "/snapshots"

    @property
    def volumes(self) -> str:
        return self.dir + "/volumes"

    def volume(self, namespace: str, name: str) -> str:
        return f"{self.volumes}/{namespace}/{name}"

    def volume_data(self, namespace: str, name: str) -> str:
        """What containers see of a volume."""
        return self.volume(namespace, name) + "/_data"

    def exit_record(self, namespace: str, container_id: str) -> str:
        return f"{self.dir}/exits/{namespace}/{container_id}.json"

    def logs(self, namespace: str, container_id: str) -> str:
        return f"{self.dir}/logs/{namespace}/{container_id}"

    @property
    def networks(self) -> str:
        """What is attached to networks, and may have to be detached after a reboot."""
        return self.dir + "/network"

    @property
    def addresses(self) -> str:
        """What networks that `ctl network create` made have given out, one directory for each."""
        return self.dir + "/addresses"

    @property
    def instance(self) -> str:
        """Eight hex digits that mark everything this instance owns outside its directories."""
        return _sha256(self.dir.encode())[:8]


class State:
    """Paths below the state directory: what a reboot may clear."""

    __slots__ = ("dir",)

    def __init__(self, state_dir: str) -> None:
        self.dir = os.path.abspath(state_dir)

    @property
    def lock(self) -> str:
        return self.dir + "/lock"

    @property
    def client_socket(self) -> str:
        return self.dir + "/lighter.sock"

    @property
    def grpc_socket(self) -> str:
        """containerd's API, unless the configuration says where."""
        return self.dir + "/containerd.sock"

    @property
    def shims_socket(self) -> str:
        return self.dir + "/shims.sock"

    @property
    def pid_file(self) -> str:
        return self.dir + "/lighterd.pid"

    @property
    def ctl(self) -> str:
        """Holds the path of the ctl that belongs to the manager that serves, or served last."""
        return self.dir + "/ctl"

    @property
    def runc(self) -> str:
        return self.dir + "/runc"

    def runc_root(self, namespace: str) -> str:
        return f"{self.runc}/{namespace}"

    @property
    def tasks(self) -> str:
        return self.dir + "/tasks"

    def task(self, namespace: str, container_id: str) -> str:
        """The bundle: config.json, rootfs and all files of one task."""
        return f"{self.dir}/tasks/{namespace}/{container_id}"

    @property
    def netns(self) -> str:
        """Where network namespaces are kept, each mounted on a file."""
        return self.dir + "/netns"

    @property
    def rehearsal(self) -> str:
        """Where a spawner plays a shim's life before its first fork; gone when it serves."""
        return self.dir + "/rehearsal"

    @property
    def next_socket(self) -> str:
        """Where a spawner without a manager waits for the next one."""
        return self.dir + "/next.sock"

    @property
    def short_sockets(self) -> str:
        return self.dir + "/s"


def cgroup_path(instance: str, namespace: str, container_id: str) -> str:
    """The default cgroup of a container, below each hierarchy's root."""
    return f"/lighter/{instance}/{namespace}/{container_id}"


def shims_cgroup(instance: str) -> str:
    """Where a spawner moves itself when no systemd places it; shims are born there."""
    return f"/lighter-shims/{instance}"
