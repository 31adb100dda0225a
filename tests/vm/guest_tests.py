"""Tests that hold on any host, run in a machine: on cgroup v2 alone, and with a plain Debian's
kernel, systemd, runc and Python. One run of pytest there; each test's outcome here.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from tests.vm.machine import Machine
from tests.vm.payload import MOUNT, PYTHON

RUN_S = 900.0
# What depends on the kind of cgroups, or on a kernel that CRIU can use. The rest would tell nothing
# new, slowly.
TESTS = (
    "integration/test_checkpoint.py::test_a_checkpoint_by_criu_or_the_reason_why_not",
    "integration/test_checkpoint_images.py::test_by_criu_or_the_reason_why_not",
    "integration/test_cgroup.py",
    "integration/test_streams.py::test_f46_a_paused_task_is_deleted_by_force",
    "integration/test_streams.py::test_kill_all_reaches_every_process",
    "integration/test_streams.py::test_a_background_child_ends_with_its_container",
    "integration/test_inherit.py::test_sec_76_the_shim_is_not_in_the_containers_cgroup",
    "integration/test_faults.py::test_f42_the_shim_dies_and_the_runtime_goes_on",
    "integration/test_shim_memory.py::test_an_idle_shim_makes_no_context_switch",
    "security/test_spec.py::test_sec_53_no_cgroup_file_can_be_written_and_none_mounted",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a test there: `why` it did not pass, or "", and what it took and measured."""

    why: str
    told: dict[str, str]


def outcomes_of(machine: Machine) -> dict[str, Outcome]:
    """Run TESTS in the machine; by the name of the test."""
    report = "/tmp/report.xml"
    argv = [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--one-lighterd", "--durations=0"]
    argv += ["-m", "not soak", "--timeout=300", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    # Rewriting the tests' asserts would compile each module there, slowly; locals tell as much.
    argv += ["--assert=plain", "--showlocals", *(f"tests/{test}" for test in TESTS)]
    done = machine.run(
        ["sh", "-c", 'cd "$0" && exec "$@"', MOUNT, *argv],
        env={"PYTHONSAFEPATH": "1", "CENSUS_EXCLUSIVE": "1", "CRIU_WORKS": "1"},
        timeout_s=RUN_S,
        check=False,
    )
    assert done.code in (0, 1), f"{done.text[-6000:]}\n{done.stderr.decode()[-3000:]}"
    cases = ElementTree.fromstring(machine.read(report)).iter("testcase")
    return dict(map(_outcome, cases))


def _outcome(case: ElementTree.Element) -> tuple[str, Outcome]:
    name = f"{case.get('file', '').removeprefix('tests/')}::{case.get('name')}"
    told = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
    told["seconds"] = case.get("time", "")
    # A goal that is known to be missed is no failure; nothing else may be skipped here.
    bad = [
        f"{child.tag}: {child.text}"
        for child in case
        if child.tag in ("failure", "error", "skipped") and child.get("type") != "pytest.xfail"
    ]
    return name, Outcome("\n".join(bad), told)
