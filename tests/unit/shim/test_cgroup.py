"""Who is in a cgroup, as far as this process can name them."""

import os
import signal
from pathlib import Path

from lighter.shim.cgroup import Cgroup


def test_a_process_of_another_pid_namespace_is_not_our_own_group(tmp_path: Path) -> None:
    """It is listed as 0 (cgroups(7)), and kill(2) takes that for the caller's whole group."""
    (tmp_path / "cgroup.procs").write_text("0\n")
    cgroup = Cgroup({"pids": str(tmp_path)}, "")
    assert cgroup.pids() == []
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        cgroup.kill_all(signal.SIGTERM)
        cgroup.kill_all()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
