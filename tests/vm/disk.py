"""The virtual machine's disk: Debian 12 with its cloud kernel, made once and kept by content.

    python tests/vm/disk.py          makes it when needed and prints its directory

    .cache/vm/<hash of this folder's recipe>/
        disk.raw    ext4, no partitions, sparse; never written again: machines write to overlays
        vmlinuz     Debian's linux-image-cloud-amd64
        initrd      its initrd, with the drivers that find the disk

debootstrap asks Debian's mirror for it, so what is inside is checked by Debian's signatures.
Runs on CentOS too, whose debootstrap comes from EPEL.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vm"
AGENT = Path(__file__).with_name("agent.py")
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SUITE = "bookworm"
SIZE = "4G"
BUILD_S = 900
# rpm installs what we build; runc and crun run containers; less and others are for looking around.
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "kmod", "dbus", "linux-image-cloud-amd64", "zstd"),
    *("runc", "crun", "busybox-static", "python3", "rpm", "iproute2", "procps", "strace"),
    *("containernetworking-plugins", "iptables", "criu", "apparmor", "ca-certificates", "less"),
    "libdevmapper1.02.1",  # for the Docker that the payload brings
    *("selinux-policy-default", "policycoreutils", "selinux-utils"),  # not used but by selinux.py
)
_TEXTS = {
    "etc/hostname": "lighter-vm\n",
    "etc/hosts": "127.0.0.1 localhost lighter-vm\n",
    "etc/fstab": (
        "/dev/vda / ext4 defaults,errors=remount-ro 0 1\n/dev/vdb /opt/payload ext4 defaults 0 0\n"
    ),
    # A fixed one: a first boot would look at every unit's preset.
    "etc/machine-id": "6c696768746572000000000000000001\n",
    "etc/systemd/journald.conf.d/vm.conf": "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n",
    "etc/systemd/system/vm-agent.service": """\
[Unit]
Description=Runs what the tests ask for
After=local-fs.target

[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/vm-agent.py
Environment=HOME=/root
Restart=always
OOMScoreAdjust=-900
KillMode=process
TasksMax=infinity

[Install]
WantedBy=multi-user.target
""",
    # The host reads it as it is written, so that it is there for a machine that no longer answers.
    "etc/systemd/system/vm-journal.service": """\
[Unit]
Description=Shows the journal to the host

[Service]
Environment=PORT=/dev/virtio-ports/lighter.journal
ExecStart=/bin/sh -c 'until test -e $PORT; do sleep 0.2; done; \
    exec journalctl --boot --follow --lines=all --output=short-monotonic >$PORT'
Restart=always
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
""",
    # For `make vm-shell`.
    "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf": """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 %I vt220
""",
}
_LINKS = {
    "etc/systemd/system/multi-user.target.wants/vm-agent.service": "../vm-agent.service",
    "etc/systemd/system/multi-user.target.wants/vm-journal.service": "../vm-journal.service",
    "etc/systemd/system/default.target": "/usr/lib/systemd/system/multi-user.target",
    **{
        f"etc/systemd/system/{unit}": "/dev/null"
        for unit in (
            *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"),
            *("e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service"),
            *("systemd-tmpfiles-clean.timer", "systemd-networkd-wait-online.service"),
            *("systemd-binfmt.service", "systemd-update-utmp.service"),
            "systemd-update-utmp-runlevel.service",
            # A start without SELinux would ask the next one to relabel everything.
            *("selinux-autorelabel-mark.service", "selinux-autorelabel.service"),
        )
    },
}
_UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt")


@dataclass(frozen=True)
class Disk:
    """A finished one: the three files of the module's drawing. `append`: words for its kernel."""

    directory: Path
    append: str = ""

    @property
    def image(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def the_disk() -> Disk:
    """The disk of this recipe; the first call takes about three minutes."""
    key = hashlib.sha256(Path(__file__).read_bytes() + AGENT.read_bytes()).hexdigest()[:16]
    disk = Disk(CACHE / key)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.directory.exists():
            _build(disk)
    return disk


def _build(disk: Disk) -> None:
    for older in CACHE.glob("*/disk.raw"):
        shutil.rmtree(older.parent)
    # A name that only the end gives: what was cut short is found, and made anew.
    work = CACHE / "making"
    shutil.rmtree(work, ignore_errors=True)
    tree, made = work / "tree", work / "made"
    made.mkdir(parents=True)
    _run(
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(SUITE, str(tree), MIRROR),
    )
    for name in _UNNEEDED:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name, text in _TEXTS.items():
        _fresh(tree / name).write_text(text)
    for name, target in _LINKS.items():
        _fresh(tree / name).symlink_to(target)
    shutil.copy(AGENT, _fresh(tree / "usr/local/lib/vm-agent.py"))
    (tree / "var/log/journal").mkdir(exist_ok=True)
    (tree / "opt/payload").mkdir(parents=True)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (initrd,) = (tree / "boot").glob("initrd.img-*")
    shutil.move(kernel, made / "vmlinuz")
    shutil.move(initrd, made / "initrd")
    make_image(tree, made / "disk.raw", SIZE)
    made.rename(disk.directory)
    shutil.rmtree(work)


def make_image(tree: Path, image: Path, size: str) -> None:
    """An ext4 file system with the tree's content, owners and times; nothing is mounted for it."""
    # Without lazy initialisation the guest's kernel has nothing to do in the background.
    options = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    _run("mke2fs", "-q", "-t", "ext4", "-E", options, "-d", str(tree), str(image), size)


def _fresh(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _run(*argv: str) -> None:
    # Its tools stand in sbin, which a user's PATH may lack.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        argv,
        env={**os.environ, "PATH": path, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_S,
    )
    if done.returncode:
        raise RuntimeError(f"run {argv[0]}: {done.stdout[-3000:].decode(errors='replace')}")


if __name__ == "__main__":
    sys.stdout.write(f"{the_disk().directory}\n")
