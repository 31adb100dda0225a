"""The file contexts: they compile, and give each path the type that a container manager's has.

Not a policy that is enforced: this needs the types' names only, which are declared here, as
container-selinux does.
"""

import re
import subprocess
from pathlib import Path

import pytest

from lighter.proto.version import VERSION
from tests.packaging.rpms import unpack

# The least that CIL takes for a policy.
BASE = """
(handleunknown allow) (mls true)
(sid kernel) (sidorder (kernel))
(class file (read)) (classorder (file))
(sensitivity s0) (sensitivityorder (s0))
(category c0) (categoryorder (c0)) (sensitivitycategory s0 (c0))
(user system_u) (role object_r) (role system_r)
(userrole system_u object_r) (userrole system_u system_r)
(userlevel system_u (s0)) (userrange system_u ((s0) (s0 (c0))))
(type kernel_t) (roletype system_r kernel_t)
(sidcontext kernel (system_u system_r kernel_t ((s0) (s0))))
(mlsconstrain (file (read)) (dom l1 l2))
(allow kernel_t kernel_t (file (read)))
"""
EXPECTED = {
    "/usr/bin/lighterd": "container_runtime_exec_t",
    "/usr/libexec/lighter/lighter-spawner": "container_runtime_exec_t",
    f"/usr/lib64/lighter/{VERSION}/lighterd": "container_runtime_exec_t",
    f"/usr/lib/lighter/{VERSION}/lighterd": "container_runtime_exec_t",
    "/usr/lib/systemd/system/lighterd.service": "container_unit_file_t",
    "/etc/lighter/config.toml": "container_config_t",
    "/run/lighter/lighter.sock": "container_var_run_t",
    "/var/run/lighter/lighter.sock": "container_var_run_t",
    "/var/lib/lighter/lighter.db": "container_var_lib_t",
    "/var/lib/lighter/snapshots/overlayfs/7/fs/bin/sh": "container_file_t",
    "/var/lib/lighter/volumes/default/data/_data": "container_file_t",
    "/var/lib/lighter/volumes/default/data/_data/a/b": "container_file_t",
    "/var/lib/lighter/volumes/default/data": "container_var_lib_t",
    "/var/lib/lighter/volumes/default/data/filling-0": "container_var_lib_t",
    # No more than that: what is not named keeps the type that the policy gives it.
    "/usr/bin/ctl": None,
    f"/usr/lib64/lighter/{VERSION}/site/lighter/daemon/app.py": None,
    "/var/lib/lighterage": None,
}


@pytest.fixture(scope="module")
def contexts(rpms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What secilc makes of the packaged module: file contexts."""
    directory = tmp_path_factory.mktemp("selinux")
    unpack(rpms["lighter-selinux"], directory)
    (module,) = directory.rglob("*.cil")
    types = sorted(set(re.findall(r"object_r (\w+)", module.read_text())))
    declared = [f"(type {name}) (roletype object_r {name})" for name in types]
    (directory / "base").write_text(BASE + "\n".join(declared))
    policy, contexts = directory / "policy", directory / "contexts"
    argv = ["secilc", "-o", policy, "-f", contexts, directory / "base", module]
    subprocess.run(argv, check=True)
    return contexts


@pytest.mark.parametrize("path", EXPECTED)
def test_paths_have_the_types_of_a_container_manager(path: str, contexts: Path) -> None:
    argv = ["selabel_lookup", "-b", "file", "-f", str(contexts), "-k", path]
    shown = subprocess.run(argv, capture_output=True, text=True)
    found = re.search(r"Default context: system_u:object_r:(\w+):s0\n", shown.stdout)
    assert (found and found[1]) == EXPECTED[path], shown.stdout + shown.stderr
