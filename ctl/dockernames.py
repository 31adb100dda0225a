"""What our inspect shows of a container, in the names that docker's own has and scripts ask for."""

from collections.abc import Mapping
from typing import Any

from lighter.ctl.lists import state_text

_NO_TIME = "0001-01-01T00:00:00Z"  # Go's zero time, which docker shows for none


def as_docker(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of docker's own inspect that scripts ask for, of what our inspect shows."""
    spec, task, options = shown["spec"], shown["task"] or {}, shown.get("options") or {}
    process = spec.get("process") or {}
    status = state_text({**task, "status": task.get("status") or "created"})
    args = list(process.get("args") or ("",))
    return {
        "Id": shown["id"],
        "Name": "/" + shown["id"],
        "Created": shown["created_at"],
        "Path": args[0],
        "Args": args[1:],
        "Image": shown["image"],
        "State": {
            "Status": status,
            "Running": status in ("running", "paused", "restarting"),
            "Paused": status == "paused",
            "OOMKilled": task.get("cause") == "oom",
            "Dead": False,
            "Pid": 0 if status in ("exited", "restarting") else task.get("pid") or 0,
            "ExitCode": task.get("exit_status") or 0,
            "Restarting": bool(task.get("restart_at")),
            "Error": task.get("reason") or "",
            "StartedAt": task.get("started_at") or _NO_TIME,
            "FinishedAt": task.get("exited_at") or _NO_TIME,
            **_health(shown.get("health")),
        },
        "RestartCount": (shown.get("restart") or {}).get("count", 0),
        "Config": {
            "Image": shown["image"],
            "Hostname": spec.get("hostname", ""),
            "User": _user(process.get("user") or {}),
            "Tty": bool(process.get("terminal")),
            "OpenStdin": bool(options.get("stdin_open")),
            "Env": process.get("env") or [],
            "Cmd": args,
            "WorkingDir": process.get("cwd", ""),
            "Labels": shown["labels"],
            "StopSignal": options.get("stop_signal", ""),
        },
        "HostConfig": {
            "AutoRemove": bool(options.get("auto_remove")),
            "ReadonlyRootfs": bool((spec.get("root") or {}).get("readonly")),
            "LogConfig": {"Type": (options.get("log") or {}).get("driver", "")},
            "CgroupParent": _parent((spec.get("linux") or {}).get("cgroupsPath", "")),
            "RestartPolicy": _policy(shown.get("restart")),
            **_limits((spec.get("linux") or {}).get("resources") or {}),
        },
        "NetworkSettings": _network_settings(shown),
        "Driver": shown["snapshotter"],
        "Platform": "linux",
        "Mounts": list(_mounts(spec, options)),
    }


def _health(health: Mapping[str, Any] | None) -> dict[str, Any]:
    """Left out, as docker does, where nothing is checked."""
    if not health:
        return {}
    log = [
        {
            "Start": probe["started_at"],
            "End": probe["ended_at"],
            "ExitCode": probe["exit_code"],
            "Output": probe["output"],
        }
        for probe in health["log"]
    ]
    streak = health["failing_streak"]
    return {"Health": {"Status": health["status"], "FailingStreak": streak, "Log": log}}


def _parent(cgroup: str) -> str:
    """The cgroup parent of a path, or of systemd's slice:prefix:name."""
    return cgroup.partition(":")[0] if ":" in cgroup else cgroup.rpartition("/")[0]


def _policy(restart: Mapping[str, Any] | None) -> dict[str, Any]:
    found = restart or {}
    return {
        "Name": found.get("policy") or "no",
        "MaximumRetryCount": found.get("max_retries") or 0,
    }


def _limits(resources: Mapping[str, Any]) -> dict[str, Any]:
    """0 is no limit, as docker shows it."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 100_000
    return {
        "Memory": memory.get("limit") or 0,
        "MemorySwap": memory.get("swap") or 0,
        "MemoryReservation": memory.get("reservation") or 0,
        "CpuShares": cpu.get("shares") or 0,
        "NanoCpus": max(quota, 0) * 1_000_000_000 // period,
        "CpusetCpus": cpu.get("cpus", ""),
        "CpusetMems": cpu.get("mems", ""),
        "PidsLimit": (resources.get("pids") or {}).get("limit") or 0,
    }


def _network_settings(shown: Mapping[str, Any]) -> dict[str, Any]:
    networks = {one["network"]: _network(one) for one in shown.get("networks") or ()}
    ports: dict[str, list[dict[str, str]]] = {}
    for port in shown.get("ports") or ():
        ports.setdefault(f"{port['container_port']}/{port['protocol']}", []).append(
            {"HostIp": port["host_ip"] or "0.0.0.0", "HostPort": str(port["host_port"])}  # noqa: S104
        )
    first = next(iter(networks.values()), _network({}))
    return {**first, "Ports": ports, "Networks": networks}


def _network(one: Mapping[str, Any]) -> dict[str, Any]:
    """docker's fields of one network, the first address of each family."""
    parted = [address.partition("/") for address in one.get("addresses") or ()]
    ip4 = next(((ip, bits) for ip, _, bits in parted if ":" not in ip), ("", "0"))
    ip6 = next(((ip, bits) for ip, _, bits in parted if ":" in ip), ("", "0"))
    gateways = one.get("gateways") or ()
    return {
        "IPAddress": ip4[0],
        "IPPrefixLen": int(ip4[1]),
        "Gateway": next((ip for ip in gateways if ":" not in ip), ""),
        "GlobalIPv6Address": ip6[0],
        "GlobalIPv6PrefixLen": int(ip6[1]),
        "IPv6Gateway": next((ip for ip in gateways if ":" in ip), ""),
        "MacAddress": one.get("mac", ""),
    }


def _user(user: Mapping[str, Any]) -> str:
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    return f"{uid}:{gid}" if uid or gid else ""


def _mounts(spec: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    named = {row["destination"]: row["name"] for row in options.get("volumes") or ()}
    for mount in spec.get("mounts") or ():
        words = mount.get("options") or ()
        if not {"bind", "rbind"}.intersection(words):
            continue
        name = named.get(mount["destination"], "")
        propagation = [word for word in words if word.endswith(("private", "shared", "slave"))]
        yield {
            "Type": "volume" if name else "bind",
            "Name": name,
            "Source": mount["source"],
            "Destination": mount["destination"],
            "Driver": "local" if name else "",
            "Mode": ",".join(words),
            "RW": {"ro", "rro"}.isdisjoint(words),
            "Propagation": propagation[-1] if propagation else "",
        }
