"""A chain of plugins that are programs of the test's own."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.network import plugin
from lighter.daemon.network.chain import Attachment, Chain, in_version
from lighter.daemon.network.configs import from_json
from lighter.daemon.network.strays import TOKEN, Strays
from lighter.proto.errors import FailedPrecondition
from tests.harness import await_that

ATTACHMENT = Attachment("lt-1", "eth0", "/none", f"lt-test-{os.getpid()}")
DOCUMENT = {"cniVersion": "0.4.0", "name": "a", "plugins": [{"type": "one"}, {"type": "two"}]}


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


async def keep(_result: dict[str, Any]) -> None:
    pass


def test_a_result_that_is_none_is_not_given_on_and_its_end_comes(tmp_path: Path) -> None:
    write(tmp_path, "one", f"cat >> {tmp_path}/one.read")
    answer = '{"cniVersion": "0.3.0", "ips": ["x"]}'
    write(tmp_path, "two", f"cat >> {tmp_path}/two.read; echo '{answer}'")
    chain, network = Chain([str(tmp_path)], 20), from_json(DOCUMENT, "x")
    noted = []

    async def note(result: dict[str, Any]) -> None:
        noted.append(result)

    with pytest.raises(FailedPrecondition, match="a result that is none"):
        asyncio.run(chain.add(network, ATTACHMENT, note))
    assert not noted
    # That of a release which did note it.
    (tmp_path / "one.read").unlink()
    asyncio.run(chain.delete(network, ATTACHMENT, {"cniVersion": "0.3.0", "ips": ["x"]}))
    assert "prevResult" in (tmp_path / "one.read").read_text()


def test_what_is_no_address_is_left_out_of_a_result() -> None:
    odd = {"ips": ["x", {"address": "fd00::2/64"}], "dns": {}}
    assert in_version(odd, "0.4.0") == {
        "cniVersion": "0.4.0",
        "dns": {},
        "ips": [{"address": "fd00::2/64", "version": "6"}],
    }
    assert in_version({"ips": 7}, "1.0.0") == {"cniVersion": "1.0.0"}


def test_a_plugins_child_that_keeps_its_output_open(tmp_path: Path) -> None:
    """Its answer counts when it has ended, and the child does not stay."""
    mark = tmp_path / "child"
    answer = '{"cniVersion": "0.4.0", "ips": [{"address": "10.0.0.2/24"}]}'
    write(tmp_path, "one", f"sleep 600 & echo $! > {mark}; echo '{answer}'")
    network = from_json({**DOCUMENT, "plugins": [{"type": "one"}]}, "x")
    result = asyncio.run(Chain([str(tmp_path)], 20).add(network, ATTACHMENT, keep))
    assert result["ips"] == [{"address": "10.0.0.2/24"}]
    pid = int(mark.read_text())
    await_that(lambda: not _runs(pid), 10, "the child is ended")


def test_a_plugin_that_closes_its_output_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "one", "echo '{}'; exec >&- 2>&-; sleep 0.3; exit 7")
    environ = {"CNI_COMMAND": "ADD", TOKEN: ATTACHMENT.token}
    with pytest.raises(FailedPrecondition, match="it ended with 7"):
        asyncio.run(plugin.call(str(tmp_path / "one"), environ, {}, 20, Strays()))


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
