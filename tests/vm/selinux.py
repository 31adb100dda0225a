"""The disk of a machine with SELinux: Debian's policy, the types that containers have, our module.

Debian's policy names container_t in its lxc_contexts and does not have it, so TYPES stands for
container-selinux: the manager may do all there (CentOS' is unconfined too), a container its own
files' and what a process cannot do without. Everything is made and labelled on the host, where
root may set the attribute: natively that takes seconds.
"""

import shutil
import subprocess
from pathlib import Path

from tests.vm.disk import Disk
from tests.vm.payload import policy_package
from tests.vm.powercut import Mounted

APPEND = "security=selinux selinux=1 enforcing=0"
_SETUP_S = 300
CONFIG = '[plugins."io.lighter.v1"]\nselinux = true\n'
TYPES = """\
(type container_runtime_t) (type container_t) (type spc_t)
(typeattributeset domain (container_runtime_t container_t spc_t))
(roletype system_r container_runtime_t) (roletype system_r container_t) (roletype system_r spc_t)
(typepermissive container_runtime_t) (typepermissive spc_t)

(type container_runtime_exec_t) (type container_file_t) (type container_ro_file_t)
(type container_var_lib_t) (type container_var_run_t) (type container_config_t)
(type container_unit_file_t)
(typeattribute container_files)
(typeattributeset container_files (container_runtime_exec_t container_file_t container_ro_file_t
    container_var_lib_t container_var_run_t container_config_t container_unit_file_t))
(typeattributeset file_type container_files)
(roletype object_r container_files)

; As Fedora has it: what is made in a directory has its level, not that of who makes it.
(defaultrange dir target low) (defaultrange file target low) (defaultrange lnk_file target low)
(defaultrange fifo_file target low) (defaultrange sock_file target low)

; systemd starts the manager.
(typetransition init_t container_runtime_exec_t process container_runtime_t)
(allow init_t container_runtime_exec_t (file (getattr open read execute map ioctl)))
(allow init_t container_runtime_t (process (all)))
(allow container_runtime_t container_runtime_exec_t (file (all)))
(allow domain container_runtime_t (dbus (send_msg)))
(allow domain container_runtime_t (fd (use)))
(allow domain container_runtime_t (unix_stream_socket (connectto read write getattr)))
(allow domain container_runtime_t (fifo_file (read write getattr append ioctl)))

; A container: its files, itself, what the manager gives it, and what the kernel tells everybody.
(typeattributeset mcs_constrained_type container_t)
(allow container_t container_file_t (file (all)))
(allow container_t container_file_t (dir (all)))
(allow container_t container_file_t (lnk_file (all)))
(allow container_t container_file_t (chr_file (all)))
(allow container_t container_file_t (fifo_file (all)))
(allow container_t container_file_t (sock_file (all)))
(allow container_t container_file_t (filesystem (getattr)))
(allow container_t self (process (all)))
(allow container_t self (file (all)))
(allow container_t self (dir (all)))
(allow container_t self (lnk_file (all)))
(allow container_t self (fifo_file (all)))
(allow container_t self (fd (use)))
(allow container_t container_runtime_t (process (sigchld)))
(allow container_t proc_t (dir (getattr search open read)))
(allow container_t proc_t (file (getattr open read)))
(allow container_t proc_t (lnk_file (getattr read)))
(allow container_files self (filesystem (associate)))
"""
_INSTALL = """\
set -e
for place in /etc/selinux /var/lib/selinux; do ln -s default $place/targeted; done
printf 'SELINUX=permissive\\nSELINUXTYPE=targeted\\n' >/etc/selinux/config
semodule -n -s targeted -i /var/tmp/types.cil
rpm -i --nodeps /var/tmp/*.rpm
semodule -s targeted --list-modules=full | grep -q '^200 lighter  *cil'
rm /var/tmp/*
"""
# setfiles names what it has open by /proc.
_INSIDE = 'mount -t proc proc "$0/proc" && exec chroot "$0" sh -c "$1"'
_LABEL = "setfiles -m -F /etc/selinux/targeted/contexts/files/file_contexts /"


def make_disk(installed: Disk, work: Path) -> Disk:
    """A copy of `installed` with all of that."""
    disk = Disk(work / "selinux", APPEND)
    disk.directory.mkdir()
    disk.kernel.symlink_to(installed.kernel)
    disk.initrd.symlink_to(installed.initrd)
    subprocess.run(["cp", "--sparse=always", installed.image, disk.image], check=True, timeout=300)
    with Mounted(disk.image, work / "mounted-selinux") as root:
        shutil.copy(policy_package(work), root / "var/tmp")
        (root / "var/tmp/types.cil").write_text(TYPES)
        (root / "etc/lighter/config.toml").write_text(CONFIG)
        for script in (_INSTALL, _LABEL):
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", _INSIDE, root, script],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SETUP_S,
            )
            assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return disk
