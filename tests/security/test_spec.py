"""Identity and spec generation: one test per row of published weaknesses, most with real runc.

A container gets what spec.generate() makes, nothing else is added; probes read and compare.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.oci import checks, paths
from lighter.daemon.oci.config import read_image_config
from lighter.daemon.oci.host import read_host
from lighter.daemon.oci.process import ExecRequest, exec_process
from lighter.daemon.oci.sharing import Sharing
from lighter.daemon.oci.spec import SpecRequest, generate
from lighter.daemon.oci.users import Identity, resolve
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument
from tests.security.runtime import Runtime, unpack_busybox

BUSYBOX = ImageConfig(cmd=("sh",), env=("PATH=/bin",), working_dir="/")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
GROUP = b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"

_MADE_BY_RUNTIME = ("HOME=", "PWD=", "SHLVL=")  # by runc and by the shell


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    scratch = tmp_path_factory.mktemp("runc")
    rootfs = tmp_path_factory.mktemp("rootfs")
    rootfs.chmod(0o755)
    unpack_busybox(rootfs)
    yield Runtime(scratch, rootfs)
    shutil.rmtree(scratch)
    shutil.rmtree(rootfs)


def spec_for(script: str, *, cgroup: str = "/never-made", **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "id": "c",
        "namespace": "default",
        "cgroups_path": cgroup,
        "image": BUSYBOX,
        "identity": Identity(0, 0, (0,)),
        "host": read_host(),
        "args": ("/bin/sh", "-c", script),
    }
    return generate(SpecRequest(**{**asked, **changes}))


def output(runtime: Runtime, script: str, **changes: Any) -> str:
    """What `script` prints in a container; it must succeed."""
    result = runtime.run(spec_for(script, cgroup=runtime.cgroup(), **changes))
    assert result.returncode == 0, result.stderr
    return result.stdout


def status_of(text: str) -> dict[str, str]:
    """/proc/<pid>/status as a mapping."""
    return {
        key: value.strip() for key, _, value in (row.partition(":") for row in text.split("\n"))
    }


@pytest.mark.parametrize(
    "user",
    [
        *("2147483648", "4294967296", "1" + "0" * 30, "-1", "0_0", " 0", "+0", "٠", "0x0", "0 "),
        *("1000:4294967296", "1000:-1", "1000:0_0", "00000000004294967296", "0\n", "1e3"),
    ],
)
def test_sec_37_a_number_is_never_cut_and_never_a_name(user: str) -> None:
    names = {user, user.strip(), user.partition(":")[0], user.partition(":")[2]} - {"1000", ""}
    passwd = "".join(f"{name.strip()}:x:0:0:::\n{name}:x:0:0:::\n" for name in names).encode()
    group = "".join(f"{name}:x:0:\n" for name in names).encode()
    with pytest.raises(InvalidArgument):
        resolve(user, passwd + PASSWD, group + GROUP)


@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "groups"),
    [
        ("1000:1000", "1000 2000"),
        ("1000", "1000 2000"),
        ("user", "1000 2000"),
        ("user:extra", "2000"),
        ("4000:1000", "1000"),
        ("4000", "0"),
        ("", "0"),
    ],
)
def test_sec_38_the_primary_group_is_supplementary_too(
    runtime: Runtime, user: str, groups: str
) -> None:
    """A file that denies group 1000 and allows others stays closed to members of the group."""
    denied = runtime.rootfs / "denied"
    denied.write_text("secret")
    os.chown(denied, 0, 1000)
    denied.chmod(0o604)
    identity = resolve(user, PASSWD, GROUP)
    assert identity.gid in identity.additional_gids
    script = "id -G; grep Groups /proc/self/status; cat /denied || true"
    seen = output(runtime, script, identity=identity)
    assert seen.splitlines()[0] == groups
    assert status_of(seen)["Groups"].split() == groups.split()
    assert ("secret" in seen) == ("1000" not in groups.split())
    with runtime.running(spec_for("sleep 60", cgroup=runtime.cgroup())) as name:
        request = ExecRequest(("id", "-G"), identity=identity)
        result = runtime.exec(name, exec_process(spec_for("true"), request))
    assert result.stdout.strip() == groups


@pytest.mark.parametrize("user", ["user", "0", "user:extra"])
def test_sec_39_a_file_that_is_too_large_is_not_parsed(user: str) -> None:
    with pytest.raises(InvalidArgument, match="at most"):
        resolve(user, PASSWD + b"\0" * (10 << 20), GROUP)


@pytest.mark.parametrize("home", [b"/x\ty", b"/x\x1by", b"/x\r"])
def test_sec_40_control_characters_do_not_leave_passwd(home: bytes) -> None:
    assert resolve("u", b"u:x:7:7::" + home + b":/bin/sh\n", None).home == ""
    for hostname in ("a\nb", "a:b", "a\0"):
        with pytest.raises(InvalidArgument):
            spec_for("true", hostname=hostname)


@pytest.mark.root
@pytest.mark.parametrize("uid", [0, 1000])
def test_sec_41_no_capability_survives_a_user_without_it(runtime: Runtime, uid: int) -> None:
    identity = Identity(uid, uid, (uid,))
    spec = spec_for("sleep 60", cgroup=runtime.cgroup(), identity=identity, cap_add=("NET_ADMIN",))
    # Whoever made the spec: an exec gets no inheritable and ambient ones.
    crooked = json.loads(json.dumps(spec))
    crooked["process"]["capabilities"] |= {"inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}
    cat = ExecRequest(("cat", "/proc/1/status", "/proc/self/status"))
    with runtime.running(spec) as name:
        result = runtime.exec(name, exec_process(crooked, cat))
    assert result.returncode == 0, result.stderr
    init, _, executed = result.stdout.partition("\nName:")
    for status in (status_of(init), status_of(executed)):
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapBnd"], 16) >> 12 & 1  # CAP_NET_ADMIN: the spec did have an effect
        assert (int(status["CapEff"], 16) == 0) == (int(status["CapPrm"], 16) == 0) == (uid != 0)


@pytest.mark.root
def test_sec_42_fifty_containers_each_with_its_own_environment(runtime: Runtime) -> None:
    image = read_image_config(b'{"config": {"Env": ["PATH=/bin", "SHARED=1"], "Cmd": ["sh"]}}')[0]

    def environment(number: int) -> list[str]:
        script = "cat /proc/1/environ | tr '\\0' '\\n'"
        return output(runtime, script, image=image, env=(f"MINE_{number}={number}",)).split()

    with ThreadPoolExecutor(8) as pool:
        for number, entries in enumerate(pool.map(environment, range(50))):
            own = {entry for entry in entries if not entry.startswith(_MADE_BY_RUNTIME)}
            assert own == {"PATH=/bin", "SHARED=1", f"MINE_{number}={number}"}


@pytest.mark.root
def test_sec_43_a_variable_without_a_value_imports_nothing(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET", "A"):
        monkeypatch.setenv(name, "host-value")
    image = read_image_config(b'{"config": {"Env": ["SECRET", "*", "=x", "A", "B=1"]}}')[0]
    spec = spec_for("env", cgroup=runtime.cgroup(), image=image, env=("SECRET", "C=2"))
    unread = spec_for("env", image=ImageConfig(env=("SECRET", "B=1"), cmd=("sh",)))
    assert not any(entry.startswith("SECRET") for entry in unread["process"]["env"])
    result = runtime.run(spec, env={"SECRET": "host-value", "A": "host-value"})
    assert result.returncode == 0, result.stderr
    assert "host-value" not in result.stdout
    assert {"B=1", "C=2"} <= set(result.stdout.split())
    assert not {"SECRET", "A", "*", "="} & {row.partition("=")[0] for row in result.stdout.split()}


def test_sec_44_labels_of_an_image_do_not_steer_the_manager() -> None:
    labels = {
        "containerd.io/restart.loguri": "binary:///CANARY/run",
        "containerd.io/restart.status": "running",
        "io.cri-containerd.kind": "sandbox",
        "io.cri-containerd": "x",
        "io.containerd.image.config.stop-signal": "SIGKILL",
        "maintainer": "someone",
    }
    config, warnings = read_image_config(json.dumps({"config": {"Labels": labels}}).encode())
    assert config.labels == {"maintainer": "someone"}
    assert len(warnings) == 5
    assert any("containerd.io/restart.loguri" in warning for warning in warnings)


def test_sec_45_annotations_and_privileges_come_from_the_caller_alone() -> None:
    hostile = {
        "annotations": {"cdi.k8s.io/gpu": "all", "run.oci.handler": "x"},
        "config": {
            "Annotations": {"run.oci.keep_original_groups": "1"},
            "Labels": {"io.containers.capabilities": "sys_admin", "com.nvidia.volumes.needed": "x"},
            "Env": ["NVIDIA_VISIBLE_DEVICES=all", "PATH=/bin"],
            "Privileged": True,
            "SecurityOpt": ["seccomp=unconfined"],
            "Cmd": ["/bin/sh", "-c", "true"],
        },
        "checkpoint": {"mounts": ["/"]},
    }
    image = read_image_config(json.dumps(hostile).encode())[0]
    own = {"my.annotation": "1"}
    spec = spec_for("true", image=image, annotations=own)
    plain = spec_for("true", annotations=own)
    assert spec["annotations"] == own
    assert "annotations" not in spec_for("true", image=image)
    spec["process"]["env"].remove("NVIDIA_VISIBLE_DEVICES=all")
    assert spec == plain


@pytest.mark.root
def test_sec_47_a_working_directory_is_not_an_open_file(runtime: Runtime, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    bad = [f"/proc/self/fd/{number}" for number in range(7, 21)]
    bad += ["/proc/1/cwd", "//proc/self/./root", "/dev/fd/8", "/proc/thread-self/fd/9/..", "tmp"]
    bad += ["/proc/self/task/1/cwd", "/proc/./1/task/1/fd/8/etc"]
    for cwd in bad:
        for how in ({"image": ImageConfig(cmd=("sh",), working_dir=cwd)}, {"cwd": cwd}):
            with pytest.raises(InvalidArgument):
                spec_for("true", **how)
        with pytest.raises(InvalidArgument):
            exec_process(spec_for("true"), ExecRequest(("true",), cwd=cwd))
    (runtime.rootfs / "outside").symlink_to(canary)
    spec = spec_for("pwd -P; ls /proc/self/fd", cgroup=runtime.cgroup(), cwd="/outside")
    result = runtime.run(spec)
    assert list(canary.iterdir()) == []
    if result.returncode == 0:  # the link was followed inside the container's own root
        shutil.rmtree(runtime.rootfs / str(canary).lstrip("/"))
        assert result.stdout.splitlines()[0] == str(canary)
    names = output(runtime, "ls /proc/self/fd").split()
    assert names == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


@pytest.mark.root
def test_sec_49_devices_are_a_list_of_what_is_allowed(runtime: Runtime) -> None:
    script = "mknod /dev/disk b 8 0; (: </dev/disk); (: </dev/null) && echo null-opened; true"
    result = runtime.run(spec_for(script, cgroup=runtime.cgroup()))
    assert "null-opened" in result.stdout
    assert "disk: Operation not permitted" in result.stderr
    # crun and runc read a rule without a type as "a", all devices
    assert spec_for("true")["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}


@pytest.mark.root
@pytest.mark.parametrize("path", [*paths.MASKED, *paths.READONLY])
def test_sec_50_kernel_files_are_masked_or_read_only(runtime: Runtime, path: str) -> None:
    if not os.path.exists(path):  # this kernel does not have it
        assert output(runtime, f"[ -e {path} ] || echo absent") == "absent\n"
        return
    directory = os.path.isdir(path)
    count = f"ls -A {path} | wc -l" if directory else f"cat {path} 2>/dev/null | wc -c"
    probe = f"{count}; (: >>{path}) && echo opened; grep ' {path} ' /proc/self/mountinfo"
    size, *rest = output(runtime, probe).splitlines()
    # proc_pid_mountinfo(5): the mount's own options are the sixth field, its type follows " - "
    options, kind = rest[-1].split()[5].split(","), rest[-1].partition(" - ")[2].split()[0]
    if path in paths.READONLY:
        assert ("opened" in rest, "ro" in options) == (False, True)
    elif directory:
        assert (size, kind, "ro" in options) == ("0", "tmpfs", True)
    else:
        assert size == "0"
        assert rest[-1].split()[3] == "/null"  # what is written there is lost


@pytest.mark.root
def test_sec_50_a_kernel_setting_cannot_be_opened_for_writing(runtime: Runtime) -> None:
    probe = "(: >>/proc/sys/kernel/hostname) && echo opened; echo end"
    assert output(runtime, probe) == "end\n"
    assert output(runtime, probe, privileged=True) == "opened\nend\n"


@pytest.mark.parametrize(
    ("sysctls", "changes"),
    [
        ({"kernel.shm_rmid_forced": "1+kernel.core_pattern=x"}, {}),
        ({"kernel.shm_rmid_forced=1+kernel.core_pattern": "x"}, {}),
        ({"kernel.shm_rmid_forced": "1\nkernel.core_pattern"}, {}),
        ({"kernel.core_pattern": "|/x"}, {}),
        ({"vm.swappiness": "1"}, {}),
        ({"kernel/shmmax": "1"}, {}),
        ({"net.ipv4.ip_forward": "1"}, {"net_host": True}),
    ],
)
def test_sec_51_sysctls_stay_in_the_containers_namespaces(
    sysctls: dict[str, str], changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        spec_for("true", sysctls=sysctls, **changes)


@pytest.mark.root
def test_sec_51_allowed_sysctls_take_effect_inside_only(runtime: Runtime) -> None:
    asked = {"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
    files = ["/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced"]
    before = [Path(file).read_text() for file in files]
    assert output(runtime, f"cat {' '.join(files)}", sysctls=asked).split() == ["77", "1"]
    assert [Path(file).read_text() for file in files] == before


def test_sec_52_annotations_do_not_become_unit_properties() -> None:
    hostile = {"org.systemd.property.ExecStopPost": "['/bin/true']", "kept": "1"}
    assert spec_for("true", annotations=hostile)["annotations"] == {"kept": "1"}


@pytest.mark.root
@pytest.mark.parametrize("as_docker", [False, True])
def test_sec_53_no_cgroup_file_can_be_written_and_none_mounted(
    runtime: Runtime, as_docker: bool
) -> None:
    """Where they are shown, it is the kernel's mounts that are read-only; v1's lie in a tmpfs."""
    script = """
        mkdir /tmp/cg
        mount -t cgroup -o memory cgroup /tmp/cg && echo mounted
        unshare -UrC sh -c 'mount -t cgroup -o rdma cgroup /tmp/cg' && echo mounted
        find /sys -name release_agent | while read f; do (: >>$f) && echo written; done
        places=$(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts)
        [ -n "$places" ] && echo shown
        for place in ${places:-/sys/fs/cgroup}; do
            mkdir $place/x && echo made
            find $place -type f | while read f; do (: >>$f) && echo written; done
        done
        echo end
    """
    said = output(runtime, script, as_docker=as_docker)
    assert said == ("shown\n" if as_docker else "") + "end\n"


# Each call is made for real, with arguments that no kernel accepts; what counts is the error.
_PROBE = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall(number, *map(ctypes.c_long, arguments))
    return errno.errorcode.get(ctypes.get_errno(), "ok")
def family(number):
    try:
        socket.socket(number, socket.SOCK_SEQPACKET if number == 38 else socket.SOCK_STREAM).close()
    except OSError as err:
        return errno.errorcode[err.errno]
    return "ok"
for name, number in (("io_uring_setup", 425), ("io_uring_enter", 426), ("clone3", 435)):
    print(name, call(number, 1, 0, 0))
if os.uname().machine == "x86_64":
    for name, number, argument in (
        ("bpf", 321, 99), ("unshare", 272, 0x10000000), ("keyctl", 250, 0), ("add_key", 248, 0),
        ("clone", 56, 0x10000011), ("userfaultfd", 323, 0), ("open_by_handle_at", 304, -1),
        ("setns", 308, -1), ("personality", 135, 0x0040000), ("perf_event_open", 298, 0),
    ):
        print(name, call(number, argument, 0, 0))
for name, number in (("AF_ALG", 38), ("AF_VSOCK", 40), ("AF_INET", 2), ("AF_UNIX", 1)):
    print(name, family(number))
print("fork", os.waitpid(os.fork() or os._exit(7), 0)[1] >> 8)
"""


@pytest.mark.root
@pytest.mark.parametrize("program", ["runc", "crun"])
@pytest.mark.parametrize("seccomp", ["default", "unconfined"])
def test_sec_54_the_default_profile_closes_dangerous_calls(
    runtime: Runtime, program: str, seccomp: str
) -> None:
    """The probe is the host's Python, whose tree is mounted; unconfined shows that it can tell."""
    assert shutil.which(program), f"{program} is not installed"
    python = Path(sys.executable).resolve()
    mounts = tuple(
        {"destination": f"/host{tree}", "type": "bind", "source": tree, "options": ["rbind", "ro"]}
        for tree in sorted({"/usr", "/lib", "/lib64", sys.base_prefix})
        if os.path.isdir(tree)
    )
    words = ("chroot", "/host", str(python), "-S", "-c", _PROBE)
    result = runtime.with_program(program).run(
        spec_for("", cgroup=runtime.cgroup(), args=words, mounts=mounts, seccomp=seccomp)
    )
    assert result.returncode == 0, result.stderr
    seen = dict(row.split() for row in result.stdout.splitlines())
    assert (seen["AF_INET"], seen["AF_UNIX"], seen["fork"]) == ("ok", "ok", "7")
    guarded = {
        name: code
        for name, code in seen.items()
        if name not in ("AF_INET", "AF_UNIX", "fork", "clone3")
    }
    if seccomp == "default":
        assert set(guarded.values()) == {"EPERM"}, guarded
        assert seen["clone3"] == "ENOSYS"
    else:
        assert (seen["io_uring_setup"], seen["clone3"]) != ("EPERM", "ENOSYS")
        assert set(guarded.values()) != {"EPERM"}


@pytest.mark.parametrize(
    "mount",
    [
        {"destination": "/proc", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/proc", "type": "bind", "source": "/srv/volume"},
        {"destination": "/sys", "type": "tmpfs", "source": "tmpfs"},
    ],
)
def test_sec_55_nothing_stands_where_labels_are_written(mount: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        spec_for("true", mounts=(mount,))


def test_sec_60_sizes_are_checked_before_any_runtime_runs() -> None:
    with pytest.raises(InvalidArgument):
        spec_for("true", sharing=Sharing({"net": "/" + "n" * 65536}))
    with pytest.raises(InvalidArgument, match="at most"):
        spec_for("true", env=tuple(f"V{number}={'x' * 65536}" for number in range(257)))
    foreign = spec_for("true")
    foreign["linux"]["namespaces"][0]["path"] = "/" + "n" * 65536
    with pytest.raises(InvalidArgument, match="path over"):
        checks.encode(foreign)
    mapping = {"containerID": 0, "hostID": 0, "size": 1}
    for key in ("uidMappings", "gidMappings"):
        foreign = spec_for("true")
        foreign["linux"][key] = [mapping] * 10_000
        with pytest.raises(InvalidArgument, match=key):
            checks.encode(foreign)
    assert json.loads(checks.encode(spec_for("true"))) == spec_for("true")
