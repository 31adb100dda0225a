"""Programs of others that run containers and make networks: found, safe, and how old."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator

from lighter.daemon.config.schema import Config
from lighter.daemon.doctor.findings import OK, PROBLEM, WARNING, Finding
from lighter.daemon.network import made, plugin
from lighter.daemon.network.chain import Chain
from lighter.daemon.network.configs import Configs, Network
from lighter.daemon.tasks.runtimes import NAMES, Runtimes
from lighter.proto.errors import LighterError, words_of

VERSION_S = 10.0
# Releases of runc that a container could get out of, or change the host by: from the first that
# has the hole to before the one that mends it. Distributions mend older ones in place.
_RUNC_HOLES = (
    ((0, 0, 0), (1, 1, 12), "CVE-2024-21626"),
    ((0, 0, 0), (1, 1, 14), "CVE-2024-45310"),
    ((0, 0, 0), (1, 2, 8), "CVE-2025-31133"),
    ((1, 3, 0), (1, 3, 3), "CVE-2025-31133"),
)


def runtime(config: Config) -> Iterator[Finding]:
    """The default runtime has to be there; the other of runc and crun may be."""
    runtimes = Runtimes({"runc": config.runc_path, "crun": config.crun_path})
    default = NAMES.get(config.default_runtime, config.default_runtime)
    for name in dict.fromkeys((default, "runc", "crun")):
        try:
            path = runtimes.find(name)
        except LighterError as err:
            if name == default:
                yield Finding("runtime", PROBLEM, err.message, f"default_runtime is {name}")
            continue
        yield _judged(path)


def _judged(path: str) -> Finding:
    argv = [path, "--version"]
    attempt = " ".join(("run", *argv))
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=VERSION_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("runtime", PROBLEM, f"{attempt}: it has not ended in {VERSION_S:g} s")
    except OSError as err:
        return Finding("runtime", PROBLEM, f"{attempt}: {words_of(err, attempt)}")
    first = done.stdout.partition("\n")[0].strip()
    if done.returncode or not first:
        return Finding("runtime", PROBLEM, f"run {path} --version: exit status {done.returncode}")
    found = re.match(r"runc version (\d+)\.(\d+)\.(\d+)", first)
    version = tuple(map(int, found.groups())) if found else None
    holes = [hole for begin, mended, hole in _RUNC_HOLES if version and begin <= version < mended]
    if holes:
        advice = f"{', '.join(holes)}, unless the distribution has mended it: keep it up to date"
        return Finding("runtime", WARNING, f"{path}: {first}", advice)
    return Finding("runtime", OK, f"{path}: {first}")


def networks(config: Config) -> Iterator[Finding]:
    """CNI: configurations that can be read, and the plugins that they name."""
    found, unusable = Configs((config.network_conf_dir,)).read()
    for one in unusable:
        yield Finding("network", PROBLEM, one.reason)
    search = plugin.search_path(config.network_bin_dir, os.environ)
    chain = Chain(search, float(config.network_timeout_s))
    for network in found:
        try:
            chain.check_plugins(network)
        except LighterError as err:
            advice = "the package containernetworking-plugins has the usual ones"
            yield Finding("network", PROBLEM, f"{network.name}: {err.message}", advice)
            continue
        if made.is_open(network):
            reached = f"{network.name}: other networks reach it: an earlier release has made it"
            yield Finding("network", WARNING, reached, "remove it and create it again")
        else:
            yield Finding("network", OK, f"{network.name}: {', '.join(network.types)}")
    if not found and not unusable:
        has_plugins = any(os.path.exists(f"{directory}/bridge") for directory in search)
        advice = "`ctl network create` makes one"
        if not has_plugins:
            advice = f"the package containernetworking-plugins is needed first, and {advice}"
        none = f"no configuration in {config.network_conf_dir}"
        yield Finding("network", OK if has_plugins else WARNING, none, advice)
    filtered = [network.name for network in found if _needs_iptables(network)]
    if filtered and shutil.which("iptables") is None:
        missing = f"iptables is not in PATH: plugins of {', '.join(filtered)} run it"
        advice = "install the package iptables, on CentOS iptables-nft"
        yield Finding("network", WARNING, missing, advice)


def _needs_iptables(network: Network) -> bool:
    """Whether a plugin of it runs iptables; newer ones have a word for nft in its place."""
    return any(
        (one["type"] in ("firewall", "portmap") and one.get("backend", "iptables") == "iptables")
        or (one.get("ipMasq") is True and one.get("ipMasqBackend", "iptables") == "iptables")
        for one in network.plugins
    )
