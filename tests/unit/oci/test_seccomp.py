"""The default profile as data, and profiles that callers hand in."""

import json
from typing import Any

import pytest

from lighter.daemon.oci import seccomp_table
from lighter.daemon.oci.capabilities import ALL, DEFAULT
from lighter.daemon.oci.seccomp import profile, read_profile
from lighter.proto.errors import InvalidArgument, Unimplemented

DENIED = (
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "unshare", "setns", "mount"),
    *("keyctl", "add_key", "request_key", "userfaultfd", "kexec_load", "init_module", "reboot"),
    *("open_by_handle_at", "perf_event_open", "swapon", "move_mount", "open_tree", "fsopen"),
)


def unconditional(rules: dict[str, Any]) -> set[str]:
    return {
        name
        for rule in rules["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }


def test_the_default_is_to_refuse_with_eperm() -> None:
    rules = profile(frozenset(DEFAULT), "x86_64")
    assert (rules["defaultAction"], rules["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    allowed = unconditional(rules)
    assert allowed.isdisjoint({*DENIED, "clone", "clone3", "socket", "personality"})
    assert {"read", "execve", "arch_prctl", "chroot", "landlock_restrict_self"} <= allowed


def test_socket_families() -> None:
    """What the rules say of each family, read as the kernel does: any matching rule allows."""
    rules = profile(frozenset(DEFAULT), "x86_64")
    conditions = [rule["args"] for rule in rules["syscalls"] if rule["names"] == ["socket"]]

    def allowed(family: int) -> bool:
        return any(
            family < arg["value"] if arg["op"] == "SCMP_CMP_LT" else family == arg["value"]
            for (arg,) in conditions
        )

    refused = {family for family in range(46) if not allowed(family)}
    assert refused == {12, 19, 20, 23, 25, 34, 37, 38, 40}


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("capabilities", [DEFAULT, ALL, ()])
def test_every_rule_has_one_condition_at_most(arch: str, capabilities: tuple[str, ...]) -> None:
    for rule in profile(frozenset(capabilities), arch)["syscalls"]:
        assert len(rule.get("args", [])) <= 1
        assert rule["names"]


def test_clone_without_namespaces_and_clone3_as_unknown() -> None:
    rules = profile(frozenset(DEFAULT), "x86_64")["syscalls"]
    (clone,) = (rule for rule in rules if "clone" in rule["names"])
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}]
    (clone3,) = (rule for rule in rules if "clone3" in rule["names"])
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    admin = unconditional(profile(frozenset(ALL), "x86_64"))
    assert {"clone", "clone3", "unshare", "bpf", "mount"} <= admin
    assert not admin & {"keyctl", "io_uring_setup"}


@pytest.mark.parametrize("capability", seccomp_table.BY_CAPABILITY)
def test_a_capability_opens_its_calls_and_no_others(capability: str) -> None:
    assert capability in ALL
    without = unconditional(profile(frozenset(), "x86_64"))
    opened = unconditional(profile(frozenset((capability,)), "x86_64")) - without
    assert opened == set(seccomp_table.BY_CAPABILITY[capability])


def test_no_table_is_changed_by_making_a_profile() -> None:
    first = profile(frozenset(ALL), "x86_64")
    first["architectures"].clear()
    first["syscalls"][0]["names"].clear()
    assert "read" in unconditional(profile(frozenset(), "x86_64"))
    assert profile(frozenset(), "aarch64")["architectures"] == [
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
    ]


def test_an_architecture_without_rules() -> None:
    with pytest.raises(Unimplemented):
        profile(frozenset(), "m68k")


DOCKER_FORM = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {}},
        {"name": "write", "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
         "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["set_tls"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("capabilities", "arch", "names"),
    [
        ((), "x86_64", ["read", "write", "clone3", "ptrace"]),
        (("CAP_SYS_ADMIN",), "x86_64", ["read", "write", "mount", "ptrace"]),
        ((), "aarch64", ["read", "write", "clone3", "set_tls", "ptrace", "clone"]),
    ],
)
def test_dockers_form(capabilities: tuple[str, ...], arch: str, names: list[str]) -> None:
    result = read_profile(json.dumps(DOCKER_FORM), frozenset(capabilities), arch)
    assert [name for rule in result["syscalls"] for name in rule["names"]] == names
    assert all(
        rule.keys() <= {"names", "action", "args", "errnoRet"} for rule in result["syscalls"]
    )
    assert result["architectures"][0] == f"SCMP_ARCH_{arch.upper()}"
    assert "archMap" not in result


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction": 1}',
        '{"defaultAction": "A", "syscalls": {}}',
        '{"defaultAction": "A", "syscalls": [1]}',
        '{"defaultAction": "A", "syscalls": [{}]}',
        '{"defaultAction": "A", "syscalls": [{"names": ["a"], "action": "A", "includes": [1]}]}',
        *(
            f'{{"defaultAction": "A", "syscalls": [{{"names": ["a"], "action": "A", {wrong}}}]}}'
            for wrong in (
                '"includes": {"caps": [[]]}',
                '"excludes": {"caps": 1}',
                '"includes": {"arches": 5}',
                '"excludes": {"arches": [1]}',
            )
        ),
        '{"defaultAction": "A", "archMap": {}}',
        "[" * 100_000,
        " " * (1 << 21),
    ],
)
def test_refused_profiles(text: str) -> None:
    with pytest.raises(InvalidArgument):
        read_profile(text, frozenset(), "x86_64")
