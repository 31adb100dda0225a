"""Rows SEC-20 to SEC-36 as far as a registry's client is concerned: registries that fish.

Everything is on loopback; what a row means by another host is another port or address of it.
"""

import asyncio
import base64
import ipaddress
import json
import logging
import resource
import socket
import sys
import zlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import Access, Credential
from lighter.daemon.registry.addresses import Address
from lighter.daemon.registry.answer import Deadlines
from lighter.daemon.registry.client import Remote
from lighter.daemon.registry.lookup import Lookup
from lighter.daemon.registry.proxies import Proxies
from lighter.daemon.registry.registries import Registries
from lighter.daemon.registry.retry import Backoff
from lighter.daemon.registry.settings import RegistrySettings
from lighter.daemon.types import Descriptor
from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from tests.registries import (
    BASIC,
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Authority,
    Reply,
    Request,
    Scripted,
    bearer,
    blob,
    error,
    redirect,
    small_image,
)

ME = Access(Credential(USER, PASSWORD))
PAIR = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
MIB = 1 << 20
IMAGE = small_image(5000)
LAYER = IMAGE.layers[0]
DATA = IMAGE.blobs[LAYER.digest]
TOKEN = Reply(200, b'{"token":"token-for-tests","expires_in":300}')

SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-configured")


def run(work: Coroutine[Any, Any, Any], timeout_s: float = 60) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(timeout_s):
            return await work

    return asyncio.run(limited())


class Names(Lookup):
    """A name server of the test's own."""

    def __init__(self, **names: str) -> None:
        super().__init__()
        self._names = {name.replace("_", "."): address for name, address in names.items()}

    async def addresses(self, host: str) -> list[Address]:
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [ipaddress.ip_address(self._names[host])]


def client(lookup: Lookup | None = None, **settings: Any) -> Registries:
    settings.setdefault("config_path", ())
    return Registries(
        RegistrySettings(**settings),
        Deadlines(head_s=5, stall_s=3),
        Backoff(tries=2, first_s=0.01),
        lookup,
    )


def remote(name: str, access: Access = ME, **settings: Any) -> Remote:
    return client(**settings).remote(Reference.parse(name), access)


async def read(remote: Remote, descriptor: Descriptor = LAYER) -> bytes:
    async with remote.blob(descriptor) as body:
        return b"".join([chunk async for chunk in body])


async def source() -> AsyncIterator[bytes]:
    yield DATA


def basic(reply: Any) -> Any:
    """`reply` to whoever has the password, 401 to others."""

    def answer(request: Request) -> Reply:
        if request.headers.get("authorization") != f"Basic {PAIR}":
            return BASIC
        found = reply(request) if callable(reply) else reply
        assert isinstance(found, Reply)
        return found

    return answer


@pytest.fixture
def reg() -> Iterator[Scripted]:
    with Scripted("127.0.0.2") as made:
        made.serve(IMAGE, "x", "1")
        yield made


@pytest.fixture
def other() -> Iterator[Scripted]:
    """Another host, as far as credentials go: another port of the same address."""
    with Scripted("127.0.0.2", default=blob(DATA)) as made:
        yield made


@pytest.fixture
def internal() -> Iterator[Scripted]:
    """Something on another address that a registry must not reach through us."""
    with Scripted("127.0.0.1", default=Reply(200, b"inner secret")) as made:
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


_connects: list[Any] = []
_audited = False


@pytest.fixture
def connects() -> list[Any]:
    """Every address that this process connects to from now on (an audit hook stays for good)."""
    global _audited
    if not _audited:

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "socket.connect":
                _connects.append(args[1])

        sys.addaudithook(hook)
        _audited = True
    _connects.clear()
    return _connects


# -- documents


@pytest.mark.parametrize("named", [OCI_MANIFEST, OCI_INDEX])
def test_sec_20_a_document_comes_as_what_it_is_named(reg: Scripted, named: str) -> None:
    """One digest, two types: whoever asks for it as the other thing is refused."""
    served = OCI_INDEX if named == OCI_MANIFEST else OCI_MANIFEST
    item = IMAGE.descriptor
    reply = Reply(body=IMAGE.manifest, headers=(("Content-Type", served),))
    reg.route(f"/v2/x/manifests/{item.digest}", reply)

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises(InvalidArgument, match=item.digest):
                await opened.document(Descriptor(named, item.digest, item.size))

    run(work())


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"schemaVersion":2}',
        b'{"schemaVersion":2,"schemaVersion":2}',
        b'{"schemaVersion":1}',
        b"[1]",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_sec_22_a_document_of_no_type_is_looked_at_strictly(reg: Scripted, body: bytes) -> None:
    reg.route("/v2/x/manifests/odd", Reply(body=body, headers=(("Content-Type", "text/plain"),)))

    async def work() -> None:
        async with remote(f"{reg.host}/x:odd") as opened:
            with pytest.raises((InvalidArgument, Unimplemented)):
                await opened.resolve()

    run(work())


@pytest.mark.parametrize(
    "digest",
    [
        *("sha256:../../x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha512:" + "a" * 128),
        *("sha256:" + "a" * 64 + "?x=y", "sha256:" + "a" * 64 + "#x", "sha256:" + "a" * 64 + "\n"),
    ],
)
def test_sec_23_what_is_no_digest_is_never_asked_for(reg: Scripted, digest: str) -> None:
    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            odd = Descriptor(OCI_MANIFEST, digest, 10)
            with pytest.raises(InvalidArgument, match="digest"):
                await opened.document(odd)
            with pytest.raises(InvalidArgument, match="digest"):
                await read(opened, odd)
            with pytest.raises(InvalidArgument, match="digest"):
                await opened.push_blob(odd, source)

    run(work())
    assert reg.requests == []


@pytest.mark.parametrize("status", [302, 500])
def test_sec_10_a_body_that_nobody_asked_for_is_not_inflated(
    reg: Scripted, other: Scripted, status: int
) -> None:
    """Of a redirect or an error, compressed, which was not asked for either."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(MIB)) for _ in range(256)), packer.flush()])
    headers = (("Location", f"{other.url}/data"), ("Content-Encoding", "gzip"))
    reg.route(f"/v2/x/blobs/{LAYER.digest}", Reply(status, bomb, headers))
    other.route("/data", blob(DATA))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            if status == 302:
                assert await read(opened) == DATA
            else:
                with pytest.raises(Unavailable, match=LAYER.digest):
                    await read(opened)

    run(work())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_sec_24_urls_of_a_descriptor_are_not_followed(reg: Scripted, other: Scripted) -> None:
    """The client has no place for them: a blob comes from the registry, or not at all."""
    gone = Descriptor(LAYER.media_type, "sha256:" + "2" * 64, 10)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "layers": [{"digest": gone.digest, "size": 10, "urls": [f"{other.url}/blob"]}],
        }
    ).encode()
    reg.route("/v2/x/manifests/urls", Reply(200, manifest, (("Content-Type", OCI_MANIFEST),)))

    async def work() -> None:
        async with remote(f"{reg.host}/x:urls") as opened:
            await opened.document(await opened.resolve())
            with pytest.raises(NotFound, match=gone.digest):
                await read(opened, gone)

    run(work())
    assert other.requests == []


def test_sec_36_wrong_bytes_under_right_headers_are_refused(reg: Scripted) -> None:
    wrong = IMAGE.manifest.replace(b"layers", b"lAyers")
    item = IMAGE.descriptor
    headers = (("Content-Type", OCI_MANIFEST), ("Docker-Content-Digest", item.digest))
    for name in ("1", item.digest):
        reg.route(f"/v2/x/manifests/{name}", Reply(body=wrong, headers=headers))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            found = await opened.resolve()
            assert found == item
            with pytest.raises(DataLoss, match=f"{item.digest}.*{reg.host}"):
                await opened.document(found)
        async with remote(f"{reg.host}/x@{item.digest}") as opened:
            reg.routes[f"HEAD /v2/x/manifests/{item.digest}"] = error(405)
            with pytest.raises(DataLoss, match=item.digest):
                await opened.resolve()

    run(work())


def test_schema_1_is_refused_with_a_clear_word(reg: Scripted) -> None:
    for media_type in (
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
    ):
        reply = Reply(200, b'{"schemaVersion": 1}', (("Content-Type", media_type),))
        reg.route("/v2/x/manifests/old", reply)

        async def work() -> None:
            async with remote(f"{reg.host}/x:old") as opened:
                with pytest.raises(Unimplemented, match="Docker schema 1"):
                    await opened.resolve()

        run(work())


# -- where credentials go


def configured(tmp_path: Path, reg: Scripted, **further: str) -> tuple[str, ...]:
    """A hosts.toml that gives the registry a header of its own."""
    directory = tmp_path / "certs.d" / reg.host
    directory.mkdir(parents=True)
    lines = "".join(f"{name} = {value}\n" for name, value in further.items())
    (directory / "hosts.toml").write_text(
        f'server = "{reg.url}"\n{lines}[header]\nX-Configured = "header-secret"\n'
    )
    return (str(tmp_path / "certs.d"),)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_sec_25_no_credential_follows_a_redirect(
    reg: Scripted, other: Scripted, tmp_path: Path, status: int
) -> None:
    answer = redirect(f"{other.url}/data?signed=1", status).with_headers(
        ("Set-Cookie", "session=1")
    )
    reg.route(f"/v2/x/blobs/{LAYER.digest}", basic(answer))

    async def work() -> None:
        paths = configured(tmp_path, reg)
        async with remote(f"{reg.host}/x:1", config_path=paths) as opened:
            assert await read(opened) == DATA
            assert await read(opened) == DATA

    run(work())
    assert len(other.requests) == 2
    assert reg.sent("authorization") == [f"Basic {PAIR}"] * 2
    assert reg.sent("x-configured") == ["header-secret"] * 3
    for name in SECRET_HEADERS:
        assert other.sent(name) == [], name
    assert reg.sent("cookie") == []
    assert PAIR.encode() not in other.everything


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "names no location"),
        ("http://user:pass@127.0.0.2/", "holds a user name"),
        ("file:///etc/passwd", "neither http nor https"),
        ("unix:/run/lighter.sock", "neither http nor https"),
        ("http://[", "no address"),
        ("http://a b/", "no address"),
        ("loop", "over 10 redirects"),
    ],
)
def test_sec_25_f68_redirects_that_lead_nowhere(reg: Scripted, location: str, words: str) -> None:
    path = f"/v2/x/blobs/{LAYER.digest}"
    reg.route(path, redirect(path if location == "loop" else location))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises(LighterError) as caught:
                await read(opened)
        assert words in caught.value.message
        assert LAYER.digest in caught.value.message

    run(work())
    assert len(reg.requests) <= 11


def test_sec_25_ten_hops_are_followed_and_eleven_are_not(reg: Scripted) -> None:
    path = f"/v2/x/blobs/{LAYER.digest}"

    def hops(number: int) -> None:
        reg.route(path, redirect("/hop/1"))
        for step in range(1, number):
            reg.route(f"/hop/{step}", redirect(f"{step + 1}"))  # relative
        reg.route(f"/hop/{number}", blob(DATA))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            hops(10)
            assert await read(opened) == DATA
            hops(11)
            with pytest.raises(InvalidArgument, match="over 10 redirects"):
                await read(opened)

    run(work())


def test_sec_25_from_https_to_http_is_refused(
    reg: Scripted, authority: Authority, connects: list[Any]
) -> None:
    with Scripted("127.0.0.2", tls=authority.issue("sec25", "127.0.0.2")) as secure:
        secure.route(f"/v2/x/blobs/{LAYER.digest}", redirect(f"{reg.url}/data"))

        async def work() -> None:
            access = Access(ME.credential, ca=str(authority.ca))
            async with remote(f"{secure.host}/x:1", access) as opened:
                with pytest.raises(PermissionDenied, match="from https to plain http"):
                    await read(opened)

        run(work())
    assert ("127.0.0.2", reg.port) not in connects


def test_sec_25_a_401_of_the_second_host_gets_nothing(reg: Scripted, other: Scripted) -> None:
    other.default = BASIC
    reg.route(f"/v2/x/blobs/{LAYER.digest}", basic(redirect(f"{other.url}/data")))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises(PermissionDenied, match=other.host):
                await read(opened)

    run(work())
    assert other.sent("authorization") == []


def test_sec_25_a_second_host_that_wants_a_token_gets_nobodys(
    reg: Scripted, other: Scripted, tmp_path: Path
) -> None:
    """A registry that leads to another one; what that one sends on gets not even that token."""
    path = f"/v2/x/blobs/{LAYER.digest}"
    with Scripted("127.0.0.2", default=blob(DATA)) as third:

        def guarded(request: Request) -> Reply:
            if request.headers.get("authorization") != "Bearer token-for-tests":
                return bearer(f"{other.url}/token")
            return redirect(f"{third.url}/data")

        other.routes["GET /token"] = TOKEN
        other.routes["GET /there"] = guarded
        reg.route(path, basic(redirect(f"{other.url}/there")))
        settings = {"config_path": configured(tmp_path, reg)}

        async def work() -> None:
            async with remote(f"{reg.host}/x:1", **settings) as opened:
                assert await read(opened) == DATA
                assert await read(opened) == DATA

        run(work())
        assert third.sent("authorization") == []
    assert set(reg.sent("authorization")) == {f"Basic {PAIR}"}
    assert reg.sent("x-configured")
    assert set(other.sent("authorization")) == {"Bearer token-for-tests"}
    assert other.sent("x-configured") == []
    (token,) = other.asked("GET", "/token")  # for both
    assert token.query == {"service": ["tests"], "scope": ["repository:x:pull"]}


def test_sec_25_a_token_of_nobody_that_has_expired_is_renewed_once(
    reg: Scripted, other: Scripted
) -> None:
    path = f"/v2/x/blobs/{LAYER.digest}"
    good: list[str] = []

    def issue(request: Request) -> Reply:
        good[:] = [f"token-{len(other.asked('GET', '/token'))}"]
        return Reply(200, json.dumps({"token": good[0], "expires_in": 3600}).encode())

    def guarded(request: Request) -> Reply:
        if request.headers.get("authorization") in [f"Bearer {token}" for token in good]:
            return Reply(200, DATA)
        return bearer(f"{other.url}/token")

    other.routes["GET /token"] = issue
    other.routes["GET /there"] = guarded
    reg.route(path, redirect(f"{other.url}/there"))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            assert await read(opened) == DATA
            good.clear()  # the registry has forgotten the token before its time
            assert await read(opened) == DATA
            other.routes["GET /there"] = bearer(f"{other.url}/token")
            with pytest.raises(LighterError, match=r"which sent us to .*401"):
                await read(opened)

    run(work())
    assert len(other.asked("GET", "/token")) == 3


def test_sec_28_the_realm_of_a_second_host_is_none_within(
    reg: Scripted, other: Scripted, internal: Scripted
) -> None:
    other.routes["GET /there"] = bearer(f"{internal.url}/token")
    reg.route(f"/v2/x/blobs/{LAYER.digest}", basic(redirect(f"{other.url}/there")))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises(PermissionDenied, match="allowed_targets"):
                await read(opened)

    run(work())
    assert internal.requests == []


def test_sec_25_client_certificate_and_no_verify_stay_with_the_registry(
    authority: Authority, tmp_path: Path
) -> None:
    """A registry that is not verified sends us to a host, which is."""
    with (
        Scripted("127.0.0.2", tls=authority.issue("one", "127.0.0.2")) as one,
        Scripted("127.0.0.2", tls=authority.issue("two", "127.0.0.2"), default=blob(DATA)) as two,
    ):
        one.route(f"/v2/x/blobs/{LAYER.digest}", redirect(f"{two.url}/data"))

        async def work() -> None:
            async with remote(f"{one.host}/x:1", Access(skip_verify=True)) as opened:
                with pytest.raises(Unavailable, match="certificate"):
                    await read(opened)

        run(work())
    assert one.requests
    assert two.requests == []


def test_sec_26_an_upload_elsewhere_gets_no_credential(
    reg: Scripted, other: Scripted, tmp_path: Path
) -> None:
    reg.routes["HEAD /v2/x/blobs/" + LAYER.digest] = basic(error(404))
    reg.routes["POST /v2/x/blobs/uploads/"] = basic(
        Reply(202, headers=(("Location", f"{other.url}/upload?state=1"),))
    )
    other.routes["PUT /upload"] = Reply(201)

    async def work() -> None:
        paths = configured(tmp_path, reg)
        async with remote(f"{reg.host}/x:1", config_path=paths) as opened:
            assert await opened.push_blob(LAYER, source)

    run(work())
    (put,) = other.requests
    assert put.body == DATA
    assert put.query == {"state": ["1"], "digest": [LAYER.digest]}
    for name in SECRET_HEADERS:
        assert other.sent(name) == [], name


@pytest.mark.parametrize("location", ["", "file:///x", "http://127.0.0.1:1/x", "ftp://127.0.0.2/"])
def test_sec_26_uploads_to_where_they_must_not_go(
    reg: Scripted, location: str, connects: list[Any]
) -> None:
    reg.routes["HEAD /v2/x/blobs/" + LAYER.digest] = error(404)
    reg.routes["POST /v2/x/blobs/uploads/"] = Reply(202, headers=(("Location", location),))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises((InvalidArgument, PermissionDenied), match=LAYER.digest):
                await opened.push_blob(LAYER, source)

    run(work())
    assert {address[0] for address in connects} == {"127.0.0.2"}


def test_sec_26_from_https_to_http_is_refused(reg: Scripted, authority: Authority) -> None:
    with Scripted("127.0.0.2", tls=authority.issue("sec26", "127.0.0.2")) as secure:
        secure.routes["POST /v2/x/blobs/uploads/"] = Reply(
            202, headers=(("Location", f"{reg.url}/upload"),)
        )

        async def work() -> None:
            access = Access(ME.credential, ca=str(authority.ca))
            async with remote(f"{secure.host}/x:1", access) as opened:
                with pytest.raises(PermissionDenied, match="from https to plain http"):
                    await opened.push_blob(LAYER, source)

        run(work())
    assert reg.requests == []


@pytest.mark.parametrize(
    "access", [ME, Access(Credential(identity_token="identity-token-of-mine"))], ids=["pw", "id"]
)
def test_sec_27_a_realm_elsewhere_gets_no_secret(
    reg: Scripted, other: Scripted, access: Access
) -> None:
    other.default = TOKEN
    reg.default = bearer(f"{other.url}/token")
    reg.routes.clear()

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", access) as opened:
            with pytest.raises(PermissionDenied, match="allowed_realms") as caught:
                await opened.resolve()
        assert other.host in caught.value.message

    run(work())
    assert other.requests == []


def test_sec_27_nobody_may_have_a_token_of_a_realm_elsewhere(
    reg: Scripted, other: Scripted
) -> None:
    other.default = TOKEN
    reg.routes[f"HEAD /v2/x/manifests/1"] = [  # noqa: F541
        bearer(f"{other.url}/token"),
        Reply(body=IMAGE.manifest, headers=(("Content-Type", OCI_MANIFEST),)),
    ]

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", Access()) as opened:
            await opened.resolve()

    run(work())
    assert [item.method for item in other.requests] == ["GET"]
    assert other.requests[0].query == {"service": ["tests"], "scope": ["repository:x:pull"]}
    assert "Bearer token-for-tests" in reg.sent("authorization")


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        ("repository:a/b:pull", ["repository:a/b:pull"]),
        ("repository:a/b:push,delete,pull,*", ["repository:a/b:pull"]),
        ("repository:a:push repository:b:* repository:c: registry:catalog:*", []),
        ("repository:x:pull,push,delete", []),
        ("repository(plugin):a:pull Repository:a:pull repository:pull a", []),
        ("repository:../a:pull repository:A:pull repository:a?b:pull repository:aÿ:pull", []),
        (f"repository:{'a' * 256}:pull", []),
        (" ".join(f"repository:a{n}:pull" for n in range(400))[:7000], 4),
        ("\\" * 4000, []),
    ],
)
def test_sec_27_a_challenge_adds_few_repositories_and_no_further_action(
    reg: Scripted, other: Scripted, scope: str, asked: Any
) -> None:
    """And it gets what it has named once: not a new token for each further name."""
    other.default = TOKEN
    value = f'Bearer realm="{other.url}/token",service="tests",scope="{scope}"'
    reg.route(f"/v2/x/blobs/{LAYER.digest}", Reply(401, headers=(("WWW-Authenticate", value),)))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", Access()) as opened:
            with pytest.raises(PermissionDenied):
                await read(opened)

    run(work())
    for request in other.requests:
        further = [one for one in request.query["scope"] if one != "repository:x:pull"]
        assert (len(further) if isinstance(asked, int) else further) == asked
    assert len(other.requests) <= 2


@pytest.mark.parametrize("how", ["hosts.toml", "config", "request", "same origin"])
def test_sec_27_a_realm_that_is_allowed_gets_the_password(
    reg: Scripted, other: Scripted, tmp_path: Path, how: str
) -> None:
    realm = reg if how == "same origin" else other
    realm.routes["GET /token"] = TOKEN
    reg.routes["HEAD /v2/x/manifests/1"] = [
        bearer(f"{realm.url}/token"),
        Reply(body=IMAGE.manifest, headers=(("Content-Type", OCI_MANIFEST),)),
    ]
    settings: dict[str, Any] = {}
    access = ME
    if how == "hosts.toml":
        settings["config_path"] = configured(tmp_path, reg, allowed_realms=f'["{other.host}"]')
    elif how == "config":
        settings["allowed_realms"] = (other.host,)
    elif how == "request":
        access = Access(ME.credential, realms=(other.host,))

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", access, **settings) as opened:
            await opened.resolve()

    run(work())
    asked = [item for item in realm.requests if item.path == "/token"]
    assert [item.headers.get("authorization") for item in asked] == [f"Basic {PAIR}"]
    if realm is other:
        assert other.sent("x-configured") == []


def test_sec_27_a_registry_with_tls_has_a_realm_with_tls(
    reg: Scripted, authority: Authority, connects: list[Any]
) -> None:
    tls = authority.issue("sec27", "127.0.0.2")
    with Scripted("127.0.0.2", tls=tls, default=bearer(f"{reg.url}/token")) as secure:

        async def work(credential: Credential) -> None:
            access = Access(credential, ca=str(authority.ca), realms=(reg.host,))
            async with remote(f"{secure.host}/x:1", access) as opened:
                with pytest.raises(PermissionDenied):
                    await opened.resolve()

        run(work(ME.credential))
        run(work(Credential()))
    assert reg.requests == []
    assert ("127.0.0.2", reg.port) not in connects


def test_sec_27_a_realm_that_moved_within_its_host_gets_the_password(reg: Scripted) -> None:
    reg.routes["GET /token"] = redirect("/v2.1/token?scope=repository:x:pull")
    reg.routes["GET /v2.1/token"] = basic(TOKEN)
    reg.routes["HEAD /v2/x/manifests/1"] = [
        bearer(f"{reg.url}/token"),
        Reply(body=IMAGE.manifest, headers=(("Content-Type", OCI_MANIFEST),)),
    ]

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            await opened.resolve()

    run(work())
    assert "Bearer token-for-tests" in reg.sent("authorization")


def test_sec_27_a_realm_cannot_send_the_password_on(reg: Scripted, other: Scripted) -> None:
    reg.routes["GET /token"] = redirect(f"{other.url}/token")
    reg.default = bearer(f"{reg.url}/token")
    reg.routes.pop("HEAD /v2/x/manifests/1")

    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises(LighterError, match="307"):
                await opened.resolve()

    run(work())
    assert other.requests == []


@pytest.mark.parametrize("how", ["realm", "redirect", "upload", "name"])
@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/", "http://{internal}/", "http://127.1:{port}/"],
)
def test_sec_28_a_registry_cannot_reach_through_us(
    reg: Scripted, internal: Scripted, connects: list[Any], how: str, target: str
) -> None:
    url = target.format(internal=internal.host, port=internal.port)
    lookup = None
    if how == "name":  # the host has a harmless name, and an address within
        lookup = Names(cdn_example="169.254.169.254" if "169" in url else "127.0.0.1")
        url = f"http://cdn.example:{internal.port}/"
    reg.route("/v2/x/manifests/far", bearer(url))
    reg.route(f"/v2/x/blobs/{LAYER.digest}", redirect(url))
    reg.routes["POST /v2/x/blobs/uploads/"] = Reply(202, headers=(("Location", url),))

    async def work() -> None:
        registries = client(lookup)
        name = Reference.parse(f"{reg.host}/x:far")
        async with registries.remote(name, Access()) as opened:
            with pytest.raises(
                (PermissionDenied, InvalidArgument), match=r"allowed_targets|in an odd form"
            ):
                if how == "realm":
                    await opened.resolve()
                elif how == "upload":
                    reg.routes[f"HEAD /v2/x/blobs/{LAYER.digest}"] = error(404)
                    await opened.push_blob(LAYER, source)
                else:
                    await read(opened)

    run(work())
    assert {address[0] for address in connects if address[0] != "::1"} == {"127.0.0.2"}
    assert internal.connections == 0


def test_sec_28_a_target_that_is_allowed_is_reached(reg: Scripted, internal: Scripted) -> None:
    internal.default = blob(DATA)
    reg.route(f"/v2/x/blobs/{LAYER.digest}", redirect(f"{internal.url}/data"))

    async def work(allowed: str) -> None:
        async with remote(f"{reg.host}/x:1", allowed_targets=(allowed,)) as opened:
            assert await read(opened) == DATA

    for allowed in (internal.host, "127.0.0.1", "127.0.0.0/8"):
        run(work(allowed))
    assert internal.sent("authorization") == []


def test_sec_29_a_name_is_not_plain_because_it_leads_to_this_machine(
    authority: Authority,
) -> None:
    """Neither a server without TLS nor one that nobody vouches for gets a byte of a secret."""
    lookup = Names(reg_test="127.0.0.2")
    with Scripted("127.0.0.2") as plain:

        async def work() -> None:
            name = Reference.parse(f"reg.test:{plain.port}/x:1")
            async with client(lookup).remote(name, ME) as opened:
                with pytest.raises(Unavailable, match="no TLS"):
                    await opened.resolve()

        run(work())
        assert plain.requests == []
        assert PASSWORD.encode() not in plain.everything
    with Scripted("127.0.0.2", tls=authority.issue("reg", "reg.test")) as unknown:

        async def refused() -> None:
            name = Reference.parse(f"reg.test:{unknown.port}/x:1")
            async with client(lookup).remote(name, ME) as opened:
                with pytest.raises(Unavailable, match="certificate"):
                    await opened.resolve()

        run(refused())
        assert unknown.requests == []
        assert unknown.plaintext == []


def test_sec_29_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    with Scripted("127.0.0.2", tls=authority.issue("else", "else.test")) as made:

        async def work() -> None:
            access = Access(ME.credential, ca=str(authority.ca))
            async with remote(f"{made.host}/x:1", access) as opened:
                with pytest.raises(Unavailable, match="certificate"):
                    await opened.resolve()

        run(work())
        assert made.requests == []


def test_sec_29_this_machine_may_be_plain(reg: Scripted) -> None:
    with Scripted("127.0.0.1") as here:
        here.serve(IMAGE, "x", "1")

        async def work(host: str) -> None:
            async with remote(f"{host}/x:1") as opened:
                assert await opened.resolve() == IMAGE.descriptor

        run(work(here.host))
        run(work(f"localhost:{here.port}"))
    run(work(reg.host))


def test_sec_30_netrc_is_not_read(
    reg: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.2 login {USER} password {PASSWORD}\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    reg.route("/v2/x/manifests/1", BASIC)

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", Access()) as opened:
            with pytest.raises(PermissionDenied):
                await opened.resolve()

    run(work())
    assert reg.sent("authorization") == []


def test_sec_30_a_proxy_is_the_configured_one_or_that_of_the_managers_environment(
    reg: Scripted, other: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALL_PROXY is none; what is configured stands in the environment's place; each gets what is
    for an address that is not this machine's, and nothing that is."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for server in (reg, other):
        server.serve(IMAGE, "x", "1")

    async def resolve(name: str, **settings: Any) -> bool:
        access = Access(plain_http=True)
        registries = client(Names(), **settings)
        async with registries.remote(Reference.parse(name), access) as opened:
            try:
                return await opened.resolve() == IMAGE.descriptor
            except Unavailable as err:
                assert "registry.test" in err.message
                return False

    monkeypatch.setenv("ALL_PROXY", other.url)
    assert not run(resolve("registry.test/x:1"))
    assert other.requests == []
    monkeypatch.setenv("HTTP_PROXY", other.url)
    assert run(resolve("registry.test/x:1"))
    assert {urlsplit(item.target).hostname for item in other.requests} == {"registry.test"}
    asked = len(other.requests)
    assert run(resolve(f"{reg.host}/x:1"))
    direct = len(reg.requests)
    assert direct and len(other.requests) == asked
    assert run(resolve("registry.test/x:1", proxies=Proxies(http=reg.url)))
    assert len(reg.requests) > direct and len(other.requests) == asked


def test_sec_30_configured_credentials_go_to_the_exact_host(reg: Scripted) -> None:
    from lighter.daemon.registry.settings import HostConfig

    reg.route("/v2/x/manifests/1", BASIC)
    configs = {
        f"127.0.0.2:{reg.port + 1}": HostConfig(credential=ME.credential),
        "127.0.0.2": HostConfig(credential=ME.credential),
        f"x127.0.0.2:{reg.port}": HostConfig(credential=ME.credential),
    }

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", Access(), configs=configs) as opened:
            with pytest.raises(PermissionDenied, match="no credential"):
                await opened.resolve()

    run(work())
    assert reg.sent("authorization") == []


def test_sec_31_no_secret_is_logged_or_told(
    reg: Scripted, other: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Every way to fail, at level debug: neither password nor token nor a signed address's key."""
    caplog.set_level(logging.DEBUG)
    echoed = f"you sent Basic {PAIR} and {PASSWORD} and Bearer token-for-tests"
    reg.routes["GET /token"] = TOKEN
    reg.default = bearer(f"{reg.url}/token")
    signed = redirect(f"{other.url}/data?X-Amz-Signature=signed-secret")
    told: list[str] = []

    async def attempt(name: str, act: Any) -> None:
        try:
            async with remote(f"{reg.host}/{name}") as opened:
                await act(opened)
        except LighterError as err:
            told.append(err.message)

    def denied(request: Request) -> Reply:
        if "authorization" not in request.headers:
            return bearer(f"{reg.url}/token")
        return error(403, "DENIED", f"{echoed}, which is token-for-tests")

    async def work() -> None:
        reg.route("/v2/x/manifests/denied", denied)
        await attempt("x:denied", lambda opened: opened.resolve())
        reg.route("/v2/x/manifests/again", bearer(f"{reg.url}/token"))
        await attempt("x:again", lambda opened: opened.resolve())
        reg.route(f"/v2/x/blobs/{LAYER.digest}", signed)
        for reply in (error(403, "DENIED", echoed), blob(DATA, stop_at=10), Reply(raw=b"x\r\n")):
            other.default = reply
            await attempt("x:1", read)
        reg.routes["GET /token"] = error(401, "NO", echoed)
        await attempt("x:again", lambda opened: opened.resolve())
        reg.routes["GET /token"] = Reply(200, b"{" + echoed.encode())
        await attempt("x:again", lambda opened: opened.resolve())

    run(work())
    assert len(told) == 7
    assert any("signed" not in text and "data" in text for text in caplog.messages)
    everything = "\n".join((*told, *caplog.messages))
    for secret in (PASSWORD, PAIR, "token-for-tests", "signed-secret"):
        assert secret not in everything, everything


# -- caps


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


CHUNK = b"x" * 65536


@pytest.mark.parametrize(
    "what", ["manifest", "token", "error", "headers", "long header", "status", "continue", "config"]
)
def test_sec_32_what_never_ends_is_cut_off(reg: Scripted, tmp_path: Path, what: str) -> None:
    """Each stops at its cap, with the same memory as before."""
    json_type = (("Content-Type", OCI_MANIFEST),)
    reg.routes.clear()
    if what == "manifest":
        reg.default = Reply(200, CHUNK, json_type, endless=True)
    elif what == "token":
        reg.default = bearer(f"{reg.url}/token")
        reg.routes["GET /token"] = Reply(200, CHUNK, endless=True)
    elif what == "error":
        reg.default = Reply(400, CHUNK, endless=True)
    elif what == "headers":
        lines = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(50_000))
        reg.default = Reply(raw=b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
    elif what == "long header":
        reg.default = Reply(raw=b"HTTP/1.1 200 OK\r\nX: " + b"y" * (50 << 20) + b"\r\n\r\n")
    elif what == "status":
        reg.default = Reply(raw=b"HTTP/1.1 200 " + b"y" * (50 << 20) + b"\r\n\r\n")
    elif what == "continue":
        reg.default = Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000_000, end="silence")
    else:
        reg.default = Reply(200, CHUNK, endless=True)

    (tmp_path / reg.host).mkdir()
    (tmp_path / reg.host / "hosts.toml").write_text('dial_timeout = "500ms"\n')

    async def work() -> None:
        async with remote(f"{reg.host}/x:1", config_path=(str(tmp_path),)) as opened:
            with pytest.raises(LighterError):
                if what == "config":
                    await opened.document(IMAGE.config)
                else:
                    await opened.resolve()

    run(work_warm_up(reg))
    before = rss()
    run(work(), 100)
    grown = rss() - before
    # The server is in this process too, with what it is about to send.
    allowance = (32 << 20) + (100 << 20 if what in ("headers", "long header", "status") else 0)
    assert grown < allowance, grown


async def work_warm_up(reg: Scripted) -> None:
    """Load what a first request loads."""
    with Scripted("127.0.0.2") as small:
        small.serve(IMAGE, "x", "1")
        async with remote(f"{small.host}/x:1") as opened:
            await opened.resolve()


def test_sec_32_a_document_above_the_callers_cap_is_not_asked_for(reg: Scripted) -> None:
    async def work() -> None:
        async with remote(f"{reg.host}/x:1") as opened:
            with pytest.raises(ResourceExhausted, match="at most 100"):
                await opened.document(IMAGE.descriptor, 100)
            huge = Descriptor(OCI_MANIFEST, IMAGE.descriptor.digest, 1 << 40)
            with pytest.raises(ResourceExhausted):
                await opened.document(huge)

    run(work())
    assert reg.requests == []


# -- proxies


def through(proxy: Scripted, no_proxy: str = "") -> dict[str, Any]:
    address = f"http://proxy-user:proxy-password@{proxy.host}"
    return {"proxies": Proxies(address, address, no_proxy)}


def test_sec_25_the_proxys_password_is_the_proxys(reg: Scripted, other: Scripted) -> None:
    """It gets the request for a name that it alone can resolve, its own password, and no more."""
    pair = base64.b64encode(b"proxy-user:proxy-password").decode()
    other.default = Reply(200, IMAGE.manifest, (("Content-Type", OCI_MANIFEST),))

    async def work() -> None:
        access = Access(plain_http=True)
        name = "reg.example/x:1"
        async with remote(name, access, **through(other)) as opened:
            await opened.document(await opened.resolve())
        async with remote(f"{reg.host}/x:1", Access(), **through(other)) as opened:
            await opened.resolve()

    run(work())
    assert other.requests[0].target == "http://reg.example/v2/x/manifests/1"
    assert set(other.sent("proxy-authorization")) == {f"Basic {pair}"}
    assert other.sent("authorization") == []
    # This machine's own addresses are asked directly, without that password.
    assert reg.requests
    assert reg.sent("proxy-authorization") == []


def test_sec_28_a_proxy_is_no_way_around(reg: Scripted, other: Scripted) -> None:
    other.default = redirect("http://169.254.169.254/latest/")

    async def work() -> None:
        access = Access(plain_http=True)
        async with remote("reg.example/x:1", access, **through(other)) as opened:
            with pytest.raises(PermissionDenied, match="allowed_targets"):
                await read(opened)

    run(work())
    assert len(other.requests) == 1


def test_sec_31_a_proxy_that_refuses_is_named_without_its_password(other: Scripted) -> None:
    other.default = error(407)

    async def work(access: Access) -> None:
        async with remote("reg.example/x:1", access, **through(other)) as opened:
            with pytest.raises(LighterError) as caught:
                await opened.resolve()
        assert "407" in caught.value.message
        assert "proxy-password" not in caught.value.message

    async def shown() -> str:
        talk = await client(**through(other)).conversation("reg.example", Access())
        try:
            return talk.transport.proxy_of(talk.endpoints[-1].origin)
        finally:
            await talk.close()

    run(work(Access()))
    run(work(Access(plain_http=True)))
    assert [item.method for item in other.requests] == ["CONNECT", "HEAD"]
    assert run(shown()) == f"http://<hidden>@{other.host}"
