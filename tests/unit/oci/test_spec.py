"""A generated spec: what ctr makes, our differences, and what a request may not ask for."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from lighter.daemon.oci import seccomp
from lighter.daemon.oci.devices import DeviceGrant
from lighter.daemon.oci.paths import MASKED
from lighter.daemon.oci.sharing import Sharing
from lighter.daemon.oci.spec import generate
from lighter.daemon.oci.users import Identity
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument
from tests.unit.oci.builders import HOST, IMAGE, ctr_specs, request

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "args": {"args": ("echo", "hi")},
    "user": {"identity": Identity(1000, 1000, (1000, 4, 6), "web")},
    "terminal": {"terminal": True},
    "net_host": {"net_host": True},
    "privileged": {"privileged": True},
    "read_only": {"read_only": True},
    "allow_new_privs": {"allow_new_privs": True},
    "caps": {"cap_add": ("CAP_SYS_ADMIN",), "cap_drop": ("CAP_NET_RAW",)},
    "with_ns": {"sharing": Sharing({"pid": "/proc/1/ns/pid", "network": "/proc/1/ns/net"})},
}


def mount_at(spec: dict[str, Any], destination: str) -> list[dict[str, Any]]:
    return [mount for mount in spec["mounts"] if mount["destination"] == destination]


@pytest.mark.parametrize("flag", REQUESTS)
def test_the_spec_is_ctrs_but_for_what_is_written_down(flag: str) -> None:
    ours, theirs = generate(request(**REQUESTS[flag])), ctr_specs()[flag]
    assert ours.pop("ociVersion") == "1.0.2"
    assert theirs.pop("ociVersion") == "1.0.2-dev"
    assert ours["process"].pop("oomScoreAdj") == 0
    if flag != "privileged":
        assert ours["linux"].pop("seccomp")["defaultAction"] == "SCMP_ACT_ERRNO"
        assert set(theirs["linux"].pop("maskedPaths")) < set(ours["linux"].pop("maskedPaths"))
    assert ours == theirs


def test_every_recorded_flag_is_compared() -> None:
    assert REQUESTS.keys() == ctr_specs().keys()


def test_the_result_is_json_and_shares_nothing_with_the_request() -> None:
    mount = {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}
    limit = {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}
    device = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    resources = {"memory": {"limit": 1}, "hugepageLimits": [{"pageSize": "2MB", "limit": 2}]}
    asked = request(
        mounts=(mount,),
        rlimits=(limit,),
        devices=(DeviceGrant(device),),
        resources=resources,
        annotations={"a": "b"},
        sysctls={"net.a": "1"},
    )
    first = generate(asked)
    before = json.dumps(first)
    for entries in (*(m["options"] for m in first["mounts"]), first["process"]["env"]):
        entries.append("X=1")
    first["process"]["rlimits"][1]["hard"] = 7
    for holder, key in (
        (first["annotations"], "a"),
        (first["linux"]["sysctl"], "net.a"),
        (first["linux"]["devices"][0], "path"),
        (first["linux"]["resources"]["memory"], "limit"),
        (first["linux"]["resources"]["hugepageLimits"][0], "limit"),
        (first["linux"]["resources"]["devices"][0], "allow"),
        (first["process"]["user"], "uid"),
    ):
        holder[key] = "changed"
    for name in ("maskedPaths", "readonlyPaths", "namespaces"):
        first["linux"][name].clear()
    first["process"]["capabilities"]["bounding"].clear()
    first["linux"]["seccomp"]["syscalls"].clear()
    assert json.dumps(generate(asked)) == before
    assert (mount["options"], limit["hard"], device["path"]) == (["rbind"], 0, "/dev/fuse")


def test_a_callers_mount_takes_the_place_of_the_default_one() -> None:
    bind = {"destination": "/dev/", "type": "bind", "source": "/dev", "options": ["rbind", "rw"]}
    spec = generate(request(mounts=(bind,)))
    assert mount_at(spec, "/dev") == [{**bind, "destination": "/dev"}]
    places = [mount["destination"] for mount in spec["mounts"]]
    assert places.index("/dev") < places.index("/dev/pts")  # else it would hide it


def test_a_bind_that_does_not_say_so_is_made_one() -> None:
    spec = generate(
        request(mounts=({"destination": "/d", "type": "bind", "source": "/s", "options": ["ro"]},))
    )
    assert mount_at(spec, "/d")[0]["options"] == ["rbind", "ro"]


def test_two_mounts_at_one_place_are_refused() -> None:
    first = {"destination": "/d", "type": "bind", "source": "/a", "options": ["rbind"]}
    for place in ("/d", "/d/", "//d"):
        second = {**first, "destination": place, "source": "/b"}
        with pytest.raises(InvalidArgument, match="two mounts are asked for at this place"):
            generate(request(mounts=(first, second)))


@pytest.mark.parametrize(
    "mount",
    [
        {"destination": "data", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/a/../b", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/", "type": "bind", "source": "/srv"},
        {"destination": "/a\0b", "type": "tmpfs", "source": "tmpfs"},
        {"type": "tmpfs", "source": "tmpfs"},
        {"destination": "/d", "type": "bind", "source": "srv"},
        {"destination": "/d", "type": "tmpfs", "source": "tmpfs", "options": "ro"},
        {"destination": "/proc", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "//proc/", "type": "bind", "source": "/srv"},
        {"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/proc/uptime", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/sys", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/sys", "type": "none", "source": "/srv", "options": ["bind"]},
    ],
)
def test_refused_mounts(mount: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        generate(request(mounts=(mount,)))


@pytest.mark.parametrize(
    "mount",
    [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
        {"destination": "/proc/uptime", "type": "bind", "source": "/x", "options": ["bind"]},
    ],
)
def test_allowed_mounts_of_kernel_file_systems(mount: dict[str, Any]) -> None:
    assert mount_at(generate(request(mounts=(mount,))), mount["destination"]) == [mount]


def test_dockers_mounts_and_cgroup_namespace_where_they_differ() -> None:
    ctrs = generate(request())
    assert mount_at(ctrs, "/run") and not mount_at(ctrs, "/sys/fs/cgroup")
    dockers = generate(request(as_docker=True, read_only=True))
    assert not mount_at(dockers, "/run"), "what the image has there is seen"
    (shown,) = mount_at(dockers, "/sys/fs/cgroup")
    assert shown["type"] == "cgroup"
    assert set(shown["options"]) == {"nosuid", "nodev", "noexec", "relatime", "ro"}
    places = [mount["destination"] for mount in dockers["mounts"]]
    assert places.index("/sys") < places.index("/sys/fs/cgroup")
    (shown,) = mount_at(generate(request(as_docker=True, privileged=True)), "/sys/fs/cgroup")
    assert "rw" in shown["options"] and "ro" not in shown["options"]


@pytest.mark.parametrize(("as_docker", "unified"), itertools.product((True, False), repeat=2))
def test_a_cgroup_namespace_of_its_own_is_dockers_default_on_v2(
    as_docker: bool, unified: bool
) -> None:
    def has_own(mode: str = "") -> bool:
        sharing = Sharing(modes={"cgroup": mode} if mode else {})
        host = replace(HOST, unified=unified)
        spec = generate(request(host=host, as_docker=as_docker, sharing=sharing))
        return {"type": "cgroup"} in spec["linux"]["namespaces"]

    assert has_own() == (as_docker and unified)
    assert has_own("own") and not has_own("host")


def test_a_callers_sys_or_cgroups_are_shown_and_not_dockers() -> None:
    for place in ("/sys", "/sys/fs", "/sys/fs/cgroup"):
        bind = {"destination": place, "type": "bind", "source": place, "options": ["rbind", "ro"]}
        spec = generate(request(as_docker=True, mounts=(bind,)))
        assert mount_at(spec, place) == [bind]
        assert mount_at(spec, "/sys/fs/cgroup") == ([bind] if place == "/sys/fs/cgroup" else [])
    both = [{**bind, "destination": place, "source": place} for place in ("/sys/fs/cgroup", "/sys")]
    for asked in (both, both[::-1]):
        spec = generate(request(as_docker=True, mounts=tuple(asked)))
        assert mount_at(spec, "/sys/fs/cgroup") == both[:1] and mount_at(spec, "/sys") == both[1:]


def test_net_host_binds_only_the_files_that_exist() -> None:
    spec = generate(request(net_host=True, host=HOST.__class__(network_files=("/etc/hosts",))))
    assert mount_at(spec, "/etc/hosts")
    assert not mount_at(spec, "/etc/resolv.conf")


def test_namespaces_to_join() -> None:
    spec = generate(
        request(sharing=Sharing({"net": "/run/netns/a", "cgroup": "/proc/1/ns/cgroup"}))
    )
    namespaces = {item["type"]: item.get("path") for item in spec["linux"]["namespaces"]}
    assert namespaces["network"] == "/run/netns/a"
    assert namespaces["cgroup"] == "/proc/1/ns/cgroup"
    assert namespaces["pid"] is None
    for wrong in ({"nett": "/a"}, {"net": "a"}, {"net": "/" + "a" * 4096}):
        with pytest.raises(InvalidArgument):
            generate(request(sharing=Sharing(wrong)))
    with pytest.raises(InvalidArgument):
        generate(request(net_host=True, sharing=Sharing({"net": "/run/netns/a"})))


def test_environment() -> None:
    image = ImageConfig(cmd=("sh",), env=("LANG=C", "A=1", "B=2"))
    env = generate(request(image=image, env=("A=9", "B", "C=3"), terminal=True))["process"]["env"]
    assert env[0].startswith("PATH=/usr/local/sbin:")
    assert env[1:] == ["LANG=C", "A=9", "TERM=xterm", "C=3"]


def test_the_callers_term_and_hostname_win() -> None:
    env = generate(request(env=("TERM=vt100", "HOSTNAME=h"), terminal=True, net_host=True))
    assert {"TERM=vt100", "HOSTNAME=h"} <= set(env["process"]["env"])
    assert len(env["process"]["env"]) == 4


@pytest.mark.parametrize("entry", ["=x", "A=\0"])
def test_refused_environment(entry: str) -> None:
    with pytest.raises(InvalidArgument):
        generate(request(env=(entry,)))


def test_devices_are_denied_first_and_those_asked_for_are_allowed() -> None:
    device = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}
    linux = generate(request(devices=(DeviceGrant(device),), resources={"pids": {"limit": 9}}))[
        "linux"
    ]
    assert linux["devices"] == [device]
    rules = linux["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-1] == {
        "allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"
    }  # fmt: skip
    assert linux["resources"]["pids"] == {"limit": 9}


def test_host_devices_are_for_privileged_containers_only() -> None:
    device = {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}
    assert "devices" not in generate(request(host_devices=(device,)))["linux"]
    linux = generate(request(host_devices=(device,), privileged=True))["linux"]
    assert linux["devices"] == [device]
    without = {"privileged": True, "without_host_devices": True}
    linux = generate(request(host_devices=(device,), **without))["linux"]
    assert "devices" not in linux and "maskedPaths" not in linux
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}


def test_rlimits_replace_those_of_their_type() -> None:
    files = {"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}
    core = {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}
    assert generate(request(rlimits=(core, files)))["process"]["rlimits"] == [files, core]


def test_seccomp_choices() -> None:
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []})
    assert "seccomp" not in generate(request(seccomp="unconfined"))["linux"]
    assert "seccomp" not in generate(request(privileged=True))["linux"]
    for privileged in (False, True):
        linux = generate(request(seccomp=text, privileged=privileged))["linux"]
        assert linux["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    granted = generate(request(cap_add=("SYS_ADMIN",)))["linux"]["seccomp"]
    assert granted == seccomp.profile(
        frozenset(generate(request(cap_add=("SYS_ADMIN",)))["process"]["capabilities"]["bounding"]),
        "x86_64",
    )


def test_masked_paths_hold_the_hosts_thermal_counters() -> None:
    host = HOST.__class__(thermal_throttle_dirs=("/sys/devices/system/cpu/cpu0/thermal_throttle",))
    paths = generate(request(host=host))["linux"]["maskedPaths"]
    assert paths == [*MASKED, *host.thermal_throttle_dirs]


@pytest.mark.parametrize("name", ["", "a" * 65, "a\nb", "-a", "a_b", "ä"])
def test_refused_hostnames(name: str) -> None:
    with pytest.raises(InvalidArgument):
        generate(request(hostname=name))


def test_hostname_and_names() -> None:
    assert generate(request(hostname="web-1.example"))["hostname"] == "web-1.example"
    assert "hostname" not in generate(request())
    for wrong in ({"id": "a/b"}, {"namespace": ".."}):
        with pytest.raises(InvalidArgument):
            generate(request(**wrong))


def test_nothing_to_run_is_an_error() -> None:
    with pytest.raises(InvalidArgument):
        generate(request(image=ImageConfig()))


def test_the_primary_group_is_added_to_an_identity_without_it() -> None:
    spec = generate(request(identity=Identity(5, 6, (7, 6))))
    assert spec["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7]}


def test_the_images_working_directory_is_the_default() -> None:
    assert generate(request())["process"]["cwd"] == IMAGE.working_dir
    assert generate(request(cwd="/var//lib/./"))["process"]["cwd"] == "/var/lib"
    assert generate(request(image=ImageConfig(cmd=("sh",))))["process"]["cwd"] == "/"
