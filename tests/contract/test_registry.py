"""The registry client against Debian's registry: what works there works for users.

Rows of faults and of security that need a registry which misbehaves are in tests/security.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import Access, Credential
from lighter.daemon.registry.client import Remote
from lighter.daemon.registry.registries import Registries
from lighter.daemon.registry.retry import Backoff
from lighter.daemon.registry.settings import RegistrySettings
from lighter.daemon.types import Descriptor
from lighter.proto.errors import LighterError, NotFound, PermissionDenied, Unavailable
from tests import registries
from tests.registries import (
    OCI_INDEX,
    PASSWORD,
    USER,
    Authority,
    DebianRegistry,
    SmallImage,
    TokenServer,
    describe,
    small_image,
)

KNOWN = Access(Credential(USER, PASSWORD))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(limited())


def client(**settings: Any) -> Registries:
    settings.setdefault("config_path", ())
    return Registries(RegistrySettings(**settings), backoff=Backoff(first_s=0.05))


def open_blob(data: bytes, size: int = 65536) -> Any:
    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return source


async def push(remote: Remote, image: SmallImage, tag: str = "1") -> list[bool]:
    sent = [
        await remote.push_blob(item, open_blob(image.blobs[item.digest]))
        for item in (*image.layers, image.config)
    ]
    await remote.push_document(image.descriptor, image.manifest, tag)
    return sent


async def read(remote: Remote, descriptor: Descriptor, offset: int = 0) -> bytes:
    async with remote.blob(descriptor, offset) as body:
        assert body.offset == offset
        return b"".join([chunk async for chunk in body])


async def pull(remote: Remote) -> tuple[Descriptor, dict[str, bytes]]:
    """All of an image with one manifest, and what it is named by."""
    found = await remote.resolve()
    manifest = await remote.document(found)
    image = SmallImage(manifest, {})
    got = {image.config.digest: await remote.document(image.config)}
    for layer in image.layers:
        got[layer.digest] = await read(remote, layer)
    return found, got


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def image() -> SmallImage:
    return small_image(1_500_000, 10, 0)


@pytest.fixture(scope="module", params=["plain", "tls", "htpasswd", "tokens"])
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[tuple[DebianRegistry, Access]]:
    """Every kind of registry, and the access that it wants."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "plain":
        with DebianRegistry(directory) as made:
            yield made, Access()
    elif request.param == "tls":
        tls = authority.issue("registry", "127.0.0.1")
        with DebianRegistry(directory, tls=tls, htpasswd=True) as made:
            yield made, Access(KNOWN.credential, ca=str(authority.ca))
    elif request.param == "htpasswd":
        with DebianRegistry(directory, htpasswd=True) as made:
            yield made, KNOWN
    else:
        with TokenServer(authority, directory / "tokens", wanted=True) as tokens:
            with DebianRegistry(directory, tokens=tokens) as made:
                yield made, Access(KNOWN.credential, realms=(tokens.server.host,))


def test_what_was_pushed_is_pulled(
    registry: tuple[DebianRegistry, Access], image: SmallImage
) -> None:
    made, access = registry

    async def work() -> None:
        async with client().remote(Reference.parse(f"{made.host}/a/b:1"), access) as remote:
            assert await push(remote, image) == [True, True, True, True]
            assert await push(remote, image, "2") == [False, False, False, False]
        for name in ("a/b:1", "a/b:2", f"a/b@{image.descriptor.digest}"):
            async with client().remote(Reference.parse(f"{made.host}/{name}"), access) as remote:
                found, got = await pull(remote)
                assert (found, got) == (image.descriptor, image.blobs)

    run(work())


def test_an_index_is_pushed_and_resolved(
    registry: tuple[DebianRegistry, Access], image: SmallImage
) -> None:
    made, access = registry
    item = image.descriptor
    entry = {"mediaType": item.media_type, "digest": item.digest, "size": item.size}
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]},
    ).encode()

    async def work() -> None:
        async with client().remote(Reference.parse(f"{made.host}/index:1"), access) as remote:
            await push(remote, image, "")
            await remote.push_document(describe(OCI_INDEX, index), index, "1")
            found = await remote.resolve()
            assert found == describe(OCI_INDEX, index)
            assert await remote.document(found) == index

    run(work())


def test_a_blob_is_taken_from_another_repository(
    registry: tuple[DebianRegistry, Access], image: SmallImage
) -> None:
    made, access = registry
    layer = image.layers[0]

    async def work() -> None:
        async with client().remote(Reference.parse(f"{made.host}/from:1"), access) as remote:
            await remote.push_blob(layer, open_blob(image.blobs[layer.digest]))
        async with client().remote(Reference.parse(f"{made.host}/mounted:1"), access) as remote:

            async def never() -> AsyncIterator[bytes]:
                raise AssertionError("it was uploaded")
                yield b""

            assert not await remote.push_blob(layer, never, mount_from="from")
            assert await read(remote, layer) == image.blobs[layer.digest]
        async with client().remote(Reference.parse(f"{made.host}/other:1"), access) as remote:
            # F71: the registry does not mount what it does not have there.
            data = image.blobs[layer.digest]
            assert await remote.push_blob(layer, open_blob(data), mount_from="nowhere")

    run(work())


def test_a_blob_is_read_from_an_offset(
    registry: tuple[DebianRegistry, Access], image: SmallImage
) -> None:
    made, access = registry
    layer = image.layers[0]
    data = image.blobs[layer.digest]

    async def work() -> None:
        async with client().remote(Reference.parse(f"{made.host}/range:1"), access) as remote:
            await remote.push_blob(layer, open_blob(data))
            for offset in (0, 1, len(data) // 2, len(data) - 1, len(data)):
                assert await read(remote, layer, offset) == data[offset:]

    run(work())


def test_what_is_not_there_is_not_found(registry: tuple[DebianRegistry, Access]) -> None:
    """F66: tag, repository and blob, each with the name of it and of the host."""
    made, access = registry
    gone = "sha256:" + "1" * 64

    async def work() -> None:
        async with client().remote(Reference.parse(f"{made.host}/no/where:1"), access) as remote:
            with pytest.raises(NotFound, match=f"no/where:1.*{made.host}.*404"):
                await remote.resolve()
            with pytest.raises(NotFound, match=f"{gone} of {made.host}/no/where:1"):
                await read(remote, Descriptor("x", gone, 10))
            with pytest.raises(NotFound, match=gone):
                await remote.document(Descriptor("x", gone, 10))

    run(work())


@pytest.mark.parametrize(
    "credential", [Credential(), Credential(USER, "wrong-password-of-mine")], ids=["none", "wrong"]
)
@pytest.mark.parametrize("kind", ["htpasswd", "tokens"])
def test_f65_a_refused_credential_names_the_host_and_no_secret(
    kind: str, credential: Credential, tmp_path: Path, authority: Authority
) -> None:
    async def work(made: DebianRegistry, access: Access) -> None:
        async with client().remote(Reference.parse(f"{made.host}/x:1"), access) as remote:
            with pytest.raises(PermissionDenied) as caught:
                await remote.resolve()
        message = caught.value.message
        assert made.host in message, message
        assert "wrong-password" not in message

    if kind == "htpasswd":
        with DebianRegistry(tmp_path, htpasswd=True) as made:
            run(work(made, Access(credential)))
        return
    with TokenServer(authority, tmp_path / "tokens", wanted=True) as tokens:
        with DebianRegistry(tmp_path, tokens=tokens) as made:
            run(work(made, Access(credential, realms=(tokens.server.host,))))


def test_an_identity_token_is_exchanged_by_post(
    tmp_path: Path, authority: Authority, image: SmallImage
) -> None:
    secret = "identity-token-of-mine"
    with TokenServer(authority, tmp_path / "t", wanted=True, identity_token=secret) as tokens:
        with DebianRegistry(tmp_path, tokens=tokens) as made:
            access = Access(
                Credential(identity_token=secret), realms=(f"http://{tokens.server.host}",)
            )

            async def work() -> None:
                async with client().remote(Reference.parse(f"{made.host}/x:1"), access) as remote:
                    await push(remote, image)

            run(work())
            assert [item.method for item in tokens.server.requests] == ["POST"] * len(
                tokens.server.requests
            )


def test_tokens_are_fetched_once_for_one_scope(
    tmp_path: Path, authority: Authority, image: SmallImage
) -> None:
    with TokenServer(authority, tmp_path / "t", wanted=False) as tokens:
        with DebianRegistry(tmp_path, tokens=tokens) as made:

            async def work() -> None:
                async with client().remote(Reference.parse(f"{made.host}/x:1")) as remote:
                    await push(remote, image)
                async with client().remote(Reference.parse(f"{made.host}/x:1")) as remote:
                    await remote.resolve()
                    await asyncio.gather(*(read(remote, layer) for layer in image.layers * 5))

            run(work())
            assert len(tokens.tokens) == 2, "one to push, one to pull"


def test_client_certificates(tmp_path: Path, authority: Authority, image: SmallImage) -> None:
    tls = authority.issue("mutual", "127.0.0.1")
    certificate, key = authority.issue("me")
    with DebianRegistry(tmp_path, tls=tls, client_ca=authority.ca) as made:

        async def work(access: Access) -> None:
            async with client().remote(Reference.parse(f"{made.host}/x:1"), access) as remote:
                await push(remote, image)

        run(work(Access(ca=str(authority.ca), cert=str(certificate), key=str(key))))
        with pytest.raises(Unavailable):
            run(work(Access(ca=str(authority.ca))))


def test_hosts_toml_leads_to_a_mirror_and_its_ca(
    tmp_path: Path, authority: Authority, image: SmallImage
) -> None:
    """A name that does not exist is served by the host that a hosts.toml gives."""
    tls = authority.issue("mirror", "127.0.0.1")
    with DebianRegistry(tmp_path / "registry", tls=tls) as made:
        directory = tmp_path / "certs.d" / "harbor.example"
        directory.mkdir(parents=True)
        (directory / "ca.pem").write_bytes(authority.ca.read_bytes())
        (directory / "hosts.toml").write_text(f'server = "https://{made.host}"\nca = "ca.pem"\n')

        async def work() -> None:
            registries_ = client(config_path=(str(tmp_path / "certs.d"),))
            async with registries_.remote(Reference.parse("harbor.example/x:1")) as remote:
                await push(remote, image)
                assert (await pull(remote))[1] == image.blobs

        run(work())


def test_f71_the_registry_is_restarted_while_a_blob_is_pushed(tmp_path: Path) -> None:
    image = small_image(3_000_000)
    layer = image.layers[0]
    data = image.blobs[layer.digest]
    made = DebianRegistry(tmp_path)
    opened = 0

    def source() -> AsyncIterator[bytes]:
        nonlocal opened
        opened += 1
        return chunks(opened)

    async def chunks(number: int) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65536):
            if number == 1 and start > 1_000_000:
                made.stop()
                made.start()
            yield data[start : start + 65536]

    async def work() -> None:
        async with client().remote(Reference.parse(f"{made.host}/x:1")) as remote:
            assert await remote.push_blob(layer, source)
            assert await read(remote, layer) == data

    with made:
        run(work())
    assert opened >= 2


def test_the_registry_module_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries.shutil, "which", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="install docker-registry"):
        registries.needed("docker-registry", "docker-registry")


def test_errors_are_of_the_closed_set() -> None:
    """Nothing of aiohttp leaves the package: a host that is not there, a port nobody listens on."""

    async def work(domain: str, *, nobody_listens: bool = False) -> None:
        async with client().remote(Reference.parse(f"{domain}/x:1")) as remote:
            with pytest.raises(LighterError) as caught:
                await remote.resolve()
            assert isinstance(caught.value, Unavailable)
            assert domain.partition(":")[0] in caught.value.message
            assert ("Connection refused" in caught.value.message) is nobody_listens

    run(work(f"127.0.0.1:{registries.free_port()}", nobody_listens=True))
    run(work("no-such-host.invalid:5000"))
