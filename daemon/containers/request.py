"""What a container is asked to be, and what of that is recorded beside its spec."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon.containers.placing import Placing
from lighter.daemon.containers.roots import RootWish
from lighter.daemon.network.request import NetworkRequest
from lighter.daemon.oci.confinement import Confinement
from lighter.daemon.oci.devices import DeviceWish
from lighter.daemon.oci.idmaps import IdMaps
from lighter.daemon.oci.limits import Limits
from lighter.daemon.oci.mounts import SHM_BYTES
from lighter.daemon.oci.selinux import Labelling
from lighter.daemon.oci.sharing import Sharing
from lighter.daemon.restarts import policy as restart_policy
from lighter.daemon.tasks import logsending
from lighter.daemon.tasks.clientstdio import log_streams
from lighter.proto import signalnames
from lighter.proto.errors import InvalidArgument

LOG_DRIVERS = ("file", "none")
STOP_S = 10.0
FOREVER = -1
LONGEST_STOP_S = 10 * 365 * 86400


@dataclass(frozen=True)
class CreateRequest:
    """What a caller asks for; the fields are those of `containers.create` in proto/daemon_api.

    `free_ids`: how many ids of the pool it gets; 0: none.
    """

    image: str
    id: str | None = None
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    keep_entrypoint: bool = False
    as_docker: bool = False
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    mounts: tuple[Mapping[str, Any], ...] = ()
    net_host: bool = False
    read_only: bool = False
    hostname: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    snapshotter: str = ""
    privileged: bool = False
    without_host_devices: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = "default"
    allow_new_privs: bool = False
    runtime: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    rlimits: tuple[Mapping[str, Any], ...] = ()
    oom_score_adj: int | None = None
    shm_bytes: int = SHM_BYTES
    limits: Limits = field(default_factory=Limits)
    devices: tuple[DeviceWish, ...] = ()
    sharing: Sharing = field(default_factory=Sharing)
    root: RootWish = field(default_factory=RootWish)
    free_ids: int = 0
    rootfs_propagation: str = ""
    placing: Placing = field(default_factory=Placing)
    spec: str = ""
    confinement: Confinement = field(default_factory=Confinement)
    selinux: Labelling = field(default_factory=Labelling)
    cdi: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    init: bool = False
    blockio_config: str = ""
    blockio_class: str = ""
    auto_remove: bool = False
    stdin_open: bool = False
    stop_signal: str = ""
    log: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[Mapping[str, Any], ...] = ()
    network: NetworkRequest = field(default_factory=NetworkRequest)
    restart: str = ""
    stop_timeout_s: float | None = None
    health: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What the configuration says for requests that leave it open."""

    snapshotter: str
    runtime: str
    log_max_size: int
    log_max_file: int


def options_of(request: CreateRequest, defaults: Defaults) -> dict[str, Any]:
    """What of a request is recorded beside the spec. Raises InvalidArgument."""
    driver = request.log.get("driver")
    driver = LOG_DRIVERS[0] if driver in (None, "") else driver
    sending = {}
    if driver in logsending.DRIVERS:
        sending = {"send": logsending.read_sending(driver, request.log)}
        driver = LOG_DRIVERS[0]  # which is kept beside it, so that `logs` has something to show
    if driver not in LOG_DRIVERS:
        known = ", ".join((*LOG_DRIVERS, *logsending.DRIVERS))
        raise InvalidArgument(f"choose log driver {driver!r}: there are {known}")
    max_size = request.log.get("max_size")
    max_file = request.log.get("max_file")
    sizes = {
        "max_size": defaults.log_max_size if max_size is None else max_size,
        "max_file": defaults.log_max_file if max_file is None else max_file,
    }
    for name, value in sizes.items():
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise InvalidArgument(
                f"choose log {name} {value!r}: expected a whole number, 0 for no limit"
            )
    uri = request.log.get("uri") or ""
    if not isinstance(uri, str):
        raise InvalidArgument("choose log uri: it is no text")
    if uri:
        log_streams(uri)
        if sending:
            raise InvalidArgument("choose log uri: a log driver that sends was asked for too")
        driver = "none"
    return {
        "log": {"driver": driver, **sizes, **sending, **({"uri": uri} if uri else {})},
        "auto_remove": request.auto_remove,
        "stdin_open": request.stdin_open,
        "terminal": request.terminal,
        **network_option(request),
        **({"joins": joins} if (joins := request.sharing.joined()) else {}),
        **_of_running(request),
    }


def of_given_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec that was handed in says of the options of a container."""
    return {
        "cgroup": str(spec["linux"].get("cgroupsPath") or ""),
        "terminal": spec["process"].get("terminal") is True,
    }


def of_id_maps(maps: IdMaps, options: Mapping[str, Any]) -> dict[str, Any]:
    """With mapped ids: the host's ids of the container's root, who owns its pipes too."""
    if not maps:
        return {}
    uid, gid = maps.root
    return {
        "id_root": [uid, gid],
        "runc": {"io_uid": uid, "io_gid": gid, **(options.get("runc") or {})},
    }


def network_option(request: CreateRequest) -> dict[str, Any]:
    """Raises InvalidArgument for a network beside the host's, or beside one that is joined."""
    wanted = request.network
    if wanted.is_empty:
        return {}
    mode = request.sharing.modes.get("network", "own")
    host = request.net_host or mode == "host"
    joined = mode != "own" or not request.sharing.paths.keys().isdisjoint(("network", "net"))
    if (wanted.attaches or wanted.container) and (host or joined):
        other = "the host's" if host else "one that is joined"
        raise InvalidArgument(f"choose network: both {other} and another were asked for")
    return {"network": wanted.as_option()}


def _of_running(request: CreateRequest) -> dict[str, Any]:
    """How its task is kept up and ended, where that is not as ever."""
    options: dict[str, Any] = {}
    policy = restart_policy.parse(request.restart)
    check_restart(policy, request.auto_remove)
    if policy.name != restart_policy.NO:
        options["restart"] = restart_policy.to_record(policy)
    if request.stop_timeout_s is not None:
        limit_s = request.stop_timeout_s
        if limit_s != FOREVER and not 0 <= limit_s <= LONGEST_STOP_S:
            raise InvalidArgument(f"choose stop timeout {limit_s:g}: expected seconds, or -1")
        options["stop_timeout_s"] = limit_s
    return options


def check_restart(policy: restart_policy.RestartPolicy, auto_remove: bool) -> None:
    """Raises InvalidArgument."""
    if auto_remove and policy.name != restart_policy.NO:
        raise InvalidArgument(
            f"choose restart policy {policy}: a container that is removed at its end (--rm) "
            "cannot be started again"
        )


def stop_timeout(options: Mapping[str, Any]) -> float | None:
    """Seconds between a container's stop signal and SIGKILL; None: no limit."""
    limit_s = options.get("stop_timeout_s", STOP_S)
    if isinstance(limit_s, bool) or not isinstance(limit_s, int | float):
        return STOP_S
    return None if limit_s == FOREVER else float(limit_s)


def signal_number(name: str) -> int:
    """The number of "SIGTERM", "term", "15" or "RTMIN+3". Raises InvalidArgument."""
    number = signalnames.signal_number(name)
    if number is None:
        raise InvalidArgument(f"choose stop signal {name[:40]!r}: there is no such signal")
    return number
