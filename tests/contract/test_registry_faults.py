"""Rows F63 to F71: registries that break, stall, lie and come back; each try after works.

The rows about many clients of one image and about what a pull leaves are the pull's.
"""

import asyncio
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import ANONYMOUS, Access, Credential
from lighter.daemon.registry.answer import Deadlines
from lighter.daemon.registry.client import Remote
from lighter.daemon.registry.lookup import Lookup
from lighter.daemon.registry.registries import Registries
from lighter.daemon.registry.retry import Backoff
from lighter.daemon.registry.settings import RegistrySettings
from lighter.daemon.registry.upload import Feed
from lighter.daemon.types import Descriptor
from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from tests.contract.test_registry import open_blob, run
from tests.harness import await_that
from tests.nothreads import no_threads
from tests.registries import (
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Authority,
    Reply,
    Request,
    Scripted,
    bearer,
    blob,
    describe,
    error,
    free_port,
    small_image,
)

DATA = random.Random(7).randbytes(300_000)
BLOB = describe("application/octet-stream", DATA)
PATH = f"/v2/x/blobs/{BLOB.digest}"
TRIES = 5
QUICK = Deadlines(head_s=1, stall_s=0.5, progress_bytes=1000, stored_s=1)


@pytest.fixture
def reg() -> Iterator[Scripted]:
    with Scripted() as made:
        made.route(PATH, blob(DATA))
        yield made


def remote(
    *hosts: str,
    deadlines: Deadlines = QUICK,
    access: Access = ANONYMOUS,
    **settings: Any,
) -> Remote:
    """`x` at the last of the hosts; those before are its mirrors."""
    *mirrors, own = hosts
    settings.setdefault("mirrors", {own: tuple(f"http://{mirror}" for mirror in mirrors)})
    registries = Registries(
        RegistrySettings(config_path=(), **settings), deadlines, Backoff(TRIES, 0.01, 0.05, 0.3)
    )
    return registries.remote(Reference.parse(f"{own}/x:1"), access)


async def read(opened: Remote, descriptor: Descriptor = BLOB, offset: int = 0) -> bytes:
    async with opened.blob(descriptor, offset) as body:
        return b"".join([chunk async for chunk in body])


def then(first: Callable[[Request], Reply], times: int = 1) -> Callable[[Request], Reply]:
    """`first` that many times, afterwards the whole blob."""
    asked = 0

    def answer(request: Request) -> Reply:
        nonlocal asked
        asked += 1
        return first(request) if asked <= times else blob(DATA)(request)

    return answer


# -- F63: cut short


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("at", [0, 1, len(DATA) // 2, len(DATA) - 1])
def test_f63_a_body_that_is_cut_goes_on_where_it_was(reg: Scripted, at: int, end: str) -> None:
    reg.route(PATH, then(blob(DATA, stop_at=at, end=end)))

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA

    run(work())
    first, second = reg.asked("GET", BLOB.digest)
    assert "range" not in first.headers
    # A reset may take with it what the client had not read yet.
    start = int(second.headers.get("range", "bytes=0-")[6:-1])
    assert start == at if end == "close" else start <= at


def test_f63_a_chunked_body_that_is_cut_goes_on(reg: Scripted) -> None:
    half = DATA[:1000]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    cut = Reply(raw=head + b"%x\r\n%s\r\n" % (len(half), half))
    reg.route(PATH, then(lambda _request: cut))

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA

    run(work())
    assert reg.asked("GET")[1].headers["range"] == "bytes=1000-"


def test_f63_what_never_comes_whole_is_given_up_with_its_offset(reg: Scripted) -> None:
    def one_more(request: Request) -> Reply:
        return blob(DATA, stop_at=1)(request)

    reg.route(PATH, one_more)

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(Unavailable) as caught:
                await read(opened)
        for word in (BLOB.digest, reg.host, f"at byte 6 of {len(DATA)}"):
            assert word in caught.value.message

    run(work())
    assert len(reg.asked("GET")) == 6


def test_f63_a_body_that_ends_early_without_a_length_goes_on(reg: Scripted) -> None:
    raw = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + DATA[:500]
    reg.route(PATH, then(lambda _request: Reply(raw=raw)))

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA

    run(work())
    assert reg.asked("GET")[1].headers["range"] == "bytes=500-"


# -- F64: other bytes than were asked for


def test_f64_a_registry_without_ranges_begins_anew(reg: Scripted) -> None:
    reg.route(PATH, Reply(200, DATA))

    async def work() -> None:
        async with remote(reg.host) as opened:
            async with opened.blob(BLOB, 1000) as body:
                assert body.offset == 0
                assert b"".join([chunk async for chunk in body]) == DATA

    run(work())


def test_f64_what_comes_again_after_a_cut_is_left_out(reg: Scripted) -> None:
    """The reader has the first half already, and the registry has no ranges."""
    reg.route(PATH, [Reply(200, DATA, stop_at=len(DATA) // 2), Reply(200, DATA)])

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA

    run(work())


@pytest.mark.parametrize(
    "content_range",
    [
        *("", "bytes 0-9/10", f"bytes 999-{len(DATA) - 1}/{len(DATA)}", "bytes 1000-1001/*"),
        *(f"bytes 1000-{len(DATA) - 1}/5", "items 1000-1/2", "bytes 1000-" + "9" * 400 + "/*"),
    ],
)
def test_f64_another_part_than_was_asked_for_is_not_taken(
    reg: Scripted, content_range: str
) -> None:
    def odd(request: Request) -> Reply:
        if "range" in request.headers:
            return Reply(206, DATA[1000:], (("Content-Range", content_range),))
        return Reply(200, DATA)

    reg.route(PATH, odd)

    async def work() -> None:
        async with remote(reg.host) as opened:
            async with opened.blob(BLOB, 1000) as body:
                assert body.offset == 0
                assert b"".join([chunk async for chunk in body]) == DATA

    run(work())


def test_f64_416_begins_anew(reg: Scripted) -> None:
    reg.route(PATH, lambda item: Reply(416) if "range" in item.headers else Reply(200, DATA))

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened, offset=1000) == DATA

    run(work())


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1, len(DATA) * 2])
@pytest.mark.parametrize("told", [True, False], ids=["with length", "without"])
def test_f64_another_size_is_refused(reg: Scripted, size: int, told: bool) -> None:
    body = (DATA * 2)[:size]
    if told:
        reply = Reply(200, body)
    else:
        reply = Reply(raw=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
    reg.route(PATH, reply)

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises((DataLoss, Unavailable), match=BLOB.digest):
                await read(opened)

    run(work())
    assert len(reg.requests) <= 6


def test_f64_an_encoding_that_nobody_asked_for_is_refused(reg: Scripted) -> None:
    reg.route(PATH, Reply(200, DATA, (("Content-Encoding", "gzip"),)))

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(LighterError, match="encoded"):
                await read(opened)

    run(work())
    assert reg.sent("accept-encoding") == ["identity"]


# -- F65: who are you


def test_f65_an_expired_token_is_renewed_once(reg: Scripted) -> None:
    """The registry stops believing a token in the middle of work, whatever life it has said."""
    given = 0
    believed: set[str] = set()

    def token(_request: Request) -> Reply:
        nonlocal given
        given += 1
        believed.clear()
        believed.add(f"Bearer token-{given}")
        return Reply(200, b'{"token":"token-%d","expires_in":1%s}' % (given, b"0" * 400))

    def guarded(request: Request) -> Reply:
        if request.headers.get("authorization") not in believed:
            return bearer(f"{reg.url}/token")
        return blob(DATA)(request)

    reg.routes["GET /token"] = token
    reg.route(PATH, guarded)

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA
            believed.clear()
            assert await read(opened) == DATA
            assert given == 2
            believed.clear()
            results = await asyncio.gather(*(read(opened) for _ in range(10)))
            assert set(results) == {DATA}

    run(work())


def test_f65_a_token_that_is_never_believed_is_given_up(reg: Scripted) -> None:
    reg.routes["GET /token"] = Reply(200, b'{"access_token":"some-token","expires_in":"soon"}')
    reg.route(PATH, bearer(f"{reg.url}/token"))

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(PermissionDenied, match="who are you"):
                await read(opened)

    run(work())
    assert len(reg.asked("GET", BLOB.digest)) == 3
    assert len(reg.asked("GET", "/token")) == 2


def test_f65_who_is_asked_after_another_has_a_token_takes_that(reg: Scripted) -> None:
    """Two begin without a token; one has its own before the other is asked for it."""
    asked: list[str] = []
    served = threading.Event()

    def guarded(request: Request) -> Reply:
        asked.append(request.headers.get("authorization", ""))
        if asked[-1]:
            served.set()
            return blob(DATA)(request)
        if asked.count("") == 2:
            assert served.wait(20)
        return bearer(f"{reg.url}/token")

    reg.routes["GET /token"] = Reply(200, b'{"token":"some-token"}')
    reg.route(PATH, guarded)

    async def work() -> None:
        patient = Deadlines(head_s=30, stall_s=30)
        async with remote(reg.host, deadlines=patient) as opened:
            assert await asyncio.gather(read(opened), read(opened)) == [DATA, DATA]

    run(work())
    assert asked.count("") == 2


@pytest.mark.parametrize(
    "challenge",
    [
        *("", "Negotiate", "Bearer", "Bearer realm=", 'Bearer realm="file:///x"', "\xff"),
        'Bearer realm="https://a.example/t",service="\xff"',
    ],
)
def test_f65_an_odd_challenge_is_a_refusal(reg: Scripted, challenge: str) -> None:
    reg.route(PATH, Reply(401, headers=(("WWW-Authenticate", challenge),)))

    async def work() -> None:
        async with remote(reg.host, access=Access(Credential(USER, PASSWORD))) as opened:
            with pytest.raises(LighterError, match=reg.host):
                await read(opened)

    run(work())
    assert len(reg.requests) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(401, "UNAUTHORIZED", "wrong password"), PermissionDenied),
        (error(403, "DENIED", "wrong password"), PermissionDenied),
        (Reply(200, b"<html>wrong password</html>"), LighterError),
        (Reply(200, b'{"token": 5}'), LighterError),
        (Reply(200, b'{"token": "a\\r\\nX: y"}'), LighterError),
        (error(503), Unavailable),
        (Reply(raw=b"nonsense\r\n\r\n"), LighterError),
    ],
)
def test_f65_a_token_server_that_gives_none(
    reg: Scripted, reply: Reply, kind: type[LighterError]
) -> None:
    reg.routes["GET /token"] = reply
    reg.route(PATH, bearer(f"{reg.url}/token"))

    async def work() -> None:
        async with remote(reg.host, access=Access(Credential(USER, PASSWORD))) as opened:
            with pytest.raises(kind, match=reg.host) as caught:
                await read(opened)
            assert PASSWORD not in caught.value.message

    run(work())
    assert len(reg.asked("GET", BLOB.digest)) <= TRIES


def named(realm: str, scope: str) -> Reply:
    value = f'Bearer realm="{realm}",service="tests",scope="{scope}"'
    return error(401, "UNAUTHORIZED", "who are you", WWW_Authenticate=value)


def test_a_token_is_for_the_repository_that_the_challenge_names_too(reg: Scripted) -> None:
    """A proxy gives repositories other names, which only the registry behind it knows."""

    def token(request: Request) -> Reply:
        scopes = request.query["scope"]
        return Reply(200, b'{"token":"for %s"}'.replace(b" ", b"-") % ",".join(scopes).encode())

    def guarded(actions: str, reply: Any) -> Any:
        def answer(request: Request) -> Reply:
            given = request.headers.get("authorization", "")
            if f"repository:org/app:{actions}" not in given:
                return named(f"{reg.url}/token", f"repository:org/app:{actions}")
            return reply(request) if callable(reply) else reply

        return answer

    upload_routes(reg, Reply(201))
    reg.routes["GET /token"] = token
    reg.route(PATH, guarded("pull", blob(DATA)))
    reg.routes[f"HEAD {PATH}"] = guarded("pull", error(404))
    begun = reg.routes["POST /v2/x/blobs/uploads/"]
    reg.routes["POST /v2/x/blobs/uploads/"] = guarded("pull,push", begun)

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA
            assert await read(opened) == DATA
            assert await opened.push_blob(BLOB, open_blob(DATA))

    run(work())
    scopes = [item.query["scope"] for item in reg.asked("GET", "/token")]
    assert scopes == [
        ["repository:org/app:pull", "repository:x:pull"],
        ["repository:x:pull,push"],  # the realm is known now, other names for this are not yet
        ["repository:org/app:pull", "repository:x:pull,push"],
        ["repository:org/app:pull", "repository:org/app:pull,push", "repository:x:pull,push"],
    ]


# -- F66: not now, not here


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_f66_a_burst_of_errors_is_sat_out(reg: Scripted, status: int) -> None:
    reg.route(PATH, then(lambda _request: error(status, "BUSY"), TRIES - 1))

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA

    run(work())
    assert len(reg.requests) == TRIES


@pytest.mark.parametrize(("status", "kind"), [(429, ResourceExhausted), (500, Unavailable)])
def test_f66_a_registry_that_stays_away_is_given_up(
    reg: Scripted, status: int, kind: type[LighterError]
) -> None:
    reg.route(PATH, error(status, "BUSY", "come back later"))

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(kind, match="come back later"):
                await read(opened)

    run(work())
    assert len(reg.requests) == TRIES


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418, 501])
def test_f66_what_will_not_change_is_not_tried_again(reg: Scripted, status: int) -> None:
    reg.route(PATH, error(status))

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(LighterError, match=f"{BLOB.digest}.*{reg.host}.*{status}"):
                await read(opened)

    run(work())
    assert len(reg.requests) == 1


@pytest.mark.parametrize("value", ["1000000", "Fri, 31 Dec 2100 23:59:59 GMT", "-1", "soon", ""])
def test_f66_an_absurd_retry_after_is_capped(reg: Scripted, value: str) -> None:
    reg.route(PATH, then(lambda _request: error(503, Retry_After=value)))

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await read(opened) == DATA

    run(work())  # the cap of these tests is 0.3 s


@pytest.mark.parametrize(
    ("value", "words"),
    [("90", "90 s"), ("1800", "30 minutes"), ("21600", "6 hours"), ("1764288000", "more than a")],
)
def test_f66_who_wants_a_long_pause_is_not_asked_again(
    reg: Scripted, value: str, words: str
) -> None:
    """But for its words, which HEAD cannot have."""
    limit = error(429, "TOOMANYREQUESTS", "your pull rate limit", Retry_After=value)
    reg.route(PATH, limit)
    reg.routes["HEAD /v2/x/manifests/1"] = error(429, Retry_After=value)
    reg.routes["GET /v2/x/manifests/1"] = limit

    async def work() -> None:
        async with remote(reg.host) as opened:
            expected = f"your pull rate limit; it may be asked again in {words}"
            with pytest.raises(ResourceExhausted, match=expected):
                await read(opened)
            with pytest.raises(ResourceExhausted, match=expected):
                await opened.resolve()

    run(work())
    assert [item.method for item in reg.requests] == ["GET", "HEAD", "GET"]


def test_f66_a_retry_after_is_followed(reg: Scripted) -> None:
    times: list[float] = []

    def answer(request: Request) -> Reply:
        times.append(time.monotonic())
        return error(429, Retry_After="1") if len(times) == 1 else blob(DATA)(request)

    reg.route(PATH, answer)

    async def work() -> None:
        registries = Registries(RegistrySettings(config_path=()), QUICK, Backoff(2, 0.01, 0.01, 5))
        async with registries.remote(Reference.parse(f"{reg.host}/x:1")) as opened:
            assert await read(opened) == DATA

    run(work())
    assert times[1] - times[0] >= 1


def test_f66_the_next_host_is_asked_in_order(reg: Scripted) -> None:
    with Scripted() as first, Scripted() as second:
        first.route(PATH, error(500))
        second.route(PATH, error(404))

        async def work() -> None:
            async with remote(first.host, second.host, reg.host) as opened:
                async with opened.blob(BLOB) as body:
                    assert body.host == reg.host
                    assert b"".join([chunk async for chunk in body]) == DATA

        run(work())
        assert len(first.requests) == 2, "one more try, then the next"
        assert len(second.requests) == 1
        assert {item.query["ns"][0] for item in first.requests} == {reg.host}
    assert len(reg.requests) == 1
    assert "ns" not in reg.requests[0].query


def test_f66_all_hosts_are_named_when_none_has_it(reg: Scripted) -> None:
    reg.route(PATH, error(404, "BLOB_UNKNOWN"))
    with Scripted() as mirror:
        mirror.route(PATH, error(403, "DENIED"))

        async def work() -> None:
            async with remote(mirror.host, reg.host) as opened:
                with pytest.raises(NotFound, match=f"{reg.host}.*BLOB_UNKNOWN.*{mirror.host}"):
                    await read(opened)

        run(work())


def test_f66_a_mirror_that_nobody_listens_at_is_passed_over_at_once(reg: Scripted) -> None:
    async def work() -> None:
        async with remote(f"127.0.0.1:{free_port()}", reg.host) as opened:
            assert await read(opened) == DATA

    run(work())


# -- F67: slow


@pytest.mark.parametrize("what", ["head", "silence", "accept"])
def test_f67_an_answer_that_does_not_come_is_given_up(what: str, tmp_path: Path) -> None:
    """One byte of the head a second, nothing after the request, nothing after the connection."""
    with Scripted() as reg:
        if what == "head":
            raw = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000
            reg.route(PATH, Reply(raw=raw, pace=(1, 0.05)))
        else:
            reg.route(PATH, Reply(200, DATA, delay_s=30))
        host = reg.host
        listener = socket.create_server(("127.0.0.1", 0)) if what == "accept" else None
        if listener:
            host = f"127.0.0.1:{listener.getsockname()[1]}"
        access = Access(skip_verify=True) if what == "accept" else Access()
        (tmp_path / host).mkdir()
        (tmp_path / host / "hosts.toml").write_text('dial_timeout = "500ms"\n')

        async def work() -> None:
            settings = RegistrySettings(config_path=(str(tmp_path),))
            registries = Registries(settings, Deadlines(0.3, 0.3), Backoff(2, 0.01))
            name = Reference.parse(f"{host}/x:1")
            async with registries.remote(name, access) as opened:
                with pytest.raises(Unavailable, match=host):
                    await read(opened)

        began = time.monotonic()
        run(work())
        assert time.monotonic() - began < 10
        if listener:
            listener.close()


# Asks a name server that is silent; the fourth name stands in /etc/hosts.
BLACK_HOLE = """
import asyncio, socket, time
from lighter.daemon.registry.lookup import Lookup

silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))

async def work():
    lookup = Lookup(deadline_s=1, at_once=2)
    began = time.monotonic()
    asked = [lookup.addresses(f"n{number}.test") for number in range(3)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, TimeoutError) for one in found), found
    assert time.monotonic() - began < 6, "given up, although the resolver goes on"
    lookups = [thread for thread in __import__("threading").enumerate() if thread.name == "lookup"]
    assert len(lookups) == 2, "the third has had no place"
    while True:
        try:
            return await lookup.addresses("localhost")
        except TimeoutError:
            assert time.monotonic() - began < 30, "places are given back"

print(asyncio.run(work())[0])
"""


def test_f67_a_name_server_that_is_silent_holds_nothing_up(tmp_path: Path) -> None:
    """In a network of its own. Each lookup is given up in time, and so many at once are asked."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:6 attempts:1\n")
    steps = (
        "ip link set lo up && mount --bind $1 /etc/resolv.conf && "
        'exec "$2" -c "$3"'  # the interpreter, with what it is to run
    )
    done = subprocess.run(
        ["unshare", "-mn", "sh", "-ec", steps, "sh", resolv, sys.executable, BLACK_HOLE],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in ("127.0.0.1", "::1")


def test_f67_a_lookup_that_gets_no_thread_gives_its_place_back() -> None:
    async def work() -> list[object]:
        lookup = Lookup(deadline_s=30, at_once=1)
        with no_threads():
            for _ in range(2):
                with pytest.raises(OSError, match="can't start new thread"):
                    await lookup.addresses("localhost")
        return list(await lookup.addresses("localhost"))

    assert run(work())


def test_f67_a_byte_now_and_then_is_no_progress(reg: Scripted) -> None:
    reg.route(PATH, blob(DATA, pace=(1, 0.05)))

    async def work() -> None:
        async with asyncio.timeout(60), remote(reg.host) as opened:
            with pytest.raises(Unavailable, match=r"bytes came in 0\.5 s"):
                await read(opened)

    run(work())


def test_f67_slow_but_steady_is_no_fault(reg: Scripted) -> None:
    """Longer than the window, never less than its progress."""
    reg.route(PATH, then(blob(DATA, pace=(10_000, 0.15))))

    async def work() -> None:
        window = Deadlines(head_s=10, stall_s=3, progress_bytes=1000)
        async with remote(reg.host, deadlines=window) as opened:
            assert await read(opened) == DATA

    run(work())
    assert len(reg.requests) == 1


def test_f67_a_slow_reader_is_no_stall(reg: Scripted) -> None:
    """The time that a reader takes, say for a slow disk, is not the registry's: with it there would
    be too little progress in each window.
    """
    slow = DATA[:1500]
    described = describe("application/octet-stream", slow)
    reg.route(f"/v2/x/blobs/{described.digest}", blob(slow, pace=(300, 1.2)))

    async def work() -> None:
        window = Deadlines(head_s=10, stall_s=3, progress_bytes=1000)
        async with remote(reg.host, deadlines=window) as opened, opened.blob(described) as body:
            got = b""
            async for chunk in body:
                got += chunk
                await asyncio.sleep(1)
            assert got == slow

    run(work())
    assert len(reg.requests) == 1


def test_f67_a_hundred_that_are_stuck_hold_up_nobody(reg: Scripted) -> None:
    with Scripted() as stuck:
        stuck.route(PATH, Reply(200, DATA, delay_s=60))

        async def one_stuck() -> None:
            async with remote(stuck.host, deadlines=Deadlines()) as opened:
                await read(opened)

        async def work() -> None:
            waiting = [asyncio.ensure_future(one_stuck()) for _ in range(100)]
            await asyncio.to_thread(
                await_that, lambda: len(stuck.requests) == 100, 30, "all of them are stuck"
            )
            async with remote(reg.host, deadlines=Deadlines()) as opened:
                async with asyncio.timeout(10):
                    assert await read(opened) == DATA
            began = time.monotonic()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert time.monotonic() - began < 10

        run(work())


# -- F70: mirrors


def test_f70_a_mirror_that_dies_in_the_middle_is_replaced(reg: Scripted) -> None:
    with Scripted() as mirror:
        half = len(DATA) // 2
        mirror.route(PATH, [blob(DATA, stop_at=half), error(503)])

        async def work() -> None:
            async with remote(mirror.host, reg.host) as opened:
                async with opened.blob(BLOB) as body:
                    assert body.host == mirror.host
                    assert b"".join([chunk async for chunk in body]) == DATA
                    assert body.host == reg.host

        run(work())
    assert reg.requests[0].headers["range"] == f"bytes={half}-"


def test_f70_a_mirror_with_other_content_is_not_asked_again(reg: Scripted) -> None:
    with Scripted() as mirror:
        mirror.route(PATH, Reply(200, DATA[::-1]))

        async def work() -> None:
            async with remote(mirror.host, reg.host) as opened:
                async with opened.blob(BLOB) as body:
                    wrong = b"".join([chunk async for chunk in body])
                    assert wrong != DATA  # the reader finds out
                    assert opened.distrust(body.host)
                assert await read(opened) == DATA
                assert not opened.distrust(reg.host)
                with pytest.raises(NotFound, match="no host is left"):
                    await read(opened)

        run(work())
        assert len(mirror.requests) == 1


@pytest.mark.parametrize(("status", "kind"), [(503, Unavailable), (429, ResourceExhausted)])
def test_f70_a_mirror_and_a_registry_that_both_fail_are_told(
    reg: Scripted, status: int, kind: type[LighterError]
) -> None:
    reg.route(PATH, error(status))
    with Scripted() as mirror:
        mirror.route(PATH, error(404))

        async def work() -> None:
            async with remote(mirror.host, reg.host) as opened:
                with pytest.raises(kind, match=f"{reg.host}.*before.*{mirror.host}"):
                    await read(opened)

        run(work())


def test_f70_bytes_of_two_hosts_are_no_reason_to_distrust_the_registry(reg: Scripted) -> None:
    """A mirror has sent a wrong first half and died: its part and the right rest are no blob."""
    half = len(DATA) // 2
    with Scripted() as mirror:
        mirror.route(PATH, [blob(DATA[::-1], stop_at=half), error(503)])

        async def work() -> None:
            async with remote(mirror.host, reg.host) as opened:
                async with opened.blob(BLOB) as body:
                    assert b"".join([chunk async for chunk in body]) != DATA
                assert body.hosts == [mirror.host, reg.host]
                assert opened.distrust(*body.hosts)
                asked = len(mirror.requests)
                assert await read(opened) == DATA
                assert len(mirror.requests) == asked

        run(work())


def test_f70_a_mirror_with_another_manifest_under_a_digest_is_passed_over(reg: Scripted) -> None:
    image = small_image(10)
    item = image.descriptor
    reg.serve(image, "x", "1")
    with Scripted() as mirror:
        wrong = image.manifest.replace(b"layers", b"lAyers")
        mirror.route(
            f"/v2/x/manifests/{item.digest}", Reply(200, wrong, (("Content-Type", OCI_MANIFEST),))
        )

        async def work() -> None:
            async with remote(mirror.host, reg.host) as opened:
                assert await opened.document(item) == image.manifest

        run(work())
        assert mirror.requests


def test_f70_credentials_are_per_host(reg: Scripted) -> None:
    """A mirror that asks for a password gets none, and the registry the right one."""
    wants = error(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="x"')
    reg.route(PATH, [wants, blob(DATA)])
    with Scripted() as mirror:
        mirror.default = wants

        async def work() -> None:
            me = Access(Credential(USER, PASSWORD))
            async with remote(mirror.host, reg.host, access=me) as opened:
                assert await read(opened) == DATA

        run(work())
        assert mirror.sent("authorization") == []
    assert len(reg.sent("authorization")) == 1


# -- F71: push


def test_a_push_goes_to_the_first_host_that_may_be_pushed_to(tmp_path: Path) -> None:
    """And a mirror of the configuration's table is none, as in containerd."""
    small = small_image(10)
    with Scripted() as mirror, Scripted() as inner, Scripted() as own:
        for made in (mirror, inner, own):
            made.routes["PUT /v2/x/manifests/1"] = Reply(201)

        async def work(**settings: Any) -> None:
            settings.setdefault("config_path", ())
            registries = Registries(RegistrySettings(**settings), QUICK, Backoff(1))
            name = f"{own.host}/x:1"
            async with registries.remote(Reference.parse(name)) as opened:
                await opened.push_document(small.descriptor, small.manifest, "1")

        run(work(mirrors={own.host: (mirror.url, inner.url)}))
        assert [len(made.asked("PUT")) for made in (mirror, inner, own)] == [0, 0, 1]
        directory = tmp_path / own.host
        directory.mkdir()
        (directory / "hosts.toml").write_text(
            f'server = "{own.url}"\n[host."{mirror.url}"]\ncapabilities = ["pull", "resolve"]\n'
            f'[host."{inner.url}"]\n'
        )
        run(work(config_path=(str(tmp_path),)))
        assert [len(made.asked("PUT")) for made in (mirror, inner, own)] == [0, 1, 1]


def upload_routes(reg: Scripted, *puts: Any) -> None:
    reg.routes[f"HEAD {PATH}"] = error(404)
    reg.routes["POST /v2/x/blobs/uploads/"] = Reply(202, headers=(("Location", "/upload?a=b"),))
    reg.routes["PUT /upload"] = list(puts)


def test_f71_an_upload_that_breaks_is_begun_again(reg: Scripted) -> None:
    upload_routes(
        reg,
        Reply(raw=b""),  # the connection is lost after 202
        error(500),
        error(404, "BLOB_UPLOAD_UNKNOWN"),  # the session has expired
        Reply(201),
    )
    sent: list[int] = []

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await opened.push_blob(BLOB, open_blob(DATA), progress=sent.append)

    run(work())
    assert [item.body == DATA for item in reg.asked("PUT")] == [True] * 4
    assert len(reg.asked("POST")) == 4, "each in a session of its own"
    assert sent.count(0) == 4
    assert sent[-1] == len(DATA)
    assert reg.asked("PUT")[-1].query == {"a": ["b"], "digest": [BLOB.digest]}


@pytest.mark.parametrize("status", [413, 403, 400])
def test_f71_an_upload_that_is_refused_names_the_blob(reg: Scripted, status: int) -> None:
    upload_routes(reg, error(status, "SIZE_INVALID", "too large for us"))

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(LighterError, match=f"{BLOB.digest}.*{reg.host}.*too large for us"):
                await opened.push_blob(BLOB, open_blob(DATA))

    run(work())
    assert len(reg.asked("PUT")) == 1


class Refusing(BaseHTTPRequestHandler):
    """Answers an upload while it still comes, reads no more of it, and closes, as nginx does."""

    protocol_version = "HTTP/1.1"
    puts: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(404)

    def do_POST(self) -> None:
        self._answer(202, Location="/upload")

    def do_PUT(self) -> None:
        self.puts.append(self.path)
        self._answer(413, b'{"errors":[{"code":"SIZE_INVALID","message":"at most 1 MB"}]}')
        self.close_connection = True

    def handle_expect_100(self) -> bool:
        self.do_PUT()
        return False

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in (*headers.items(), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_f71_what_is_refused_in_the_middle_of_a_large_upload_is_told_in_its_words() -> None:
    large = bytes(64 << 20)
    descriptor = describe("application/octet-stream", large)
    Refusing.puts.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"

        async def work() -> None:
            async with remote(host) as opened:
                with pytest.raises(LighterError, match=f"{descriptor.digest}.*at most 1 MB"):
                    await opened.push_blob(descriptor, open_blob(large))

        run(work())
        server.shutdown()
    # One whose answer may be lost in the reset that follows it, and one that asks first.
    assert len(Refusing.puts) <= 2


class Sipping(Refusing):
    """Takes an upload in sips, and waits after each until more has been sent."""

    sent: ClassVar[list[int]] = []

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            known = list(self.sent)
            left -= len(self.rfile.read(min(left, 320 << 10)))
            if left > 2 << 20:  # else all may have been sent
                await_that(partial(self._is_more_than, known), 20, "no more was sent")
        self._answer(201)

    def _is_more_than(self, known: list[int]) -> bool:
        return len(self.sent) > len(known)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_f71_what_a_slow_line_takes_is_seen_soon(scheme: str, tmp_path: Path) -> None:
    """Neither the kernel nor TLS holds much of an upload back, which hides that it goes on."""
    large = bytes(8 << 20)
    descriptor = describe("application/octet-stream", large)
    Sipping.sent.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Sipping, bind_and_activate=False) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        server.server_bind()
        server.server_activate()
        access = ANONYMOUS
        if scheme == "https":
            authority = Authority(tmp_path)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.issue("slow", "127.0.0.1"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
            access = Access(ca=str(authority.ca))
        threading.Thread(target=server.serve_forever, daemon=True).start()

        async def work() -> None:
            patient = Deadlines(stall_s=60, stored_s=60)
            registries = Registries(RegistrySettings(config_path=()), patient, Backoff(1))
            name = f"127.0.0.1:{server.server_port}/x:1"
            async with registries.remote(Reference.parse(name), access) as opened:
                source = open_blob(large, 16 << 10)
                assert await opened.push_blob(descriptor, source, progress=Sipping.sent.append)

        run(work())
        server.shutdown()


def test_f71_a_line_that_is_slow_for_a_whole_chunk_is_no_stall() -> None:
    async def work() -> None:
        feed = Feed(open_blob(bytes(1 << 20), 1 << 20))

        async def request() -> int:
            taken = 0
            async for piece in feed.pieces():
                await asyncio.sleep(0.3 * len(piece) / (64 << 10))  # the line's pace
                taken += len(piece)
            return taken

        assert await feed.watch(request(), Deadlines(stall_s=1.5), "push") == 1 << 20

    run(work())


def test_f71_a_registry_that_takes_no_more_is_given_up(reg: Scripted) -> None:
    """It answers nothing once it has the whole blob."""
    upload_routes(reg, Reply(201, delay_s=30))

    async def work() -> None:
        registries = Registries(RegistrySettings(config_path=()), QUICK, Backoff(1))
        async with registries.remote(Reference.parse(f"{reg.host}/x:1")) as opened:
            with pytest.raises(Unavailable, match="takes no more of it for 1 s"):
                await opened.push_blob(BLOB, open_blob(DATA))

    run(work())


def test_f71_a_source_of_another_size_is_not_pushed(reg: Scripted) -> None:
    upload_routes(reg, Reply(201))

    async def work(data: bytes) -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(InvalidArgument, match=f"{BLOB.digest}.*its content"):
                await opened.push_blob(BLOB, open_blob(data))

    run(work(DATA[:-1]))
    run(work(DATA + b"x"))
    # One that is cut off is there when its end is seen, which may be later than our own.
    await_that(lambda: len(reg.asked("PUT")) == 2, 20, "both were cut off")
    assert all(len(item.body) < len(DATA) for item in reg.asked("PUT"))


def test_f71_a_registry_that_stores_another_digest_is_found_out(reg: Scripted) -> None:
    other = "sha256:" + "5" * 64
    upload_routes(reg, Reply(201, headers=(("Docker-Content-Digest", other),)))
    image = small_image(10)
    reg.routes["PUT /v2/x/manifests/1"] = Reply(201, headers=(("Docker-Content-Digest", other),))

    async def work() -> None:
        async with remote(reg.host) as opened:
            with pytest.raises(DataLoss, match=other):
                await opened.push_blob(BLOB, open_blob(DATA))
            with pytest.raises(DataLoss, match=other):
                await opened.push_document(image.descriptor, image.manifest, "1")
            with pytest.raises(DataLoss):
                await opened.push_document(image.descriptor, image.manifest + b" ", "1")

    run(work())


def test_f71_a_refused_mount_is_an_upload(reg: Scripted) -> None:
    upload_routes(reg, Reply(201))

    def begin(request: Request) -> Reply:
        if "mount" in request.query:
            return error(403, "DENIED", "not yours")
        return Reply(202, headers=(("Location", "/upload"),))

    reg.routes["POST /v2/x/blobs/uploads/"] = begin

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await opened.push_blob(BLOB, open_blob(DATA), mount_from="other/repo")

    run(work())
    first, second = reg.asked("POST")
    assert first.query == {"mount": [BLOB.digest], "from": ["other/repo"]}
    assert second.query == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_mount_that_the_token_realm_refuses_is_an_upload(reg: Scripted, status: int) -> None:
    """It gives no token for the other repository: the upload asks for none."""

    def token(request: Request) -> Reply:
        if any("other/repo" in scope for scope in request.query["scope"]):
            return error(status, "DENIED", "not yours")
        return Reply(200, b'{"token":"for-x"}')

    def begin(request: Request) -> Reply:
        if request.headers.get("authorization") != "Bearer for-x":
            return bearer(f"{reg.url}/token")
        return Reply(202, headers=(("Location", "/upload"),))

    upload_routes(reg, Reply(201))
    reg.routes["GET /token"] = token
    reg.routes["POST /v2/x/blobs/uploads/"] = begin

    async def work() -> None:
        async with remote(reg.host) as opened:
            assert await opened.push_blob(BLOB, open_blob(DATA), mount_from="other/repo")

    run(work())
    assert [request.headers.get("authorization") for request in reg.asked("PUT")] == [
        "Bearer for-x"
    ]


async def _never() -> AsyncIterator[bytes]:
    raise AssertionError("nothing was to be sent")
    yield b""


def test_what_the_registry_has_is_not_sent(reg: Scripted) -> None:
    async def work() -> None:
        async with remote(reg.host) as opened:
            assert not await opened.push_blob(BLOB, _never)

    run(work())
    assert [item.method for item in reg.requests] == ["HEAD"]
