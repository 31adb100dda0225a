"""SELinux labels: from a policy's files, as docker's words change them, and apart from others'."""

import os
from pathlib import Path

import pytest

from lighter.ctl.flags.security import labels as of_words
from lighter.daemon.oci.selinux import (
    ATTRIBUTE,
    Labelling,
    Labels,
    SELinux,
    labelled,
    read_labelling,
)
from lighter.daemon.types import Mount
from lighter.proto.errors import FailedPrecondition, InvalidArgument
from tests.security.test_spec import spec_for

CONTEXTS = (
    'process = "system_u:system_r:container_t:s0"\n'
    'content = "system_u:object_r:virt_var_lib_t:s0"\n'
    'file = "system_u:object_r:container_file_t:s0"\n'
)


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name, text in (
        ("sys/fs/selinux/enforce", "1"),
        ("etc/selinux/config", "# as Fedora has it\nSELINUX=enforcing\nSELINUXTYPE=mcs\n"),
        ("etc/selinux/mcs/contexts/lxc_contexts", CONTEXTS),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return f"{tmp_path}/"


def test_a_container_gets_the_policys_types_and_a_level_of_its_own(root: str) -> None:
    host, taken = SELinux(True, root), set[str]()
    for _ in range(50):
        made = host.labels(Labelling(), lambda: taken, privileged=False)
        assert made.process == f"system_u:system_r:container_t:{made.level}"
        assert made.mount == f"system_u:object_r:container_file_t:{made.level}"
        assert made.level not in taken
        taken.add(made.level)
    spec = spec_for("true", selinux=made)
    assert spec["process"]["selinuxLabel"] == made.process
    assert spec["linux"]["mountLabel"] == made.mount
    assert "selinuxLabel" not in spec_for("true")["process"]


def test_dockers_words(root: str) -> None:
    words = ("label=type:svirt_t", "label:level:s0:c1,c2", "label=filetype:f_t", "seccomp=x")
    asked = read_labelling(of_words(words))
    assert SELinux(False, root).labels(asked, set, privileged=False) == Labels(
        "system_u:system_r:svirt_t:s0:c1,c2", "system_u:object_r:f_t:s0:c1,c2"
    )
    off = read_labelling(of_words(("label=disable",)))
    assert SELinux(True, root).labels(off, set, privileged=False) == Labels()


def test_who_gets_none(root: str, tmp_path: Path) -> None:
    assert SELinux(False, root).labels(Labelling(), set, privileged=False) == Labels()
    assert SELinux(True, root).labels(Labelling(), set, privileged=True) == Labels()
    without = SELinux(True, f"{tmp_path}/nowhere/")
    assert without.labels(Labelling(), set, privileged=False) == Labels()
    with pytest.raises(FailedPrecondition, match="no SELinux"):
        without.labels(Labelling(parts={"type": "t"}), set, privileged=False)
    for given in ({"type": "a b"}, {"level": "s0:c1 x"}, {"nested": "1"}, {"type": "t\0"}):
        with pytest.raises(InvalidArgument):
            read_labelling(given)
    (tmp_path / "etc/selinux/mcs/contexts/lxc_contexts").unlink()
    with pytest.raises(FailedPrecondition, match="container-selinux"):
        SELinux(True, root).labels(Labelling(), set, privileged=False)


@pytest.mark.root
@pytest.mark.skipif(
    os.path.exists("/sys/fs/selinux/enforce"), reason="SELinux knows no label that is made up"
)
def test_snapshots_are_made_where_containers_may_read(root: str, tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "overlayfs" / "1").mkdir(parents=True)
    (tmp_path / "snapshots" / "file").touch()
    SELinux(False, root).label_snapshots(f"{tmp_path}/snapshots")
    for name in ("snapshots", "snapshots/overlayfs"):
        label = os.getxattr(tmp_path / name, ATTRIBUTE)
        assert label == b"system_u:object_r:container_file_t:s0", name
    for name in ("snapshots/overlayfs/1", "snapshots/file"):
        assert ATTRIBUTE not in os.listxattr(tmp_path / name)


def test_snapshots_that_cannot_be_labelled_stop_nobody(
    root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SELinux(True, f"{tmp_path}/nowhere/").label_snapshots(f"{tmp_path}/none")
    assert not caplog.text
    SELinux(True, root).label_snapshots(f"{tmp_path}/none")
    assert f"label {tmp_path}/none: No such file" in caplog.text
    (tmp_path / "etc/selinux/mcs/contexts/lxc_contexts").unlink()
    SELinux(True, root).label_snapshots(str(tmp_path))
    assert "container-selinux" in caplog.text


def test_a_root_is_mounted_with_the_label() -> None:
    overlay = labelled(Mount("overlay", "overlay", ("lowerdir=/a",)), "u:r:t:s0:c1,c2")
    assert overlay.options == ("lowerdir=/a", 'context="u:r:t:s0:c1,c2"')
    bind = Mount("bind", "/a", ("rbind",))
    assert labelled(bind, "u:r:t:s0") == bind
