"""The server itself: its socket, health, reflection, headers, and what it has no method for."""

import asyncio
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from lighter.daemon.grpc import server
from lighter.daemon.grpc.pb import (
    containers_pb2,
    content_pb2,
    introspection_pb2,
    namespaces_pb2,
    types_pb2,
    version_pb2,
)
from lighter.daemon.grpc.version import VersionService
from lighter.proto.errors import FailedPrecondition
from lighter.proto.version import VERSION
from tests import census
from tests.containerd import Containerd
from tests.grpc.client import Api, code
from tests.grpc.conftest import Ctr, run_ctr
from tests.harness import Lighterd, await_that

NOBODY, GROUP = 65534, 4321


def access_of(path: str) -> tuple[int, int, int] | None:
    """(mode, uid, gid) of a socket; None when nothing is there."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def test_only_root_can_connect(lighterd: Lighterd) -> None:
    assert access_of(lighterd.grpc_address) == (0o660, 0, 0)


def test_f76_a_socket_that_was_deleted_is_put_back_and_connections_stay(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd().start()
    path = lighterd.grpc_address
    with Api(path) as before:
        for _ in range(2):
            before.call(namespaces_pb2, "Namespaces", "List")
            os.unlink(path)
            await_that(lambda: access_of(path) == (0o660, 0, 0), 30, "the socket is put back")
            with Api(path) as after:
                after.call(namespaces_pb2, "Namespaces", "List")
    lighterd.restart()
    with Api(path) as after:
        after.call(namespaces_pb2, "Namespaces", "List")


def test_a_server_that_is_closing_refuses_calls_as_unavailable_and_does_not_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dockerd comes back after every end of its stream of events but CANCELLED, which gRPC gives to
    calls that it has taken and not handed on; and a socket's file goes with its server.
    """
    monkeypatch.setattr(server, "LAST_CALLS_S", 2.0)
    monkeypatch.setattr(server, "credentials", lambda _tls: None)
    path = str(tmp_path / "c.sock")

    async def end() -> None:
        one = server.GrpcServer([VersionService("1", "r")], server.Settings(0, 0, 0, 0))
        await one.start(path)
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            method = f"/{VersionService.NAME}/Version"
            ask = channel.unary_unary(method, response_deserializer=None)
            subscribe = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")
            assert await ask(b"")
            closing = asyncio.ensure_future(one.close())
            await asyncio.sleep(0)
            for call in (ask(b""), anext(aiter(subscribe(b"")))):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
                assert caught.value.details() == "the manager is stopping"
        await closing
        assert access_of(path) is None, "its file has gone"
        assert one.listen_again() is None
        for begin in (one.start(path), one.start_tcp(server.Tls("127.0.0.1:0", "", "", ""))):
            with pytest.raises(FailedPrecondition, match="the manager is stopping"):
                await begin

    asyncio.run(end())


def test_the_configuration_says_where_and_for_whom(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd(config="[grpc]\ngid = 12\n")
    elsewhere = f"{lighterd.base}/elsewhere.sock"
    (lighterd.base / "config.toml").write_text(
        f'[grpc]\naddress = "{elsewhere}"\nuid = 11\ngid = 12\n'
        "max_recv_message_size = 100000\nmax_send_message_size = 300000\n"
    )
    lighterd.start()

    # Where it was is for root, whoever else may go there.
    for address, access in ((elsewhere, (0o660, 11, 12)), (lighterd.grpc_address, (0o660, 0, 0))):
        assert access_of(address) == access
        os.unlink(address)
        await_that(lambda: access_of(address) == access, 30, "the socket is put back")  # noqa: B023
    for address in (elsewhere, lighterd.grpc_address):
        assert run_ctr(address, "namespaces", "ls", "-q").stdout == b"default\n"

    def get(size: int) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            api.call(namespaces_pb2, "Namespaces", "Get", name="x" * size)
        return code(caught.value)

    with Api(elsewhere) as api:
        assert get(90_000) in ("NOT_FOUND", "INVALID_ARGUMENT")
        assert get(110_000) == "RESOURCE_EXHAUSTED"
        parts = [
            content_pb2.WriteContentRequest(
                action=content_pb2.COMMIT if offset == 360_000 else content_pb2.WRITE,
                ref="r",
                offset=offset,
                data=b"x" * 90_000,
            )
            for offset in range(0, 450_000, 90_000)
        ]
        *_, said = api.converse(content_pb2, "Content", "Write", parts)

        def read(size: int) -> int:
            stream = api.stream(content_pb2, "Content", "Read", digest=said.digest, size=size)
            return sum(len(part.data) for part in stream)

        assert read(290_000) == 290_000
        with pytest.raises(grpc.RpcError) as caught:
            read(310_000)
        assert code(caught.value) == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("groups", "is_served"), [([], False), ([GROUP + 1], False), ([1, GROUP], True)]
)
def test_f76_of_other_users_the_group_is_served_and_nobody_else(
    address_of_a_group: tuple[str, str], groups: list[int], is_served: bool
) -> None:
    address, elsewhere = address_of_a_group
    done = list_namespaces(elsewhere, groups)
    assert (done.returncode == 0, done.stdout == b"default\n") == (is_served, is_served)
    assert is_served or b"permission denied" in done.stderr
    # Where it was before an address was configured is root's alone.
    assert b"permission denied" in list_namespaces(address, groups).stderr


@pytest.fixture(scope="module")
def address_of_a_group() -> Iterator[tuple[str, str]]:
    """The sockets of a manager, the second one for a group; users come as far as both."""
    lighterd = Lighterd(census.Owners(), config="[grpc]")
    os.chmod(lighterd.base, 0o755)
    elsewhere = f"{lighterd.base}/elsewhere.sock"
    (lighterd.base / "config.toml").write_text(f'[grpc]\naddress = "{elsewhere}"\ngid = {GROUP}\n')
    lighterd.start()
    try:
        yield lighterd.grpc_address, elsewhere
    finally:
        lighterd.close()


def list_namespaces(address: str, groups: list[int]) -> "subprocess.CompletedProcess[bytes]":
    """As a user who is nobody, but in these groups."""
    return subprocess.run(
        ["ctr", "--connect-timeout", "5s", "--address", address, "namespaces", "ls", "-q"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=groups,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_namespace_is_named_as_containerd_names_one(lighterd: Lighterd) -> None:
    for name in ("a--b", "a.", "../x"):
        with Api(lighterd.grpc_address, name) as api, pytest.raises(grpc.RpcError) as caught:
            api.call(containers_pb2, "Containers", "List")
        assert code(caught.value) == "INVALID_ARGUMENT"
        words = f'namespace validation: identifier "{name}" must match '
        assert caught.value.details().startswith(words)


def test_the_same_path_by_another_name_is_served_once(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd()
    link = lighterd.base / "link"
    link.symlink_to(lighterd.state)
    address = f"{link}/{os.path.basename(lighterd.grpc_address)}"
    (lighterd.base / "config.toml").write_text(f'[grpc]\naddress = "{address}"\n')
    lighterd.start()
    assert run_ctr(address, "namespaces", "ls", "-q").stdout == b"default\n"


def test_a_server_is_known_again_after_a_restart(lighterd: Lighterd) -> None:
    def server() -> tuple[str, int, str]:
        with Api(lighterd.grpc_address) as api:
            told = api.call(introspection_pb2, "Introspection", "Server")
        shown = run_ctr(lighterd.grpc_address, "version").stdout.decode()
        return told.uuid, told.pid, shown

    first = server()
    lighterd.restart()
    second = server()
    assert second[0] == first[0] and second[1] == lighterd.pid != first[1]
    for uuid, _, shown in (first, second):
        _, _, of_server = shown.partition("Server:")
        words = of_server.split()
        assert words[words.index("Version:") + 1] == VERSION
        assert words[words.index("UUID:") + 1] == uuid


def test_sec_66_a_stale_socket_is_replaced_and_a_file_is_not(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    lighterd = make_lighterd().start()
    lighterd.kill9()
    assert os.path.exists(lighterd.grpc_address)
    lighterd.start()
    with Api(lighterd.grpc_address) as api:
        assert api.call(version_pb2, "Version", "Version").version == VERSION
    lighterd.stop()

    with open(lighterd.grpc_address, "w") as file:
        file.write("precious")
    lighterd.launch()
    assert lighterd.process is not None and lighterd.process.wait(30) == 1
    assert "something that is not a socket stands there" in lighterd.log_end(400)
    with open(lighterd.grpc_address) as file:
        assert file.read() == "precious"
    os.unlink(lighterd.grpc_address)
    lighterd.start()


def test_sec_66_a_socket_that_somebody_serves_is_not_taken(
    make_lighterd: Callable[..., Lighterd],
) -> None:
    first = make_lighterd().start()
    second = make_lighterd(config=f'[grpc]\naddress = "{first.grpc_address}"\n')
    second.launch()
    assert second.process is not None and second.process.wait(30) == 1
    assert "another program serves there" in second.log_end(400)
    with Api(first.grpc_address) as api:
        assert api.call(version_pb2, "Version", "Version").version == VERSION
    (second.base / "config.toml").write_text("")
    second.start()


def test_health_and_reflection(api: Api) -> None:
    channel = grpc.insecure_channel(f"unix:{api.path}")
    with channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        known = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert {"containerd.services.version.v1.Version", "grpc.health.v1.Health"} <= known


def test_what_is_unknown_is_unimplemented(api: Api) -> None:
    channel = grpc.insecure_channel(f"unix:{api.path}")
    with channel:
        for name in ("containerd.services.version.v1.Version/Nope", "no.such.Service/Get"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{name}")(b"", timeout=30)
            assert code(caught.value) == "UNIMPLEMENTED"


def test_bytes_that_are_no_message_are_refused_and_harm_nobody(
    api: Api, lighterd: Lighterd
) -> None:
    with grpc.insecure_channel(f"unix:{api.path}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/containerd.services.namespaces.v1.Namespaces/Get")(
                b"\xff" * 64, timeout=30
            )
        assert code(caught.value) in ("INTERNAL", "UNKNOWN")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(api.path)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    assert api.call(version_pb2, "Version", "Version").version == VERSION


def test_a_message_of_nearly_16_mib_passes_and_a_larger_one_does_not(api: Api) -> None:
    def get(size: int) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            api.call(namespaces_pb2, "Namespaces", "Get", name="x" * size)
        return code(caught.value)

    assert get((16 << 20) - 1024) in ("NOT_FOUND", "INVALID_ARGUMENT")
    assert get((16 << 20) + 1) == "RESOURCE_EXHAUSTED"


def test_200_clients_at_once(lighterd: Lighterd) -> None:
    connected = threading.Barrier(200)

    def ask(number: int) -> str:
        with Api(lighterd.grpc_address) as api:
            connected.wait(60)
            name = f"n{number}"
            api.call(
                namespaces_pb2,
                "Namespaces",
                "Create",
                namespace=namespaces_pb2.Namespace(name=name),
            )
            return str(api.call(namespaces_pb2, "Namespaces", "Get", name=name).namespace.name)

    with ThreadPoolExecutor(200) as pool:
        assert sorted(pool.map(ask, range(200))) == sorted(f"n{number}" for number in range(200))


def test_plugins_can_be_filtered(api: Api) -> None:
    answer = api.call(
        introspection_pb2,
        "Introspection",
        "Plugins",
        filters=["type==io.containerd.snapshotter.v1"],
    )
    assert [plugin.id for plugin in answer.plugins] == ["btrfs", "erofs", "native", "overlayfs"]
    # Which is not here; ctr's word for it is "skip".
    assert answer.plugins[0].init_err.message.endswith(": skip plugin")
    assert not any(plugin.HasField("init_err") for plugin in answer.plugins[1:])
    assert answer.plugins[0].platforms[0] == types_pb2.Platform(os="linux", architecture="amd64")


def test_ctr_says_of_namespaces_what_it_says_with_containerd(ctr: Ctr) -> None:
    with Containerd() as fresh:  # other tests have namespaces in the one that they share
        _compare_namespaces(ctr, fresh)


def _compare_namespaces(ctr: Ctr, containerd: Containerd) -> None:
    for words in (
        ["namespaces", "ls"],
        ["namespaces", "create", "greetings", "a=b", "c.d/e=f"],
        ["namespaces", "create", "greetings"],
        ["namespaces", "create", "no spaces"],
        ["namespaces", "label", "greetings", "a=x", "c.d/e="],
        ["namespaces", "label", "none", "a=x"],
        ["namespaces", "ls"],
        ["namespaces", "ls", "-q"],
        ["namespaces", "rm", "greetings"],
        ["namespaces", "rm", "greetings"],
        ["namespaces", "rm", "greetings", "none"],
        ["version", "extra"],
    ):
        ours, theirs = ctr(*words), run_ctr(containerd.address, *words)
        if words[0] == "version":
            assert ours.returncode == theirs.returncode
            continue
        seen = [(done.returncode, _rows(done.stdout), done.stderr) for done in (ours, theirs)]
        # A fresh containerd has no namespace yet; ours begins with `default`.
        assert seen[0] == seen[1], words


def _rows(output: bytes) -> list[list[bytes]]:
    return [row.split() for row in output.splitlines() if row.split()[:1] != [b"default"]]
