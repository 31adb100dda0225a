"""containerd's API by TCP for clients with a certificate, and the page for Prometheus (SEC-71)."""

import contextlib
import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lighter.daemon.config.schema import load
from lighter.daemon.grpc.pb import content_pb2, tasks_pb2, version_pb2
from lighter.daemon.grpc.tls import Tls, credentials
from lighter.proto.errors import FailedPrecondition, InvalidArgument
from lighter.proto.version import VERSION
from tests import census
from tests.grpc.client import Api, code
from tests.grpc.space import refused
from tests.harness import Lighterd, await_that
from tests.registries import Authority, free_ports

CALL = "/containerd.services.version.v1.Version/Version"
SAMPLE = re.compile(r'([a-z_][a-z0-9_]*)\{((?:[a-z_]+="[^"]*",?)*)\} (\S+)')


class Served:
    """An instance with TCP and metrics, and the certificates for both sides."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "ours")
        self.stranger = Authority(directory / "others")
        certificate, key = self.authority.issue("server", "127.0.0.1")
        self.ports = self.port, self.metrics_port = free_ports(2)
        self.lighterd = Lighterd(
            census.Owners(),
            config=f'[grpc]\ntcp_address = "127.0.0.1:{self.port}"\n'
            f'tcp_tls_cert = "{certificate}"\ntcp_tls_key = "{key}"\n'
            f'tcp_tls_ca = "{self.authority.ca}"\n'
            f'[metrics]\naddress = "127.0.0.1:{self.metrics_port}"\n',
        )

    def version(self, certificate: Path | None = None, key: Path | None = None) -> str:
        """What a client with this certificate is told. Raises grpc.RpcError."""
        credentials = grpc.ssl_channel_credentials(
            self.authority.ca.read_bytes(),
            key.read_bytes() if key else None,
            certificate.read_bytes() if certificate else None,
        )
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
            answer = channel.unary_unary(CALL)(b"", timeout=10)
            return version_pb2.VersionResponse.FromString(answer).version

    def page(self) -> dict[str, dict[str, float]]:
        """Value by labels by name. Raises AssertionError for a line of another form."""
        found: dict[str, dict[str, float]] = {}
        url = f"http://127.0.0.1:{self.metrics_port}/v1/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            for line in answer.read().decode().splitlines():
                if not line.startswith("#"):
                    sample = SAMPLE.fullmatch(line)
                    assert sample, line
                    found.setdefault(sample[1], {})[sample[2]] = float(sample[3])
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("tls"))
    made.lighterd.start()
    try:
        yield made
    finally:
        made.lighterd.close()


def test_sec_71_tcp_is_for_clients_with_a_certificate_of_the_authority(served: Served) -> None:
    assert served.version(*served.authority.issue("client")) == VERSION
    for certificate in ((None, None), served.stranger.issue("client")):
        with pytest.raises(grpc.RpcError) as caught:
            served.version(*certificate)
        assert code(caught.value) == "UNAVAILABLE"
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as plain:
        with pytest.raises(grpc.RpcError):
            plain.unary_unary(CALL)(b"", timeout=10)
    with Api(served.lighterd.grpc_address) as api:  # the socket is as it was
        assert api.call(version_pb2, "Version", "Version").version == VERSION


def test_metrics_have_containerds_names(served: Served) -> None:
    lighterd = served.lighterd
    image = lighterd.import_busybox()
    lighterd.ctl("run", "-d", image, "box", "sleep", "600", check=True)
    with Api(lighterd.grpc_address) as api:
        api.call(tasks_pb2, "Tasks", "Get", container_id="box")
        with refused("NOT_FOUND"):
            api.call(tasks_pb2, "Tasks", "Get", container_id="none")
        list(api.stream(content_pb2, "Content", "List"))
    try:
        # Until the runtime's own threads have become the program.
        await_that(
            lambda: [*served.page()["container_pids_current"].values()] == [1], 20, "it runs"
        )
        page = served.page()
        assert page["containerd_build_info_total"].popitem()[0].endswith(f'version="{VERSION}"')
        box = 'container_id="box",namespace="default"'
        memory = "container_memory_usage_usage_bytes"
        cpu = "container_cpu_total_nanoseconds"
        if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            memory, cpu = "container_memory_usage_bytes", "container_cpu_usage_usec_microseconds"
        assert page[memory][box] > 0 and page[cpu][box] > 0
        assert page["container_pids_current"] == {box: 1}
        assert page["container_memory_oom_total"] == {box: 0}
        tasks = 'grpc_method="Get",grpc_service="containerd.services.tasks.v1.Tasks"'
        handled = page["grpc_server_handled_total"]
        assert handled[f'grpc_code="OK",{tasks},grpc_type="unary"'] == 1
        assert handled[f'grpc_code="NotFound",{tasks},grpc_type="unary"'] == 1
        content = 'grpc_service="containerd.services.content.v1.Content",grpc_type="server_stream"'
        assert handled[f'grpc_code="OK",grpc_method="List",{content}'] == 1
        assert page["grpc_server_started_total"][f'{tasks},grpc_type="unary"'] == 2
    finally:
        lighterd.ctl("rm", "-f", "box", check=True)
    assert "container_pids_current" not in served.page()


def test_sec_71_nothing_listens_unless_it_is_asked_for(shared_lighterd: Lighterd) -> None:
    pid = shared_lighterd.pid
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            assert not (words[3] == "0A" and f"socket:[{words[9]}]" in inodes), line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[metrics]\naddress = "0.0.0.0:1338"', "every address"),
        ('[metrics]\naddress = "192.0.2.1:1338"', "of this host alone"),
        ('[metrics]\naddress = "localhost:1338"', "no address and port"),
        ('[grpc]\ntcp_address = "[::]:1"', "every address"),
        ('[grpc]\ntcp_address = "[::ffff:0.0.0.0]:1"', "every address"),
        ('[grpc]\ntcp_address = "127.0.0.1:99999"', "no address and port"),
        ('[grpc]\ntcp_address = "127.0.0.1:1"', "tcp_tls_cert"),
        ('[grpc]\ntcp_tls_ca = "ca.pem"', "tcp_tls_ca"),
    ],
)
def test_sec_71_addresses_for_everybody_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=re.escape(said)):
        load(str(file))


def test_files_that_are_no_certificates_end_the_start(served: Served, tmp_path: Path) -> None:
    certificate, key = served.authority.issue("server2", "127.0.0.1")
    _, other_key = served.authority.issue("server3", "127.0.0.1")
    ca = str(served.authority.ca)
    junk = tmp_path / "junk"
    junk.write_text("junk")
    for files in (
        (certificate, other_key, ca),
        (junk, key, ca),
        (certificate, key, junk),
        (tmp_path / "none", key, ca),
    ):
        with pytest.raises(FailedPrecondition):
            credentials(Tls("127.0.0.1:1", *map(str, files)))


def test_a_port_that_somebody_has_keeps_no_manager_from_its_start(tmp_path: Path) -> None:
    """Any user of the host can take one while the manager is away."""
    served = Served(tmp_path)
    takers = [socket.create_server(("127.0.0.1", port)) for port in served.ports]
    try:
        served.lighterd.start()
        with Api(served.lighterd.grpc_address) as api:
            assert api.call(version_pb2, "Version", "Version").version == VERSION
        for taker in takers:
            taker.close()

        def served_now() -> bool:
            with contextlib.suppress(grpc.RpcError, OSError):
                return served.version(*served.authority.issue("late")) == VERSION and bool(
                    served.page()
                )
            return False

        await_that(served_now, 30, "both are served once the ports are free")
    finally:
        for taker in takers:
            taker.close()
        served.lighterd.close()
