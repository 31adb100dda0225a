"""What scripts ask of docker's inspect, of a container as ours shows it."""

from typing import Any

from lighter.ctl.dockernames import as_docker
from lighter.ctl.gotemplate import GoTemplate

_NETWORK = {
    "network": "back",
    "ifname": "eth0",
    "addresses": ["10.77.0.2/24", "fd00::2/64"],
    "gateways": ["10.77.0.1", "fd00::1"],
    "mac": "9a:55:53:80:6c:f6",
}
_PORT = {"host_ip": "", "host_port": 18080, "container_port": 80, "protocol": "tcp"}
_RESOURCES = {
    "cpu": {"quota": 50000, "period": 100000, "shares": 512, "cpus": "0"},
    "memory": {"limit": 64 << 20, "swap": -1},
    "pids": {"limit": 50},
}


def _shown(**changes: Any) -> dict[str, Any]:
    """As `ctl inspect` prints it: times are text."""
    return {
        "id": "web",
        "image": "docker.io/library/busybox:test",
        "snapshotter": "overlayfs",
        "labels": {"a": "b"},
        "created_at": "2026-11-26T06:24:36Z",
        "spec": {"process": {"args": ["httpd", "-f"]}, "linux": {"resources": _RESOURCES}},
        "options": {"stop_signal": "SIGTERM"},
        "restart": {"policy": "on-failure", "max_retries": 3, "count": 2},
        "health": {
            "status": "healthy",
            "failing_streak": 0,
            "log": [
                {
                    "started_at": "2026-11-26T06:24:38Z",
                    "ended_at": "2026-11-26T06:24:39.5Z",
                    "exit_code": 0,
                    "output": "fine\n",
                }
            ],
        },
        "networks": [_NETWORK],
        "ports": [_PORT],
        "task": {"pid": 7, "status": "running", "started_at": "2026-11-26T06:24:37Z"},
        **changes,
    }


def _says(template: str, **changes: Any) -> str:
    return GoTemplate(template).render(as_docker(_shown(**changes)))


def test_health_restarts_and_policy() -> None:
    assert _says("{{.State.Health.Status}} {{.RestartCount}}") == "healthy 2"
    assert _says("{{range .State.Health.Log}}{{.End}} {{.ExitCode}}{{end}}") == (
        "2026-11-26T06:24:39.5Z 0"
    )
    policy = "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}"
    assert _says(policy) == "on-failure:3"
    assert _says(policy, restart=None) == "no:0"
    assert _says("{{if .State.Restarting}}again{{end}}", task={"restart_at": 5}) == "again"


def test_one_that_waits_for_its_restart_is_restarting() -> None:
    task = {"status": "stopped", "pid": 7, "restart_at": 5}
    state = "{{.State.Status}} {{.State.Running}} {{.State.Pid}}"
    assert _says(state, task=task) == "restarting true 0"
    assert _says(state, task={**task, "restart_at": None}) == "exited false 0"


def test_the_parent_of_its_cgroup() -> None:
    for path, parent in (
        ("/lighter/0a/default/web", "/lighter/0a/default"),
        ("web.slice:lighter:web", "web.slice"),
        ("", ""),
    ):
        assert (
            _says("{{.HostConfig.CgroupParent}}", spec={"linux": {"cgroupsPath": path}}) == parent
        )


def test_without_a_check_there_is_no_health() -> None:
    assert "Health" not in as_docker(_shown(health=None))["State"]


def test_limits() -> None:
    host = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}"
    assert _says(host) == f"{64 << 20} 500000000 50"
    assert _says(host, spec={"process": {}}) == "0 0 0"
    free = {"linux": {"resources": {"cpu": {"quota": -1}}}}
    assert _says("{{.HostConfig.NanoCpus}}", spec=free) == "0"


def test_networks_and_ports() -> None:
    assert _says("{{.NetworkSettings.IPAddress}}") == "10.77.0.2"
    each = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}"
    assert _says(each) == "10.77.0.2 fd00::2"
    port = '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}'
    assert _says(port) == "18080"
    assert _says("{{.NetworkSettings.IPAddress}}", networks=None, ports=None) == ""
