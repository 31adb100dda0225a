"""What every test shares: the meaning of the `root` marker, how hypothesis runs, and a look at the
machine's packet filter when all are over.

In CI hypothesis takes the same examples each time, so that a red run can be run again; elsewhere
it looks further each time. Its limits on time are off: a busy machine is no fault of the code.
Nor is anything skipped there: what is skipped for want of something would look as if it held.
Where nothing else runs (CENSUS_EXCLUSIVE) a session fails that takes far longer than tests/BUDGET
gives to one of its folders, or to all of them.
"""

import os
import time
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import budget, census

IN_CI = os.environ.get("CI") == "true"
IS_EXCLUSIVE = os.environ.get("CENSUS_EXCLUSIVE") == "1"
SPENT = budget.Spent(budget.read(budget.FILE.read_text()))
BEGAN = time.monotonic()
BEFORE_S = budget.before_s()

settings.register_profile(
    "lighter", deadline=None, derandomize=IN_CI, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lighter")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-lighterd",
        action="store_true",
        help="one instance for all tests that take `lighterd`: for a slow machine (tests/vm)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root the tests that need it are skipped, which the summary shows; not so in CI.

    The long versions have the time that they want: the deadlines of marks are the short ones'.
    """
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(0), append=False)
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            if IN_CI:
                raise pytest.UsageError(f"{item.nodeid} needs root")
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that is skipped fails, but for a goal that is known to be missed."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"nothing is skipped in CI: {report.longreprtext}"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "soak" not in report.keywords:
        SPENT.add(report.nodeid, report.duration)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if IS_EXCLUSIVE and over_budget(session.config) and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def over_budget(config: pytest.Config) -> list[str]:
    """The long versions have the time that they want."""
    is_long = config.getoption("markexpr") == "soak"
    return SPENT.over(0 if is_long else time.monotonic() - BEGAN)


@pytest.fixture(scope="session", autouse=True)
def no_rule_is_left() -> Iterator[None]:
    """On a machine of our own: tests of networks and Docker have network namespaces of theirs, so
    none may change the machine's packet filter.
    """
    before = census.firewall_rules() if IS_EXCLUSIVE else None
    yield
    if before is not None:
        left = census.firewall_rules() - before
        assert not left, "\n".join(f"left rule: {rule}" for rule in sorted(left))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have measured, a line each: record_property(name, value)."""
    if IS_EXCLUSIVE:
        for line in over_budget(terminalreporter.config):
            terminalreporter.write_line(line, red=True)
        if BEFORE_S is not None:
            took_s = time.monotonic() - BEGAN
            line = f"MEASURED s of all tests: {took_s:.0f}, before them: {BEFORE_S:.0f}"
            terminalreporter.write_line(f"{line}, promised for both: {budget.MOST_S}")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"MEASURED {report.nodeid}: {name}: {value}")
