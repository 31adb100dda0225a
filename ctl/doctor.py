"""`ctl doctor`: whether host and instance are sound, told by the manager, or by `lighterd doctor`
when none serves: that is the day on which one asks.
"""

from __future__ import annotations

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.output import print_json, table
from lighter.proto.errors import DeadlineExceeded, Unavailable, Unimplemented

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DOCTOR_S = 60.0
CALL_S = 60.0
SOON_S = 5.0  # once a call was not answered in time
AWAY_S = 3.0
_MOST_BYTES = 1 << 20


@grammar.command("doctor")
@grammar.option(
    "--lighterd",
    default="lighterd",
    show_default=True,
    metavar="COMMAND",
    help="Whose `doctor` is asked when no manager serves; with its options.",
)
@grammar.option("--all", "-a", "everything", is_flag=True, help="Show what is well, too.")
@format_option
def doctor(session: Session, lighterd: str, everything: bool) -> int:
    """look for what is wrong with this host and this manager

    Exit status 1 when there is a problem. Nothing is changed.

    \b
      ctl doctor
      ctl doctor --all
      ctl doctor --lighterd "lighterd --config /etc/lighter/other.toml"
    """
    findings = examination(session, lighterd)
    failed = any(one["status"] == "problem" for one in findings)
    if session.json:
        print_json(findings)
        return int(failed)
    wanted = [one for one in findings if everything or one["status"] != "ok"]
    if wanted:
        table(
            ("STATUS", "CHECK", "FOUND"),
            [(one["status"], one["check"], _line(one)) for one in wanted],
        )
    well = sum(one["status"] == "ok" for one in findings)
    print(f"{well} of {len(findings)} checks are well")
    return int(failed)


def _line(finding: dict[str, Any]) -> str:
    advice = finding["advice"] if finding["status"] != "ok" else ""
    return f"{finding['found']}: {advice}" if advice else str(finding["found"])


def examination(session: Session, lighterd: str) -> list[dict[str, Any]]:
    """The findings: {check, status, found, advice}, that of the manager itself first.

    A manager that welcomes and does not answer, for a disk that hangs, is as one that is away.
    Raises Unavailable when neither a manager nor lighterd answers.
    """
    # One that was killed may come back in a moment; who looks for a fault need not wait for long.
    session.connect_timeout_s = min(session.connect_timeout_s, AWAY_S)
    try:
        session.manager.limit_calls(CALL_S)
        found = session.call("system.doctor")["findings"]
        health = session.call("system.health")
    except (Unavailable, DeadlineExceeded) as err:
        hangs = isinstance(err, DeadlineExceeded)
        if hangs and session.timeout_s:
            raise
        session.manager.limit_calls(SOON_S)
        does = "hangs" if hangs else "does not run"
        away = {
            "check": "manager",
            "status": "problem",
            "found": err.message,
            "advice": f"`systemctl status lighterd` tells why it {does}",
        }
        return [away, *_of_program(lighterd)]
    except Unimplemented:  # it is of the release before, which did not look
        health, found = session.call("system.health"), _of_program(lighterd)
    return [_of_manager(health), *found]


def _of_manager(health: dict[str, Any]) -> dict[str, Any]:
    one = {"check": "manager", "status": "ok", "found": "it serves", "advice": ""}
    if health.get("stands_in"):
        one |= {"status": "warning", "found": f"it stands in for {health['stands_in']}"}
    if health.get("loss"):
        one |= {
            "status": "problem",
            "found": f"its database has lost rows: {health['loss']}",
            "advice": "`ctl system accept-loss` when nothing can be brought back",
        }
    return one


def said_by(argv: Sequence[str], timeout_s: float) -> tuple[int, bytes, bytes]:
    """Exit status, output and errors of a program. Raises what subprocess does.

    One that takes too long is killed and not waited for: on a disk that hangs it does not end.
    """
    import subprocess

    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        process.kill()
        raise
    return process.returncode, out, err


def _of_program(command: str) -> list[dict[str, Any]]:
    """What `lighterd doctor` finds. Raises Unavailable with what it said."""
    import json
    import shlex
    import subprocess

    try:
        argv = [*shlex.split(command), "doctor", "--format", "json"]
        code, out, err_out = said_by(argv, DOCTOR_S)
        if code in (0, 1) and len(out) < _MOST_BYTES:
            return list(json.loads(out))
        said = err_out.decode(errors="replace").strip()[-500:]
    except (OSError, ValueError, subprocess.SubprocessError) as err:
        said = str(err)
    raise Unavailable(f"run {command} doctor: {said}")
