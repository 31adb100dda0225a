"""Rules that keep networks of `ctl network create` apart, beside those of the plugin firewall.

firewall's `ingressPolicy: same-bridge` drops what goes from one bridge that has it to another, in
the chain CNI-ISOLATION-STAGE-1 of FORWARD. Two things are left to us, at the head of FORWARD of
a table each:

    filter   -i lt-+ -o lt-+ --ctstate DNAT   goes past that: a port published by the host's address
                                              answers containers of other networks too
    mangle   -i lti-+ ! -o lti-+              is dropped, and the way back: nothing leaves an
                                              internal network, whatever frames a container makes

In filter, dockerd and libvirtd put rules of their own before all others when they start, which let
through what these drop. mangle comes before filter: what is dropped there is not asked again.

Bridges of internal networks have a prefix of their own, so these are the same few rules for all
networks: like the chains of plugins, they are made once for a host and stay. Blocking, for a
thread.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator

from lighter.daemon.network.configs import Network
from lighter.proto.errors import FailedPrecondition, words_of

SAME_BRIDGE = "same-bridge"
OPEN_PREFIX, INTERNAL_PREFIX = "lt-", "lti-"
COMMAND_S = 20.0
_ALL_OPEN, _ALL_INTERNAL = f"{OPEN_PREFIX}+", f"{INTERNAL_PREFIX}+"
_PUBLISHED = ("-i", _ALL_OPEN, "-o", _ALL_OPEN, "-m", "conntrack", "--ctstate", "DNAT", "-j")
_INTERNAL = (
    ("-i", _ALL_INTERNAL, "!", "-o", _ALL_INTERNAL, "-j", "DROP"),
    ("!", "-i", _ALL_INTERNAL, "-o", _ALL_INTERNAL, "-j", "DROP"),
)
_CHAINS = ("CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2")


def keep(network: Network) -> bool:
    """Have the rules that this network needs, after its plugins have made theirs; whether one of
    them was missing.

    Raises FailedPrecondition.
    """
    bridge, missed = _isolated_bridge(network), False
    if bridge.startswith(INTERNAL_PREFIX):
        # Of IPv6 too where the network has none: a container may send frames of any kind.
        for program in ("iptables", *_for_ipv6()):
            for rule in _INTERNAL:
                missed |= _insert(program, "mangle", rule, network)
    elif bridge.startswith(OPEN_PREFIX):
        for program in ("iptables", *(_for_ipv6() if network.may_have_ipv6 else ())):
            # The plugin's own chain decides, with what an administrator has in CNI-ADMIN; where it
            # uses firewalld in its place there is none.
            target = "CNI-FORWARD" if _run(program, "-S", "CNI-FORWARD")[0] else "ACCEPT"
            missed |= _insert(program, "filter", (*_PUBLISHED, target), network)
    return missed


def forget(bridge: str) -> None:
    """Remove what firewall has made for a bridge that is gone: it leaves that for ever."""
    for program in ("iptables", *_for_ipv6()):
        for chain in _CHAINS:
            done, said = _run(program, "-S", chain)
            for line in said.splitlines() if done else ():
                words = shlex.split(line)
                if words[:1] == ["-A"] and bridge in words:
                    _run(program, "-D", *words[1:])


def _isolated_bridge(network: Network) -> str:
    """The name of its bridge; "" when the network is not one that is kept apart."""
    if not any(one.get("ingressPolicy") == SAME_BRIDGE for one in network.plugins):
        return ""
    return next((str(one.get("bridge")) for one in network.plugins if one["type"] == "bridge"), "")


def _for_ipv6() -> Iterator[str]:
    if os.path.exists("/proc/net/if_inet6"):
        yield "ip6tables"


def _insert(program: str, table: str, rule: tuple[str, ...], network: Network) -> bool:
    """Whether it was not there yet."""
    if _run(program, "-t", table, "-C", "FORWARD", *rule)[0]:
        return False
    done, said = _run(program, "-t", table, "-I", "FORWARD", *rule)
    if not done:
        raise FailedPrecondition(f"keep network {network.name} apart from others: {said}")
    return True


def _run(program: str, *args: str) -> tuple[bool, str]:
    """Whether it worked, and what it wrote: its output, or why not."""
    argv = [program, "-w", "5", *args]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return False, f"run {program}: {words_of(err)}"
    if done.returncode:
        return False, f"run {' '.join(argv)}: {done.stderr.decode('utf-8', 'replace').strip()}"
    return True, done.stdout.decode("utf-8", "replace")
